"""Writes any number of files in turns, of which only a few are open."""

import concurrent.futures
import contextlib
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Protocol, TypeVar

from pipeline.files import create, is_local, join, open_read, remove, replace
from pipeline.writing.paths import PARTS_ENDING

# Files that are written directly. Some systems allow a process 256 open files.
_MAX_OPEN = 32
# Threads that write small files.
_THREADS = 8
# Bytes that are copied at once.
_COPY_BYTES = 2**20

Value = TypeVar("Value")
Result = TypeVar("Result")


def call_in_threads(function: Callable[[Value], Result], values: Sequence[Value]) -> Iterator[Result]:
    """Yields the results of a function that writes a file, in order; of many values in several threads.

    A file is synced to the disk, and to wait for that takes longer than to write a small one.
    """
    if len(values) <= _MAX_OPEN:
        yield from map(function, values)
        return
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(function, values)


class Writer(Protocol):
    """A file that can be written."""

    def write(self, data: bytes, /) -> object:
        """Appends bytes."""


class ManyFiles(contextlib.ExitStack):
    """Writes files that replace others atomically after the block. None does if the block raises.

    The first files are written directly. What is written to the others goes, part after part, to one temporary file,
    from which they are written one by one at the end: an object store has no appending, so that a file cannot be closed
    and opened again.

    Args:
        folder: Folder for the temporary file. That of a remote folder is on the local disk.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder
        self._num_open = 0
        self._parts: _Parts | None = None
        self._later: list[tuple[str, _Later]] = []

    def open(self, path: str) -> Writer:
        """Returns a file that is complete at `path` after the block. Each path may be opened once."""
        if self._num_open < _MAX_OPEN:
            self._num_open += 1
            return self.enter_context(replace(path))
        if self._parts is None:
            self._parts = self.enter_context(contextlib.closing(_Parts(self._folder)))
        later = _Later(self._parts)
        self._later.append((path, later))
        return later

    def finish(self) -> None:
        """Writes the files that were not written directly. It must be called at the end of the block."""
        if self._parts is None:
            return
        self._parts.end()
        for _ in call_in_threads(self._write, self._later):
            pass

    def _write(self, written_later: "tuple[str, _Later]") -> None:
        path, later = written_later
        assert self._parts is not None
        with self._parts.read() as parts, replace(path) as file:
            _copy(parts, later.places, file)


class _Parts:
    """A temporary file with the parts of many files."""

    def __init__(self, folder: str) -> None:
        # Each part of a file on an object store would be read with a request.
        folder = folder if is_local(folder) else tempfile.mkdtemp(prefix="lengthwise-")
        self._path = join(folder, f"{uuid.uuid4().hex}{PARTS_ENDING}")
        self._files = contextlib.ExitStack()
        self._file = self._files.enter_context(create(self._path))
        self._size = 0

    def append(self, data: bytes) -> int:
        """Appends a part, and returns its offset."""
        offset = self._size
        self._file.write(data)
        self._size += len(data)
        return offset

    def end(self) -> None:
        """Completes the file. Nothing can be appended any more."""
        self._files.close()

    def read(self) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Opens the file for reading."""
        return open_read(self._path)

    def close(self) -> None:
        """Removes the file, and a folder that becomes empty."""
        self._files.close()
        remove([self._path])


class _Later:
    """A file whose parts are in another one, at (offset, bytes)."""

    def __init__(self, parts: _Parts) -> None:
        self._parts = parts
        self.places: list[tuple[int, int]] = []

    def write(self, data: bytes, /) -> None:
        self.places.append((self._parts.append(data), len(data)))


def _copy(source: IO[bytes], places: Sequence[tuple[int, int]], target: Writer) -> None:
    for offset, num_bytes in places:
        source.seek(offset)
        left = num_bytes
        while left:
            data = source.read(min(left, _COPY_BYTES))
            if not data:
                raise EOFError(f"a temporary file has {left:,} bytes less than were written to it")
            target.write(data)
            left -= len(data)
