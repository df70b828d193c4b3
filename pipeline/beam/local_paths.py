"""Warns of local paths in a job whose workers run on other machines."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.beam.check_runner import starts_engine
from pipeline.beam.options import runs_on_engine
from pipeline.files import is_local


def warn_of_local_paths(command: str, beam_options: dict[str, Any], paths: Mapping[str, Iterable[str]]) -> None:
    """Prints a line to stderr if a job of an engine reads or writes local paths.

    Args:
        command: First word of the line.
        beam_options: Beam's pipeline options by name.
        paths: The paths of the job, by the names that the command gives them, for example "--output".
    """
    if not runs_on_engine(beam_options) or starts_engine(beam_options):
        return
    local = [f"{name} {path}" for name, named in paths.items() for path in named if is_local(path)]
    if local:
        shown = ", ".join(local[:3]) + (f" and {len(local) - 3:,} more" if len(local) > 3 else "")
        print(
            f"{command}: warning: local paths on {beam_options['runner']}: {shown}. Every machine that runs workers "
            "must see the same files there, and this machine too, as on a network file system; otherwise use s3:// or "
            "gs:// paths.",
            file=sys.stderr,
        )
