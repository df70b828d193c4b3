"""Plans the batches of an epoch from the length of every record: windows sorted by length, cut by a budget, shuffled.

    blocks   contiguous records of a shard, some hundred kilobytes, in an order that seed and epoch decide
    windows  so many blocks that sorting them leaves little padding: what a reader holds in memory
    batches  a window from its longest record to its shortest, cut wherever the budget of padded steps is full
    order    the batches of each window among those of its neighbours, so that lengths come in no order

Sorting a window and cutting it is what "bucketing with a sorted buffer" does in sequence toolkits (for example the
pools of torchtext's BucketIterator); here it is done with the lengths alone, so that the whole epoch is known before a
byte is read, and a reader can begin anywhere.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from pipeline.schema.record import Array
from trainer.batching.cut import DEFAULT_BATCH_STEPS, MIN_BATCHES, BatchLimits, Ints, check_limits, cut_sorted, round_up
from trainer.batching.plan import Plan

# Batches in a window, at most. Padding is about 2 ÷ this: measured on log-normal lengths around 24 with a tail to 400,
# useful share against one sort of all records, 128 batches a window 98.4 %, 160 98.7 %, 192 99.0 %, 224 99.1 %.
_WINDOW_BATCHES = 192
# Bytes of a window, for each reader, where its records are wide.
_WINDOW_BYTES = 256 * 2**20
# Positions in a window are 18 bits of the keys that are sorted.
_MAX_WINDOW_RECORDS = 2**18
# What is read at once: large enough for a disk or an object store, and 32 of them at least mix a window.
_BLOCK_BYTES = 2**20
_BLOCKS_PER_WINDOW = 32
# A record is sorted as if it were longer by up to this share, anew each epoch, so that it meets other neighbours.
# Measured as above: 0.01 costs next to nothing, 0.02 0.2 % more padding, 0.05 1.5 %.
_JITTER = 0.01
# What a stream of random numbers is for.
_BLOCKS, _WINDOW, _ORDER = range(3)


class Lengths(Protocol):
    """What the plan needs to know of a shard: int[records] each, in the shard's order."""

    @property
    def num_bytes(self) -> Array: ...

    @property
    def num_steps(self) -> Array: ...


@dataclasses.dataclass(frozen=True)
class Batches:
    """int64[batches] each: rows (fillers included), steps to which they are padded, real steps."""

    rows: Ints
    pad_length: Ints
    steps: Ints


@dataclasses.dataclass(frozen=True, eq=False)
class WindowPlan(Plan):
    """An epoch of one reader, or of several that each yield a part of every batch.

    Attributes:
        batch_steps, batch_size: The limits of a batch of one reader.
        num_readers: Readers among which each batch is dealt.
        lengths: int32[records], steps of each record.
        order: int64[records], the records in windows, and within a window from long to short: a record's row is its
            place in the split, shards one after the other.
        first, count: int64[batches], where in `order` a batch begins and how many records it has, in the order in which
            batches come.
        window: int64[batches], the window that a batch is of.
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
        """The rows of the records that a reader yields in batch number `batch`, in their order; without fillers.

        Records are dealt from long to short and back, by `dealt_to`.
        """
        rows = self.all_rows(batch)
        return rows if self.num_readers == 1 else rows[dealt_to(np.arange(len(rows)), self.num_readers) == reader_index]

    def all_rows(self, batch: int) -> Ints:
        """The rows of the records of batch number `batch`, of all readers together."""
        first = self.first[batch]
        return self.order[first : first + self.count[batch]]

    def deal(self, num_readers: int) -> "WindowPlan":
        """The same batches, each dealt to so many readers; the limits are those of all of them together, then."""
        return dataclasses.replace(self, num_readers=num_readers)

    def batches(self, reader_index: int = 0) -> Batches:
        """What each batch is, for one reader: all have as many batches, and as many rows in each."""
        rows, steps, longest = (np.zeros(len(self.first), np.int64) for _ in range(3))
        if len(self.first):
            # Batches in the order of the records, of which they leave out none.
            order = np.argsort(self.first)
            first, count = self.first[order], self.count[order]
            lengths = self.lengths[self.order].astype(np.int64)
            if self.num_readers > 1:
                place = np.arange(len(lengths)) - np.repeat(first, count)
                lengths[dealt_to(place, self.num_readers) != reader_index] = 0
            rows[order] = -(-count // self.num_readers)
            steps[order] = np.add.reduceat(lengths, first)
            # A row that only fills a batch up has one step.
            longest[order] = np.maximum(np.maximum.reduceat(lengths, first), 1)
        return Batches(rows, round_up(longest, self.pad_to_multiple), steps)

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
        return sum(int((part.rows * part.pad_length).sum()) for part in self._readers())

    @property
    def shapes(self) -> set[tuple[int, int]]:
        return {
            (int(rows), int(steps))
            for part in self._readers()
            for rows, steps in np.unique(np.stack([part.rows, part.pad_length], axis=1), axis=0)
        }

    def _readers(self) -> list[Batches]:
        return [self.batches(reader) for reader in range(self.num_readers)]


def dealt_to(place: Any, num_readers: int) -> Any:
    """The reader that is dealt each place of a batch, in NumPy or TensorFlow: 0 1 2 3 3 2 1 0 0 1 …, as cards are by a
    fair dealer. From the longest record to the shortest, readers get about as many steps."""
    turn, there = place // num_readers, place % num_readers
    return there + turn % 2 * (num_readers - 1 - 2 * there)


def make_window_plan(
    shards: Sequence[Lengths],
    *,
    batch_steps: int | None = None,
    batch_size: int | None = None,
    pad_to_multiple: int = 1,
    num_readers: int = 1,
    seed: int = 0,
    epoch: int = 0,
    window_records: int | None = None,
) -> WindowPlan:
    """The plan of an epoch; the same arguments make the same plan.

    Args:
        shards: The shards of the split, in the order of the manifest.
        batch_steps: Budget of padded steps of a batch of one reader. A record that is longer makes a batch of one.
        batch_size: Records of a batch of one reader, at most; both limits hold where both are given. With neither, the
            budget is `default_window_steps`.
        pad_to_multiple: Batches are padded to a multiple of it: 8 suits half precision on a GPU.
        num_readers: Readers among which each batch is dealt.
        window_records: Records that are sorted together; by default such that a window has some hundred batches.

    Raises:
        ValueError: a wrong argument; says which, the value and what was expected.
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
    cuts = [np.zeros(0, np.int64)]
    for window in range(num_windows):
        begin = window * window_records
        rows = order[begin : begin + window_records]  # a view: sorted in place
        random = _random(len(rows) + 1, seed, epoch, _WINDOW, window)
        rows[:] = rows[_sort(lengths[rows], random[1:])]
        cuts.append(begin + cut_sorted(lengths[rows], limits, first_share=_unit(random[:1])[0]))
    first = np.concatenate(cuts)
    window_of = np.repeat(np.arange(num_windows), [len(cut) for cut in cuts[1:]])
    count = np.diff(np.append(first, len(order)))
    # A batch comes while its window's time lasts, or a quarter of the next one's: a reader holds little more than one.
    sequence = np.argsort(window_of + 1.25 * _unit(_random(len(first), seed, epoch, _ORDER)), kind="stable")
    return WindowPlan(
        batch_steps=batch_steps,
        batch_size=batch_size,
        num_readers=num_readers,
        pad_to_multiple=pad_to_multiple,
        lengths=lengths,
        order=order,
        first=first[sequence],
        count=count[sequence],
        window=window_of[sequence],
    )


