"""A column whose raw values become equal in float32 is found from its statistics, if its values have an offset."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.format.models import FeatureStatistics
from pipeline.inspection.precision import CoarseColumn, find_coarse_columns


def found(*columns):
    stored = [np.asarray(column, np.float64).astype(np.float32).astype(np.float64) for column in columns]
    return list(
        find_coarse_columns(
            FeatureStatistics(
                count=max(map(len, stored)),
                mean=tuple(column.mean() for column in stored),
                variance=tuple(column.var() for column in stored),
                min=tuple(column.min() for column in stored),
                max=tuple(column.max() for column in stored),
            )
        )
    )


MINUTES, DAYS = 60_000 * np.arange(100), 86_400 * np.arange(400)
COARSE = {
    "milliseconds of minutes": 1.7e12 + MINUTES,
    "milliseconds of years": 1.7e12 + 1000 * DAYS,
    "seconds of a year": 1.7e9 + DAYS,
    "times within a third": [1.2e9, 1.8e9],
    "one moment": [1.7e12, 1.7e12 + 1],
    "negative seconds": -1.7e9 - DAYS,
    "dates": [20231231, 20240101],
    "integers above 2**24": [2**24, 2**24 + 1],
    "temperatures": 300 + np.arange(20) / 10_000,
    "a street": 52.5200 + np.arange(20) / 1e6,
}
FINE = {
    "hours of a day": np.arange(24),
    "years": [1990, 2024],
    "integers up to 2**24": [2**24 - 2, 2**24 - 1],
    "zip codes": [90210, 90211],
    "a constant": [0.1],
    "zeros": [0.0],
    "a rare half": [1000] * 999 + [1000.5],
    "pressures": 101_325 + np.arange(100) / 2,
    "bytes of any number": [10**n for n in range(12)],
    "masses": [1e30, 5e30],
    "a range of more than half": [0.9e9, 2e9],
    "both signs": [-2e9, 2e9],
    "very small numbers": [0, 1e-44],
}


@pytest.mark.parametrize("name", COARSE)
def test_small_differences_of_values_with_an_offset_are_found(name):
    values = COARSE[name]
    (column,) = found(values)
    assert column.number == 0
    assert (column.least, column.most) == (np.float32(min(values)), np.float32(max(values)))
    largest = np.float32(max(map(abs, values)))
    assert column.spacing == np.nextafter(largest, np.float32(np.inf)) - largest


@pytest.mark.parametrize("name", FINE)
def test_values_without_small_differences_are_not(name):
    assert found(FINE[name]) == []


def test_each_column_is_looked_at_alone():
    assert found([1, 2], [2e9, 2e9], [0.5, 1]) == [CoarseColumn(1, 2e9, 2e9, 128.0)]


@given(st.integers(2**24, 2**60), st.lists(st.integers(0, 2**23), min_size=1))
def test_no_column_of_integers_with_an_offset_that_loses_a_difference_is_missed(offset, more):
    values = [offset + n for n in more]
    if len(set(map(float, map(np.float32, values)))) < len(set(values)):
        assert len(found(values)) == 1
