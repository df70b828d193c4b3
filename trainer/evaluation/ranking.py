"""Computes the area under the ROC curve and the average precision of many rankings at once, in bounded memory."""

import numpy as np

from pipeline.schema.record import Array

_SCORE_BITS = 32
# Largest number of distinct scores, over all rankings: 24 bytes each, and several times that while they are merged.
_MAX_KEYS = 2**20
# The fraction of a float32 has 23 bits. With 3 of them left, there are still 8 scores for each power of two.
_MAX_DROPPED_BITS = 20


class Ranking:
    """Counts the positives and negatives of each score, for rankings numbered from 0 (at most 2**31 rankings).

    With at most `max_keys` distinct scores, both measures are exact. With more, the lowest bits of all scores are
    dropped one by one. Scores that are equal without these bits become ties; their relative difference is below
    2**(dropped_bits - 23). The error of an AUC is at most half the share of ties among all pairs of a positive and a
    negative. If 20 dropped bits do not suffice, the measures are undefined. The number of dropped bits depends only on
    the scores, not on their order.
    """

    def __init__(self, num_rankings: int, *, max_keys: int = _MAX_KEYS) -> None:
        self._num_rankings, self._max_keys = num_rankings, max_keys
        # Sorted and distinct. A key has the number of a ranking in its high bits, a score's remaining bits below.
        self._keys = np.zeros(0, np.int64)
        self._counts = np.zeros((2, 0), np.int64)  # negatives and positives
        self._pending: list[tuple[Array, Array]] = []  # keys of negatives, keys of positives, with all bits
        self._num_pending = 0
        self.dropped_bits = 0

    @property
    def is_measured(self) -> bool:
        """Whether the scores fit into memory; otherwise both measures are NaN."""
        return self.dropped_bits <= _MAX_DROPPED_BITS

    def add(self, ranking: Array, score: Array, positive: Array) -> None:
        """Adds the scores float32[n] to the rankings int64[n]; bool[n] says which scores are of positives."""
        if not self.is_measured:
            return
        keys = ranking.astype(np.int64) << _SCORE_BITS | _sortable_bits(score)
        self._pending.append((keys[~positive], keys[positive]))
        self._num_pending += len(keys)
        if self._num_pending >= self._max_keys:
            self._merge()

    def auc(self) -> Array:
        """Returns float64[num_rankings], the probability that a positive scores above a negative; a tie counts half.

        NaN for a ranking without a positive or without a negative.
        """
        ranking, negatives, positives = self._merge()
        # Integers: the result does not depend on the order of the sums.
        twice = positives * (2 * _before(ranking, negatives) + negatives)
        pairs = self._sum(ranking, negatives) * self._sum(ranking, positives)
        return self._divide(self._sum(ranking, twice), 2 * pairs, where=pairs > 0)

    def average_precision(self) -> Array:
        """Returns float64[num_rankings], the mean over the positives of the precision at the positive's own score.

        This is Σ over the distinct scores of (increase in recall) × precision. NaN as for `auc`.
        """
        ranking, negatives, positives = self._merge()
        total = [self._sum(ranking, counts) for counts in (negatives, positives)]
        false, true = (
            of_ranking[ranking] - _before(ranking, counts)
            for of_ranking, counts in zip(total, (negatives, positives), strict=True)
        )
        precision = self._sum(ranking, positives * (true / (false + true)))
        return self._divide(precision, total[1], where=(total[0] > 0) & (total[1] > 0))

    def _merge(self) -> tuple[Array, Array, Array]:
        """Merges the pending scores; returns (ranking, negatives, positives) of each distinct score, ascending."""
        if self._pending:
            keys, counts = [self._keys], [self._counts]
            for kind, waiting in enumerate(zip(*self._pending, strict=True)):
                # Sorting keys without counts is several times faster.
                distinct, number = np.unique(np.concatenate(waiting) >> self.dropped_bits, return_counts=True)
                keys.append(distinct)
                counts.append(np.zeros((2, len(distinct)), np.int64))
                counts[-1][kind] = number
            self._pending, self._num_pending = [], 0
            self._replace(np.concatenate(keys), np.concatenate(counts, axis=1))
            self._compact()
        return self._keys >> (_SCORE_BITS - self.dropped_bits), *self._counts

    def _replace(self, keys: Array, counts: Array) -> None:
        """Replaces the keys by the distinct ones of `keys`, with the sums of their counts."""
        order = np.argsort(keys, kind="stable")  # merges the sorted parts
        keys = keys[order]
        starts = _starts(keys)
        self._keys, self._counts = keys[starts], _sums(counts[:, order], starts)

    def _compact(self) -> None:
        while len(self._keys) > self._max_keys and self.is_measured:
            self.dropped_bits += 1
            self._replace(self._keys >> 1, self._counts)
        if not self.is_measured:
            self._keys, self._counts = self._keys[:0], self._counts[:, :0]

    def _sum(self, ranking: Array, values: Array) -> Array:
        """Returns [num_rankings], the sum of `values` over the scores of each ranking."""
        found = np.zeros(self._num_rankings, values.dtype)
        starts = _starts(ranking)
        found[ranking[starts]] = _sums(values, starts)
        return found

    def _divide(self, numerator: Array, denominator: Array, *, where: Array) -> Array:
        return np.divide(numerator, denominator, out=np.full(self._num_rankings, np.nan), where=where)


def _sortable_bits(score: Array) -> Array:
    """Returns int64[n] in 0 … 2**32 - 1 in the order of the float32 scores; 0.0 and -0.0 are equal.

    >>> _sortable_bits(np.array([-1, -0.0, 0, 2], np.float32)).tolist()
    [1082130431, 2147483648, 2147483648, 3221225472]
    """
    bits = (score.astype(np.float32) + np.float32(0)).view(np.uint32)
    flipped = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return flipped.astype(np.int64)


def _starts(values: Array) -> Array:
    """Returns the index at which each run of equal values starts."""
    return np.flatnonzero(np.diff(values, prepend=values[:1] - 1))


def _sums(values: Array, starts: Array) -> Array:
    """Returns the sums of values[..., n] from each start to the next; `reduceat` accepts no empty list."""
    return np.add.reduceat(values, starts, axis=-1) if len(starts) else values[..., :0]


def _before(ranking: Array, counts: Array) -> Array:
    """Returns for each score the sum of `counts` over the lower scores of the same ranking."""
    before = np.cumsum(counts) - counts
    starts = _starts(ranking)
    return before - np.repeat(before[starts], np.diff(starts, append=len(ranking)))
