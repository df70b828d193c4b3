"""Makes the Beam pipeline of a command: chooses the runner and sets its options."""

import sys
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline.beam.check_runner import check_runner
from pipeline.beam.options import LOCAL_RUNNERS, complete_options
from pipeline.errors import UserError


class _Options(PipelineOptions):
    """Beam's options, which make each view of themselves once.

    Beam asks for a view at each step of a pipeline, and each time makes a parser of flags for it: 0.1 s for a job.
    """

    def view_as(self, cls: Any) -> Any:
        views = self.__dict__.setdefault("_views", {})
        if cls not in views:
            views[cls] = super().view_as(cls)
        return views[cls]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_views"}


def make_pipeline(beam_options: dict[str, Any], *, announce: bool = True) -> beam.Pipeline:
    """Returns a pipeline on the runner that Beam's options name, by default and for DirectRunner in this process.

    Args:
        announce: Whether a line on stderr says where a local pipeline runs.

    Raises:
        UserError: There is no such runner, it does not answer, or one of its own options is missing.
    """
    beam_options = complete_options(beam_options)
    check_runner(beam_options)
    options = _Options([], **{name: value for name, value in beam_options.items() if name != "runner"})
    try:
        return beam.Pipeline(runner=_choose_runner(beam_options, announce), options=options)
    except (ValueError, ImportError, AttributeError) as error:  # no such runner, or one of its options is missing
        raise UserError(f"--runner {beam_options.get('runner')}: {' '.join(str(error).split())}") from None


def _choose_runner(beam_options: dict[str, Any], announce: bool) -> Any:
    name = beam_options.get("runner")
    if name in LOCAL_RUNNERS:
        mode = beam_options.get("direct_running_mode")
        where = {"multi_processing": "in processes of this machine", "multi_threading": "in threads of this process"}
        if announce:
            print(f"Running {where.get(str(mode), 'in this process')} (FnApiRunner).", file=sys.stderr)
        return FnApiRunner()
    return name
