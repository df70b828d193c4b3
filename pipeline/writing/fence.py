"""Lets the command that submitted a job to an engine end it: its tasks then stop, and cannot publish.

An engine may go on with a job after its driver was interrupted, after the job was cancelled, or when an old worker is
slow to end. So the driver keeps a file, the fence, in the folder of the job while it waits for the job. Tasks that do
not find it stop quietly. Who decides what becomes of the job, the step that publishes or the driver that discards,
creates one more file, which only one of them can do.

A refusal, an error that the user must fix, is a file too: an engine would retry an exception many times, and would
return it as the text of a traceback.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

from pipeline.create_once import create_once, supports_create_once
from pipeline.errors import UserError, make_error
from pipeline.files import exists, join, read_bytes, remove, remove_empty, remove_folder, replace
from pipeline.locks import describe_this_process
from pipeline.writing.job import JobFiles
from pipeline.writing.paths import DECISION, FENCE, REFUSAL
from pipeline.writing.refreshed_file import RefreshedFile, is_fresh

Decision = Literal["publish", "discard"]
# Whether a job was published.
IsPublished: TypeAlias = Callable[[JobFiles], bool]


class Fence:
    """The fence of one job, in the process that submits it.

    Args:
        command: Name of the command, for people who look into the folder.
    """

    def __init__(self, files: JobFiles, command: str) -> None:
        self._files = files
        self._file = RefreshedFile(_path(files, FENCE), describe_this_process(command))

    def put_up(self) -> None:
        """Creates the fence, and refreshes it from now on."""
        self._file.start()

    def take_down(self) -> bool:
        """Ends the job, and removes the fence. Returns False, and does nothing, if the job is being published."""
        self._file.stop()
        if not decide(self._files, "discard"):
            return False
        _remove(self._files, FENCE)
        return True

    def clear(self) -> None:
        """Removes all files of this module, after the job was published or its files were removed."""
        self._file.stop()
        _remove(self._files, FENCE, DECISION, REFUSAL)
        remove_empty(self._files.folder)


def is_wanted(files: JobFiles) -> bool:
    """Whether the driver of a job still waits for it. A job without a fence always is."""
    return not files.is_fenced or is_fresh(_path(files, FENCE))


def decide(files: JobFiles, decision: Decision) -> bool:
    """Decides what becomes of a job, unless it is decided. Returns whether that is `decision`.

    A store that cannot create a file only if it does not exist takes the last decision; `is_wanted` alone then
    protects, except in the moment in which the job is published.
    """
    path = _path(files, DECISION)
    try:
        if supports_create_once(path):
            create_once(path, decision.encode())
        else:
            with replace(path) as file:
                file.write(decision.encode())
    except FileExistsError:
        return read_bytes(path) == decision.encode()
    return True


def may_publish(files: JobFiles) -> bool:
    """Whether the step that publishes may go on. If it may, the driver can no longer discard the job."""
    if not files.is_fenced:
        return True
    return is_wanted(files) and not exists(_path(files, REFUSAL)) and decide(files, "publish")


def refuse(files: JobFiles, error: UserError, *, decision: Decision = "discard") -> None:
    """Stores an error that ends a job, and tells all of its tasks to stop. Does nothing if the job is being published.

    Args:
        decision: `publish` in the step that publishes.
    """
    if decide(files, decision) and not exists(_path(files, REFUSAL)):
        with replace(_path(files, REFUSAL)) as file:
            file.write(json.dumps({"kind": type(error).__name__, "message": str(error)}).encode())
        _remove(files, FENCE)


def read_refusal(files: JobFiles) -> UserError | None:
    """Returns the error that a task stored, or None."""
    path = _path(files, REFUSAL)
    if not exists(path):
        return None
    stored = json.loads(read_bytes(path))
    return make_error(stored["kind"], stored["message"])


def remove_if_unwanted(files: JobFiles, is_published: IsPublished, *more: str) -> None:
    """Removes what a task wrote while, or after, the driver removed the files of the job.

    Args:
        is_published: Returns whether the job was published: a task of it that ran twice must not remove what it
            published.
        more: Files outside the folder of the job that the task wrote.
    """
    if files.is_fenced and not exists(_path(files, FENCE)) and not is_published(files):
        remove([path for path in more if exists(path)])
        remove_folder(files.folder)


@contextlib.contextmanager
def fence(files: JobFiles, command: str) -> Iterator[Fence | None]:
    """Keeps a fence inside the block, if the job has one."""
    if not files.is_fenced:
        yield None
        return
    kept = Fence(files, command)
    try:
        kept.put_up()
        yield kept
    finally:
        kept.clear()


def _remove(files: JobFiles, *names: str) -> None:
    remove([path for name in names if exists(path := _path(files, name))])


def _path(files: JobFiles, name: str) -> str:
    return join(files.folder, name)
