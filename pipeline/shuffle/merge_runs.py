"""Merges a range of keys from any number of sorted runs: the second half of an external sort."""

import contextlib
import heapq
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.files import open_read
from pipeline.schema.record import Array
from pipeline.shuffle.encoded_records import Block, EncodedRecord, from_rows, key_numbers, sort_key, to_block
from pipeline.shuffle.hashing import END_NUMBER, key_number
from pipeline.shuffle.runs import EXAMPLES_ENDING, ROWS_ENDING, ROWS_PER_BLOCK, RUN_COLUMNS, Run

# A merge sorts about this number of records, or this number of bytes of Examples, at a time. It also returns at most
# this number of bytes of Examples in one block, or one record.
_MERGED_RECORDS, _MERGED_BYTES = 16_384, 4 * 2**20
# Records of one run that exist as Python objects in a merge record by record.
_FEW_RECORDS = 32
# A merge keeps both files of at most this number of runs open. Some systems allow a process 256 open files.
_MAX_OPEN = 64


def merge_runs(runs: Sequence[Run], first: int, end: int) -> Iterator[Block]:
    """Yields the records of all runs whose `key_number` is in [first, end), sorted by `sort_key`, in blocks."""
    with contextlib.ExitStack() as files:
        keep_open = len(runs) <= _MAX_OPEN
        readers = [files.enter_context(contextlib.closing(_RunReader(run, keep_open))) for run in sorted(runs)]
        for reader in readers:
            reader.skip_to(first)
        for stop in _cut_range(runs, first, end):
            if sum(reader.estimate(stop) for reader in readers) > 4 * _MERGED_RECORDS:
                # Keys are spread evenly, except that duplicates share a key.
                yield from _merge_record_by_record(readers, stop)
            else:
                yield from _read_examples(readers, *_merge_rows([reader.take(stop) for reader in readers]))


def _cut_range(runs: Sequence[Run], first: int, end: int) -> Iterator[int]:
    """Yields the ends of parts of [first, end) that hold about _MERGED_RECORDS records or _MERGED_BYTES bytes each."""
    share = (end - first) / END_NUMBER
    wanted = max(
        sum(run.records for run in runs) * share / _MERGED_RECORDS,
        sum(sum(run.split_bytes.values()) for run in runs) * share / _MERGED_BYTES,
    )
    parts = max(1, round(wanted))
    for part in range(1, parts + 1):
        yield first + (end - first) * part // parts


def _merge_rows(tables: list[pa.Table]) -> tuple[pa.Table, Array]:
    """Merges rows of runs by sorting them.

    Args:
        tables: Rows of each run.

    Returns:
        All rows sorted by `sort_key`, and int64[rows], the position in `tables` that each row came from.
    """
    rows = pa.concat_tables(tables) if tables else RUN_COLUMNS.empty_table()
    which = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    keys = key_numbers(rows["key"])
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    keys = keys[order]
    shared = np.append(False, (keys[1:] == keys[:-1]).all(axis=1))
    shared[:-1] |= shared[1:]
    places = np.flatnonzero(shared)
    if len(places):
        # Only the order of records that share a key depends on more than the key.
        sort_keys = [sort_key(record) for record in from_rows(rows.take(pa.array(order[places])))]
        order[places] = order[places][sorted(range(len(places)), key=sort_keys.__getitem__)]
    return rows.take(pa.array(order)), which[order]


def _merge_record_by_record(readers: "list[_RunReader]", stop: int) -> Iterator[Block]:
    """Merges the rows before `stop` in bounded memory, however many share a key. Several times slower than sorting."""
    rows = heapq.merge(*(reader.records(stop) for reader in readers), key=lambda row: sort_key(row[0]))
    block: list[EncodedRecord] = []
    num_bytes = 0
    for record, reader, offset, size in rows:
        block.append(record._replace(example=reader.read_examples(offset, size)))
        num_bytes += size
        if len(block) >= _MERGED_RECORDS or num_bytes >= _MERGED_BYTES:
            yield to_block(block)
            block, num_bytes = [], 0
    if block:
        yield to_block(block)


