"""Sums the columns of a feature exactly, at the speed of NumPy.

A sum of float64 numbers is exact if all of them are multiples of one power of two, and few and small enough. So values
are split into parts, called limbs, for which this holds, and the sums of limbs are added up as integers. Source: Demmel
and Nguyen, "Parallel reproducible summation", 2015, who split numbers in the same way.
"""

import numpy as np

from pipeline.format.sums import SQUARES_UNIT, SUM_UNIT, FeatureSums
from pipeline.schema.record import Array

# Values are summed in chunks of at most 64 terms in each of 512 lanes (or more, for wide rows): large enough for NumPy
# to be fast, and small enough for the cache of a core.
_TERMS, _LANES, _CHUNK_VALUES = 64, 512, 64 * 512
# Fewer values than this wait for more.
_MIN_VALUES = 4096
# As many values are not joined with those that wait.
_MANY_VALUES = 2**20
# A limb is a multiple of 2**k and at most 2**(k + 47), so that the sum of 64 limbs is at most 2**(k + 53). What remains
# for the next limb is at most half of 2**k. The first k is a multiple of 8, so that a few different k occur.
_LIMB_BITS, _ROUND_TO = 47, 8
# Each chunk adds at most 2**53 to an int64.
_MAX_CHUNKS = 512
_INFINITY = 0x7F800000


