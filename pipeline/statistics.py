"""Count, mean, variance, minimum and maximum of each column of a feature, with the same bits on any runner.

Records come in hash order, blocks are of a fixed number of records, and partial results are merged in a fixed order:
Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np

# Records summed at once: enough for NumPy to be fast, and part of the result's bits.
BLOCK_RECORDS = 1024

Array: TypeAlias = np.ndarray[Any, Any]


@dataclasses.dataclass
class Moments:
    """Sums over rows of float64[width]; `sum_squares` is of the distances from the mean."""

    count: int
    mean: Array
    sum_squares: Array
    minimum: Array
    maximum: Array

    @classmethod
    def of(cls, rows: Array) -> "Moments":
        """The moments of float[rows, width], at least one row."""
        rows = rows.astype(np.float64)
        mean = rows.mean(axis=0)
        # A constant column has a spread of exactly 0, whatever the rounding of its mean.
        minimum, maximum = rows.min(axis=0), rows.max(axis=0)
        mean = np.where(minimum == maximum, minimum, mean)
        return cls(len(rows), mean, np.square(rows - mean).sum(axis=0), minimum, maximum)

    def merged(self, other: "Moments") -> "Moments":
        """The moments of both sets of rows together."""
        count = self.count + other.count
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * (other.count / count),
            self.sum_squares + other.sum_squares + np.square(delta) * (self.count * other.count / count),
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
        )

    @property
    def variance(self) -> Array:
        """Population variance of each column; 0 for a constant one."""
        return self.sum_squares / self.count


def merge(parts: Iterable[Moments | None]) -> Moments | None:
    """All parts together, in their order; None where there is nothing."""
    total: Moments | None = None
    for part in parts:
        if part is not None:
            total = part if total is None else total.merged(part)
    return total
