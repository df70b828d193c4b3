"""The plan of an epoch: which batches there will be, from the counts of each length alone."""

import doctest
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lengthwise
import trainer.batching.plan
from trainer.batching.cut import DEFAULT_BATCH_STEPS, MIN_BATCHES
from trainer.batching.epoch import plan_epoch
from trainer.batching.plan import (
    MAX_BUCKETS,
    MIN_BUCKETS,
    choose_edges,
    default_batch_steps,
    make_plan,
)
from trainer.config import BATCHING_METHODS, PLANNED_FROM_COUNTS
from trainer.data.dataset import open_dataset

COUNTS = st.dictionaries(st.integers(1, 40), st.integers(1, 30), min_size=1, max_size=7)
MANY_COUNTS = st.dictionaries(st.integers(1, 300), st.integers(1, 40), min_size=1, max_size=40)


def padded(counts, edges):
    return sum(count * min(edge for edge in edges if edge >= length) for length, count in counts.items())


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(trainer.batching.plan).failed == 0


@given(COUNTS, st.integers(1, 5))
def test_no_other_edges_waste_fewer_steps(counts, num_buckets):
    longest = max(counts)
    others = [length for length in counts if length != longest]
    cheapest = min(
        padded(counts, [*chosen, longest])
        for size in range(min(num_buckets, len(counts)))
        for chosen in itertools.combinations(others, size)
    )
    edges = choose_edges(counts, num_buckets=num_buckets)
    assert edges == sorted(set(edges)) and len(edges) <= num_buckets
    assert padded(counts, edges) == cheapest


def test_of_very_many_lengths_the_longest_is_an_edge_and_little_is_wasted():
    counts = {length: 1 + length % 3 for length in range(1, 3000)}
    edges = choose_edges(counts, num_buckets=16)
    assert len(edges) == 16 and edges[-1] == 2999
    useful = sum(length * count for length, count in counts.items())
    assert useful / padded(counts, edges) > 0.94  # 16 equal buckets of equally many lengths: 16.5 of 17.5


def test_lengths_without_a_record_are_no_edges():
    assert choose_edges({5: 1, 9: 0, 7: 2}, num_buckets=4) == [5, 7]
    assert [b.pad_length for b in make_plan({5: 1, 900: 0}, batching="pad").buckets] == [5]


def test_a_record_at_a_boundary_goes_one_bucket_up():
    counts = {length: 3 for length in range(1, 61)}
    plan = make_plan(counts, batching="bucket", batch_steps=120)
    assert MIN_BUCKETS <= len(plan.boundaries) <= MAX_BUCKETS
    lower = 0
    for boundary, bucket in zip(plan.boundaries, plan.buckets, strict=True):
        inside = range(lower, boundary)  # exclusive
        assert bucket.records == sum(counts.get(length, 0) for length in inside)
        assert bucket.steps == sum(length * counts.get(length, 0) for length in inside)
        assert bucket.pad_length == boundary - 1
        lower = boundary
    assert lower == 61  # no record reaches the last boundary, where tf.data would stop


