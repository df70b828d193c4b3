"""Writes sorted runs: the first half of an external sort. `merge_runs` is the second half.

Beam's own grouping holds all records in memory in its in-process runners. As in the sort shuffle of Spark, only the
names of runs are grouped here. Memory holds one run while it is written, and some thousand rows during a merge.
"""

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.files import create, join
from pipeline.shuffle.sorted_rows import Block, RowKind, payload_size

# Rows in one block of a run's table, the unit in which a table is read.
ROWS_PER_BLOCK = 256

ROWS_ENDING, PAYLOADS_ENDING = ".rows", ".examples"
# The columns that follow those of the rows: the place of the payload in the file of payloads.
PLACE_COLUMNS = (pa.field("offset", pa.int64()), pa.field("num_bytes", pa.int64()))


class Run(NamedTuple):
    """Two files: a table of sorted rows (Arrow IPC), and their payloads in the same order.

    Attributes:
        path: The path of both files without ROWS_ENDING and PAYLOADS_ENDING.
        num_rows: Number of rows.
        num_bytes: Bytes of all payloads.
        first_keys: The key of the first row of each block of the table.
        totals: Numbers that the writer of the run has counted. Those of several runs can be added up.
    """

    path: str
    num_rows: int
    num_bytes: int
    first_keys: tuple[bytes, ...]
    totals: Mapping[Any, int]


class RunWriter:
    """Writes blocks of rows that arrive sorted. `new_run` makes it."""

    def __init__(self, path: str, payloads: IO[bytes], table: pa.ipc.RecordBatchFileWriter) -> None:
        self._path, self._payloads, self._table = path, payloads, table
        self._num_rows = self._num_bytes = 0
        self._first_keys: list[bytes] = []

    def add(self, block: Block) -> None:
        """Writes the next rows."""
        rows, sizes = block.rows, np.array(list(map(payload_size, block.payloads)), np.int64)
        for payload in block.payloads:
            self._payloads.writelines(payload if isinstance(payload, tuple) else (payload,))
        ends = self._num_bytes + np.cumsum(sizes)
        for field, column in zip(PLACE_COLUMNS, (ends - sizes, sizes), strict=True):
            rows = rows.append_column(field, pa.array(column))
        self._table.write_table(rows.combine_chunks(), max_chunksize=ROWS_PER_BLOCK)
        self._first_keys += [rows["key"][place].as_py() for place in range(0, len(sizes), ROWS_PER_BLOCK)]
        self._num_rows += len(sizes)
        self._num_bytes += int(sizes.sum())

    def run(self, totals: Mapping[Any, int]) -> Run:
        """Returns the run, which is complete when the context of `new_run` ends."""
        return Run(self._path, self._num_rows, self._num_bytes, tuple(self._first_keys), totals)


@contextlib.contextmanager
def new_run(folder: str, kind: RowKind) -> Iterator[RunWriter]:
    """Opens the two files of a new run in a folder. They are removed if the block raises.

    A retried step writes a second run; only that of the step that succeeds is used.
    """
    path = join(folder, uuid.uuid4().hex)
    columns = kind.columns
    for field in PLACE_COLUMNS:
        columns = columns.append(field)
    with (
        create(f"{path}{PAYLOADS_ENDING}") as payloads,
        create(f"{path}{ROWS_ENDING}") as rows,
        pa.ipc.new_file(rows, columns) as table,
    ):
        yield RunWriter(path, payloads, table)
