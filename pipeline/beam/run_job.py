"""Runs the Beam job of a command, and says in one line why it failed."""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, TypeVar

import apache_beam as beam

from pipeline import progress
from pipeline.beam.job_progress import cancel_on_flink, follow
from pipeline.beam.worker_errors import last_exception, user_error
from pipeline.errors import Terminated, UserError, check_unpublished
from pipeline.files import exists, join, list_files, remove
from pipeline.writing.fence import Fence, fence, read_refusal
from pipeline.writing.job import JobFiles
from pipeline.writing.paths import rejects_path

Result = TypeVar("Result")

# The number of jobs that run in this process, and the level that was disabled before they started.
_level_lock = threading.Lock()
_num_quiet = _level_before = 0
# How long a command that was interrupted waits for the end of a step that publishes, in seconds.
_PUBLISH_SECONDS = 60.0
# What the error of a cancelled job has: that of a job server, and that of Flink.
_CANCELLED = "in state CANCELLED", "JobCancellationException"
# How long it looks for files of tasks that were at work when the job was ended, in seconds. An engine may kill a worker
# while it writes, some seconds after it has said that the job has ended.
_LATE_SECONDS = 3.0
# How long it waits for the engine to take notice that the job is cancelled.
_CANCEL_SECONDS = 10.0


def run_job(
    pipeline: beam.Pipeline,
    command: str,
    files: JobFiles,
    *,
    total_bytes: int,
    second_pass: bool = False,
    read_published: Callable[[], Result | None],
    discard: Callable[[], None],
    since: Mapping[str, int] | None = None,
) -> Result:
    """Runs a pipeline whose last step publishes the results, shows its progress, and returns what was published.

    Args:
        command: Name of the command.
        files: The names of what the job writes. If it is fenced, this function keeps the fence.
        total_bytes: Size of the input.
        second_pass: Whether the job writes the records in a second pass and counts them.
        read_published: Returns what the last step published, or None if it published nothing. Some runners only return
            the state in which a job ended. Raises a UserError if the answer cannot be determined.
        discard: Removes the files of a job that published nothing.
        since: As for `progress.report`.

    Raises:
        UserError: The job failed for a reason that the user can fix.
        Terminated: This process got SIGTERM. Nothing was published.
    """
    output, job = files.output, _Job(pipeline, command)

    def discard_all(*, with_rejects: bool = False) -> None:
        rejects = join(output, rejects_path(files.generation))

        def remove_files() -> None:
            discard()
            if with_rejects and exists(rejects):
                remove([rejects])

        remove_files()
        if files.is_fenced:
            _discard_late(files, remove_files)

    with fence(files, command) as kept:
        try:
            shown = progress.report(command, total_bytes=total_bytes, second_pass=second_pass, since=since)
            with shown, _errors_not_logged(), _terminated() as signalled:
                state = job.run()
        except BaseException as error:
            refused = read_refusal(files) if kept is not None else None
            if isinstance(error, Exception) and refused is not None:
                discard_all()
                raise refused from None
            if kept is not None:
                job.cancel()
                _take_down(kept, output, read_published)
                job.cancel_on_flink()
            check_unpublished(output, error, read_published)
            # After an error, a user may want to see the rejects; after an interruption, they are those of half a job.
            discard_all(with_rejects=_is_interrupt(error) or _is_cancelled(error))
            if signalled:
                raise Terminated from None
            if not isinstance(error, KeyboardInterrupt) and _is_interrupt(error):
                raise KeyboardInterrupt from None
            from_worker = user_error(error)
            if from_worker is None and kept is not None and isinstance(error, Exception):
                from_worker = _engine_error(output, error)
            if from_worker is not None:
                raise from_worker from None
            raise
        try:
            published = read_published()
        except UserError as unreadable:
            raise UserError(f"{output}: was published, but could not be read back: {unreadable}") from None
        if published is None:
            refused = read_refusal(files) if kept is not None else None
            if refused is None and kept is not None:
                _take_down(kept, output, read_published)
                job.cancel_on_flink()
            discard()
            if refused is not None:
                raise refused
            raise UserError(
                f"{output}: the runner ended as {state}, but nothing was published. See the runner's log, and run the "
                "command again."
            )
        return published


class _Job:
    """A job that runs, or does not yet."""

    def __init__(self, pipeline: beam.Pipeline, command: str) -> None:
        self._pipeline, self._command = pipeline, command
        self._result: Any = None

    def run(self) -> Any:
        """Runs the job, and returns the state in which it ended."""
        self._result = self._pipeline.run()
        with follow(self._result, self._pipeline.options, self._command):
            return self._result.wait_until_finish()

    def cancel(self) -> None:
        """Asks the engine to cancel the job, without waiting for it. Some engines go on nevertheless."""
        if self._result is not None:
            thread = threading.Thread(target=self._cancel, daemon=True)
            thread.start()
            thread.join(_CANCEL_SECONDS)

    def cancel_on_flink(self) -> None:
        """Cancels a job that did not end with `cancel`. It must not be called before the job can no longer publish."""
        if self._result is not None:
            cancel_on_flink(self._result, self._pipeline.options)

    def _cancel(self) -> None:
        # The fence is what ends the job. An engine that does not answer, or has ended the job, is no error here.
        with contextlib.suppress(Exception):
            self._result.cancel()


def _take_down(kept: Fence, output: str, read_published: Callable[[], Any]) -> None:
    """Ends a job, and waits for it if it is being published.

    Raises:
        UserError: It is not known whether the job was published.
    """
    if kept.take_down():
        return
    end = time.monotonic() + _PUBLISH_SECONDS
    while read_published() is None:
        if time.monotonic() > end:
            raise UserError(
                f"{output}: the job was being published when it was interrupted, and its result is not known. Look at "
                "the dataset with `lengthwise inspect`, and run the command again if it lacks the new records."
            )
        time.sleep(0.5)


def _discard_late(files: JobFiles, remove_files: Callable[[], None]) -> None:
    """Removes the files that tasks of an ended job still write."""
    end = time.monotonic() + _LATE_SECONDS
    while time.monotonic() < end:
        time.sleep(0.2)
        if list_files(files.folder):
            remove_files()


def _is_interrupt(error: BaseException) -> bool:
    """Whether Ctrl-C ended a job. Beam turns the KeyboardInterrupt of a worker in this process into text."""
    return isinstance(error, KeyboardInterrupt) or str(error).startswith("KeyboardInterrupt")


def _is_cancelled(error: BaseException) -> bool:
    return any(text in str(error) for text in _CANCELLED)


def _engine_error(output: str, error: Exception) -> UserError:
    """Returns the error for a job that the engine could not complete, in one line."""
    if _is_cancelled(error):
        return UserError(f"{output}: the job was cancelled on the engine. Nothing was published.")
    reason = " ".join(last_exception(str(error) or type(error).__name__).split()).rstrip(".")
    return UserError(
        f"{output}: the engine could not complete the job: {reason}. Nothing was published. The logs of the engine's "
        "workers say more."
    )


@contextlib.contextmanager
def _terminated() -> Iterator[list[int]]:
    """Lets SIGTERM end the block as Ctrl-C does, unless the program handles it. Yields the signals that came."""
    signals: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    handles = threading.current_thread() is threading.main_thread()
    if not handles or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield signals
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield signals
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
