"""Marks a generation as being written, so that no other process removes its files.

The mark is a file whose time of modification is refreshed while the writer lives. A process id would not do: the writer
may run on another host, or in another container, that shares the folder.
"""

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator

from pipeline.errors import UserError
from pipeline.files import is_local, join, list_files, modified, remove, replace
from pipeline.locks import describe_this_process, read_process
from pipeline.writing.paths import GENERATION_PATTERN, marker_path

# An object store cannot touch an object, which is written again: one small request.
_REFRESH_SECONDS, _REWRITE_SECONDS = 20.0, 60.0
# A writer whose mark is older counts as killed. It may have been suspended, or its file system may have been slow, for
# less than that.
_FRESH_SECONDS = 600.0


@contextlib.contextmanager
def mark_writer(output: str, generation: str, *, command: str) -> Iterator[None]:
    """Marks a generation inside the block. The mark of a process that is killed remains, and becomes old."""
    path, description = join(output, marker_path(generation)), describe_this_process(command)
    with replace(path) as file:
        file.write(description)
    process, ended = os.getpid(), threading.Event()
    thread = threading.Thread(target=_refresh, args=(path, description, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        # A forked child that leaves the block must not remove the mark of its parent.
        if os.getpid() == process:
            ended.set()
            thread.join()
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


def _refresh(path: str, description: bytes, ended: threading.Event) -> None:
    while not ended.wait(_REFRESH_SECONDS if is_local(path) else _REWRITE_SECONDS):
        # Nothing to do about an error here: if the writer's own files have a problem, the writer reports it.
        with contextlib.suppress(OSError, UserError):
            if is_local(path):
                os.utime(path)
            else:
                with replace(path) as file:
                    file.write(description)


def is_at_work(output: str, generation: str) -> bool:
    """Whether a generation is marked and its mark was refreshed in the last ten minutes, or in the future: the clocks
    of two hosts differ."""
    refreshed = modified(join(output, marker_path(generation)))
    return refreshed is not None and time.time() - refreshed < _FRESH_SECONDS


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
