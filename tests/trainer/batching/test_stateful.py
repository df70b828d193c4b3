"""The plan of `stateful` equals a simulation of lanes, lane by lane and update by update."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.batching.stateful import make_stateful_plan


def plan_of(lengths, **options):
    return make_stateful_plan(np.array(lengths, np.int32), **options)


def simulate(plan):
    """Returns for each update a list of (record, first step, steps, whether the record ends), one for each lane."""
    lanes = []
    for first, stop in zip(plan.lane_first, plan.lane_first[1:], strict=False):
        chunks = []
        for record in plan.order[first:stop].tolist():
            length = int(plan.lengths[record])
            for step in range(0, length, plan.chunk_steps):
                size = min(plan.chunk_steps, length - step)
                chunks.append((record, step, size, step + size == length))
        lanes.append(chunks)
    return [[lane[k] for lane in lanes if len(lane) > k] for k in range(max(map(len, lanes), default=0))]


@given(
    lengths=st.lists(st.integers(1, 40), max_size=30),
    chunk_steps=st.integers(1, 12),
    lanes=st.integers(1, 9),
    num_readers=st.integers(1, 3),
    first_batch=st.integers(0, 5),
)
def test_a_plan_equals_a_simulation_of_its_lanes(lengths, chunk_steps, lanes, num_readers, first_batch):
    plan = plan_of(lengths, chunk_steps=chunk_steps, lanes=lanes, num_readers=num_readers)
    updates = simulate(plan)
    assert plan.num_batches == len(updates)
    assert sorted(plan.order.tolist()) == list(range(len(lengths)))
    assert (plan.records, plan.steps, plan.lanes) == (len(lengths), sum(lengths), min(lanes, len(lengths)))
    rows = [-(-len(update) // num_readers) for update in updates]
    times = [max(size for _, _, size, _ in update) for update in updates]
    assert plan.rows().tolist() == rows and plan.times().tolist() == times
    assert plan.padded_steps == sum(r * num_readers * t for r, t in zip(rows, times, strict=True))
    assert plan.shapes == {(r * num_readers, t) for r, t in zip(rows, times, strict=True)}
    if first_batch <= plan.num_batches:
        for reader in range(num_readers):
            found = list(plan.chunks(first_batch, reader))
            assert len(found) == len(updates) - first_batch
            for number, chunks in enumerate(found, first_batch):
                expected = updates[number][reader::num_readers]
                expected += [(-1, 0, 1, False)] * (rows[number] - len(expected))
                assert [tuple(map(int, row)) for row in zip(*chunks, strict=True)] == [
                    (*map(int, row),) for row in expected
                ]


def test_the_order_depends_on_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(1, 90, 200)
    plans = [plan_of(lengths, lanes=8, **options) for options in ({}, {}, {"seed": 1}, {"epoch": 1})]
    orders = [plan.order.tolist() for plan in plans]
    assert orders[0] == orders[1] and orders[2] != orders[0] != orders[3]
    # Of more readers, each reads its part of the same lanes.
    assert plan_of(lengths, lanes=8, num_readers=2).order.tolist() == orders[0]


@pytest.mark.parametrize("seed", range(3))
def test_lanes_end_together_and_hardly_any_step_is_padding(seed):
    """Lengths as of long recordings: log-normal around 5,000 steps with a tail to 100,000."""
    lengths = np.clip(np.random.default_rng(seed).lognormal(np.log(5000), 1, 200), 1, 100_000).astype(np.int64)
    plan = plan_of(lengths, chunk_steps=100, lanes=16, seed=seed)
    assert plan.useful_share >= 0.97 * plan.bound
    if plan.lanes <= plan.better_lanes:
        assert plan.num_chunks.max() - plan.num_chunks.min() <= 0.01 * plan.num_chunks.max()


def test_the_bound_names_the_longest_record():
    plan = plan_of([1000, *[10] * 50], chunk_steps=10, lanes=4)
    assert plan.bound == pytest.approx(1500 / 4000)
    assert plan.better_lanes == 1
    assert plan.to_dict()["bound"] == plan.bound
    assert plan_of([100] * 8, chunk_steps=10, lanes=4).bound == 1


@pytest.mark.parametrize("name", ["chunk_steps", "lanes", "num_readers"])
def test_a_limit_below_one_is_refused(name):
    with pytest.raises(ValueError, match=f"^{name} is 0, expected at least 1"):
        plan_of([1], **{name: 0})
