"""Count, mean, variance, minimum and maximum of each column of a feature, with the same bits on every runner.

The bits are the same because records are in hash order, blocks have a fixed size, and the results of blocks are merged
in a fixed order. Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances", 1979.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from pipeline.format.models import FeatureStatistics
from pipeline.schema.record import Array

# A block of statistics ends at this number of records, or at this number of bytes: large enough for NumPy to be fast,
# and small enough for the cache of a core. Other sizes would change the bits of the result.
BLOCK_RECORDS, BLOCK_BYTES = 1024, 2**20


@dataclasses.dataclass
class Moments:
    """Sums over rows of `width` values. NaN is a missing value, which counts in `rows` only.

    Attributes:
        rows: Number of rows.
        count: int64[width], the number of values that are not missing.
        mean: float64[width], the mean of these values; 0 if there are none.
        sum_squares: float64[width], the sum of the squared distances from the mean.
        minimum, maximum: float64[width]; infinity and -infinity if there are no values.
    """

    rows: int
    count: Array
    mean: Array
    sum_squares: Array
    minimum: Array
    maximum: Array

    @classmethod
    def of(cls, rows: Array) -> "Moments":
        """Returns the moments of float[rows, width]. There must be at least one row."""
        # The minimum of a column with NaN is NaN.
        minimum, maximum = rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64)
        values, count = rows.astype(np.float64), np.full(rows.shape[1], len(rows))
        missing = np.isnan(values) if np.isnan(minimum).any() else None
        if missing is not None:
            count -= missing.sum(axis=0)
            minimum = np.where(missing, np.inf, values).min(axis=0)
            maximum = np.where(missing, -np.inf, values).max(axis=0)
            values[missing] = 0.0
        mean = values.sum(axis=0) / np.maximum(count, 1)
        # A constant column gets a variance of exactly 0, although its mean may be rounded.
        mean = np.where(minimum == maximum, minimum, mean)
        values -= mean
        if missing is not None:
            values[missing] = 0.0
        values *= values  # in place, so that the block stays in the cache of the core
        return cls(len(rows), count, mean, values.sum(axis=0), minimum, maximum)

    def merged(self, other: "Moments") -> "Moments":
        """Returns the moments of the rows of both."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        delta = other.mean - self.mean
        # Converted to float64 before the product, because the product of two counts may be too large for int64.
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
        """Returns the statistics that the manifest stores."""
        missing = self.rows - self.count
        all_missing = self.count == 0
        return FeatureStatistics(
            count=self.rows,
            missing=tuple(missing.tolist()) if missing.any() else (),
            mean=tuple(self.mean.tolist()),
            variance=tuple((self.sum_squares / np.maximum(self.count, 1)).tolist()),
            min=tuple(np.where(all_missing, 0.0, self.minimum).tolist()),
            max=tuple(np.where(all_missing, 0.0, self.maximum).tolist()),
        )


def merge_moments(parts: Iterable[Moments | None]) -> Moments | None:
    """Returns the moments of all parts, merged in their order; None if there is no part."""
    total: Moments | None = None
    for part in parts:
        if part is not None:
            total = part if total is None else total.merged(part)
    return total
