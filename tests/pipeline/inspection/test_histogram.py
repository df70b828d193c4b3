"""The histogram of lengths counts every record, and its bars show every band."""

import doctest
import statistics

import pytest

from pipeline.inspection import histogram
from pipeline.inspection.histogram import bar, length_bands, length_range


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(histogram).failed == 0


@pytest.mark.parametrize("counts", [{5: 1}, {1: 2, 2: 2}, {1: 1, 3: 1, 10: 1}, {2: 1, 9: 1, 11: 2}, {4: 1, 7: 0, 9: 3}])
def test_the_range_equals_the_range_of_the_single_lengths(counts):
    every = [length for length, count in counts.items() for _ in range(count)]
    assert length_range(counts) == {"min": min(every), "median": statistics.median(every), "max": max(every)}


def test_without_records_there_is_no_range_and_no_band():
    assert length_range({}) is None
    assert length_range({3: 0}) is None
    assert length_bands({}) == []


@pytest.mark.parametrize(
    "counts",
    [
        {1: 1},
        {1_000_000: 1},
        {9: 4, 10: 4, 11: 4},
        {n: 1 for n in range(1, 17)},
        {n: 1 for n in range(1, 18)},
        {n: n for n in range(10, 61)},
        {3: 100, 5: 100, 200_000: 1},
        {1: 1, 2**20: 1},
    ],
)
def test_bands_are_few_have_no_gaps_and_count_every_record(counts):
    bands = length_bands(counts)
    assert len(bands) <= 21
    assert bands[0][0] == min(counts)
    assert bands[-1][1] == max(counts)
    assert all(last + 1 == first for (_, last, _), (first, _, _) in zip(bands, bands[1:], strict=False))
    assert sum(records for *_, records in bands) == sum(counts.values())


def test_bands_start_at_round_numbers_and_double_before_a_long_tail():
    assert length_bands({n: 1 for n in range(13, 61)})[:2] == [(13, 14, 2), (15, 19, 5)]
    bands = length_bands({10: 99, 20: 99, 400: 1})
    assert [first for first, *_ in bands] == [10, 16, 32, 64, 128, 256]


@pytest.mark.parametrize(("share", "expected"), [(0, ""), (1e-9, "▏"), (0.5, "█" * 20), (1, "█" * 40)])
def test_a_bar_is_as_long_as_its_share_and_shows_the_smallest_share(share, expected):
    assert bar(share, blocks=True) == expected


def test_a_bar_without_unicode_has_number_signs():
    assert [bar(share, blocks=False) for share in (0, 1e-9, 0.5, 1)] == ["", "#", "#" * 20, "#" * 40]
