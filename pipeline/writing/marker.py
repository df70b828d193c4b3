"""Marks a generation as being written, so that no other process removes its files.

The mark is a file whose time of modification is refreshed while the writer lives. A process id would not do: the writer
may run on another host, or in another container, that shares the folder.
"""

import contextlib
import os
import re
from collections.abc import Iterator

from pipeline.errors import UserError
from pipeline.files import is_local, join, list_files, remove
from pipeline.locks import describe_this_process, read_process
from pipeline.writing.paths import GENERATION_PATTERN, marker_path
from pipeline.writing.refreshed_file import RefreshedFile, is_fresh


@contextlib.contextmanager
def mark_writer(output: str, generation: str, *, command: str) -> Iterator[None]:
    """Marks a generation inside the block. The mark of a process that is killed remains, and becomes old."""
    path = join(output, marker_path(generation))
    mark = RefreshedFile(path, describe_this_process(command))
    mark.start()
    process = os.getpid()
    try:
        yield
    finally:
        # A forked child that leaves the block must not remove the mark of its parent.
        if os.getpid() == process:
            mark.stop()
            _remove_mark(output, path)


def _remove_mark(output: str, path: str) -> None:
    if not is_local(output):
        with contextlib.suppress(OSError, UserError):
            remove([path])
        return
    with contextlib.suppress(OSError):
        os.unlink(path)
        # These two fail unless the writer has removed its files, or has written none.
        os.rmdir(os.path.dirname(path))
        os.rmdir(join(output, "data"))


def is_at_work(output: str, generation: str) -> bool:
    """Whether a generation is marked, and its mark is fresh."""
    return is_fresh(join(output, marker_path(generation)))


def writers_at_work(output: str) -> list[str]:
    """Returns a description of each writer at work, for messages, sorted by generation.

    For example: ["20260131T120000-0123abcd: prepare, process 4711 on node-3 since 2026-01-31T12:00:00Z"]
    """
    return [
        f"{name}: {read_process(join(output, marker_path(name)))}"
        for name in _list_data(output)
        if re.fullmatch(GENERATION_PATTERN, name, re.ASCII) and is_at_work(output, name)
    ]


def _list_data(output: str) -> list[str]:
    """Returns the names of the files and folders in the folder `data`, sorted."""
    folder = join(output, "data")
    if not is_local(output):
        return sorted({path.removeprefix(join(folder, "")).split("/")[0] for path in list_files(folder)})
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
