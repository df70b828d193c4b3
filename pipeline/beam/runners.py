"""Runs the Beam job of a command: chooses the runner, hides its log, and turns an error of a worker into one line."""

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline import progress
from pipeline.beam.options import LOCAL_RUNNERS, complete_options
from pipeline.errors import UserError, check_unpublished, file_error

Result = TypeVar("Result")

_OS_ERRORS = (
    "OSError",
    "PermissionError",
    "FileNotFoundError",
    "FileExistsError",
    "NotADirectoryError",
    "IsADirectoryError",
)
# Beam appends the step to the message of an exception.
_STEP = " [while running "
# The number of jobs that run in this process, and the level that was disabled before they started.
_level_lock = threading.Lock()
_num_quiet = _level_before = 0


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
        UserError: There is no such runner, or one of its own options is missing.
    """
    beam_options = complete_options(beam_options)
    options = _Options([], **{name: value for name, value in beam_options.items() if name != "runner"})
    try:
        return beam.Pipeline(runner=_choose_runner(beam_options, announce), options=options)
    except (ValueError, ImportError, AttributeError) as error:  # no such runner, or one of its options is missing
        raise UserError(f"--runner {beam_options.get('runner')}: {' '.join(str(error).split())}") from None


def run_job(
    pipeline: beam.Pipeline,
    command: str,
    *,
    total_bytes: int,
    second_pass: bool = False,
    output: str,
    read_published: Callable[[], Result | None],
    discard: Callable[[], None],
    since: Mapping[str, int] | None = None,
) -> Result:
    """Runs a pipeline whose last step publishes the results, shows its progress, and returns what was published.

    Args:
        command: Name of the command.
        total_bytes: Size of the input.
        second_pass: Whether the job writes the records in a second pass and counts them.
        output: Folder or file of the results, for messages.
        read_published: Returns what the last step published, or None if it published nothing. Some runners only return
            the state in which a job ended. Raises a UserError if the answer cannot be determined.
        discard: Removes the files of a job that published nothing.
        since: As for `progress.report`.

    Raises:
        UserError: The job failed for a reason that the user can fix.
    """
    try:
        shown = progress.report(command, total_bytes=total_bytes, second_pass=second_pass, since=since)
        with shown, _errors_not_logged():
            state = pipeline.run().wait_until_finish()
    except BaseException as error:
        _handle_failure(error, output, read_published, discard)
        raise
    try:
        published = read_published()
    except UserError as unreadable:
        raise UserError(f"{output}: was published, but could not be read back: {unreadable}") from None
    if published is None:
        raise UserError(f"{output}: the runner ended as {state}, but nothing was published. See the runner's log.")
    return published


def _handle_failure(
    error: BaseException, output: str, read_published: Callable[[], Any], discard: Callable[[], None]
) -> None:
    """Discards the files of a failed job, unless it was published.

    Raises a UserError or KeyboardInterrupt in place of `error`, if one of them describes it.
    """
    check_unpublished(output, error, read_published)
    discard()
    if str(error).startswith("KeyboardInterrupt"):  # raised in a worker in this process, then turned into text
        raise KeyboardInterrupt from None
    from_worker = user_error(error)
    if from_worker is not None:
        raise from_worker from None


def user_error(error: BaseException) -> UserError | None:
    """Returns the error of a worker that the user can fix, or None if the worker raised anything else.

    A runner in this process raises the worker's exception. Other runners raise the text of its traceback. Only the
    last exception of a traceback counts: the earlier ones were handled. The error keeps its class, and so its exit
    status.
    """
    if isinstance(error, UserError):
        return type(error)(str(error).split(_STEP)[0])
    if isinstance(error, OSError):
        return file_error(str(error).split(_STEP)[0])
    # Beam puts an exception whose message it cannot extend into a RuntimeError.
    line = _last_exception(str(error)).removeprefix("RuntimeError: ")
    name, _, message = line.split(_STEP)[0].partition(": ")
    for kind in _with_subclasses(UserError):
        if name == f"{kind.__module__}.{kind.__qualname__}":
            return kind(message)
    return file_error(message) if name in _OS_ERRORS else None


def _with_subclasses(kind: type[UserError]) -> Iterator[type[UserError]]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from _with_subclasses(subclass)


def _last_exception(text: str) -> str:
    """Returns the line `type: message` of the last exception in the text of a traceback, or the first line of any
    other text.

    In a traceback, this line follows the indented lines of the frames. A line of a message that looks like an
    exception does not.
    """
    lines = text.splitlines() or [""]
    found = lines[0]
    for before, line in zip(lines, lines[1:], strict=False):
        if before.startswith("  ") and line and not line[0].isspace():
            found = line
    return found


@contextlib.contextmanager
def _errors_not_logged() -> Iterator[None]:
    """Keeps the runner's log of a failed bundle off the terminal. The command prints the error in one line.

    The level belongs to the process. Of several jobs in threads, the first that starts sets it, and the last that ends
    sets it back.
    """
    global _num_quiet, _level_before
    with _level_lock:
        if not _num_quiet:
            _level_before = logging.root.manager.disable
            logging.disable(logging.ERROR)
        _num_quiet += 1
    try:
        yield
    finally:
        with _level_lock:
            _num_quiet -= 1
            if not _num_quiet:
                logging.disable(_level_before)


def _choose_runner(beam_options: dict[str, Any], announce: bool) -> Any:
    name = beam_options.get("runner")
    if name in LOCAL_RUNNERS:
        mode = beam_options.get("direct_running_mode")
        where = {"multi_processing": "in processes of this machine", "multi_threading": "in threads of this process"}
        if announce:
            print(f"Running {where.get(str(mode), 'in this process')} (FnApiRunner).", file=sys.stderr)
        return FnApiRunner()
    return name
