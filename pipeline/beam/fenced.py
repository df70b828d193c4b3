"""Lets the tasks of a job that nobody waits for any more end without an output, and stores errors as refusals."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pipeline.errors import UserError
from pipeline.writing.fence import is_wanted, may_publish, refuse
from pipeline.writing.job import JobFiles

Published = TypeVar("Published")


def while_wanted(files: JobFiles, outputs: Iterator[Any]) -> Iterator[Any]:
    """Yields the outputs of a task, or fewer if its job has a fence and is not wanted any more.

    An engine would retry a task that raises an error, although the error comes again. So a UserError becomes a refusal,
    which the driver reads after the job. Other errors are raised, unless the reason may be that the files of the job
    were removed.
    """
    if not files.is_fenced:
        yield from outputs
        return
    if not is_wanted(files):
        return
    try:
        yield from outputs
    except UserError as error:
        refuse(files, error)
    except Exception:
        if is_wanted(files):
            raise


def publish_if_wanted(files: JobFiles, publish: Callable[[], Published]) -> Iterator[Published]:
    """Yields what `publish` returns, or nothing if the job has a fence and is not wanted any more, or was refused."""
    return while_wanted(files, _publish(files, publish))


def _publish(files: JobFiles, publish: Callable[[], Published]) -> Iterator[Published]:
    if not may_publish(files):
        return
    try:
        published = publish()
    except UserError as error:
        if not files.is_fenced:
            raise
        refuse(files, error, decision="publish")
    else:
        yield published
