"""Plans by batching window: each record in one batch within the limits, little padding, random and balanced."""

import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.batching.cut import BatchLimits
from trainer.batching.window import make_window_plan

LENGTHS = st.lists(st.integers(1, 60), max_size=80)


def shards_of(*parts):
    return [
        types.SimpleNamespace(num_steps=np.array(part, np.int32), num_bytes=np.array(part, np.int32) * 32 + 60)
        for part in parts
    ]


def log_normal(records, *, num_shards=8):
    random = np.random.default_rng(0)
    lengths = np.exp(random.normal(np.log(24), 0.8, records)).round().clip(1, 400).astype(int)
    return shards_of(*np.array_split(lengths, num_shards))


def deal_slowly(rows, num_readers):
    """Deals rows to readers in the order 0 1 2 2 1 0 0 1 …, as lists of rows, one for each reader."""
    parts, turn, step = [[] for _ in range(num_readers)], 0, 1
    for row in rows:
        parts[turn].append(row)
        turn += step
        if turn in (-1, num_readers):
            step = -step
            turn += step
    return parts


@given(
    st.lists(LENGTHS, min_size=1, max_size=4),
    st.sampled_from([{"batch_steps": 90}, {"batch_size": 4}, {"batch_steps": 200, "batch_size": 7}, {}]),
    st.integers(1, 4),
    st.sampled_from([1, 8]),
    st.integers(1, 40),
)
def test_every_record_is_in_one_batch_within_the_limits(shards, limits, num_readers, multiple, window_records):
    plan = make_window_plan(
        shards_of(*shards),
        **limits,
        num_readers=num_readers,
        pad_to_multiple=multiple,
        window_records=window_records,
        seed=3,
    )
    lengths = [length for shard in shards for length in shard]
    seen = []
    batches = [plan.batch_shapes(reader) for reader in range(num_readers)]
    for number in range(plan.num_batches):
        parts_of_batch = [plan.rows(number, reader).tolist() for reader in range(num_readers)]
        first = plan.first[number]
        assert parts_of_batch == deal_slowly(plan.order[first : first + plan.count[number]].tolist(), num_readers)
        for part, found in zip(parts_of_batch, batches, strict=True):
            longest = max((lengths[row] for row in part), default=1)
            assert found.rows[number] == max(map(len, parts_of_batch))
            assert found.pad_length[number] == -(-longest // multiple) * multiple
            assert found.steps[number] == sum(lengths[row] for row in part)
            within = BatchLimits(plan.batch_steps, plan.batch_size).rows(int(found.pad_length[number]))
            assert found.rows[number] <= within
        seen += sum(parts_of_batch, [])
    assert sorted(seen) == list(range(len(lengths)))
    assert (plan.records, plan.steps) == (len(lengths), sum(lengths))
    assert plan.padded_steps == sum(int((b.rows * b.pad_length).sum()) for b in batches)


def test_no_records_give_a_plan_without_batches():
    plan = make_window_plan([])
    assert (plan.num_batches, plan.records, plan.useful_share, plan.largest_batch) == (0, 0, 1.0, (0, 0))


def test_a_record_longer_than_the_budget_makes_a_batch_of_one():
    plan = make_window_plan(shards_of([7] * 500, [200_000, *[9] * 300]), batch_steps=640)
    assert plan.largest_batch == (1, 200_000)
    assert plan.padded_steps < 200_000 + 800 * 10


def test_the_plan_depends_only_on_seed_and_epoch():
    shards = log_normal(3000)

    def order(**arguments):
        return make_window_plan(shards, batch_steps=1000, **arguments).order.tolist()

    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    assert order(seed=1, epoch=2) != order(seed=1, epoch=3)
    assert order(seed=1, epoch=2) != order(seed=2, epoch=2)


def test_few_steps_are_padding():
    plan = make_window_plan(log_normal(200_000), batch_steps=6400)
    assert plan.useful_share > 0.985
    assert plan.window.max() > 2


def test_the_lengths_of_batches_show_no_trend_in_an_epoch():
    for epoch in range(3):
        plan = make_window_plan(log_normal(100_000), batch_steps=6400, epoch=epoch)
        pad_length = plan.batch_shapes().pad_length
        trend = np.corrcoef(np.arange(plan.num_batches), pad_length)[0, 1]
        neighbours = np.corrcoef(pad_length[1:], pad_length[:-1])[0, 1]
        # For 500 independent numbers, 99 % of the correlations lie within 0.115.
        assert max(abs(trend), abs(neighbours)) < 0.15


def test_records_of_similar_length_are_mixed_differently_in_each_epoch():
    """The padded length of a record depends on the other records of its batch, so it changes with them."""
    padded = []
    for epoch in range(2):
        plan = make_window_plan(log_normal(100_000), batch_steps=6400, epoch=epoch)
        order = np.argsort(plan.first)
        steps = np.empty(plan.records, int)
        steps[plan.order] = np.repeat(plan.batch_shapes().pad_length[order], plan.count[order])
        padded.append(steps)
    long = plan.lengths >= 24
    assert (padded[0] != padded[1])[long].mean() > 0.3
    # The padded length is still close to the length.
    assert (padded[0] / plan.lengths)[long].mean() < 1.02


def test_the_records_that_share_a_batch_change_from_epoch_to_epoch():
    def batch_of_records(epoch):
        plan = make_window_plan(log_normal(100_000), batch_steps=6400, epoch=epoch)
        batch = np.empty(plan.records, int)
        batch[plan.order] = np.repeat(np.argsort(plan.first), plan.count[np.argsort(plan.first)])
        return batch

    first, second = batch_of_records(0), batch_of_records(1)
    random = np.random.default_rng(0)
    pairs = random.integers(0, 100_000, (2, 2_000_000))
    together = pairs[:, (first[pairs[0]] == first[pairs[1]]) & (pairs[0] != pairs[1])]
    again = (second[together[0]] == second[together[1]]).mean()
    assert together.shape[1] > 2000
    # Each of the three windows has several batches of nearly the same length.
    assert again < 0.25


def test_readers_get_the_same_number_of_batches_with_about_the_same_steps():
    plan = make_window_plan(log_normal(50_000), batch_steps=6400, num_readers=4)
    steps = np.array([plan.batch_shapes(reader).steps for reader in range(4)])
    assert steps.shape == (4, plan.num_batches)
    assert (steps.max(axis=0) / np.maximum(steps.min(axis=0), 1)).mean() < 1.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_steps": 0}, "batch_steps is 0, expected at least 1"),
        ({"num_readers": 0}, "num_readers is 0, expected at least 1"),
        ({"pad_to_multiple": -8}, "pad_to_multiple is -8, expected at least 1"),
    ],
)
def test_the_error_for_a_wrong_argument_has_its_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_window_plan([], **arguments)
