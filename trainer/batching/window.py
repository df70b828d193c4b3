"""Plans epochs by batching `window`: windows of records sorted by length, cut into batches, shuffled.

    blocks   contiguous records of a shard, some hundred kilobytes, in an order that depends on seed and epoch
    windows  as many blocks as are needed for little padding: what a reader holds in memory
    batches  a window from its longest record to its shortest, cut wherever the budget of padded steps is full
    order    the batches of each window are mixed with those of the neighbouring windows, so that lengths have no trend

Sequence toolkits call this "bucketing with a sorted buffer" (for example the pools of torchtext's BucketIterator). Here
it needs only the lengths. So the whole epoch is known before any record is read, and a reader can begin at any batch.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from pipeline.schema.record import Array
from trainer.batching.cut import (
    DEFAULT_BATCH_STEPS,
    MIN_BATCHES,
    BatchLimits,
    Ints,
    check_limits,
    cut_sorted,
    round_up,
)
from trainer.batching.plan import Plan
from trainer.batching.random_bits import random_bits

# Maximum number of batches in a window. The share of padding is about 2 ÷ this number. Measured on log-normal lengths
# around 24 with a tail to 400, useful share compared with one sort of all records: 128 batches per window 98.4 %,
# 160 98.7 %, 192 99.0 %, 224 99.1 %.
_WINDOW_BATCHES = 192
# Maximum bytes of a window for each reader, which matters if records are wide.
_WINDOW_BYTES = 256 * 2**20
# Bytes that are read together: enough for a disk or an object store. A window has at least 32 of these blocks, so that
# its records are mixed.
_BLOCK_BYTES = 2**20
_BLOCKS_PER_WINDOW = 32
# A record is sorted as if it were longer by up to this share, newly drawn in each epoch, so that its batch has other
# records each time. Measured as above: 0.01 adds almost no padding, 0.02 adds 0.2 %, 0.05 adds 1.5 %.
_JITTER = 0.01
# A window is sorted by one uint64 key per record: its length, then a random number, then its position in the window.
_LENGTH_BITS, _RANDOM_BITS, _POSITION_BITS = 32, 14, 18
_MAX_WINDOW_RECORDS = 1 << _POSITION_BITS
# The streams of random numbers: the order of blocks, the records of a window, the order of batches.
_BLOCKS, _WINDOW, _ORDER = range(3)


class ShardLengths(Protocol):
    """The sizes of the records of a shard that the plan needs: int[records] each, in the order of the shard."""

    @property
    def num_bytes(self) -> Array:
        """Bytes of each serialized record."""

    @property
    def num_steps(self) -> Array:
        """Steps of each record."""


@dataclasses.dataclass(frozen=True)
class BatchShapes:
    """The sizes of the batches of one reader: int64[batches] each.

    Attributes:
        rows: Rows of each batch, filler rows included.
        pad_length: Steps to which each batch is padded.
        steps: Real steps of each batch.
    """

    rows: Ints
    pad_length: Ints
    steps: Ints


@dataclasses.dataclass(frozen=True, eq=False)
class WindowPlan(Plan):
    """An epoch of one reader, or of several readers that each yield a part of every batch.

    Attributes:
        batch_steps, batch_size: The limits of a batch of one reader.
        num_readers: Number of readers that share each batch.
        pad_to_multiple: Batches are padded to a multiple of this number of steps.
        lengths: int32[records], steps of each record in the order of the split.
        order: int64[records], the records window by window, in each window from the longest to the shortest. A record
            is given as its position in the split, where the shards follow each other.
        first: int64[batches], position in `order` of the first record of each batch, in the order of the epoch.
        count: int64[batches], number of records of each batch.
        window: int64[batches], number of the window of each batch.
    """

    batch_steps: int | None
    batch_size: int | None
    num_readers: int
    pad_to_multiple: int
    lengths: Array
    order: Ints
    first: Ints
    count: Ints
    window: Ints
    batching: Literal["window"] = "window"

    def rows(self, batch: int, reader_index: int = 0) -> Ints:
        """Returns the records that a reader yields in a batch: int64[rows], positions in the split, without fillers.

        `reader_of` deals the records of the batch to the readers, from the longest to the shortest.
        """
        rows = self.all_rows(batch)
        if self.num_readers == 1:
            return rows
        return rows[reader_of(np.arange(len(rows)), self.num_readers) == reader_index]

    def all_rows(self, batch: int) -> Ints:
        """Returns the records of a batch of all readers together: int64[rows], positions in the split."""
        first = self.first[batch]
        return self.order[first : first + self.count[batch]]

    def deal(self, num_readers: int) -> "WindowPlan":
        """Returns the plan with the same batches, each dealt to `num_readers` readers.

        The limits of the new plan are those of all readers together.
        """
        return dataclasses.replace(self, num_readers=num_readers)

    def batch_shapes(self, reader_index: int = 0) -> BatchShapes:
        """Returns the sizes of the batches of one reader.

        All readers have the same number of batches, and the same number of rows in batch i.
        """
        rows, steps, longest = (np.zeros(len(self.first), np.int64) for _ in range(3))
        if len(self.first):
            # In the order of `self.order`, the batches follow each other without a gap.
            order = np.argsort(self.first)
            first, count = self.first[order], self.count[order]
            lengths = self.lengths[self.order].astype(np.int64)
            if self.num_readers > 1:
                place = np.arange(len(lengths)) - np.repeat(first, count)
                lengths[reader_of(place, self.num_readers) != reader_index] = 0
            rows[order] = -(-count // self.num_readers)
            steps[order] = np.add.reduceat(lengths, first)
            # A filler row has one step.
            longest[order] = np.maximum(np.maximum.reduceat(lengths, first), 1)
        return BatchShapes(rows, round_up(longest, self.pad_to_multiple), steps)

    @property
    def num_batches(self) -> int:
        return len(self.first)

    @property
    def records(self) -> int:
        return len(self.order)

    @property
    def steps(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def padded_steps(self) -> int:
        return sum(int((part.rows * part.pad_length).sum()) for part in self._all_batch_shapes())

    @property
    def shapes(self) -> set[tuple[int, int]]:
        return {
            (int(rows), int(steps))
            for part in self._all_batch_shapes()
            for rows, steps in np.unique(np.stack([part.rows, part.pad_length], axis=1), axis=0)
        }

    def _all_batch_shapes(self) -> list[BatchShapes]:
        return [self.batch_shapes(reader) for reader in range(self.num_readers)]


def reader_of(place: Any, num_readers: int) -> Any:
    """Returns the reader to which each place of a batch is dealt, as int of the shape of `place`.

    The readers take turns forwards and backwards: 0 1 2 2 1 0 0 1 … for three readers. If the records of the batch are
    sorted by length, all readers get nearly the same number of steps.

    Args:
        place: Integers, as a NumPy array or a tensor.
    """
    turn, offset = place // num_readers, place % num_readers
    return offset + turn % 2 * (num_readers - 1 - 2 * offset)


def make_window_plan(
    shards: Sequence[ShardLengths],
    *,
    batch_steps: int | None = None,
    batch_size: int | None = None,
    pad_to_multiple: int = 1,
    num_readers: int = 1,
    seed: int = 0,
    epoch: int = 0,
    window_records: int | None = None,
) -> WindowPlan:
    """Returns the plan of an epoch. The same arguments give the same plan.

    Args:
        shards: The shards of the split, in the order of the manifest.
        batch_steps: Budget of padded steps per batch of one reader. A longer record makes a batch of one record.
        batch_size: Maximum number of records per batch of one reader. If both limits are given, both hold. If neither
            is given, the budget is `default_window_steps`.
        pad_to_multiple: Batches are padded to a multiple of this number of steps, so that they have fewer distinct
            shapes.
        num_readers: Number of readers that share each batch.
        seed, epoch: Determine the order.
        window_records: Number of records that are sorted together, at most 2**18. By default a window has some hundred
            batches.

    Raises:
        ValueError: An argument is wrong. The message has its name, its value and what was expected.
    """
    check_limits(
        batch_steps=batch_steps,
        batch_size=batch_size,
        pad_to_multiple=pad_to_multiple,
        num_readers=num_readers,
        window_records=window_records,
    )
    lengths = np.concatenate([np.zeros(0, np.int32), *(shard.num_steps for shard in shards)])
    if batch_steps is None and batch_size is None:
        batch_steps = default_window_steps(lengths)
    num_bytes = sum(int(shard.num_bytes.sum(dtype=np.int64)) for shard in shards)
    limits = BatchLimits(batch_steps, batch_size, pad_to_multiple, num_readers)
    wanted = window_records or _window_records(lengths, num_bytes, limits)
    num_windows = -(-len(lengths) // wanted) or 1
    window_records = -(-len(lengths) // num_windows) or 1
    order = _block_order([len(shard.num_steps) for shard in shards], num_bytes, window_records, seed, epoch)
    first, window = _cut_windows(order, lengths, num_windows, window_records, limits, seed, epoch)
    count = np.diff(np.append(first, len(order)))
    # A batch is yielded during the turn of its own window or the first quarter of the next turn, so a reader holds
    # little more than one window.
    sequence = np.argsort(window + 1.25 * _unit(random_bits(len(first), seed, epoch, _ORDER)), kind="stable")
    return WindowPlan(
        batch_steps=batch_steps,
        batch_size=batch_size,
        num_readers=num_readers,
        pad_to_multiple=pad_to_multiple,
        lengths=lengths,
        order=order,
        first=first[sequence],
        count=count[sequence],
        window=window[sequence],
    )


def default_window_steps(lengths: Array) -> int:
    """Returns a budget of padded steps that gives an epoch at least MIN_BATCHES batches.

    If there are fewer records than that, each record is a batch.
    """
    budget = DEFAULT_BATCH_STEPS
    wanted = min(MIN_BATCHES, len(lengths))
    descending = np.sort(lengths)[::-1]
    while budget > 1 and len(cut_sorted(descending, BatchLimits(budget))) < wanted:
        budget = budget * 3 // 4
    return budget


def _window_records(lengths: Array, num_bytes: int, limits: BatchLimits) -> int:
    """Returns the number of records of a window, within the limits of batches, of bytes and of the sort key."""
    if not len(lengths):
        return 1
    mean_steps = max(1.0, float(lengths.mean()))
    by_steps = limits.batch_steps / mean_steps if limits.batch_steps is not None else np.inf
    rows = min(by_steps, limits.batch_size or np.inf) * limits.num_readers
    by_bytes = _WINDOW_BYTES * limits.num_readers / max(1.0, num_bytes / len(lengths))
    return int(max(1, min(_WINDOW_BATCHES * rows, by_bytes, _MAX_WINDOW_RECORDS)))


def _block_order(sizes: Sequence[int], num_bytes: int, window_records: int, seed: int, epoch: int) -> Ints:
    """Returns all records block by block, the blocks in random order: int64[records], positions in the split.

    Args:
        sizes: Number of records of each shard.
        num_bytes: Bytes of all records.
    """
    total = sum(sizes)
    if not total:
        return np.zeros(0, np.int64)
    by_bytes = int(_BLOCK_BYTES / (num_bytes / total))
    block = max(1, min(by_bytes, window_records // _BLOCKS_PER_WINDOW))
    ends = np.cumsum(sizes)
    begins = [np.arange(end - size, end, block) for end, size in zip(ends.tolist(), sizes, strict=True)]
    stops = [np.append(begin[1:], end) for begin, end in zip(begins, ends.tolist(), strict=True) if len(begin)]
    begin, stop = np.concatenate(begins), np.concatenate(stops)
    shuffled = np.argsort(random_bits(len(begin), seed, epoch, _BLOCKS), kind="stable")
    begin, size = begin[shuffled], (stop - begin)[shuffled]
    return np.repeat(begin - (np.cumsum(size) - size), size) + np.arange(total)


def _cut_windows(
    order: Ints, lengths: Array, num_windows: int, window_records: int, limits: BatchLimits, seed: int, epoch: int
) -> tuple[Ints, Ints]:
    """Sorts each window of `order` in place and cuts it into batches.

    Returns:
        The position in `order` of the first record of each batch, and the window of each batch: int64[batches] each.
    """
    cuts = [np.zeros(0, np.int64)]
    for window in range(num_windows):
        begin = window * window_records
        rows = order[begin : begin + window_records]  # a view, so that `order` changes
        random = random_bits(len(rows) + 1, seed, epoch, _WINDOW, window)
        rows[:] = rows[_sort(lengths[rows], random[1:])]
        cuts.append(begin + cut_sorted(lengths[rows], limits, first_share=_unit(random[:1])[0]))
    return np.concatenate(cuts), np.repeat(np.arange(num_windows), [len(cut) for cut in cuts[1:]])


def _sort(lengths: Array, random: Array) -> Ints:
    """Returns the positions from the longest to the shortest record; records of equal length are in random order.

    One sort of keys that hold everything is three times as fast as a sort of positions by two keys.

    Args:
        lengths: int32[records].
        random: uint64[records], random bits.
    """
    assert _LENGTH_BITS + _RANDOM_BITS + _POSITION_BITS == 64
    assert len(lengths) <= _MAX_WINDOW_RECORDS, "a position does not fit into its bits"
    assert lengths.dtype == np.int32, "a length with its jitter does not fit into its bits"
    jitter = np.floor(_unit(random) * (_JITTER * lengths)).astype(np.uint64)
    length_part = (lengths.astype(np.uint64) + jitter) << np.uint64(_RANDOM_BITS + _POSITION_BITS)
    random_part = (random & np.uint64((1 << _RANDOM_BITS) - 1)) << np.uint64(_POSITION_BITS)
    keys = np.sort(length_part | random_part | np.arange(len(lengths), dtype=np.uint64))[::-1]
    return (keys & np.uint64(_MAX_WINDOW_RECORDS - 1)).astype(np.int64)


def _unit(random: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Returns random bits as numbers from 0 to below 1, made of the upper 53 bits; `_sort` uses the lower bits."""
    return (random >> np.uint64(11)).astype(np.float64) * 2.0**-53
