"""Finds columns of numbers that are too close together for float32, from the statistics of the train split."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipeline.format.models import FeatureStatistics

# Larger integers are not all float32 numbers.
_LARGEST_INTEGER = 2.0**24
# Fewer float32 numbers than this from the minimum to the maximum of a column are too few.
_MIN_VALUES = 100
# Smaller numbers are not normal in float32. Their spacing is that of all small numbers.
_SMALLEST_NORMAL = 2.0**-126


class CoarseColumn(NamedTuple):
    """A column whose values may have become equal when they were rounded to float32.

    Attributes:
        number: Number of the column in the flattened shape of the feature.
        least, most: Its extremes, as they are stored.
        spacing: Distance of the largest of its absolute values to the next float32 number.
    """

    number: int
    least: float
    most: float
    spacing: float


def find_coarse_columns(statistics: FeatureStatistics) -> Iterator[CoarseColumn]:
    """Yields the columns that float32 does not represent well enough.

    - The range has fewer than 100 float32 numbers: temperatures in K that differ by 0.001, at 300. If the column is
      within 2**24 and its extremes are integers, it is taken for one of integers, which float32 represents exactly.
    - The values are beyond 2**24, where integers become equal, and their range is at most half of the largest. So they
      have an offset, which would better be subtracted: Unix timestamps, or dates such as 20240131.

    Stored values are rounded, so the statistics cannot show whether a difference was lost, only how small it had to be.
    They do not show small differences of successive values in a wide range either: a counter of bytes that starts at 0,
    timestamps with a 0 among them.

    >>> seconds = FeatureStatistics(count=2, mean=(1.7e9,), variance=(0.0,), min=(1.7e9,), max=(1.7e9 + 512,))
    >>> list(find_coarse_columns(seconds))
    [CoarseColumn(number=0, least=1700000000.0, most=1700000512.0, spacing=128.0)]
    """
    for number, (least, most) in enumerate(zip(statistics.min, statistics.max, strict=True)):
        largest, width = max(abs(least), abs(most)), most - least
        spacing = float(np.spacing(np.float32(largest)))
        is_large = largest >= _LARGEST_INTEGER
        has_offset = is_large and width <= largest / 2
        is_narrow = width < _MIN_VALUES * spacing and not _are_integers(least, most)
        if has_offset or (is_narrow and width > 0 and largest >= _SMALLEST_NORMAL):
            yield CoarseColumn(number, least, most, spacing)


def _are_integers(*values: float) -> bool:
    return all(value.is_integer() for value in values)