class ColumnSums:
    """Exact sums over rows of float32 values. NaN is a missing value. No order of the rows changes the result.

    Args:
        width: Number of columns.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        # Lanes are the columns of `groups` rows side by side, so that NumPy's loops over the columns of narrow rows are
        # long. Their sums become those of columns at the end.
        self._groups = max(1, _LANES // width)
        self._chunk_rows = min(_TERMS * self._groups, max(1, _CHUNK_VALUES // width, min(8, 2**18 // width)))
        self._waiting: list[Array] = []
        self._num_waiting = 0
        self._rows = 0
        lanes = self._groups * width
        self._missing = np.zeros(lanes, np.int64)
        self._minimum, self._maximum = np.full(lanes, np.inf, np.float32), np.full(lanes, -np.inf, np.float32)
        self._sums, self._squares = _LaneSums(lanes, SUM_UNIT), _LaneSums(lanes, SQUARES_UNIT)

    def add(self, rows: Array) -> None:
        """Adds float32[rows, width].

        Raises:
            ValueError: `rows` has another type or width, or an infinite value.
        """
        if rows.dtype != np.float32 or rows.shape[1:] != (self._width,):
            raise ValueError(f"{rows.dtype}{list(rows.shape)} cannot be summed, expected float32[rows, {self._width}]")
        if (self._num_waiting + len(rows)) * self._width < _MIN_VALUES:
            # Copied, because decoded values are often a view of a record or block, which would stay in memory.
            self._waiting.append(rows.copy())
            self._num_waiting += len(rows)
            return
        if self._waiting and rows.size >= _MANY_VALUES:  # which are not copied
            missing = -self._num_waiting % self._groups
            self._add(np.concatenate([*self._waiting, rows[:missing]]), self._groups)
            rows = rows[missing:]
        elif self._waiting:
            rows = np.concatenate([*self._waiting, rows])
        num_rows = len(rows) // self._groups * self._groups
        self._add(rows[:num_rows], self._groups)
        rest = rows[num_rows:]
        self._waiting, self._num_waiting = ([rest.copy()], len(rest)) if len(rest) else ([], 0)

    def sums(self) -> FeatureSums | None:
        """Returns the sums over all rows that were added; None if there are none."""
        if self._waiting:
            rows = np.concatenate(self._waiting)
            num_rows = len(rows) // self._groups * self._groups
            self._add(rows[:num_rows], self._groups)
            self._add(rows[num_rows:], len(rows) - num_rows)
            self._waiting, self._num_waiting = [], 0
        if not self._rows:
            return None
        return FeatureSums.of(
            self._rows,
            self._by_column(self._missing).sum(axis=0),
            self._by_column(self._sums.totals()).sum(axis=0).tolist(),
            self._by_column(self._squares.totals()).sum(axis=0).tolist(),
            self._by_column(self._minimum).min(axis=0),
            self._by_column(self._maximum).max(axis=0),
        )

    def _by_column(self, lanes: Array) -> Array:
        return lanes.reshape(self._groups, self._width)

    def _add(self, rows: Array, groups: int) -> None:
        """Adds rows to the first lanes, `groups` of them side by side. Their number must be a multiple of `groups`."""
        if not len(rows):
            return
        self._rows += len(rows)
        values = np.ascontiguousarray(rows).reshape(-1, groups * self._width)
        terms = max(1, self._chunk_rows // groups)
        # Allocated once: new pages of memory would take as long as the sums.
        shape = min(terms, len(values)), values.shape[1]
        buffers = np.empty(shape, np.float64), np.empty(shape, np.float64)
        for start in range(0, len(values), terms):
            chunk = values[start : start + terms]
            self._add_chunk(chunk, buffers[0][: len(chunk)], buffers[1][: len(chunk)])

    def _add_chunk(self, chunk: Array, exact: Array, spare: Array) -> None:
        """Adds float32[terms, lanes]. The buffers are float64 of the same shape."""
        lanes = chunk.shape[1]
        minimum, maximum = chunk.min(axis=0), chunk.max(axis=0)
        if np.isnan(minimum).any():
            missing = np.isnan(chunk)
            self._missing[:lanes] += missing.sum(axis=0)
            minimum = np.where(missing, np.inf, chunk).min(axis=0)
            maximum = np.where(missing, -np.inf, chunk).max(axis=0)
            chunk = np.where(missing, np.float32(0), chunk)
        np.minimum(self._minimum[:lanes], minimum, out=self._minimum[:lanes])
        np.maximum(self._maximum[:lanes], maximum, out=self._maximum[:lanes])
        magnitudes = spare.reshape(-1).view(np.float32)[: chunk.size].reshape(chunk.shape)
        bits = np.abs(chunk, out=magnitudes).view(np.uint32)
        largest = int(bits.max())
        if largest >= _INFINITY:
            raise ValueError("a value is infinite, expected finite values and NaN")
        if not largest:
            return
        # Zero becomes the largest integer, so that this is the smallest value that is not zero.
        bits -= np.uint32(1)
        smallest = int(bits.min()) + 1
        # All absolute values are less than 2**high, and multiples of 2**low.
        high, low = _exponent(largest) + 24, _exponent(smallest)
        np.copyto(exact, chunk)
        if self._sums.add(exact, spare, high=high, low=low):
            np.copyto(exact, chunk)
        # The square of a float32 is exact in float64, which has more than twice the digits and a larger range.
        np.multiply(exact, exact, out=exact)
        self._squares.add(exact, spare, high=2 * high, low=2 * low)


def _exponent(bits: int) -> int:
    """Returns the exponent of the last digit of the positive float32 that has these bits.

    >>> _exponent(0x3F800000)  # 1.0
    -23
    """
    return max(1, bits >> 23) - 150


class _LaneSums:
    """The exact sum of each lane.

    Args:
        unit: The values that are added are multiples of 2**unit.
    """

    def __init__(self, num_lanes: int, unit: int) -> None:
        self._unit = unit
        # For each k, int64[lanes], the sums of limbs as multiples of 2**k.
        self._limbs: dict[int, Array] = {}
        self._num_chunks = 0
        self._totals = np.zeros(num_lanes, object)

    def add(self, values: Array, spare: Array, *, high: int, low: int) -> bool:
        """Adds float64[terms, lanes] to the first lanes, and returns whether the array was overwritten.

        Args:
            spare: An array of the same shape, which is overwritten.
            high, low: Values are at most 2**high, and multiples of 2**low.
        """
        k = max(self._unit, -((_LIMB_BITS - high) // _ROUND_TO) * _ROUND_TO)
        is_overwritten = k > low
        while k > low:
            # Numbers near this one are multiples of 2**k, so that the sum with it is rounded to such a multiple.
            large = 1.5 * 2.0 ** (52 + k)
            np.add(values, large, out=spare)
            np.subtract(spare, large, out=spare)
            self._add_limbs(k, spare)
            np.subtract(values, spare, out=values)
            k = max(self._unit, k - _LIMB_BITS - 1)
        self._add_limbs(k, values)
        self._num_chunks += 1
        if self._num_chunks == _MAX_CHUNKS:
            self.totals()
        return is_overwritten

    def totals(self) -> Array:
        """Returns object[lanes], the sums as integers of Python: multiples of 2**unit."""
        for k, sums in self._limbs.items():
            self._totals += sums.astype(object) * (1 << k - self._unit)
        self._limbs, self._num_chunks = {}, 0
        return self._totals

    def _add_limbs(self, k: int, limbs: Array) -> None:
        if k not in self._limbs:
            self._limbs[k] = np.zeros(len(self._totals), np.int64)
        sums = limbs.sum(axis=0)
        sums *= 2.0**-k
        self._limbs[k][: len(sums)] += sums.astype(np.int64)