def _read_examples(readers: "list[_RunReader]", rows: pa.Table, which: Array) -> Iterator[Block]:
    """Yields sorted rows together with their Examples, at most _MERGED_BYTES of Examples (or one record) at a time.

    Args:
        which: int64[rows], the position in `readers` of each row's run.
    """
    sizes, offsets = rows["num_bytes"].to_numpy(), rows["offset"].to_numpy()
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        limit = ends[start] - sizes[start] + _MERGED_BYTES
        stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
        examples: list[bytes] = [b""] * (stop - start)
        for number in np.unique(which[start:stop]).tolist():
            # The Examples of one run lie in the same order in its file, one directly after the other.
            places = np.flatnonzero(which[start:stop] == number)
            begin, size = offsets[start + places], sizes[start + places]
            data = readers[number].read_examples(int(begin[0]), int(size.sum()))
            inside = (begin - begin[0]).tolist()
            for place, a, b in zip(places.tolist(), inside, size.tolist(), strict=True):
                examples[place] = data[a : a + b]
            del data  # may be most of the memory of a merge
        yield Block(rows[start:stop], examples)
        start = stop


def read_key_numbers(runs: Sequence[Run], first: int, end: int) -> Array:
    """Returns uint64[keys], the key numbers in [first, end) of the records of all runs, ascending, each once.

    Reads no other column.
    """
    options = pa.ipc.IpcReadOptions(included_fields=[RUN_COLUMNS.get_field_index("key")])
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
    """Reads the rows of a run once, in their order, and the Examples of any of them."""

    def __init__(self, run: Run, keep_open: bool) -> None:
        self._path = run.path
        self._keep_open = keep_open
        self._files = contextlib.ExitStack()
        self._open: dict[str, Any] = {}
        self._block_numbers = _block_numbers(run)
        self._next_block = 0
        # The rows of the block before `_next_block` that were not read yet.
        self._rows = RUN_COLUMNS.empty_table()

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
        return len(self._rows) + max(0, blocks - self._next_block - 1) * ROWS_PER_BLOCK

    def take(self, stop: int) -> pa.Table:
        """Returns the next rows, those whose key number is less than `stop`."""
        parts = list(self._parts(stop))
        return pa.concat_tables(parts) if parts else RUN_COLUMNS.empty_table()

    def records(self, stop: int) -> "Iterator[tuple[EncodedRecord, _RunReader, int, int]]":
        """Yields the same rows as `take`, one by one: (record, self, offset and bytes of its Example)."""
        for part in self._parts(stop):
            # Few at a time: they are Python objects, and hundreds of runs may be merged.
            for some in (part[start : start + _FEW_RECORDS] for start in range(0, len(part), _FEW_RECORDS)):
                places = zip(some["offset"].to_pylist(), some["num_bytes"].to_pylist(), strict=True)
                for record, (offset, size) in zip(from_rows(some), places, strict=True):
                    yield record, self, offset, size

    def read_examples(self, offset: int, num_bytes: int) -> bytes:
        """Returns the bytes of one Example, or of several that follow one another."""
        with self._file(EXAMPLES_ENDING) as file:
            file.seek(offset)
            data: bytes = file.read(num_bytes)
        return data

    def _parts(self, stop: int) -> Iterator[pa.Table]:
        """Yields the next rows, those whose key number is less than `stop`, block by block."""
        while True:
            if not len(self._rows):
                if self._next_block >= len(self._block_numbers):
                    return
                self._read_block()
            yield self._take_rows(stop)
            if len(self._rows):
                return

    def _take_rows(self, stop: int) -> pa.Table:
        """Removes the rows before `stop` from the current block and returns them."""
        count = count_less(key_numbers(self._rows["key"])[:, 0], stop)
        part, self._rows = self._rows[:count], self._rows[count:]
        return part

    def _read_block(self) -> None:
        with self._file(ROWS_ENDING) as file:
            self._rows = pa.Table.from_batches([pa.ipc.open_file(file).get_batch(self._next_block)])
        self._next_block += 1

    @contextlib.contextmanager
    def _file(self, ending: str) -> Iterator[Any]:
        """Opens one of the two files. It stays open until `close` if `keep_open` is set."""
        if not self._keep_open:
            with open_read(f"{self._path}{ending}") as file:
                yield file
            return
        if ending not in self._open:
            self._open[ending] = self._files.enter_context(open_read(f"{self._path}{ending}"))
        yield self._open[ending]


def _block_numbers(run: Run) -> Array:
    """Returns uint64[blocks], the number of the first key of each block of a run."""
    return np.array([key_number(key) for key in run.first_keys], np.uint64)


def count_less(numbers: Array, stop: int) -> int:
    """Returns how many of the sorted uint64 `numbers` are less than `stop`, which may be END_NUMBER, 2**64."""
    return len(numbers) if stop >= END_NUMBER else int(np.searchsorted(numbers, np.uint64(stop)))
