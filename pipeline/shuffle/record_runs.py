"""Buffers encoded records, and writes them to sorted runs that count the bytes of their splits and windows."""

import collections
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.format.tfrecord import FRAME_BYTES
from pipeline.schema.record import Array
from pipeline.schema.windows import EventWindows, missing_time
from pipeline.shuffle.encoded_records import RECORDS, EncodedRecord, to_run_block
from pipeline.shuffle.runs import Run, new_run
from pipeline.shuffle.sorted_rows import Block, payload_size, sort_blocks

# A buffer writes a run when it holds this number of bytes, or this number of records.
BUFFER_BYTES, BUFFER_RECORDS = 16 * 2**20, 16_384


def write_record_run(blocks: Sequence[Block], folder: str, windows: EventWindows | None = None) -> Run:
    """Sorts rows of RECORDS and writes them to a new run in `folder`.

    Args:
        windows: The windows of the dataset, if it has any.

    Returns:
        A run. Its `totals` are the bytes in TFRecord files of each (split, start of the window or None).
    """
    block = sort_blocks(blocks, RECORDS)
    with new_run(folder, RECORDS) as writer:
        writer.add(block)
    raw_bytes = block.rows["raw_bytes"].fill_null(0).to_numpy()
    sizes = np.array(list(map(payload_size, block.payloads)), np.int64) + FRAME_BYTES - raw_bytes
    return writer.run(_add_up(block.rows, sizes, windows))


def _add_up(rows: pa.Table, sizes: Array, windows: EventWindows | None) -> dict[tuple[str, int | None], int]:
    """Returns the sum of the sizes, int64[rows], of the rows of each split and window."""
    splits = rows["split"].to_pylist()
    starts = [None] * len(splits) if windows is None else map(windows.start_of, rows["event_time"].to_pylist())
    totals = collections.Counter[tuple[str, int | None]]()
    for place, num_bytes in zip(zip(splits, starts, strict=True), sizes.tolist(), strict=True):
        totals[place] += num_bytes
    return dict(totals)


class RunBuffer:
    """Buffers encoded records in any order, and writes a run to a folder when the buffer is full."""

    def __init__(self, folder: str, windows: EventWindows | None = None) -> None:
        self._folder, self._windows = folder, windows
        self._records: list[EncodedRecord] = []
        self._blocks: list[Block] = []
        self._num_records = self._num_bytes = 0

    def add(self, record: EncodedRecord) -> list[Run]:
        """Adds a record. Returns the run that was written if the buffer was full, else an empty list.

        Raises:
            ValueError: The dataset has windows, but the record has no event time.
        """
        if self._windows is not None and record.event_time is None:
            raise missing_time(record.id, self._windows)
        self._records.append(record)
        return self._count(1, len(record.example) + len(record.origin.raw or b""))

    def add_block(self, block: Block) -> list[Run]:
        """Adds rows of RECORDS, which need not be sorted. Returns what `add` returns."""
        self._blocks.append(block)
        return self._count(len(block.rows), sum(map(len, block.payloads)))

    def _count(self, num_records: int, num_bytes: int) -> list[Run]:
        self._num_records += num_records
        self._num_bytes += num_bytes
        return self.flush() if self._num_bytes >= BUFFER_BYTES or self._num_records >= BUFFER_RECORDS else []

    def flush(self) -> list[Run]:
        """Writes the buffered records. Returns their run, or an empty list if there are none."""
        blocks, self._blocks = self._blocks, []
        if self._records:
            blocks.append(to_run_block(self._records))
            self._records = []
        self._num_records = self._num_bytes = 0
        return [write_record_run(blocks, self._folder, self._windows)] if blocks else []
