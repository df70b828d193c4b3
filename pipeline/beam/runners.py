"""Runs a Beam job for a command: on the runner asked for, quietly, and with a worker's error told in one line."""

import logging
import re
import sys
from collections.abc import Callable
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline import progress
from pipeline.beam.options import LOCAL_RUNNERS
from pipeline.errors import UserError

_OS_ERRORS = "OSError|PermissionError|FileNotFoundError|FileExistsError|NotADirectoryError|IsADirectoryError"


def make_pipeline(beam_options: dict[str, Any]) -> beam.Pipeline:
    """A pipeline on the runner that Beam's options name; without one, and for DirectRunner, in this process.

    Raises:
        UserError: there is no such runner, or it lacks options of its own.
    """
    options = PipelineOptions([], **{name: value for name, value in beam_options.items() if name != "runner"})
    try:
        return beam.Pipeline(runner=_choose_runner(beam_options), options=options)
    except (ValueError, ImportError, AttributeError) as error:  # no such runner, or its own options are missing
        raise UserError(f"--runner {beam_options.get('runner')}: {' '.join(str(error).split())}") from None


def run_job(
    pipeline: beam.Pipeline,
    what: str,
    *,
    total_bytes: int,
    written: bool = False,
    output: str,
    is_published: Callable[[], bool],
    discard: Callable[[], None],
) -> None:
    """Runs a pipeline whose last step publishes what it made, and shows how it moves.

    Args:
        what: Name of the command.
        total_bytes: Of the input.
        written: Whether the job counts what it writes in a second pass.
        is_published: Whether that last step was done; some runners only return how a job ended. Raises a UserError if
            it cannot tell.
        discard: Removes what a job left that did not get so far.

    Raises:
        UserError: what was wrong.
    """
    try:
        with progress.report(what, total_bytes=total_bytes, written=written), quiet():
            state = pipeline.run().wait_until_finish()
    except BaseException as error:
        try:
            published = is_published()
        except UserError as unread:
            # What may be the only dataset there is must not be removed.
            raise UserError(f"{output}: may be published or not: {unread} The job had ended with: {error}") from None
        if published:
            raise UserError(f"{output}: was published, but older files there could not be removed: {error}") from None
        discard()
        if str(error).startswith("KeyboardInterrupt"):  # a worker in this process had it, so Beam made text of it
            raise KeyboardInterrupt from None
        told = user_error(error)
        if told is not None:
            raise told from None
        raise
    try:
        published = is_published()
    except UserError as unread:
        raise UserError(f"{output}: was published, but could not be read back: {unread}") from None
    if not published:
        raise UserError(f"{output}: the runner ended as {state}, but nothing was published. See the runner's log.")


def user_error(error: BaseException) -> UserError | None:
    """What a worker raised for the user, found in what the runner made of it; None if it was something else.

    A runner hands on a worker's exception as the text of its traceback, whose end names the exception.
    """
    if isinstance(error, UserError):
        return UserError(re.sub(r" \[while running .*", "", str(error), flags=re.DOTALL))
    found = re.findall(r"^pipeline\.errors\.UserError: (.*?)(?: \[while running .*)?$", str(error), re.MULTILINE)
    if found:
        return UserError(found[-1])
    found = re.findall(rf"^(?:{_OS_ERRORS}): (.*?)(?: \[while running .*)?$", str(error), re.MULTILINE)
    if found or isinstance(error, OSError):
        return UserError(
            f"A file could not be read or written: {found[-1] if found else error}. Nothing was published."
        )
    return None


class quiet:
    """Keeps the runner's own log of a failing bundle off the terminal: the one line that is told says it."""

    def __enter__(self) -> None:
        self._previous = logging.root.manager.disable
        logging.disable(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._previous)


def _choose_runner(beam_options: dict[str, Any]) -> Any:
    name = beam_options.get("runner")
    if name in LOCAL_RUNNERS:
        where = "in processes of this machine" if "direct_running_mode" in beam_options else "in this process"
        print(f"Running {where} (FnApiRunner).", file=sys.stderr)
        return FnApiRunner()
    return name
