"""Merges a range of keys from sorted runs: the second half of an external sort."""

import contextlib
import functools
import heapq
import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.files import open_read
from pipeline.schema.record import Array
from pipeline.shuffle.hashing import END_NUMBER, key_number
from pipeline.shuffle.runs import PAYLOADS_ENDING, ROWS_ENDING, ROWS_PER_BLOCK, Run
from pipeline.shuffle.sorted_rows import Block, RowKind, key_numbers

# A merge sorts about this number of rows, or this number of bytes of payloads, at a time. It also returns at most this
# number of bytes of payloads in one block, or one row.
_MERGED_ROWS, _MERGED_BYTES = 16_384, 4 * 2**20
# Rows of one run that have a sort key in a merge row by row.
_FEW_ROWS = 32
# The most runs of a merge, both files of which are open. Some systems allow a process 256 open files. `reduce_runs`
# gives so few runs.
MAX_RUNS = 64


class PayloadReader(Protocol):
    """Reads payloads of sorted rows, which follow one another in the order of their rows."""

    def read_payloads(self, offset: int, num_bytes: int) -> bytes:
        """Returns the payload of one row, or those of several that follow one another."""


def merge_runs(runs: Sequence[Run], first: int, end: int, kind: RowKind) -> Iterator[Block]:
    """Yields the rows of at most MAX_RUNS runs whose `key_number` is in [first, end), in the order of their kind."""
    if len(runs) > MAX_RUNS:
        raise ValueError(f"expected at most {MAX_RUNS} runs, not {len(runs):,}: reduce_runs makes larger ones")
    if not runs:
        return
    with contextlib.ExitStack() as files:
        ordered = sorted(runs, key=operator.attrgetter("path"))
        readers = [files.enter_context(contextlib.closing(_RunReader(run, kind))) for run in ordered]
        for reader in readers:
            reader.skip_to(first)
        for stop in _cut_range(runs, first, end):
            if sum(reader.estimate(stop) for reader in readers) > 4 * _MERGED_ROWS:
                # Keys are spread evenly, except that duplicates share a key.
                yield from _merge_row_by_row(readers, stop, kind)
                continue
            tables = [reader.take(stop) for reader in readers]
            if any(tables):
                yield from read_payloads(readers, *merge_rows(tables, kind), kind)


def _cut_range(runs: Sequence[Run], first: int, end: int) -> Iterator[int]:
    """Yields the ends of parts of [first, end) that hold about _MERGED_ROWS rows or _MERGED_BYTES bytes each."""
    share = (end - first) / END_NUMBER
    wanted = max(
        sum(run.num_rows for run in runs) * share / _MERGED_ROWS,
        sum(run.num_bytes for run in runs) * share / _MERGED_BYTES,
    )
    parts = max(1, round(wanted))
    for part in range(1, parts + 1):
        yield first + (end - first) * part // parts


def merge_rows(tables: list[list[pa.Table]], kind: RowKind) -> tuple[pa.Table, Array]:
    """Merges rows of runs by sorting them.

    Args:
        tables: Rows of each run, in any number of tables.

    Returns:
        All rows in their order, and int64[rows], the position in `tables` that each row came from.
    """
    which = np.repeat(np.arange(len(tables)), [sum(map(len, of_run)) for of_run in tables])
    rows = pa.concat_tables(itertools.chain.from_iterable(tables))
    order = kind.order(rows)
    return rows.take(pa.array(order)), which[order]


def _merge_row_by_row(readers: "list[_RunReader]", stop: int, kind: RowKind) -> Iterator[Block]:
    """Merges the rows before `stop` in bounded memory, however many share a key. Several times slower than sorting."""
    merged = heapq.merge(*(reader.sorted_rows(stop) for reader in readers), key=operator.itemgetter(0))
    found: list[tuple[pa.Table, int, _RunReader]] = []
    num_bytes = 0
    for _, table, place, reader in merged:
        found.append((table, place, reader))
        num_bytes += table["num_bytes"][place].as_py()
        if len(found) >= _MERGED_ROWS or num_bytes >= _MERGED_BYTES:
            yield from read_payloads(readers, *_take_rows(found, readers), kind)
            found, num_bytes = [], 0
    if found:
        yield from read_payloads(readers, *_take_rows(found, readers), kind)


