"""Sorts rows of JSON through files: a buffer writes sorted runs, and a merge reads any number of them.

Memory holds one buffer while runs are written, and one row of each of at most 64 runs while they are merged, fewer if
their rows are large.
"""

import contextlib
import heapq
import json
import operator
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any, Generic, NamedTuple, Self, TypeAlias, TypeVar

import orjson

from pipeline.files import create, join, open_read

Value = TypeVar("Value")
# A dict or a list of JSON values.
Row: TypeAlias = Any
SortKey: TypeAlias = Callable[[Row], Any]

# A buffer writes a run when it holds this number of rows, or this number of bytes of them as JSON.
_BUFFER_VALUES, _BUFFER_BYTES = 32_768, 8 * 2**20
# Bytes of the rows that one block of lines has.
LINES_BYTES = 2**20
# Files that are merged at the same time. Some systems allow a process 256 open files.
_MAX_OPEN = 64
# Fewer are merged at the same time if their largest rows have more bytes than this together.
_MAX_BYTES = 8 * 2**20


class RowRun(NamedTuple):
    """A file of sorted rows, one JSON value on each line.

    Attributes:
        path: The file.
        largest: Bytes of the largest row.
    """

    path: str
    largest: int


class RowRunWriter:
    """Writes rows that arrive sorted to one new file in a folder. Without rows it writes no file."""

    def __init__(self, folder: str, ending: str) -> None:
        self._path = join(folder, f"{uuid.uuid4().hex}{ending}")
        self._files = contextlib.ExitStack()
        self._file: IO[bytes] | None = None
        self._largest = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._files.__exit__(*error)

    def add_row(self, row: Row) -> None:
        """Writes the next row."""
        self.add_line(_serialize(row))

    def add_line(self, line: bytes) -> None:
        """Writes the next row, which is serialized already."""
        if self._file is None:
            self._file = self._files.enter_context(create(self._path))
        self._file.write(line)
        self._file.write(b"\n")
        self._largest = max(self._largest, len(line))

    @property
    def runs(self) -> list[RowRun]:
        """The run that was written; empty if there was no row."""
        return [] if self._file is None else [RowRun(self._path, self._largest)]


class RowBuffer(Generic[Value]):
    """Buffers values in any order, and writes a run to a folder when they are many, or large.

    Args:
        folder: Folder for the runs.
        ending: Ending of the names of the runs.
        to_row: Returns the row of a value.
        key: Returns the sort key of a row. None sorts by the rows themselves.
    """

    def __init__(self, folder: str, ending: str, to_row: Callable[[Value], Row], key: SortKey | None = None) -> None:
        self._folder, self._ending = folder, ending
        self._to_row, self._key = to_row, key
        # The sort key of each row, and the row as JSON.
        self._rows: list[tuple[Any, bytes]] = []
        self._num_bytes = 0

    def add(self, value: Value) -> list[RowRun]:
        """Adds a value. Returns the run that was written if the buffer was full, else an empty list."""
        row = self._to_row(value)
        line = bytes(memoryview(_serialize(row)))  # a copy: orjson leaves an object that is several times larger
        self._rows.append((row if self._key is None else self._key(row), line))
        self._num_bytes += len(line)
        return self.flush() if len(self._rows) >= _BUFFER_VALUES or self._num_bytes >= _BUFFER_BYTES else []

    def flush(self) -> list[RowRun]:
        """Writes the buffered values. Returns their run, or an empty list if there are none."""
        rows, self._rows, self._num_bytes = self._rows, [], 0
        rows.sort(key=operator.itemgetter(0))
        with RowRunWriter(self._folder, self._ending) as writer:
            for _, line in rows:
                writer.add_line(line)
        return writer.runs


def read_line_blocks(runs: Iterable[RowRun]) -> Iterator[bytes]:
    """Yields the rows of runs as blocks of about LINES_BYTES, or of one row: lines, each with its end, in any order."""
    for run in runs:
        lines, num_bytes = list[bytes](), 0
        with open_read(run.path) as file:
            for line in file:
                lines.append(line)
                num_bytes += len(line)
                if num_bytes >= LINES_BYTES:
                    yield b"".join(lines)
                    lines, num_bytes = [], 0
        if lines:
            yield b"".join(lines)


def write_lines(rows: Iterable[Row]) -> bytes:
    """Returns rows as one block of lines."""
    return b"".join(_serialize(row) + b"\n" for row in rows)


def read_lines(block: bytes) -> Iterator[Row]:
    """Yields the rows of a block of lines."""
    return map(_parse, block.split(b"\n")[:-1])


def _serialize(row: Row) -> bytes:
    try:
        return orjson.dumps(row)
    except TypeError:  # a string with half of a surrogate pair
        return json.dumps(row).encode()


def _parse(line: bytes) -> Row:
    try:
        return orjson.loads(line)
    except ValueError:
        return json.loads(line)


@contextlib.contextmanager
def merge_row_runs(runs: Iterable[RowRun], key: SortKey | None = None) -> Iterator[Iterator[Row]]:
    """Opens any number of runs that were sorted by `key`, and gives an iterator over all of their rows, sorted."""
    with _merge_open(_reduce(sorted(runs), key), key) as rows:
        yield rows


@contextlib.contextmanager
def _merge_open(runs: Sequence[RowRun], key: SortKey | None) -> Iterator[Iterator[Row]]:
    """Merges runs, with all of their files open at the same time."""
    with contextlib.ExitStack() as files:
        parts = [map(_parse, files.enter_context(open_read(run.path))) for run in runs]
        yield heapq.merge(*parts, key=key)


def _reduce(runs: list[RowRun], key: SortKey | None) -> list[RowRun]:
    """Merges runs into larger ones, in passes, until all of them can be open at the same time."""
    while len(groups := list(_group(runs))) > 1:
        larger = []
        for group in groups:
            folder, name = os.path.split(group[0].path)
            with _merge_open(group, key) as rows, RowRunWriter(folder, os.path.splitext(name)[1]) as writer:
                for row in rows:
                    writer.add_row(row)
            larger += writer.runs
        runs = larger
    return runs


def _group(runs: Sequence[RowRun]) -> Iterator[list[RowRun]]:
    """Yields runs that can be open at the same time: two at least, if there are two."""
    group: list[RowRun] = []
    for run in runs:
        if len(group) == _MAX_OPEN or (len(group) > 1 and sum(each.largest for each in (*group, run)) > _MAX_BYTES):
            yield group
            group = []
        group.append(run)
    if group:
        yield group
