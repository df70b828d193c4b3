"""Plans the batches of an epoch from the counts of each length alone, before a byte of data is read."""

import abc
import bisect
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from pipeline.schema.record import Array
from trainer.batching.cut import DEFAULT_BATCH_STEPS, MIN_BATCHES, BatchLimits, check_limits, round_up
from trainer.config import BATCHING_METHODS, PLANNED_FROM_COUNTS, Batching

# More buckets waste fewer steps, and leave more batches that are not full, and more records waiting in memory. Measured
# on 200,000 log-normal lengths around 24 with a tail to 400: 8 buckets 79 % useful, 16 90 %, 32 95.5 %, 64 98.5 %.
MIN_BUCKETS, MAX_BUCKETS = 16, 32
# Batches of a bucket on average, before it is worth a bucket more.
_BATCHES_PER_BUCKET = 4
# Distinct lengths among which edges are chosen exactly; with more of them, neighbours are put together first.
_MAX_CANDIDATES = 512


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The records of at most `pad_length` steps that are in no smaller bucket.

    Attributes:
        pad_length: Steps to which a batch of this bucket is padded.
        batch_size: Records in a full batch.
        records: Records in the split that fall here.
        steps: Their real steps together, after truncation.
    """

    pad_length: int
    batch_size: int
    records: int
    steps: int

    @property
    def num_batches(self) -> int:
        return -(-self.records // self.batch_size)

    @property
    def shapes(self) -> set[tuple[int, int]]:
        """(rows, steps) of its batches: full ones, and the last."""
        rest = self.records % self.batch_size
        rows = ({self.batch_size} if self.records >= self.batch_size else set()) | ({rest} if rest else set())
        return {(count, self.pad_length) for count in rows}


class Plan(abc.ABC):
    """How an epoch is cut into batches, whichever the way.

    Attributes:
        batch_steps, batch_size: The limits that it was made for.
    """

    batching: Batching
    batch_steps: int | None
    batch_size: int | None

    @property
    @abc.abstractmethod
    def num_batches(self) -> int: ...

    def check_first(self, first_batch: int) -> None:
        """Raises a ValueError where a reader cannot begin with this batch."""
        if not 0 <= first_batch <= self.num_batches:
            raise ValueError(
                f"first_batch is {first_batch}, expected 0 to {self.num_batches}, the batches of the epoch."
            )

    @property
    @abc.abstractmethod
    def records(self) -> int: ...

    @property
    @abc.abstractmethod
    def steps(self) -> int:
        """Real steps, after truncation."""

    @property
    @abc.abstractmethod
    def padded_steps(self) -> int:
        """Rows × padded length of all batches."""

    @property
    @abc.abstractmethod
    def shapes(self) -> set[tuple[int, int]]:
        """The distinct (rows, steps) of all batches."""

    @property
    def useful_share(self) -> float:
        """Share of the padded steps that are real; 1 where there is no step."""
        return self.steps / self.padded_steps if self.padded_steps else 1.0

    @property
    def largest_batch(self) -> tuple[int, int]:
        """(rows, steps) of the batch with the most padded steps."""
        return max(self.shapes, key=lambda shape: (shape[0] * shape[1], shape), default=(0, 0))

    def to_dict(self) -> dict[str, Any]:
        rows, steps = self.largest_batch
        return {
            "batching": self.batching,
            "batch_steps": self.batch_steps,
            "batch_size": self.batch_size,
            "batches": self.num_batches,
            "records": self.records,
            "steps": self.steps,
            "padded_steps": self.padded_steps,
            "useful_share": self.useful_share,
            "largest_batch": {"records": rows, "steps": steps, "padded_steps": rows * steps},
            "shapes": len(self.shapes),
        }


@dataclasses.dataclass(frozen=True)
class BucketPlan(Plan):
    """An epoch whose batches are each of one bucket.

    Attributes:
        truncate: Where a record longer than the last pad_length is cut: its head or its tail; None refuses it.
    """

    batching: Batching
    buckets: tuple[Bucket, ...]
    batch_steps: int | None = None
    batch_size: int | None = None
    truncate: Literal["head", "tail"] | None = None

    @property
    def boundaries(self) -> list[int]:
        """Exclusive upper edges, as tf.data takes them: a record of `boundary` steps goes one bucket up."""
        return [bucket.pad_length + 1 for bucket in self.buckets]

    @property
    def batch_sizes(self) -> list[int]:
        """One more than boundaries, as tf.data takes them; no record reaches the last."""
        return [*(bucket.batch_size for bucket in self.buckets), 1]

    @property
    def num_batches(self) -> int:
        return sum(bucket.num_batches for bucket in self.buckets)

    @property
    def records(self) -> int:
        return sum(bucket.records for bucket in self.buckets)

    @property
    def steps(self) -> int:
        return sum(bucket.steps for bucket in self.buckets)

    @property
    def padded_steps(self) -> int:
        return sum(bucket.records * bucket.pad_length for bucket in self.buckets)

    @property
    def shapes(self) -> set[tuple[int, int]]:
        return set().union(*(bucket.shapes for bucket in self.buckets))

    def with_lengths(self, lengths: Iterable[int]) -> "BucketPlan":
        """The same buckets, filled with records of these lengths: a part of those the plan was made for."""
        counts = _count(np.fromiter(lengths, np.int64))
        edges = [bucket.pad_length for bucket in self.buckets]
        return dataclasses.replace(self, buckets=_fill(edges, [b.batch_size for b in self.buckets], counts))


def make_plan(
    length_counts: Mapping[int, int],
    *,
    batching: Batching,
    batch_steps: int | None = None,
    batch_size: int | None = None,
    pad_length: int | None = None,
    truncate: Literal["head", "tail"] | None = None,
    pad_to_multiple: int = 1,
) -> BucketPlan:
    """The plan of an epoch.

    Args:
        length_counts: Records of each number of steps, from the manifest.
        batch_steps: Budget of padded steps a batch. A record that is longer than it makes a batch of one.
        batch_size: Records a batch, at most; both limits hold where both are given. With neither, the budget is
            `default_batch_steps`.
        pad_length: For `pad`: steps to which all batches are padded; the longest record by default.
        truncate: For `pad` with `pad_length`: cut longer records at the head or the tail.
        pad_to_multiple: For `bucket`: pad lengths are multiples of it.

    Raises:
        ValueError: a wrong argument; says which, the value and what was expected.
    """
    counts = {length: count for length, count in sorted(length_counts.items()) if count}
    _check(counts, batching, batch_steps, batch_size, pad_length, truncate, pad_to_multiple)
    if batch_steps is None and batch_size is None:
        batch_steps = default_batch_steps(counts, batching=batching, pad_length=pad_length, truncate=truncate)
    if batching == "pad":
        edges = [pad_length or max(counts, default=1)]
    elif batching == "exact":
        edges = list(counts)
    else:
        edges = choose_edges(counts, num_buckets=_num_buckets(counts, batch_steps, batch_size))
        edges = sorted({round_up(edge, pad_to_multiple) for edge in edges})
    limits = BatchLimits(batch_steps, batch_size)
    sizes = [limits.rows(edge) for edge in edges]
    return BucketPlan(batching, _fill(edges, sizes, counts), batch_steps, batch_size, truncate)


def default_batch_steps(
    length_counts: Mapping[int, int],
    *,
    batching: Batching,
    pad_length: int | None = None,
    truncate: Literal["head", "tail"] | None = None,
) -> int:
    """A budget of padded steps that gives an epoch at least MIN_BATCHES batches, where there are as many records."""
    budget = DEFAULT_BATCH_STEPS
    while budget > 1:
        plan = make_plan(length_counts, batching=batching, batch_steps=budget, pad_length=pad_length, truncate=truncate)
        if plan.num_batches >= min(MIN_BATCHES, plan.records):
            break
        budget //= 2
    return budget


def plan_buckets(
    length_counts: Mapping[int, int],
    *,
    num_buckets: int,
    batch_steps: int | None = None,
    batch_size: int | None = None,
) -> tuple[list[int], list[int]]:
    """Bucket boundaries and a batch size for each bucket, as `bucket_by_sequence_length` takes them.

    >>> plan_buckets({2: 10, 8: 10}, num_buckets=2, batch_steps=16)
    ([3, 9], [8, 2, 1])
    """
    edges = choose_edges(length_counts, num_buckets=num_buckets)
    limits = BatchLimits(batch_steps, batch_size)
    return [edge + 1 for edge in edges], [*(limits.rows(edge) for edge in edges), 1]


def choose_edges(length_counts: Mapping[int, int], *, num_buckets: int) -> list[int]:
    """The longest length of each bucket, such that the fewest steps are padding.

    Exact, by dynamic programming over the distinct lengths (the one-dimensional k-medians problem with the cost at the
    upper edge): the cheapest cut of the lengths up to j into k buckets is the cheapest cut of those up to i into k - 1,
    and one bucket from i to j.

    >>> choose_edges({10: 1000, 11: 1000, 50: 10, 60: 1000}, num_buckets=2)
    [11, 60]
    """
    lengths, records = _candidates(length_counts)
    if len(lengths) <= num_buckets:
        return [int(length) for length in lengths]
    before = np.concatenate([[0], np.cumsum(records)])
    # cost[i, j]: padded steps of one bucket that holds the lengths i … j.
    cost = (before[None, 1:] - before[:-1, None]).astype(np.float64) * lengths[None, :]
    cost[np.tril_indices(len(lengths), -1)] = np.inf
    best, cuts = cost[0], []
    for _ in range(num_buckets - 1):
        # Bucket k starts at i, the ones before end at i - 1.
        total = best[:-1, None] + cost[1:, :]
        cuts.append(np.argmin(total, axis=0) + 1)
        best = total.min(axis=0)
    edges, end = [], len(lengths) - 1
    for cut in reversed(cuts):
        edges.append(int(lengths[end]))
        end = int(cut[end]) - 1
    return [int(lengths[end]), *reversed(edges)]


def _candidates(length_counts: Mapping[int, int]) -> tuple[Array, Array]:
    """The lengths that may be an edge and the records up to each, thinned out to _MAX_CANDIDATES."""
    lengths = np.array(sorted(length for length, count in length_counts.items() if count), np.int64)
    records = np.array([length_counts[int(length)] for length in lengths], np.int64)
    if len(lengths) <= _MAX_CANDIDATES:
        return lengths, records
    ends = np.unique(np.linspace(0, len(lengths) - 1, _MAX_CANDIDATES).astype(np.int64))
    return lengths[ends], np.add.reduceat(records, np.concatenate([[0], ends[:-1] + 1]))


def _num_buckets(counts: Mapping[int, int], batch_steps: int | None, batch_size: int | None) -> int:
    by_steps = sum(length * count for length, count in counts.items()) // batch_steps if batch_steps else 0
    by_size = sum(counts.values()) // batch_size if batch_size else 0
    return min(MAX_BUCKETS, max(MIN_BUCKETS, max(by_steps, by_size) // _BATCHES_PER_BUCKET))


def _fill(edges: list[int], sizes: list[int], counts: Mapping[int, int]) -> tuple[Bucket, ...]:
    records, steps = [0] * len(edges), [0] * len(edges)
    for length, count in counts.items():
        # Only `pad` has a length beyond the last edge: its records are cut to it.
        position = min(bisect.bisect_left(edges, length), len(edges) - 1)
        records[position] += count
        steps[position] += count * min(length, edges[-1])
    return tuple(Bucket(*values) for values in zip(edges, sizes, records, steps, strict=True))


def _count(lengths: Array) -> dict[int, int]:
    values, counts = np.unique(lengths, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def check_only_pad(batching: str, *, pad_length: int | None, truncate: str | None) -> None:
    """Raises a ValueError for what another way of batching does not know."""
    if batching != "pad" and (pad_length is not None or truncate is not None):
        raise ValueError(f"pad_length and truncate belong to batching 'pad', not to {batching!r}.")


def _check(
    counts: Mapping[int, int],
    batching: str,
    batch_steps: int | None,
    batch_size: int | None,
    pad_length: int | None,
    truncate: str | None,
    pad_to_multiple: int,
) -> None:
    if batching not in PLANNED_FROM_COUNTS:
        raise ValueError(f"batching is {batching!r}, expected one of {', '.join(BATCHING_METHODS)}.")
    check_limits(batch_steps=batch_steps, batch_size=batch_size, pad_length=pad_length, pad_to_multiple=pad_to_multiple)
    if batching != "bucket" and pad_to_multiple != 1:
        raise ValueError(f"pad_to_multiple belongs to batching 'window' or 'bucket', not to {batching!r}.")
    check_only_pad(batching, pad_length=pad_length, truncate=truncate)
    if truncate not in (None, "head", "tail"):
        raise ValueError(f"truncate is {truncate!r}, expected 'head' or 'tail'.")
    longest = max(counts, default=0)
    if pad_length is not None and longest > pad_length and truncate is None:
        raise ValueError(
            f"pad_length is {pad_length}, but the longest record has {longest} steps; choose truncate head or tail."
        )
