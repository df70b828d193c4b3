"""Writes sorted runs of encoded records: the first half of an external sort. `merge_runs` is the second half.

Beam's own grouping holds all records in memory in its in-process runners. As in the sort shuffle of Spark, only the
names of runs are grouped here. Memory holds one run while it is written, and some thousand records during a merge.
"""

import collections
import uuid
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.files import create, join
from pipeline.format.tfrecord import FRAME_BYTES
from pipeline.schema.windows import EventWindows, missing_time
from pipeline.shuffle.encoded_records import COLUMNS, EncodedRecord, to_block

# A buffer writes a run when it holds this number of bytes, or this number of records.
BUFFER_BYTES, BUFFER_RECORDS = 16 * 2**20, 16_384
# Rows in one block of a run's table, the unit in which a table is read.
ROWS_PER_BLOCK = 256

ROWS_ENDING, EXAMPLES_ENDING = ".rows", ".examples"
# The columns of a run's table. `offset` and `num_bytes` give the place of the record's Example in the file of Examples.
RUN_COLUMNS = COLUMNS.append(pa.field("offset", pa.int64())).append(pa.field("num_bytes", pa.int64()))


class Run(NamedTuple):
    """Two files, both sorted by `sort_key`: a table of records (Arrow IPC), and the bytes of their Examples.

    Attributes:
        path: The path of both files without ROWS_ENDING and EXAMPLES_ENDING.
        records: Number of records.
        first_keys: The key of the first record of each block of the table.
        split_bytes: For each split, the bytes that its records take in TFRecord files.
        window_bytes: The same for each split and window; empty without windows.
    """

    path: str
    records: int
    first_keys: tuple[bytes, ...]
    split_bytes: dict[str, int]
    window_bytes: dict[tuple[str, int], int] = {}  # never changed


def write_run(records: Iterable[EncodedRecord], folder: str, windows: EventWindows | None = None) -> Run:
    """Sorts records and writes them to a new run in `folder`.

    A retried call writes a second run; only the returned run is used.

    Args:
        windows: The windows of the dataset, if it has any.
    """
    rows, examples = to_block(records)
    path = join(folder, uuid.uuid4().hex)
    sizes = np.array([len(example) for example in examples], np.int64)
    with create(f"{path}{EXAMPLES_ENDING}") as file:
        file.writelines(examples)
    rows = rows.append_column("offset", pa.array(np.cumsum(sizes) - sizes)).append_column("num_bytes", pa.array(sizes))
    with create(f"{path}{ROWS_ENDING}") as file, pa.ipc.new_file(file, RUN_COLUMNS) as table:
        table.write_table(rows, max_chunksize=ROWS_PER_BLOCK)
    splits = rows["split"].dictionary_encode().combine_chunks()
    totals = np.bincount(splits.indices.to_numpy(), sizes + FRAME_BYTES, len(splits.dictionary))
    return Run(
        path,
        len(examples),
        tuple(rows["key"][place].as_py() for place in range(0, len(examples), ROWS_PER_BLOCK)),
        dict(zip(splits.dictionary.to_pylist(), map(int, totals), strict=True)),
        {} if windows is None else _add_up_windows(rows, windows),
    )


def _add_up_windows(rows: pa.Table, windows: EventWindows) -> dict[tuple[str, int], int]:
    totals = collections.Counter[tuple[str, int]]()
    columns = (rows[name].to_pylist() for name in ("split", "event_time", "num_bytes"))
    for split, event_time, num_bytes in zip(*columns, strict=True):
        totals[split, windows.start_of(event_time)] += num_bytes + FRAME_BYTES
    return dict(totals)


class RunBuffer:
    """Buffers encoded records in any order, and writes a run to a folder when the buffer is full."""

    def __init__(self, folder: str, windows: EventWindows | None = None) -> None:
        self._folder, self._windows = folder, windows
        self._records: list[EncodedRecord] = []
        self._num_bytes = 0

    def add(self, record: EncodedRecord) -> list[Run]:
        """Adds a record. Returns the run that was written if the buffer was full, else an empty list.

        Raises:
            ValueError: The dataset has windows, but the record has no event time.
        """
        if self._windows is not None and record.event_time is None:
            raise missing_time(record.id, self._windows)
        self._records.append(record)
        self._num_bytes += len(record.example) + len(record.origin.raw or b"")
        return self.flush() if self._num_bytes >= BUFFER_BYTES or len(self._records) >= BUFFER_RECORDS else []

    def flush(self) -> list[Run]:
        """Writes the buffered records. Returns their run, or an empty list if there are none."""
        records, self._records, self._num_bytes = self._records, [], 0
        return [write_run(records, self._folder, self._windows)] if records else []
