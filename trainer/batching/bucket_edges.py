"""Chooses the padded length of each bucket, so that the fewest steps are padding."""

from collections.abc import Mapping

import numpy as np

from pipeline.schema.record import Array
from trainer.batching.cut import BatchLimits

# Up to this number of distinct lengths, the edges are optimal. If there are more, neighbours are merged first.
_MAX_CANDIDATES = 512


def plan_buckets(
    length_counts: Mapping[int, int],
    *,
    num_buckets: int,
    batch_steps: int | None = None,
    batch_size: int | None = None,
) -> tuple[list[int], list[int]]:
    """Returns bucket boundaries and the batch size of each bucket, as `bucket_by_sequence_length` takes them.

    >>> plan_buckets({2: 10, 8: 10}, num_buckets=2, batch_steps=16)
    ([3, 9], [8, 2, 1])
    """
    edges = choose_edges(length_counts, num_buckets=num_buckets)
    limits = BatchLimits(batch_steps, batch_size)
    return [edge + 1 for edge in edges], [*(limits.rows(edge) for edge in edges), 1]


def choose_edges(length_counts: Mapping[int, int], *, num_buckets: int) -> list[int]:
    """Returns the longest length of each bucket, in ascending order, such that the fewest steps are padding.

    The result is exact, by dynamic programming over the distinct lengths (the one-dimensional k-medians problem with
    the cost at the upper edge): the cheapest partition of the lengths up to j into k buckets is the cheapest partition
    of the lengths up to i into k - 1 buckets, and one bucket from i to j.

    Args:
        length_counts: Number of records of each length.
        num_buckets: Maximum number of buckets. There are fewer if there are fewer lengths.

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
        # Bucket k starts at i; the buckets before it end at i - 1.
        total = best[:-1, None] + cost[1:, :]
        cuts.append(np.argmin(total, axis=0) + 1)
        best = total.min(axis=0)
    edges, end = [], len(lengths) - 1
    for cut in reversed(cuts):
        edges.append(int(lengths[end]))
        end = int(cut[end]) - 1
    return [int(lengths[end]), *reversed(edges)]


def _candidates(length_counts: Mapping[int, int]) -> tuple[Array, Array]:
    """Returns at most _MAX_CANDIDATES lengths that may be an edge, and the number of records up to each."""
    lengths = np.array(sorted(length for length, count in length_counts.items() if count), np.int64)
    records = np.array([length_counts[int(length)] for length in lengths], np.int64)
    if len(lengths) <= _MAX_CANDIDATES:
        return lengths, records
    ends = np.unique(np.linspace(0, len(lengths) - 1, _MAX_CANDIDATES).astype(np.int64))
    return lengths[ends], np.add.reduceat(records, np.concatenate([[0], ends[:-1] + 1]))
