"""The scales of columns: the standard deviation, with a floor for a column that has only two values."""

import numpy as np
import pytest

from pipeline.format.models import FeatureStatistics
from pipeline.format.scaling import SCALED_BOUND, ScaledStatistics, choose_scales, largest_scaled
from pipeline.format.statistics import ColumnSums


def statistics_of(column):
    sums = ColumnSums(1)
    sums.add(np.array(column, np.float32)[:, None])
    return sums.sums().statistics()


def obvious_scale(column):
    """Returns the scale as its definition says, from the values themselves."""
    column = np.array(column, np.float32).astype(np.float64)
    values, deviation = set(column.tolist()), column.std()
    if len(values) == 1 or deviation**2 <= 1e-12 * column.mean() ** 2:
        return 1.0
    return max(deviation, 0.1 * (max(values) - min(values))) if len(values) == 2 else deviation


COLUMNS = {
    "rare": [1] + [0] * 999,
    "frequent": [1] * 998 + [0] * 2,
    "balanced": [0, 1, 1, 0, 1],
    "signs": [-1] * 50 + [1],
    "two large values": [3e6] * 99 + [3e6 + 4],
    "two small values": [1e-30] + [3e-30] * 999,
    "three values": [0] * 999 + [1, 2],
    "almost two values": [0] * 99 + [1, 0.99],
    "constant": [7.5] * 9,
    "zeros": [0] * 9,
    "one value": [3],
    "numbers": np.random.default_rng(0).lognormal(sigma=2, size=500),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_the_scale_of_a_column_is_that_of_its_values(name):
    (scale,) = choose_scales(statistics_of(COLUMNS[name]))
    assert scale == pytest.approx(obvious_scale(COLUMNS[name]), rel=1e-6)


def test_no_column_of_two_values_has_an_outlier():
    """The difference of the values is at most 10 scales, so that both are within the bound however rare one is."""
    for count in (1, 10, 1000, 100_000):
        (largest,) = largest_scaled(statistics_of([1] + [0] * count))
        assert largest <= 10 == SCALED_BOUND
    (largest,) = largest_scaled(statistics_of([2, 1] + [0] * 100_000))
    assert largest > 100


def test_a_deviation_that_is_no_normal_float32_does_not_divide():
    tiny = FeatureStatistics(count=9, mean=(0.0,), variance=(1e-80,), min=(-3e-40,), max=(2e-40,))
    assert choose_scales(tiny) == (1.0,)


def test_statistics_without_a_scale_divide_by_the_standard_deviation():
    old = ScaledStatistics(**statistics_of(COLUMNS["rare"]).model_dump())
    assert old.divisors() == pytest.approx((np.std(COLUMNS["rare"]),)) and old.bound is None
    new = ScaledStatistics.of(old)
    assert (new.divisors(), new.bound) == ((0.1,), SCALED_BOUND)
    assert ScaledStatistics.model_validate_json(new.model_dump_json()) == new
