"""Sorts encoded records through files: a run holds some of them by key, and any range of keys is merged from all runs.

Beam's own grouping holds all records in memory in its in-process runners. Here only the names of runs are grouped, as
in the sort shuffle of Spark: what is in memory is one run while it is made, and some thousand records in a merge.
"""

import contextlib
import heapq
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.files import create, join, open_read
from pipeline.format.tfrecord import FRAME_BYTES
from pipeline.schema.record import Array
from pipeline.shuffle.encoded_records import COLUMNS, Block, EncodedRecord, from_rows, sort_key, to_block
from pipeline.shuffle.hashing import key_number

# A run is written when its records take so many bytes, or are so many.
RUN_BYTES, RUN_RECORDS = 16 * 2**20, 16_384
# Rows of a run's table that are read at once; records of all runs that are put in order at once, and the bytes of
# their Examples, and the bytes of those that are in memory at once.
_READ_RECORDS, _MERGED_RECORDS, _MERGED_BYTES = 256, 16_384, 4 * 2**20

_FEW_RECORDS = 32
# Runs of which both files stay open in a merge. A system may allow a process no more than 256.
_OPEN = 64

ROWS_ENDING, EXAMPLES_ENDING = ".rows", ".examples"
_SCHEMA = COLUMNS.append(pa.field("offset", pa.int64())).append(pa.field("num_bytes", pa.int64()))


class Run(NamedTuple):
    """A table of records, and a file of their Examples one after the other, both in the order of `sort_key`.

    Attributes:
        path: Of both, without their endings.
        first_keys: Of each block of the table.
        split_bytes: Of each split, the bytes of its TFRecords.
    """

    path: str
    records: int
    first_keys: tuple[bytes, ...]
    split_bytes: dict[str, int]


def write_run(records: Iterable[EncodedRecord], folder: str) -> Run:
    """Writes a run into two new files in a folder; who is told to twice writes two runs, and names one."""
    rows, examples = to_block(records)
    path = join(folder, uuid.uuid4().hex)
    sizes = np.array([len(example) for example in examples], np.int64)
    with create(f"{path}{EXAMPLES_ENDING}") as file:
        file.writelines(examples)
    rows = rows.append_column("offset", pa.array(np.cumsum(sizes) - sizes)).append_column("num_bytes", pa.array(sizes))
    with create(f"{path}{ROWS_ENDING}") as file, pa.ipc.new_file(file, _SCHEMA) as table:
        table.write_table(rows, max_chunksize=_READ_RECORDS)
    splits = rows["split"].dictionary_encode().combine_chunks()
    totals = np.bincount(splits.indices.to_numpy(), sizes + FRAME_BYTES, len(splits.dictionary))
    return Run(
        path,
        len(examples),
        tuple(rows["key"][place].as_py() for place in range(0, len(examples), _READ_RECORDS)),
        dict(zip(splits.dictionary.to_pylist(), map(int, totals), strict=True)),
    )


