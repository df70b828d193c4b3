"""Sums of float32 columns equal those of exact fractions, in any order and grouping; impossible sums are refused."""

import itertools
import json
from fractions import Fraction

import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.format import statistics
from pipeline.format.statistics import ColumnSums
from pipeline.format.sums import SQUARES_UNIT, SUM_UNIT, FeatureSums, PackedSums, merge_sums

SMALLEST, LARGEST = float(np.float32(2.0**-149)), float(np.finfo(np.float32).max)
FLOAT32 = st.floats(width=32, allow_infinity=False)
# Few different values, which often cancel each other or are equal in a whole column.
EXTREME = st.sampled_from([0.0, -0.0, SMALLEST, -SMALLEST, 2.0**-126, 1.0, -1.0, 2.0**40, LARGEST, -LARGEST, np.nan])


@st.composite
def tables(draw):
    """Returns float32[rows, width] with a kind of numbers for each column."""
    num_rows = draw(st.integers(1, 12))
    kinds = st.sampled_from([FLOAT32, EXTREME, st.just(draw(FLOAT32)), st.just(np.nan)])
    columns = [
        draw(st.lists(kind, min_size=num_rows, max_size=num_rows))
        for kind in draw(st.lists(kinds, min_size=1, max_size=4))
    ]
    return np.array(columns, np.float32).T


def sums_of(blocks):
    column_sums = ColumnSums(blocks[0].shape[1])
    for block in blocks:
        column_sums.add(block)
    return column_sums.sums()


def split(rows, places):
    return np.split(rows, sorted(places))


def rounded(number):
    """Returns the float64 nearest to a fraction."""
    return number.numerator / number.denominator


def check(sums, rows):
    """Asserts that sums are those of the rows, computed one value at a time."""
    values = [[Fraction(value) for value in column if value == value] for column in rows.T.tolist()]
    found = sums.statistics()
    assert sums.count == found.count == len(rows)
    missing = tuple(len(rows) - len(column) for column in values)
    assert sums.missing == found.missing == (missing if any(missing) else ())
    for number, column in enumerate(values):
        total, squares = sum(column, Fraction()), sum(value * value for value in column)
        assert sums.sum[number] * Fraction(2) ** SUM_UNIT == total
        assert sums.sum_squares[number] * Fraction(2) ** SQUARES_UNIT == squares
        assert (found.min[number], found.max[number]) == (min(column, default=0), max(column, default=0))
        count = max(1, len(column))
        mean = total / count
        assert found.mean[number] == rounded(mean)
        assert found.variance[number] == rounded(sum(((value - mean) ** 2 for value in column), Fraction()) / count)
        if len(set(column)) == 1:
            assert (found.mean[number], found.variance[number]) == (column[0], 0)


@given(tables(), st.lists(st.integers(0, 12), max_size=3), st.randoms(use_true_random=False))
def test_sums_are_exact_in_every_order_and_grouping(rows, places, random):
    whole = sums_of([rows])
    check(whole, rows)
    shuffled = rows[random.sample(range(len(rows)), len(rows))]
    assert sums_of([shuffled]) == whole
    assert sums_of(split(shuffled, places)) == whole
    parts = [sums_of([part]) for part in split(shuffled, places)]
    random.shuffle(parts)
    assert merge_sums([None, *parts, None]) == whole
    assert merge_sums([merge_sums(parts[:2]), merge_sums(parts[2:])]) == whole
    # Text that reverses to the same sums, and to the same zeros.
    again = FeatureSums.model_validate_json(whole.model_dump_json())
    assert (again, again.model_dump_json()) == (whole, whole.model_dump_json())
    assert FeatureSums.model_validate(whole.model_dump()) == whole
    assert PackedSums.of(whole).unpack() == whole


def numbers(kind, size):
    random = np.random.default_rng(7)
    values = random.normal(size=size)
    if kind == "wide":  # 100 powers of two, so that values have many limbs
        values = values * 2.0 ** random.integers(-60, 40, size)
    if kind == "denormal":
        values = values * 2.0**-140
    if kind == "huge":
        values = random.choice([LARGEST, -LARGEST, 2.0**127, 1.0], size)
    if kind == "one_limb":  # their sum has more than 53 bits if it has more than 64 terms
        values = random.choice([np.float32(128 - 2.0**-17), 3 * 2.0**-40], size)
    if kind == "missing":
        values = np.where(random.random(size) < 0.3, np.nan, values)
    return np.round(values, 4).astype(np.float32) if kind == "decimals" else values.astype(np.float32)