def _take_rows(found: "list[tuple[pa.Table, int, _RunReader]]", readers: "list[_RunReader]") -> tuple[pa.Table, Array]:
    """Returns rows of several tables as one table, and int64[rows], the position of each row's reader."""
    tables = list({id(table): table for table, _, _ in found}.values())
    first = dict(zip(map(id, tables), np.cumsum([0, *map(len, tables)]).tolist(), strict=False))
    rows = pa.concat_tables(tables).take(pa.array([first[id(table)] + place for table, place, _ in found]))
    position = {id(reader): number for number, reader in enumerate(readers)}
    return rows, np.array([position[id(reader)] for _, _, reader in found])


def read_payloads(readers: Sequence[PayloadReader], rows: pa.Table, which: Array, kind: RowKind) -> Iterator[Block]:
    """Yields sorted rows together with their payloads, at most _MERGED_BYTES of payloads (or one row) at a time.

    Args:
        which: int64[rows], the position in `readers` of each row's run.
    """
    sizes, offsets = rows["num_bytes"].to_numpy(), rows["offset"].to_numpy()
    rows = rows.select(kind.columns.names)
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        limit = ends[start] - sizes[start] + _MERGED_BYTES
        stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
        payloads: list[Any] = [b""] * (stop - start)
        if kind.last_part is not None and stop == start + 1 and sizes[start] >= _MERGED_BYTES:
            last = rows[kind.last_part][start].as_py() or 0
            first, offset = int(sizes[start]) - last, int(offsets[start])
            read = readers[which[start]].read_payloads
            payloads[0] = (read(offset, first), read(offset + first, last)) if last else read(offset, first)
            yield Block(rows[start:stop], payloads)
            start = stop
            continue
        for number in np.unique(which[start:stop]).tolist():
            # The payloads of one run lie in the same order in its file, one directly after the other.
            places = np.flatnonzero(which[start:stop] == number)
            begin, size = offsets[start + places], sizes[start + places]
            data = readers[number].read_payloads(int(begin[0]), int(size.sum()))
            inside = (begin - begin[0]).tolist()
            for place, a, b in zip(places.tolist(), inside, size.tolist(), strict=True):
                payloads[place] = data[a : a + b]
            del data  # may be most of the memory of a merge
        yield Block(rows[start:stop], payloads)
        start = stop


def read_key_numbers(runs: Sequence[Run], first: int, end: int, kind: RowKind) -> Array:
    """Returns uint64[keys], the key numbers in [first, end) of the records of all runs, ascending, each once.

    Reads no other column.
    """
    # The columns of a run begin with those of its kind.
    options = pa.ipc.IpcReadOptions(included_fields=[kind.columns.get_field_index("key")])
    found = [np.zeros(0, np.uint64)]
    for run in runs:
        starts = _block_numbers(run)
        # Keys from `first` on may begin inside the block before the first block that starts with one.
        blocks = range(max(0, count_less(starts, first) - 1), count_less(starts, end))
        if blocks:
            with open_read(f"{run.path}{ROWS_ENDING}") as file:
                table = pa.ipc.open_file(file, options=options)
                rows = pa.Table.from_batches([table.get_batch(block) for block in blocks])
                numbers = key_numbers(rows["key"])[:, 0]
            found.append(np.unique(numbers[count_less(numbers, first) : count_less(numbers, end)]))
    return np.unique(np.concatenate(found))


