"""Event times are exact to the second, and so are the windows that they are in."""

import datetime
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.prepare_flags import MAX_WINDOW
from pipeline.schema.windows import (
    END_SECOND,
    MAX_SECONDS,
    MIN_SECOND,
    EventTimeError,
    EventWindows,
    check_same_windows,
    parse_event_time,
)

PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
UNITS = st.sampled_from(sorted(PER_SECOND))
YEAR_2100 = 4_102_444_800


def hours(unit="s"):
    return EventWindows(field="at", seconds=3600, unit=unit)


def window_by_hand(seconds, size):
    """Returns the start of the window of an exact time, by counting."""
    return (Fraction(seconds) / size).__floor__() * size


@given(UNITS, st.integers(-YEAR_2100, YEAR_2100), st.integers(1, 10**6))
def test_a_whole_number_is_in_the_window_of_its_exact_time(unit, number, size):
    windows = EventWindows(field="at", seconds=size, unit=unit)
    exact = Fraction(number, PER_SECOND[unit])
    time = parse_event_time(number, windows)
    assert time == (exact * 10**6).__floor__()
    assert windows.start_of(time) == window_by_hand(exact, size)
    assert windows.starts_of(np.array([time])).tolist() == [windows.start_of(time)]


@given(UNITS, st.floats(-YEAR_2100, YEAR_2100), st.integers(1, 10**6))
def test_a_fraction_is_in_the_window_of_its_exact_time(unit, number, size):
    windows = EventWindows(field="at", seconds=size, unit=unit)
    exact = Fraction(number) / PER_SECOND[unit]
    time = parse_event_time(number, windows)
    assert time // 10**6 == exact.__floor__()
    assert abs(Fraction(time, 10**6) - exact) <= Fraction(2, 10**6)
    assert windows.start_of(time) == window_by_hand(exact, size)


@given(st.datetimes(min_value=datetime.datetime(2, 1, 1), max_value=datetime.datetime(9998, 12, 31)))
def test_a_string_and_a_datetime_are_the_same_time(naive):
    aware = naive.replace(tzinfo=datetime.UTC)
    expected = (aware - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)
    elsewhere = aware.astimezone(datetime.timezone(datetime.timedelta(hours=-5, minutes=-30)))
    for value in (naive, aware, naive.isoformat(), f"{naive.isoformat()}Z", elsewhere.isoformat(), elsewhere):
        assert parse_event_time(value, hours()) == expected


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0, "s", 0),
        (1.25, "s", 1_250_000),
        (4.35, "s", 4_350_000),
        (-0.25, "s", -250_000),
        (3599.9999999, "s", 3_599_999_999),
        (-1e-20, "s", -1),
        (1999, "ms", 1_999_000),
        (1_999_999_999, "ns", 1_999_999),
        ("1970-01-01", "s", 0),
        ("1970-01-01T01:00:00+01:00", "ns", 0),
        ("1970-01-01T00:00:01.5Z", "s", 1_500_000),
        (MIN_SECOND + 3600, "s", (MIN_SECOND + 3600) * 10**6),
        (END_SECOND - 1, "s", (END_SECOND - 1) * 10**6),
    ],
)
def test_event_times(value, unit, expected):
    assert parse_event_time(value, hours(unit)) == expected


@pytest.mark.parametrize(
    ("value", "is_finite"),
    [
        *((value, True) for value in (None, True, [1], {}, "", "noon", "2026-13-01", "1767225600", b"1")),
        *((value, True) for value in (10**20, -(10**20), 1e300, END_SECOND, MIN_SECOND - 1)),
        *((float(value), False) for value in ("nan", "inf", "-inf")),
    ],
)
def test_other_values_are_no_event_times(value, is_finite):
    with pytest.raises(EventTimeError, match="^expected ") as raised:
        parse_event_time(value, hours())
    assert raised.value.is_finite == is_finite


def test_a_window_must_be_in_the_years_1_to_9999():
    days = EventWindows(field="at", seconds=1000 * 86400)
    first = window_by_hand(MIN_SECOND, days.seconds) + days.seconds
    assert days.start_of(parse_event_time(first, days)) == first
    for second in (first - 1, END_SECOND - 1):
        with pytest.raises(EventTimeError, match="whose window is in the years 1 to 9999"):
            parse_event_time(second, days)


def test_the_flag_allows_the_same_sizes():
    assert MAX_WINDOW == MAX_SECONDS


def test_other_windows_than_those_of_a_dataset_are_named():
    check_same_windows("data", hours(), hours())
    with pytest.raises(UserError, match=r"data: has windows of 1h by the field 'at', so .* \(ms\) cannot"):
        check_same_windows("data", hours(), hours("ms"))
