"""Counts how often each class is predicted in place of another one, in bounded memory for any number of classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.schema.record import Array

# Largest number of distinct pairs: 16 bytes each, and several times that while they are merged.
_MAX_PAIRS = 2**20
# Largest number of pairs in the result.
MAX_LISTED = 100


class ConfusedPairs:
    """Counts the labels by (actual class, predicted class), where these differ.

    With at most `max_pairs` distinct pairs, the counts are exact and do not depend on the order of the labels. With
    more, the rarest pairs are dropped as in Misra and Gries, "Finding Repeated Elements", 1982: an equal number is
    subtracted from all counts, so that at most half of `max_pairs` remain. Every count is then too low by at most
    `undercount`, which is at most 2 / max_pairs of all wrong predictions.

    Attributes:
        undercount: The largest difference between a count and the true count, also of a pair that was dropped.
    """

    def __init__(self, num_classes: int, *, max_pairs: int = _MAX_PAIRS) -> None:
        self._num_classes, self._max_pairs = num_classes, max_pairs
        # A key is actual × classes + predicted; sorted and distinct.
        self._keys, self._counts = np.zeros((2, 0), np.int64)
        self._pending: list[Array] = []
        self._num_pending = 0
        self.undercount = 0

    def add(self, actual: Array, predicted: Array) -> None:
        """Adds the labels int64[n] and their predictions int64[n]; those that agree are not counted."""
        wrong = actual != predicted
        keys = actual[wrong].astype(np.int64) * self._num_classes + predicted[wrong]
        self._pending.append(keys)
        self._num_pending += len(keys)
        if self._num_pending >= self._max_pairs:
            self._merge()

    def result(self, names: Sequence[Any], support: Array) -> dict[str, Any]:
        """Returns the most frequent pairs, at most 100, and the number of the others.

        Keys: `confused_pairs`, a list of {"label", "predicted", "count", "share"}, `confused_pairs_left_out`, and
        `confused_pairs_undercount`. The share is that of all labels of the class.

        Args:
            names: The names of the classes.
            support: int64[classes], the number of labels of each class.
        """
        self._merge()
        listed = np.lexsort((self._keys, -self._counts))[:MAX_LISTED]
        actual, predicted = np.divmod(self._keys[listed], self._num_classes)
        columns = (actual.tolist(), predicted.tolist(), self._counts[listed].tolist(), support[actual].tolist())
        return {
            "confused_pairs": [
                {"label": names[a], "predicted": names[p], "count": count, "share": count / labels}
                for a, p, count, labels in zip(*columns, strict=True)
            ],
            "confused_pairs_left_out": len(self._keys) - len(listed),
            "confused_pairs_undercount": self.undercount,
        }

    def _merge(self) -> None:
        if not self._pending:
            return
        # Sorting keys without counts is several times faster.
        found, numbers = np.unique(np.concatenate(self._pending), return_counts=True)
        self._pending, self._num_pending = [], 0
        self._keys, place = np.unique(np.concatenate([self._keys, found]), return_inverse=True)
        counts = np.zeros(len(self._keys), np.int64)
        np.add.at(counts, place, np.concatenate([self._counts, numbers]))
        self._counts = counts
        if len(self._keys) > self._max_pairs:
            self._drop_rarest()

    def _drop_rarest(self) -> None:
        remaining = self._max_pairs // 2
        least = int(-np.partition(-self._counts, remaining)[remaining])
        kept = self._counts > least
        self._keys, self._counts = self._keys[kept], self._counts[kept] - least
        self.undercount += least
