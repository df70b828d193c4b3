"""Parses the flags of a command that runs a Beam job: ours, and any of Beam's own."""

import logging
from typing import Any

from pipeline.flags import FlagParser

# Names under which people ask for the runner of this machine. Beam's own `DirectRunner` is a switch that downloads a
# program before anything else; the runner that it falls back to is the one we take at once.
LOCAL_RUNNERS = (None, "DirectRunner", "FnApiRunner", "apache_beam.runners.direct.DirectRunner")


def runs_in_this_process(beam_options: dict[str, Any]) -> bool:
    """Whether a job with these options of Beam's runs here, and in one thread."""
    parallel = {"direct_running_mode", "direct_num_workers"} & beam_options.keys()
    return beam_options.get("runner") in LOCAL_RUNNERS and not parallel


def parse_with_beam(parser: FlagParser, arguments: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of the parser's flags, and those of Beam's that are not their defaults, by name.

    Ends the process with status 2 for a flag that neither has: Beam's own parser drops it with a warning.
    """
    ours = {action.dest for action in parser._actions}
    if not {"-h", "--help"} & set(arguments):
        _add_beam_flags(parser, arguments)
    values = parser.parse(arguments)
    # Beam complains of extras that are not installed and nobody asked for.
    logging.disable(logging.WARNING)
    beams = {name: values.pop(name) for name in list(values) if name not in ours}
    return values, {name: value for name, value in beams.items() if value != parser.get_default(name)}


def _add_beam_flags(parser: FlagParser, arguments: list[str]) -> None:
    """Makes all of Beam's own flags known. Imports Beam, which takes a second, only if one is not ours."""
    named = {word.split("=")[0] for word in arguments if word.startswith("--")}
    if named <= set(parser.flags):
        return
    logging.disable(logging.WARNING)
    from apache_beam.options.pipeline_options import PipelineOptions

    beam_parser = _BeamFlags(parser)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(beam_parser)


class _BeamFlags:
    """What Beam's option classes add their flags to: hidden in our help, and ours win where names meet."""

    def __init__(self, parser: FlagParser) -> None:
        self._parser = parser

    def add_argument(self, *names: str, **details: Any) -> None:
        new = [name for name in names if name not in self._parser.flags]
        if new:
            self._parser.add_argument(*new, **{**details, "help": "", "required": False})

    def add_value_provider_argument(self, *names: str, **details: Any) -> None:
        self.add_argument(*names, **details)

    def add_mutually_exclusive_group(self, *_: Any, **__: Any) -> "_BeamFlags":
        return self

    def add_argument_group(self, *_: Any, **__: Any) -> "_BeamFlags":
        return self