class _RunReader:
    """Reads the rows of a run once, in their order, and the payloads of any of them. Both files stay open."""

    def __init__(self, run: Run, kind: RowKind) -> None:
        self._path, self._kind = run.path, kind
        self._files = contextlib.ExitStack()
        self._open: dict[str, Any] = {}
        self._block_numbers = _block_numbers(run)
        self._next_block = 0
        # The rows of the block before `_next_block` that were not read yet, and their key numbers, uint64[rows].
        self._rows: pa.Table | None = None
        self._numbers = np.zeros(0, np.uint64)

    def close(self) -> None:
        self._files.close()

    def skip_to(self, number: int) -> None:
        """Skips the rows whose key number is less than `number`. Must be called before any row is read."""
        # Rows with this key number may begin inside the block before the first block that starts with it.
        self._next_block = max(0, count_less(self._block_numbers, number) - 1)
        if self._next_block < len(self._block_numbers):
            self._read_block()
            self._take_rows(number)

    def estimate(self, stop: int) -> int:
        """Returns about how many rows are left with a key number less than `stop`: those of whole blocks."""
        blocks = count_less(self._block_numbers, stop)
        return len(self._numbers) + max(0, blocks - self._next_block - 1) * ROWS_PER_BLOCK

    def take(self, stop: int) -> list[pa.Table]:
        """Returns the next rows, those whose key number is less than `stop`. No table is empty."""
        return [part for part in self._parts(stop) if len(part)]

    def sorted_rows(self, stop: int) -> "Iterator[tuple[Any, pa.Table, int, _RunReader]]":
        """Yields the same rows as `take`, one by one: (sort key, table with the row, its place in the table, self)."""
        for part in self._parts(stop):
            # Few at a time: sort keys are Python objects.
            for some in (part[start : start + _FEW_ROWS] for start in range(0, len(part), _FEW_ROWS)):
                for place, key in enumerate(self._kind.sort_keys(some)):
                    yield key, some, place, self

    def read_payloads(self, offset: int, num_bytes: int) -> bytes:
        """Returns the payload of one row, or those of several that follow one another."""
        file = self._file(PAYLOADS_ENDING)
        file.seek(offset)
        data: bytes = file.read(num_bytes)
        return data

    def _parts(self, stop: int) -> Iterator[pa.Table]:
        """Yields the next rows, those whose key number is less than `stop`, block by block."""
        while True:
            if not len(self._numbers):
                if self._next_block >= len(self._block_numbers):
                    return
                self._read_block()
            yield self._take_rows(stop)
            if len(self._numbers):
                return

    def _take_rows(self, stop: int) -> pa.Table:
        """Removes the rows before `stop` from the current block and returns them."""
        assert self._rows is not None
        count = count_less(self._numbers, stop)
        part, self._rows, self._numbers = self._rows[:count], self._rows[count:], self._numbers[count:]
        return part

    def _read_block(self) -> None:
        self._rows = pa.Table.from_batches([self._table.get_batch(self._next_block)])
        self._numbers = key_numbers(self._rows["key"])[:, 0]
        self._next_block += 1

    @functools.cached_property
    def _table(self) -> pa.ipc.RecordBatchFileReader:
        return pa.ipc.open_file(self._file(ROWS_ENDING))

    def _file(self, ending: str) -> Any:
        """Returns one of the two files, which is open until `close`."""
        if ending not in self._open:
            self._open[ending] = self._files.enter_context(open_read(f"{self._path}{ending}"))
        return self._open[ending]


def _block_numbers(run: Run) -> Array:
    """Returns uint64[blocks], the number of the first key of each block of a run."""
    return np.array([key_number(key) for key in run.first_keys], np.uint64)


def count_less(numbers: Array, stop: int) -> int:
    """Returns how many of the sorted uint64 `numbers` are less than `stop`, which may be END_NUMBER, 2**64."""
    return len(numbers) if stop >= END_NUMBER else int(np.searchsorted(numbers, np.uint64(stop)))
