"""Sorts rows of JSON through files: a buffer writes sorted runs, and a merge reads any number of them.

Memory holds one buffer while runs are written, and one row of each of at most 64 runs while they are merged.
"""

import contextlib
import heapq
import json
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

# Values that a buffer sorts in memory.
_BUFFER_VALUES = 32_768
# Files that are merged at the same time. Some systems allow a process 256 open files.
_MAX_OPEN = 64


class RowRun(NamedTuple):
    """A file of sorted rows, one JSON value on each line."""

    path: str


class RowRunWriter:
    """Writes rows that arrive sorted to one new file in a folder. Without rows it writes no file."""

    def __init__(self, folder: str, ending: str) -> None:
        self._path = join(folder, f"{uuid.uuid4().hex}{ending}")
        self._files = contextlib.ExitStack()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._files.__exit__(*error)

    def add_row(self, row: Row) -> None:
        """Writes the next row."""
        if self._file is None:
            self._file = self._files.enter_context(create(self._path))
        self._file.write(_serialize(row) + b"\n")

    @property
    def runs(self) -> list[RowRun]:
        """The run that was written; empty if there was no row."""
        return [] if self._file is None else [RowRun(self._path)]


class RowBuffer(Generic[Value]):
    """Buffers values in any order, and writes a run to a folder every 32,768 of them.

    Args:
        folder: Folder for the runs.
        ending: Ending of the names of the runs.
        to_row: Returns the row of a value.
        key: Returns the sort key of a row. None sorts by the rows themselves.
    """

    def __init__(self, folder: str, ending: str, to_row: Callable[[Value], Row], key: SortKey | None = None) -> None:
        self._folder, self._ending = folder, ending
        self._to_row, self._key = to_row, key
        self._values: list[Value] = []

    def add(self, value: Value) -> list[RowRun]:
        """Adds a value. Returns the run that was written if the buffer was full, else an empty list."""
        self._values.append(value)
        return self.flush() if len(self._values) >= _BUFFER_VALUES else []

    def flush(self) -> list[RowRun]:
        """Writes the buffered values. Returns their run, or an empty list if there are none."""
        values, self._values = self._values, []
        with RowRunWriter(self._folder, self._ending) as writer:
            for row in sorted(map(self._to_row, values), key=self._key):
                writer.add_row(row)
        return writer.runs


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
    while len(runs) > _MAX_OPEN:
        larger = []
        for start in range(0, len(runs), _MAX_OPEN):
            folder, name = os.path.split(runs[start].path)
            with (
                _merge_open(runs[start : start + _MAX_OPEN], key) as rows,
                RowRunWriter(folder, os.path.splitext(name)[1]) as writer,
            ):
                for row in rows:
                    writer.add_row(row)
            larger += writer.runs
        runs = larger
    return runs