class RunBuffer:
    """Records that wait to be a run in a folder, which they are when they are many."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._records: list[EncodedRecord] = []
        self._num_bytes = 0

    def add(self, record: EncodedRecord) -> list[Run]:
        """The run that was written, if it was time."""
        self._records.append(record)
        self._num_bytes += len(record.example) + len(record.origin.raw or b"")
        return self.flush() if self._num_bytes >= RUN_BYTES or len(self._records) >= RUN_RECORDS else []

    def flush(self) -> list[Run]:
        """The run of what is left, if anything is."""
        records, self._records, self._num_bytes = self._records, [], 0
        return [write_run(records, self._folder)] if records else []


def merge_runs(runs: Sequence[Run], first: int, end: int) -> Iterator[Block]:
    """The records of all runs whose `key_number` is in [first, end), in the order of `sort_key`, some at a time."""
    with contextlib.ExitStack() as files:
        stay_open = len(runs) <= _OPEN
        readers = [files.enter_context(contextlib.closing(_Reader(run, first, stay_open))) for run in sorted(runs)]
        share = (end - first) / 2**64
        wanted = max(
            sum(run.records for run in runs) * share / _MERGED_RECORDS,
            sum(sum(run.split_bytes.values()) for run in runs) * share / _MERGED_BYTES,
        )
        parts = max(1, round(wanted))
        for part in range(1, parts + 1):
            stop = first + (end - first) * part // parts
            if sum(reader.estimate(stop) for reader in readers) > 4 * _MERGED_RECORDS:
                # Keys are spread evenly, but for those of doubles.
                yield from _merge_one_by_one(readers, stop)
            else:
                yield from _read_blocks(readers, *_merge([reader.take(stop) for reader in readers]))


def _merge(taken: list[pa.Table]) -> tuple[pa.Table, Array]:
    """The rows of all runs in the order of `sort_key`, and int64[rows], the run of each."""
    rows = pa.concat_tables(taken) if taken else _SCHEMA.empty_table()
    which = np.repeat(np.arange(len(taken)), [len(part) for part in taken])
    keys = _halves(rows["key"])
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    keys = keys[order]
    double = np.append(False, (keys[1:] == keys[:-1]).all(axis=1))
    double[:-1] |= double[1:]
    places = np.flatnonzero(double)
    if len(places):
        # Only of these does the order hang on more than the key.
        ranks = [sort_key(record) for record in from_rows(rows.take(pa.array(order[places])))]
        order[places] = order[places][sorted(range(len(places)), key=ranks.__getitem__)]
    return rows.take(pa.array(order)), which[order]


def _merge_one_by_one(readers: "list[_Reader]", stop: int) -> Iterator[Block]:
    """The same in bounded memory for any number of records with one key, some times slower."""
    rows = heapq.merge(*(reader.rows(stop) for reader in readers), key=lambda row: sort_key(row[0]))
    block: list[EncodedRecord] = []
    num_bytes = 0
    for record, reader, offset, size in rows:
        block.append(record._replace(example=reader.read(offset, size)))
        num_bytes += size
        if len(block) >= _MERGED_RECORDS or num_bytes >= _MERGED_BYTES:
            yield to_block(block)
            block, num_bytes = [], 0
    if block:
        yield to_block(block)


def _read_blocks(readers: "list[_Reader]", rows: pa.Table, which: Array) -> Iterator[Block]:
    """Rows with their Examples, so many at a time as may be in memory."""
    sizes, offsets = rows["num_bytes"].to_numpy(), rows["offset"].to_numpy()
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        limit = ends[start] - sizes[start] + _MERGED_BYTES
        stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
        examples: list[bytes] = [b""] * (stop - start)
        for number in np.unique(which[start:stop]).tolist():
            # In each of the runs they lie in this order, one after the other.
            places = np.flatnonzero(which[start:stop] == number)
            begin, size = offsets[start + places], sizes[start + places]
            data = readers[number].read(int(begin[0]), int(size.sum()))
            inside = (begin - begin[0]).tolist()
            for place, a, b in zip(places.tolist(), inside, size.tolist(), strict=True):
                examples[place] = data[a : a + b]
            del data  # one of them may be most of what there is
        yield Block(rows[start:stop], examples)
        start = stop


class _Reader:
    """Reads a run from a key on."""

    def __init__(self, run: Run, first: int, stay_open: bool) -> None:
        self._path = run.path
        self._stay_open = stay_open
        self._files = contextlib.ExitStack()
        self._open: dict[str, Any] = {}
        # The block before the first one that begins there may hold it too.
        self._begins = np.array([key_number(key) for key in run.first_keys], np.uint64)
        self._block = max(0, int(np.searchsorted(self._begins, np.uint64(first))) - 1)
        self._rows = _SCHEMA.empty_table()
        for _ in self._parts(first):
            pass

    def close(self) -> None:
        self._files.close()

    @contextlib.contextmanager
    def _file(self, ending: str) -> Iterator[Any]:
        """One of the two files: opened once, or each time where there are too many of them."""
        if not self._stay_open:
            with open_read(f"{self._path}{ending}") as file:
                yield file
            return
        if ending not in self._open:
            self._open[ending] = self._files.enter_context(open_read(f"{self._path}{ending}"))
        yield self._open[ending]

    def read(self, offset: int, num_bytes: int) -> bytes:
        with self._file(EXAMPLES_ENDING) as file:
            file.seek(offset)
            data: bytes = file.read(num_bytes)
        return data

    def estimate(self, stop: int) -> int:
        """About how many rows come before a key: those of the blocks of the table that begin there."""
        before = len(self._begins) if stop >> 64 else int(np.searchsorted(self._begins, np.uint64(stop)))
        return len(self._rows) + max(0, before - self._block - 1) * _READ_RECORDS

    def take(self, stop: int) -> pa.Table:
        """The rows before a key; each of them once."""
        taken = list(self._parts(stop))
        return pa.concat_tables(taken) if taken else _SCHEMA.empty_table()

    def rows(self, stop: int) -> "Iterator[tuple[EncodedRecord, _Reader, int, int]]":
        """The same one by one: the record, and where its Example lies."""
        for part in self._parts(stop):
            # Few at a time, for they are Python's objects and there may be hundreds of runs.
            for some in (part[start : start + _FEW_RECORDS] for start in range(0, len(part), _FEW_RECORDS)):
                places = zip(some["offset"].to_pylist(), some["num_bytes"].to_pylist(), strict=True)
                for record, (offset, size) in zip(from_rows(some), places, strict=True):
                    yield record, self, offset, size

    def _parts(self, stop: int) -> Iterator[pa.Table]:
        while True:
            if not len(self._rows):
                if self._block >= len(self._begins):
                    return
                with self._file(ROWS_ENDING) as file:
                    self._rows = pa.Table.from_batches([pa.ipc.open_file(file).get_batch(self._block)])
                self._block += 1
            numbers = _halves(self._rows["key"])[:, 0]
            count = len(numbers) if stop >> 64 else int(np.searchsorted(numbers, np.uint64(stop)))
            part, self._rows = self._rows[:count], self._rows[count:]
            yield part
            if len(self._rows):
                return


def _halves(keys: pa.ChunkedArray) -> Array:
    """uint64[keys, 2], which sort as the keys do: `key_number`, and the rest."""
    array = keys.combine_chunks()
    numbers = np.frombuffer(array.buffers()[1], ">u8").astype(np.uint64)
    return numbers.reshape(-1, 2)[array.offset : array.offset + len(array)]
