"""Sorts encoded records through files: a run holds some of them by key, and any range of keys is merged from all runs.

Beam's own grouping holds all records in memory in its in-process runners. Here only the names of runs are grouped, as
in the sort shuffle of Spark: what is in memory is one run while it is made, and some thousand records in a merge.
"""

import contextlib
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.hashing import key_number
from pipeline.shards import Encoded, Origin, rank
from pipeline.storage import create, join, open_read
from pipeline.tfrecord import FRAME_BYTES

# A run is written when its records take so many bytes, or are so many.
RUN_BYTES, RUN_RECORDS = 32 * 2**20, 32_768
# Rows of a run's table that are read at once, and records of all runs that are put in order at once.
_BLOCK_RECORDS, _MERGED_RECORDS = 512, 16_384

_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("chunk", pa.int64()),
        ("byte_offset", pa.int64()),
        ("number", pa.int64()),
        ("sha256", pa.binary()),
        ("raw", pa.binary()),
        ("key", pa.binary(16)),
        ("digest", pa.binary(32)),
        ("id", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("num_steps", pa.int64()),
        ("num_labels", pa.int64()),
        ("truncated", pa.bool_()),
        ("offset", pa.int64()),
        ("num_bytes", pa.int64()),
    ]
)
_ROWS, _EXAMPLES = ".rows", ".examples"


class Run(NamedTuple):
    """A table of records, and a file of their Examples one after the other, both in the order of the keys.

    Attributes:
        path: Of both, without their endings.
        first_keys: Of each block of the table.
        split_bytes: Of each split, the bytes of its TFRecords.
    """

    path: str
    records: int
    first_keys: tuple[bytes, ...]
    split_bytes: dict[str, int]


def write_run(records: Iterable[Encoded], folder: str) -> Run:
    """Writes a run into two new files in a folder; who is told to twice writes two runs, and names one."""
    ordered = sorted(records, key=rank)
    path = join(folder, uuid.uuid4().hex)
    sizes = [len(record.example) for record in ordered]
    offsets = (np.cumsum(sizes) - sizes).tolist()
    with create(f"{path}{_EXAMPLES}") as file:
        file.writelines(record.example for record in ordered)
    blocks = [slice(start, start + _BLOCK_RECORDS) for start in range(0, len(ordered), _BLOCK_RECORDS)]
    with create(f"{path}{_ROWS}") as file, pa.ipc.new_file(file, _SCHEMA) as table:
        for block in blocks:
            rows = [(*record.origin, record.key, record.digest, *record[3:-1]) for record in ordered[block]]
            columns = [*zip(*rows, strict=True), offsets[block], sizes[block]]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
            table.write_batch(pa.record_batch(arrays, schema=_SCHEMA))
    split_bytes: dict[str, int] = {}
    for record, size in zip(ordered, sizes, strict=True):
        split_bytes[record.split] = split_bytes.get(record.split, 0) + size + FRAME_BYTES
    return Run(path, len(ordered), tuple(ordered[block.start].key for block in blocks), split_bytes)


def merge_runs(runs: Sequence[Run], first: int, end: int) -> Iterator[Encoded]:
    """The records of all runs whose `key_number` is in [first, end), in the order of `rank`."""
    with contextlib.ExitStack() as files:
        readers = [files.enter_context(contextlib.closing(_Reader(run, first))) for run in sorted(runs)]
        expected = sum(run.records for run in runs) * (end - first) / 2**64
        parts = max(1, round(expected / _MERGED_RECORDS))
        for part in range(1, parts + 1):
            stop = first + (end - first) * part // parts
            found = [(row, reader) for reader in readers for row in reader.take(stop)]
            # An Example is read when its turn comes: in each of the runs they lie in this order.
            for (record, offset, num_bytes), reader in sorted(found, key=lambda item: rank(item[0][0])):
                yield record._replace(example=reader.read(offset, num_bytes))


# A record without its Example, and where that lies.
_Row = tuple[Encoded, int, int]


class _Reader:
    """Reads a run from a key on."""

    def __init__(self, run: Run, first: int) -> None:
        self._files = contextlib.ExitStack()
        rows, self._examples = (self._files.enter_context(open_read(f"{run.path}{s}")) for s in (_ROWS, _EXAMPLES))
        self._table = pa.ipc.open_file(rows)
        # The block before the first one that begins there may hold it too.
        begins = np.array([key_number(key) for key in run.first_keys], np.uint64)
        self._block = max(0, int(np.searchsorted(begins, np.uint64(first))) - 1)
        self._rows = self._read_block()
        while self._rows and key_number(self._rows[-1][0].key) < first:
            self._rows = self._read_block()
        self._rows = [row for row in self._rows if key_number(row[0].key) >= first]

    def close(self) -> None:
        self._files.close()

    def read(self, offset: int, num_bytes: int) -> bytes:
        self._examples.seek(offset)
        return self._examples.read(num_bytes)

    def take(self, stop: int) -> list[_Row]:
        """What comes before a key; each row once."""
        taken: list[_Row] = []
        while self._rows:
            rest = [row for row in self._rows if key_number(row[0].key) >= stop]
            taken += self._rows[: len(self._rows) - len(rest)]
            self._rows = rest or self._read_block()
            if rest:
                break
        return taken

    def _read_block(self) -> list[_Row]:
        if self._block >= self._table.num_record_batches:
            return []
        columns = [column.to_pylist() for column in self._table.get_batch(self._block).columns]
        self._block += 1
        origins = map(Origin, *columns[: len(Origin._fields)])
        keys, digests, *rest, offsets, sizes = columns[len(Origin._fields) :]
        return [
            (Encoded._make((key, digest, origin, *values, b"")), offset, size)
            for key, digest, origin, offset, size, *values in zip(
                keys, digests, origins, offsets, sizes, *rest, strict=True
            )
        ]