@given(MANY_COUNTS, st.sampled_from(PLANNED_FROM_COUNTS), st.integers(1, 2000), st.integers(1, 50))
def test_both_limits_hold_for_every_batch_and_every_record_is_in_one(counts, way, batch_steps, batch_size):
    plan = make_plan(counts, batching=way, batch_steps=batch_steps, batch_size=batch_size)
    for rows, steps in plan.shapes:
        assert rows <= batch_size
        assert rows * steps <= batch_steps or rows == 1
    assert plan.records == sum(counts.values())
    assert plan.steps == sum(length * count for length, count in counts.items())
    assert plan.steps <= plan.padded_steps
    assert plan.num_batches == sum(-(-bucket.records // bucket.batch_size) for bucket in plan.buckets)


def test_a_record_longer_than_the_budget_makes_a_batch_of_one():
    plan = make_plan({3: 10, 500: 2}, batching="bucket", batch_steps=30)
    assert [(b.pad_length, b.batch_size, b.num_batches) for b in plan.buckets] == [(3, 10, 1), (500, 1, 2)]
    assert plan.largest_batch == (1, 500)


@pytest.mark.parametrize("way", PLANNED_FROM_COUNTS)
@pytest.mark.parametrize("counts", [{10: 5}, {1: 100}, {7: 3, 900: 40}, {length: 2 for length in range(1, 200)}])
def test_the_default_budget_gives_twenty_batches_or_one_a_record(way, counts):
    plan = make_plan(counts, batching=way)
    assert plan.num_batches >= min(MIN_BATCHES, plan.records)
    assert plan.batch_steps == default_batch_steps(counts, batching=way) <= DEFAULT_BATCH_STEPS
    # It is no smaller than it need be: a power of two below the usual one.
    if plan.batch_steps < DEFAULT_BATCH_STEPS:
        twice = make_plan(counts, batching=way, batch_steps=2 * plan.batch_steps)
        assert twice.num_batches < min(MIN_BATCHES, plan.records)


def test_large_data_get_the_usual_budget():
    assert make_plan({30: 100_000}, batching="bucket").batch_steps == DEFAULT_BATCH_STEPS


def test_exact_pads_nothing_and_pad_pads_to_the_longest():
    counts = {2: 10, 3: 10, 50: 1}
    exact = make_plan(counts, batching="exact", batch_size=4)
    assert (exact.useful_share, exact.num_batches) == (1.0, 3 + 3 + 1)
    pad = make_plan(counts, batching="pad", batch_size=4)
    assert (pad.padded_steps, pad.num_batches, pad.boundaries) == (21 * 50, 6, [51])


def test_records_beyond_pad_length_count_as_cut():
    plan = make_plan({3: 2, 10: 4}, batching="pad", pad_length=5, truncate="tail", batch_size=2)
    assert (plan.records, plan.steps, plan.padded_steps) == (6, 2 * 3 + 4 * 5, 30)


@pytest.mark.parametrize("way", PLANNED_FROM_COUNTS)
@pytest.mark.parametrize("counts", [{}, {5: 0}])
def test_nothing_has_a_plan_of_no_batch(way, counts):
    plan = make_plan(counts, batching=way)
    assert (plan.num_batches, plan.records, plan.padded_steps, plan.useful_share) == (0, 0, 0, 1.0)
    assert (plan.shapes, plan.largest_batch) == (set(), (0, 0))


@given(MANY_COUNTS, st.sampled_from(PLANNED_FROM_COUNTS), st.integers(1, 4))
def test_the_plans_of_several_readers_are_parts_of_the_whole(counts, way, num_readers):
    plan = make_plan(counts, batching=way, batch_steps=100)
    lengths = np.repeat(list(counts), list(counts.values()))
    parts = [plan.with_lengths(lengths[reader::num_readers]) for reader in range(num_readers)]
    assert sum(part.records for part in parts) == plan.records
    assert sum(part.padded_steps for part in parts) == plan.padded_steps
    assert {part.boundaries == plan.boundaries and part.batch_sizes == plan.batch_sizes for part in parts} == {True}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batching": "stateful"}, "batching is 'stateful', expected one of window, bucket, pad, exact"),
        ({"batching": "bucket", "pad_to_multiple": 0}, "pad_to_multiple is 0, expected at least 1"),
        (
            {"batching": "exact", "pad_to_multiple": 8},
            "pad_to_multiple belongs to batching 'window' or 'bucket', not to",
        ),
        ({"batching": "pad", "batch_steps": 0}, "batch_steps is 0, expected at least 1"),
        ({"batching": "pad", "batch_size": -1}, "batch_size is -1, expected at least 1"),
        ({"batching": "pad", "pad_length": 0}, "pad_length is 0, expected at least 1"),
        ({"batching": "bucket", "pad_length": 9}, "pad_length and truncate belong to batching 'pad', not to 'bucket'"),
        ({"batching": "exact", "truncate": "tail"}, "pad_length and truncate belong to batching 'pad'"),
        ({"batching": "pad", "pad_length": 9, "truncate": "middle"}, "truncate is 'middle', expected 'head' or 'tail'"),
        ({"batching": "pad", "pad_length": 9}, "pad_length is 9, but the longest record has 10 steps; choose truncate"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_plan({10: 3}, **arguments)


def test_the_command_says_what_the_plan_of_an_epoch_says(dataset, capsys):
    opened = open_dataset(dataset)
    flags = ["--batch_steps", "80", "--batch_size", "5", "--pad_to_multiple", "4"]
    assert lengthwise.main(["plan", dataset, *flags, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    limits = {"batch_steps": 80, "batch_size": 5}
    multiple = {"window": 4, "bucket": 4}
    plans = {
        way: plan_epoch(opened, "train", batching=way, pad_to_multiple=multiple.get(way, 1), **limits)
        for way in BATCHING_METHODS
    }
    assert said == {way: plan.to_dict() for way, plan in plans.items()}
    assert said["exact"]["useful_share"] == 1.0
    assert said["window"]["largest_batch"]["steps"] % 4 == said["bucket"]["largest_batch"]["steps"] % 4 == 0
    assert lengthwise.main(["plan", dataset]) == 0
    shown = capsys.readouterr().out
    assert all(f"{plan_epoch(opened, 'train', batching=way).num_batches:,}" in shown for way in BATCHING_METHODS)


def test_a_plan_of_no_dataset_or_no_split_is_one_line(dataset, tmp_path, capsys):
    assert lengthwise.main(["plan", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"lengthwise plan: {tmp_path}: not a dataset: it has no manifest.json")
    assert lengthwise.main(["plan", dataset, "--split", "trian"]) == 1
    assert "has no split 'trian'; it has train, validation, test." in capsys.readouterr().err


def test_the_command_plans_padding_to_a_given_length(dataset, capsys):
    assert lengthwise.main(["plan", dataset, "--pad_length", "2", "--truncate", "tail", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["pad"]["largest_batch"]["steps"] == 2
    assert said["exact"]["useful_share"] == 1.0
    assert lengthwise.main(["plan", dataset, "--pad_length", "2"]) == 1
    assert "choose truncate head or tail." in capsys.readouterr().err
