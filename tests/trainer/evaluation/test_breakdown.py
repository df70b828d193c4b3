"""Every record is in at most one part, and the parts are the largest ones."""

import collections

import numpy as np
import pyarrow as pa
import pytest

from trainer.evaluation.breakdown import MAX_BANDS, MAX_PARTS, break_down, by_length, by_name


@pytest.mark.parametrize("lengths", [[5] * 9, [1], range(1, 200), [1] * 100 + [2, 3, 400], [7, 8], []])
def test_bands_hold_every_record_once(lengths):
    lengths = np.random.default_rng(1).permutation(np.array(lengths, int))
    bands = by_length(lengths)
    assert len(bands.titles) <= MAX_BANDS and len(bands.part) == len(lengths)
    for number, band in enumerate(bands.titles):
        inside = lengths[bands.part == number]
        assert (inside.min(), inside.max()) == (band["min_steps"], band["max_steps"])
    edges = [edge for band in bands.titles for edge in (band["min_steps"], band["max_steps"])]
    assert edges == sorted(edges) and len(set(bands.part.tolist())) == len(bands.titles)


def test_bands_are_about_as_large_as_each_other():
    assert np.bincount(by_length(np.arange(1, 201)).part).tolist() == [25] * 8


def test_names_are_sorted_by_their_number_of_records_and_null_is_a_name():
    random = np.random.default_rng(2)
    names = [None if random.random() < 0.1 else f"p{random.integers(0, 20)}" for _ in range(300)]
    for limit in (3, 100):
        found = by_name("group", pa.chunked_array([names[:100], names[100:]]), limit=limit)
        counts = collections.Counter(names)
        order = sorted(counts, key=lambda name: (-counts[name], name is None, name or ""))
        assert found.titles == tuple({"group": name} for name in order[:limit])
        assert found.part.tolist() == [min(order.index(name), limit) for name in names]
        assert found.left_out == max(len(order) - limit, 0)


def table(**columns):
    return pa.table({"num_steps": pa.array([4, 9], pa.int32())} | columns)


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ({}, ["length"]),
        ({"group": pa.nulls(2), "source": pa.nulls(2)}, ["length"]),
        ({"group": pa.nulls(2, pa.string()), "source": ["a", "a"]}, ["length"]),
        ({"group": ["p", None], "source": ["a", "b"]}, ["length", "group", "source"]),
        ({"group": ["p", "p"], "source": ["a", None]}, ["length", "group", "source"]),
    ],
)
def test_breakdowns_follow_the_columns_of_the_index(columns, names):
    assert [found.name for found in break_down(table(**columns), num_classes=3)] == names


def test_the_number_of_groups_is_limited_and_lower_for_very_many_classes():
    groups = [f"{number:05}" for number in range(1500)]
    index = pa.table({"num_steps": [1] * 1500, "group": groups})
    for num_classes, limit in ((1, MAX_PARTS), (4000, MAX_PARTS), (42_000, 99)):
        _, found = break_down(index, num_classes=num_classes)
        assert (len(found.titles), found.left_out) == (limit, 1500 - limit)
        assert found.part.tolist() == [min(number, limit) for number in range(1500)]
