"""Count, mean, variance, minimum and maximum of each column of a feature, with the same bits on any runner.

Records come in hash order, blocks are of a fixed number of records, and partial results are merged in a fixed order:
Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from pipeline.format.manifest import FeatureStatistics
from pipeline.schema.record import Array

# Records summed at once, and the bytes at which no more are waited for: enough for NumPy to be fast, little enough for
# a core's cache, and part of the result's bits.
BLOCK_RECORDS, BLOCK_BYTES = 1024, 2**20


@dataclasses.dataclass
class Moments:
    """Sums over rows of float64[width], of which NaN, a missing value, counts in nothing.

    Attributes:
        rows: All of them.
        count: int64[width], the values that are not missing.
        mean: Of these; 0 where there is none.
        sum_squares: Of their distances from the mean.
        minimum, maximum: Infinity and -infinity where there is none.
    """

    rows: int
    count: Array
    mean: Array
    sum_squares: Array
    minimum: Array
    maximum: Array

    @classmethod
    def of(cls, rows: Array) -> "Moments":
        """The moments of float[rows, width], at least one row."""
        # NaN is the minimum of a column that has one.
        minimum, maximum = rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64)
        values, count = rows.astype(np.float64), np.full(rows.shape[1], len(rows))
        missing = np.isnan(values) if np.isnan(minimum).any() else None
        if missing is not None:
            count -= missing.sum(axis=0)
            minimum = np.where(missing, np.inf, values).min(axis=0)
            maximum = np.where(missing, -np.inf, values).max(axis=0)
            values[missing] = 0.0
        mean = values.sum(axis=0) / np.maximum(count, 1)
        # A constant column has a spread of exactly 0, whatever the rounding of its mean.
        mean = np.where(minimum == maximum, minimum, mean)
        values -= mean
        if missing is not None:
            values[missing] = 0.0
        values *= values  # in place: a block fits a core's cache
        return cls(len(rows), count, mean, values.sum(axis=0), minimum, maximum)

    def merged(self, other: "Moments") -> "Moments":
        """The moments of both sets of rows together."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        delta = other.mean - self.mean
        # Float64 before the product: that of two counts may be too large for int64.
        weight = self.count.astype(np.float64) * other.count / np.maximum(count, 1)
        return Moments(
            self.rows + other.rows,
            count,
            self.mean + delta * share,
            self.sum_squares + other.sum_squares + np.square(delta) * weight,
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
        )

    def statistics(self) -> FeatureStatistics:
        """As the manifest has them."""
        missing = self.rows - self.count
        none = self.count == 0
        return FeatureStatistics(
            count=self.rows,
            missing=tuple(missing.tolist()) if missing.any() else (),
            mean=tuple(self.mean.tolist()),
            variance=tuple((self.sum_squares / np.maximum(self.count, 1)).tolist()),
            min=tuple(np.where(none, 0.0, self.minimum).tolist()),
            max=tuple(np.where(none, 0.0, self.maximum).tolist()),
        )


def merge_moments(parts: Iterable[Moments | None]) -> Moments | None:
    """All parts together, in their order; None where there is nothing."""
    total: Moments | None = None
    for part in parts:
        if part is not None:
            total = part if total is None else total.merged(part)
    return total