def default_window_steps(lengths: Array) -> int:
    """A budget of padded steps that gives an epoch at least MIN_BATCHES batches, where there are as many records."""
    budget = DEFAULT_BATCH_STEPS
    least = min(MIN_BATCHES, len(lengths))
    descending = np.sort(lengths)[::-1]
    while budget > 1 and len(cut_sorted(descending, BatchLimits(budget))) < least:
        budget = budget * 3 // 4
    return budget


def _window_records(lengths: Array, num_bytes: int, limits: BatchLimits) -> int:
    """Records of a window, by batches, bytes and what the keys can number."""
    if not len(lengths):
        return 1
    mean_steps = max(1.0, float(lengths.mean()))
    by_steps = limits.batch_steps / mean_steps if limits.batch_steps is not None else np.inf
    rows = min(by_steps, limits.batch_size or np.inf) * limits.num_readers
    by_bytes = _WINDOW_BYTES * limits.num_readers / max(1.0, num_bytes / len(lengths))
    return int(max(1, min(_WINDOW_BATCHES * rows, by_bytes, _MAX_WINDOW_RECORDS)))


def _block_order(sizes: Sequence[int], num_bytes: int, window_records: int, seed: int, epoch: int) -> Ints:
    """All rows, block by block, the blocks in random order."""
    total = sum(sizes)
    if not total:
        return np.zeros(0, np.int64)
    by_bytes = int(_BLOCK_BYTES / (num_bytes / total))
    block = max(1, min(by_bytes, window_records // _BLOCKS_PER_WINDOW))
    ends = np.cumsum(sizes)
    begins = [np.arange(end - size, end, block) for end, size in zip(ends.tolist(), sizes, strict=True)]
    stops = [np.append(begin[1:], end) for begin, end in zip(begins, ends.tolist(), strict=True) if len(begin)]
    begin, stop = np.concatenate(begins), np.concatenate(stops)
    shuffled = np.argsort(_random(len(begin), seed, epoch, _BLOCKS), kind="stable")
    begin, size = begin[shuffled], (stop - begin)[shuffled]
    return np.repeat(begin - (np.cumsum(size) - size), size) + np.arange(total)


def _sort(lengths: Array, random: Array) -> Ints:
    """Places from the longest to the shortest; who is as long as another comes before or after it by chance."""
    jitter = np.floor(_unit(random) * (_JITTER * lengths)).astype(np.uint64)
    key = (lengths.astype(np.uint64) + jitter) << np.uint64(32)
    chance = (random & np.uint64(0x3FFF)) << np.uint64(18)
    # One sort of numbers that hold everything: three times as fast as a sort of places by two keys.
    packed = np.sort(key | chance | np.arange(len(lengths), dtype=np.uint64))[::-1]
    return (packed & np.uint64(_MAX_WINDOW_RECORDS - 1)).astype(np.int64)


def _random(count: int, *key: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    # NumPy promises the same raw bits in all versions, but not the same permutations.
    bits = np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)
    return np.asarray(bits, np.uint64)


def _unit(random: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Random bits as numbers from 0 to 1, without 1; of the upper bits, the lower ones serve for something else."""
    return (random >> np.uint64(11)).astype(np.float64) * 2.0**-53