@pytest.mark.parametrize("kind", ["normal", "decimals", "wide", "denormal", "huge", "one_limb", "missing"])
@pytest.mark.parametrize(("width", "num_rows"), [(1, 33_500), (3, 4_321), (300, 700), (5_000, 3)])
def test_sums_of_full_chunks_are_exact(kind, width, num_rows):
    rows = numbers(kind, (num_rows, width))
    sums = sums_of(split(rows, [1, 2, num_rows // 3]))
    assert sums_of([rows[::-1]]) == sums
    # Python's float of a float32 is an exact ratio; a few columns are enough.
    few = [0, width // 2, width - 1]
    for number in few:
        ratios = [value.as_integer_ratio() for value in rows[:, number].tolist() if value == value]
        scaled = [a * (2**149 // b) for a, b in ratios]
        assert sums.sum[number] == sum(scaled)
        assert sums.sum_squares[number] == sum(value * value for value in scaled)
    missing = np.isnan(rows)
    has_values = ~missing.all(axis=0)
    assert sums.min == tuple(np.where(has_values, np.where(missing, np.inf, rows).min(axis=0), 0))
    assert sums.max == tuple(np.where(has_values, np.where(missing, -np.inf, rows).max(axis=0), 0))
    assert sums.missing == (tuple(missing.sum(axis=0)) if kind == "missing" else ())


def test_many_chunks_of_the_largest_limbs_do_not_overflow():
    lanes, chunk = statistics._LaneSums(1, SUM_UNIT), np.full((64, 1), 2.0**47)
    for _ in range(2000):  # a sum of 2**64 / 1.024, in limbs that are multiples of 1
        lanes.add(chunk.copy(), np.empty_like(chunk), high=47, low=0)
    assert list(lanes._limbs) == [0]
    assert lanes.totals()[0] * Fraction(2) ** SUM_UNIT == 2000 * 2**53


def test_sums_can_be_taken_between_rows():
    rows = numbers("missing", (5_000, 2))
    column_sums = ColumnSums(2)
    assert column_sums.sums() is None
    for start in range(0, 5_000, 700):
        column_sums.add(rows[start : start + 700])
        assert column_sums.sums() == sums_of([rows[: start + 700]])


@pytest.mark.parametrize("num_rows", [10, 2100])
def test_rows_that_were_added_may_change_afterwards(num_rows):
    rows = numbers("normal", (num_rows, 2))
    before, column_sums = sums_of([rows]), ColumnSums(2)
    column_sums.add(rows)
    rows[:] = 0
    assert column_sums.sums() == before


def test_the_sign_of_a_zero_does_not_depend_on_the_order():
    for zeros in itertools.permutations([0.0, -0.0, np.nan]):
        sums = sums_of([np.array([[zero]], np.float32) for zero in zeros])
        assert sums.model_dump_json() == (
            '{"count":3,"missing":[1],"sum":["0x0p+0"],"sum_squares":["0x0p+0"],"min":[0.0],"max":[0.0]}'
        )


def test_the_text_of_a_sum_is_an_odd_integer_times_a_power_of_two():
    sums = sums_of([np.array([[-499 / 2**20, SMALLEST, 96], [0, 0, np.nan]], np.float32)])
    dumped = json.loads(sums.model_dump_json())
    assert dumped["sum"] == ["-0x1f3p-20", "0x1p-149", "0x3p+5"]
    assert dumped["sum_squares"] == [f"{499**2:#x}p-40", "0x1p-298", "0x9p+10"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((3, 2)), r"float64\[3, 2\] cannot be summed, expected float32\[rows, 1\]"),
        (np.zeros((3, 2), np.float32), r"float32\[3, 2\] cannot be summed"),
        (np.full((5000, 1), -np.inf, np.float32), "a value is infinite"),
        (np.array([[np.nan], [np.inf]] * 2500, np.float32), "a value is infinite"),
    ],
)
def test_other_values_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        ColumnSums(1).add(rows)


def test_no_parts_have_no_sums_and_parts_must_have_the_same_columns():
    assert merge_sums([]) is None
    assert merge_sums([None]) is None
    with pytest.raises(ValueError, match="sums of 2 columns to sums of 1"):
        merge_sums(sums_of([np.zeros((1, width), np.float32)]) for width in (1, 2))


def test_the_counts_of_a_very_large_dataset_do_not_overflow():
    part = sums_of([np.array([[0.5], [2.5], [np.nan]], np.float32)])
    values = part.model_dump() | {"count": 3 * 2**50, "missing": (2**50,), "sum": ("0x3p+50",)}
    part = FeatureSums.model_validate(values | {"sum_squares": ("0xdp+49",)})
    total = merge_sums([part] * 2**10).statistics()
    assert (total.count, total.missing) == (3 * 2**60, (2**60,))
    assert (total.mean, total.variance) == ((1.5,), (1.0,))


GOOD = {
    "count": 3,
    "missing": (1, 0),
    "sum": ("-0x3p+0", "0x3p-1"),
    "sum_squares": ("0x5p+0", "0x3p-2"),
    "min": (-2.0, 0.5),
    "max": (-1.0, 0.5),
}
ALL_MISSING = {
    "count": 2,
    "missing": (2,),
    "sum": ("0x0p+0",),
    "sum_squares": ("0x0p+0",),
    "min": (0.0,),
    "max": (0.0,),
}


def test_good_sums_are_read():
    assert FeatureSums.model_validate(GOOD).statistics().variance == (0.25, 0)
    assert FeatureSums.model_validate(ALL_MISSING).statistics().mean == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": -1}, "greater than or equal to 0"),
        ({"count": 2**53}, "less than or equal to"),
        ({"count": 0}, "more values are missing than there are rows"),
        ({"missing": (1,)}, "missing has 1 columns, but sum has 2"),
        ({"missing": (0, 0)}, "missing has only zeros"),
        ({"missing": (4, 0)}, "column 0: more values are missing"),
        ({"missing": (0, 1)}, "column 1: no 2 values from 0.5 to 0.5 have this sum"),
        ({"sum": ("0x0p+0",)}, "sum_squares has 2 columns, but sum has 1"),
        ({"min": (0.0,)}, "min has 1 columns"),
        ({"max": (0.0, 0.0, 0.0)}, "max has 3 columns"),
        ({"sum": (0, 0)}, "expected an odd hexadecimal integer"),
        ({"sum": ("-0x3p+0", "0x3")}, "expected an odd hexadecimal integer"),
        ({"sum": ("-0x3p+0\n", "0x3p-1")}, "expected an odd hexadecimal integer"),
        ({"sum": ("-0x6p-1", "0x3p-1")}, "expected an odd hexadecimal integer"),
        ({"sum": ("-0x03p+0", "0x3p-1")}, "expected an odd hexadecimal integer"),
        ({"sum": ("-0x3p-0", "0x3p-1")}, "expected an odd hexadecimal integer"),
        ({"sum": ("-0x3p+00", "0x3p-1")}, "expected an odd hexadecimal integer"),
        ({"sum": ("-0x0p+0", "0x3p-1")}, "expected an odd hexadecimal integer"),
        ({"sum": ("-0x3p+0", "0x3p-01")}, "expected an odd hexadecimal integer"),
        ({"sum": ("-0x3p+0", "0x٣p-1")}, "expected an odd hexadecimal integer"),
        ({"sum": ("-0x3p+0", "0x1p-150")}, "a power of two from -149 to 309"),
        ({"sum": ("-0x3p+0", "0x1p+310")}, "a power of two from -149 to 309"),
        ({"sum": ("-0x3p+0", "0x1p+999999999")}, "a power of two from -149"),
        ({"sum": ("-0x3p+0", "0x" + "f" * 153 + "p+0")}, "at most 152 digits"),
        ({"sum_squares": ("0x5p+0", "0x1p-299")}, "a power of two from -298"),
        ({"sum_squares": ("0x5p+0", "-0x3p-2")}, "column 1: .* have this sum_squares"),
        ({"sum_squares": ("0x1p+2", "0x3p-2")}, "column 0: .* have this sum_squares"),
        ({"sum_squares": ("0x9p+0", "0x3p-2")}, "column 0: .* have this sum_squares"),
        ({"sum": ("-0x5p+0", "0x3p-1")}, "column 0: no 2 values from -2.0 to -1.0 have this sum"),
        ({"min": (-2.0, 0.6)}, "min has 0.6, expected float32 numbers"),
        ({"max": (-1.0, 1e300)}, "max has 1e.300, expected float32 numbers"),
        ({"max": (-0.0, 0.5)}, "max has -0.0, expected float32 numbers"),
        ({"min": (-1.0, 0.5), "max": (-2.0, 0.5)}, "column 0: no 2 values from -1.0 to -2.0"),
        ({"min": (float("nan"), 0.5)}, "finite number"),
        ({"max": (float("inf"), 0.5)}, "finite number"),
        (ALL_MISSING | {"min": (1.0,), "max": (1.0,)}, "all values are missing, expected zeros"),
        (ALL_MISSING | {"sum_squares": ("0x1p+0",)}, "all values are missing, expected zeros"),
    ],
)
def test_sums_that_no_values_have_are_refused(change, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        FeatureSums.model_validate(GOOD | change)
