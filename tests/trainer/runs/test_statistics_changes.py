"""The lines that say what changes are those of a plain comparison, the largest change first, and at most ten."""

import math

import numpy as np
import pytest

from pipeline.format.scaling import ScaledStatistics
from trainer.runs.statistics_changes import MAX_LISTED, describe_changes


def of(*columns):
    """Returns the statistics of columns of (mean, standard deviation)."""
    mean, deviation = zip(*columns, strict=True)
    variance = tuple(value**2 for value in deviation)
    return ScaledStatistics(count=9, mean=mean, variance=variance, min=mean, max=mean)


def describe(before, after, before_terms=None, after_terms=None):
    return describe_changes(before, after, before_terms or {}, after_terms or {})


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ((2.0, 4.0), (12.0, 4.0), "x: mean 2 -> 12 (+2.50 standard deviations), standard deviation 4 -> 4 (x 1)"),
        ((2.0, 4.0), (0.0, 2.0), "x: mean 2 -> 0 (-0.50 standard deviations), standard deviation 4 -> 2 (x 0.5)"),
        # A constant column has no standard deviation to count in.
        ((5.0, 0.0), (5.5, 3.0), "x: mean 5 -> 5.5, standard deviation 0 -> 3"),
        ((5.0, 3.0), (5.0, 0.0), "x: mean 5 -> 5 (+0.00 standard deviations), standard deviation 3 -> 0 (x 0)"),
        ((1.0, 1e-150), (1e30, 1e15), "x: mean 1 -> 1e+30 (+1"),
    ],
)
def test_a_change_is_told_in_standard_deviations_and_as_a_factor(before, after, line):
    (found,) = describe({"x": of(before)}, {"x": of(after)})
    assert found.startswith(line)


def test_another_divisor_is_a_change_even_if_the_statistics_are_the_same():
    """An older version divided a rare value by the standard deviation alone."""
    old = ScaledStatistics(count=9, mean=(0.001,), variance=(0.000999,), min=(0.0,), max=(1.0,))
    (found,) = describe({"x": old}, {"x": ScaledStatistics.of(old)})
    assert found.endswith("standard deviation 0.03161 -> 0.03161 (x 1), divisor 0.03161 -> 0.1")


def test_the_column_that_changes_most_is_shown():
    before, after = of((0.0, 1.0), (0.0, 1.0), (0.0, 1.0)), of((0.5, 1.0), (0.0, 8.0), (-2.5, 1.0))
    assert describe({"x": before}, {"x": after})[0].startswith(
        "x (column 1): mean 0 -> 0 (+0.00 standard deviations), "
    )


def test_strings_are_counted_that_are_new_gone_or_moved():
    before, after = (b"a", b"b", b"c", b"d"), (b"b", b"a", b"e", b"d", b"f")
    assert describe({}, {}, {"word": before}, {"word": after}) == [
        "word: 2 of 5 strings new, 1 of 4 gone, 2 at another position"
    ]
    new, gone = set(after) - set(before), set(before) - set(after)
    moved = [term for term in set(after) & set(before) if before.index(term) != after.index(term)]
    assert (len(new), len(gone), len(moved)) == (2, 1, 2)


def test_what_does_not_change_and_what_only_one_of_them_has_is_not_listed():
    before = {"x": of((1.0, 2.0)), "old": of((1.0, 2.0))}
    after = {"x": of((1.0, 2.0)), "new": of((7.0, 2.0))}
    assert describe(before, after, {"w": (b"a",), "old": (b"b",)}, {"w": (b"a",), "new": ()}) == []


def test_the_largest_changes_come_first_and_the_others_are_counted():
    random = np.random.default_rng(0)
    shifts = {f"f{number}": float(shift) for number, shift in enumerate(random.normal(size=40))}
    before = {name: of((0.0, 1.0)) for name in shifts}
    after = {name: of((shift, 1.0)) for name, shift in shifts.items()}
    lines = describe(before, after, {"word": (b"a", b"b")}, {"word": (b"b", b"a")})
    sizes = {name: abs(shift) for name, shift in shifts.items()} | {"word": 1.0}
    expected = sorted(sizes, key=lambda name: -sizes[name])
    assert [line.split(":")[0] for line in lines[:-1]] == expected[:MAX_LISTED]
    assert lines[-1] == "and 31 more with smaller changes"
    doubled = describe({"a": of((0.0, 1.0)), "b": of((0.0, 1.0))}, {"a": of((0.9, 1.0)), "b": of((0.0, 2.0))})
    assert [line[0] for line in doubled] == ["b", "a"] and math.log2(2) > 0.9
