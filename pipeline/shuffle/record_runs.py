"""Buffers encoded records, and sorts them: into runs, or into packed blocks, with the bytes of splits and windows."""

import abc
import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np

from pipeline.format.tfrecord import FRAME_BYTES
from pipeline.schema.record import Array
from pipeline.schema.windows import EventWindows, missing_time
from pipeline.shuffle.encoded_records import RECORDS, EncodedRecord, to_run_block
from pipeline.shuffle.packed_blocks import pack_in_pieces
from pipeline.shuffle.runs import Run, new_run
from pipeline.shuffle.sorted_rows import Block, payload_size, sort_blocks

# A buffer is full when it holds this number of bytes, or this number of records.
BUFFER_BYTES, BUFFER_RECORDS = 16 * 2**20, 16_384

# The bytes in TFRecord files of each (split, start of the window or None).
Totals: TypeAlias = Mapping[tuple[str, int | None], int]
Sorted = TypeVar("Sorted")


class SortedBlocks(NamedTuple):
    """Sorted records as packed blocks, one after the other, and their bytes by split and window."""

    blocks: list[bytes]
    totals: Totals


def add_totals(totals: Iterable[Totals]) -> Totals:
    """Returns the sums of several totals."""
    sums = collections.Counter[tuple[str, int | None]]()
    for each in totals:
        sums.update(each)
    return dict(sums)


def write_record_run(blocks: Sequence[Block], folder: str, windows: EventWindows | None = None) -> Run:
    """Sorts rows of RECORDS and writes them to a new run in `folder`.

    Args:
        windows: The windows of the dataset, if it has any.

    Returns:
        A run. Its `totals` are Totals.
    """
    block = sort_blocks(blocks, RECORDS)
    with new_run(folder, RECORDS) as writer:
        writer.add(block)
    return writer.run(_add_up(block, windows))


def _add_up(block: Block, windows: EventWindows | None) -> Totals:
    """Returns the bytes of the rows of each split and window."""
    rows = block.rows
    raw_bytes = rows["raw_bytes"].fill_null(0).to_numpy()
    sizes: Array = np.array(list(map(payload_size, block.payloads)), np.int64) + FRAME_BYTES - raw_bytes
    splits = rows["split"].to_pylist()
    starts = [None] * len(splits) if windows is None else map(windows.start_of, rows["event_time"].to_pylist())
    totals = collections.Counter[tuple[str, int | None]]()
    for place, num_bytes in zip(zip(splits, starts, strict=True), sizes.tolist(), strict=True):
        totals[place] += num_bytes
    return dict(totals)


class RecordBuffer(abc.ABC, Generic[Sorted]):
    """Buffers encoded records in any order, and sorts them when the buffer is full."""

    def __init__(self, windows: EventWindows | None = None) -> None:
        self._windows = windows
        self._records: list[EncodedRecord] = []
        self._blocks: list[Block] = []
        self._num_records = self._num_bytes = 0

    @abc.abstractmethod
    def _sort(self, blocks: list[Block]) -> Sorted:
        """Sorts all records of the buffer."""

    def add(self, record: EncodedRecord) -> list[Sorted]:
        """Adds a record. Returns the sorted records if the buffer was full, else an empty list.

        Raises:
            ValueError: The dataset has windows, but the record has no event time.
        """
        if self._windows is not None and record.event_time is None:
            raise missing_time(record.id, self._windows)
        self._records.append(record)
        return self._count(1, len(record.example) + len(record.origin.raw or b""))

    def add_block(self, block: Block) -> list[Sorted]:
        """Adds rows of RECORDS, which need not be sorted. Returns what `add` returns."""
        self._blocks.append(block)
        return self._count(len(block.rows), sum(map(len, block.payloads)))

    def _count(self, num_records: int, num_bytes: int) -> list[Sorted]:
        self._num_records += num_records
        self._num_bytes += num_bytes
        return self.flush() if self._num_bytes >= BUFFER_BYTES or self._num_records >= BUFFER_RECORDS else []

    def flush(self) -> list[Sorted]:
        """Sorts the buffered records. Returns them, or an empty list if there are none."""
        blocks, self._blocks = self._blocks, []
        if self._records:
            blocks.append(to_run_block(self._records))
            self._records = []
        self._num_records = self._num_bytes = 0
        return [self._sort(blocks)] if blocks else []


class RunBuffer(RecordBuffer[Run]):
    """Writes the sorted records to runs in a folder."""

    def __init__(self, folder: str, windows: EventWindows | None = None) -> None:
        super().__init__(windows)
        self._folder = folder

    def _sort(self, blocks: list[Block]) -> Run:
        return write_record_run(blocks, self._folder, self._windows)


class BlockBuffer(RecordBuffer[SortedBlocks]):
    """Packs the sorted records into blocks."""

    def _sort(self, blocks: list[Block]) -> SortedBlocks:
        block = sort_blocks(blocks, RECORDS)
        return SortedBlocks(list(pack_in_pieces(block)), _add_up(block, self._windows))
