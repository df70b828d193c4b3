"""Plans by batching bucket, pad and exact: the number and the shapes of the batches, from the counts of each length."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.batching.bucket import MAX_BUCKETS, MIN_BUCKETS, default_batch_steps, make_bucket_plan
from trainer.batching.cut import DEFAULT_BATCH_STEPS, MIN_BATCHES
from trainer.config import PLANNED_FROM_COUNTS

COUNTS = st.dictionaries(st.integers(1, 300), st.integers(1, 40), min_size=1, max_size=40)


def test_a_length_without_a_record_is_no_bucket():
    assert [b.pad_length for b in make_bucket_plan({5: 1, 900: 0}, batching="pad").buckets] == [5]


def test_a_record_at_a_boundary_is_in_the_next_bucket():
    counts = {length: 3 for length in range(1, 61)}
    plan = make_bucket_plan(counts, batching="bucket", batch_steps=120)
    assert MIN_BUCKETS <= len(plan.boundaries) <= MAX_BUCKETS
    lower = 0
    for boundary, bucket in zip(plan.boundaries, plan.buckets, strict=True):
        inside = range(lower, boundary)  # exclusive
        assert bucket.records == sum(counts.get(length, 0) for length in inside)
        assert bucket.steps == sum(length * counts.get(length, 0) for length in inside)
        assert bucket.pad_length == boundary - 1
        lower = boundary
    assert lower == 61  # no record reaches the last boundary, where tf.data would stop


@given(COUNTS, st.sampled_from(PLANNED_FROM_COUNTS), st.integers(1, 2000), st.integers(1, 50))
def test_both_limits_hold_for_every_batch_and_each_record_is_in_one_batch(counts, method, batch_steps, batch_size):
    plan = make_bucket_plan(counts, batching=method, batch_steps=batch_steps, batch_size=batch_size)
    for rows, steps in plan.shapes:
        assert rows <= batch_size
        assert rows * steps <= batch_steps or rows == 1
    assert plan.records == sum(counts.values())
    assert plan.steps == sum(length * count for length, count in counts.items())
    assert plan.steps <= plan.padded_steps
    assert plan.num_batches == sum(-(-bucket.records // bucket.batch_size) for bucket in plan.buckets)


def test_a_record_longer_than_the_budget_makes_a_batch_of_one():
    plan = make_bucket_plan({3: 10, 500: 2}, batching="bucket", batch_steps=30)
    assert [(b.pad_length, b.batch_size, b.num_batches) for b in plan.buckets] == [(3, 10, 1), (500, 1, 2)]
    assert plan.largest_batch == (1, 500)


@pytest.mark.parametrize("method", PLANNED_FROM_COUNTS)
@pytest.mark.parametrize("counts", [{10: 5}, {1: 100}, {7: 3, 900: 40}, {length: 2 for length in range(1, 200)}])
def test_the_default_budget_gives_twenty_batches_or_one_for_each_record(method, counts):
    plan = make_bucket_plan(counts, batching=method)
    assert plan.num_batches >= min(MIN_BATCHES, plan.records)
    assert plan.batch_steps == default_batch_steps(counts, batching=method) <= DEFAULT_BATCH_STEPS
    # It is not smaller than necessary: twice the budget would give too few batches.
    if plan.batch_steps < DEFAULT_BATCH_STEPS:
        twice = make_bucket_plan(counts, batching=method, batch_steps=2 * plan.batch_steps)
        assert twice.num_batches < min(MIN_BATCHES, plan.records)


def test_a_large_dataset_gets_the_default_budget():
    assert make_bucket_plan({30: 100_000}, batching="bucket").batch_steps == DEFAULT_BATCH_STEPS


def test_exact_has_no_padding_and_pad_pads_to_the_longest_record():
    counts = {2: 10, 3: 10, 50: 1}
    exact = make_bucket_plan(counts, batching="exact", batch_size=4)
    assert (exact.useful_share, exact.num_batches) == (1.0, 3 + 3 + 1)
    pad = make_bucket_plan(counts, batching="pad", batch_size=4)
    assert (pad.padded_steps, pad.num_batches, pad.boundaries) == (21 * 50, 6, [51])


def test_records_longer_than_pad_length_count_with_their_truncated_steps():
    plan = make_bucket_plan({3: 2, 10: 4}, batching="pad", pad_length=5, truncate="tail", batch_size=2)
    assert (plan.records, plan.steps, plan.padded_steps) == (6, 2 * 3 + 4 * 5, 30)


@pytest.mark.parametrize("method", PLANNED_FROM_COUNTS)
@pytest.mark.parametrize("counts", [{}, {5: 0}])
def test_no_records_give_a_plan_without_batches(method, counts):
    plan = make_bucket_plan(counts, batching=method)
    assert (plan.num_batches, plan.records, plan.padded_steps, plan.useful_share) == (0, 0, 0, 1.0)
    assert (plan.shapes, plan.largest_batch) == (set(), (0, 0))


@given(COUNTS, st.sampled_from(PLANNED_FROM_COUNTS), st.integers(1, 4))
def test_the_plans_of_several_readers_add_up_to_the_whole_plan(counts, method, num_readers):
    plan = make_bucket_plan(counts, batching=method, batch_steps=100)
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
def test_the_error_for_a_wrong_argument_has_its_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_bucket_plan({10: 3}, **arguments)
