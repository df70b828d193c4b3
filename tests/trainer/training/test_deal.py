"""Dealing: each global batch goes to the replicas, every record once, with even numbers of steps, from any batch."""

import functools
import types

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.batching.plan_epoch import plan_epoch
from trainer.config import BATCHING_METHODS
from trainer.data.dataset import open_dataset
from trainer.devices.replicas import Replicas
from trainer.reading.batches import planned_batches
from trainer.training.deal import BatchDealer

SEED, EPOCH = 3, 2
# (replicas of all workers, workers)
TEAMS = [(1, 1), (2, 1), (2, 2), (3, 1), (3, 3), (4, 1), (4, 2), (4, 4)]
STEPS = {"x", "word", "page", "bits"}


def team_of(replicas, *, workers=1, worker=0):
    """Returns replicas for dealing, which uses only the number of replicas of the strategy."""
    return Replicas(types.SimpleNamespace(num_replicas_in_sync=replicas), workers, worker)


@functools.cache
def dataset_of(kind):
    return open_dataset(datasets.of_every_feature(kind).path)


@functools.cache
def lengths_of(kind):
    return np.concatenate([shard.num_steps for shard in dataset_of(kind).indexes("train")])


def contents_of(part):
    """Returns the records of a part without padding and filler rows, as sortable values that identify them.

    In a filler row all values are 0. In a record, x is not 0, and page and bits are not 0 or missing at the first step.
    """
    features, label, weight = ({n: v.numpy() for n, v in part[0].items()}, part[1].numpy(), part[2].numpy())
    found = []
    for row, length in enumerate(features["length"].tolist()):
        if not features["x"][row].any():
            assert length == 1 and not weight[row].any()
            continue
        assert not any(value[row, length:].astype(bool).any() for name, value in features.items() if name in STEPS)
        values = [value[row, :length] if name in STEPS else value[row] for name, value in sorted(features.items())]
        if weight.ndim > 1:
            assert not weight[row, length:].any()
            # A label without weight is ignored.
            values += [weight[row, :length], np.where(weight[row, :length] > 0, label[row, :length], 0)]
        else:
            values += [weight[row], label[row]]
        found.append(str([np.asarray(value).tolist() for value in values]))
    return sorted(found)


def batches_of(kind, plan, team, *, first_batch=0):
    """Yields for each batch the parts of all replicas in order, and the batch of one worker; all have its counts."""
    num_replicas, num_workers = team
    workers = [team_of(num_replicas, workers=num_workers, worker=worker) for worker in range(num_workers)]
    dataset = dataset_of(kind)
    dealers = [BatchDealer(dataset, worker, seed=SEED, vocabularies=dataset.vocabularies()) for worker in workers]
    each = [dealer.batches(plan, epoch=EPOCH, first_batch=first_batch) for dealer in dealers]
    for of_workers in zip(*each, strict=True):
        counts = {(batch.records, batch.steps, batch.padded_steps, tuple(batch.rows())) for batch in of_workers}
        assert len(counts) == 1
        yield [part for batch in of_workers for part in batch.parts], of_workers[0]


@functools.cache
def whole(kind, way, **limits):
    """Returns an epoch's plan for one reader, and (rows, contents, padded length) of each batch of that reader."""
    plan = plan_epoch(dataset_of(kind), "train", batching=way, seed=SEED, epoch=EPOCH, **limits)
    found = []
    for features, label, weight, row in planned_batches(dataset_of(kind), "train", plan, seed=SEED, epoch=EPOCH):
        found.append((sorted(row.numpy().tolist()), contents_of((features, label, weight)), features["x"].shape[1]))
    return plan, found


def check_dealt(kind, way, team, **limits):
    """Checks that the parts make up the batches of one reader and are even; returns the number of empty parts."""
    (plan, expected), lengths = whole(kind, way, **limits), lengths_of(kind)
    seen, empty = [], 0
    for (rows, contents, time), (parts, batch) in zip(expected, batches_of(kind, plan, team), strict=True):
        assert sorted(batch.rows()) == rows
        assert (batch.records, batch.steps) == (len(rows), lengths[rows].sum())
        assert batch.padded_steps == sum(int(np.prod(features["x"].shape[:2])) for features, _, _ in parts)
        dealt = [contents_of(part) for part in parts]
        assert sorted(sum(dealt, [])) == contents
        # All parts have the same number of rows.
        assert [len(part[0]["length"]) for part in parts] == [-(-len(rows) // team[0])] * team[0]
        steps = [int(part[0]["length"].numpy()[: len(found)].sum()) for part, found in zip(parts, dealt, strict=True)]
        assert sum(steps) == batch.steps
        assert max(steps) - min(steps) <= lengths[rows].max()
        assert max(part[0]["x"].shape[1] for part in parts) == time
        seen += rows
        empty += sum(not found for found in dealt)
    assert sorted(seen) == list(range(len(lengths)))
    return empty


@pytest.mark.parametrize("team", datasets.some([(3, 1), (4, 2)], [(4, 2)]), ids=str)
@pytest.mark.parametrize("way", datasets.some(BATCHING_METHODS, ["window"]))
def test_each_batch_is_dealt_whole_and_evenly(way, team):
    check_dealt("step_class", way, team, batch_steps=40)


@pytest.mark.parametrize("way", datasets.some(BATCHING_METHODS, ["exact"]))
def test_a_replica_may_get_no_record(way):
    """At most three records for four replicas."""
    plan, _ = whole("class", way, batch_size=3)
    assert check_dealt("class", way, (4, 2), batch_size=3) >= plan.num_batches


@pytest.mark.proof
@pytest.mark.parametrize("kind", ["class", "step_regression", "next_word", "next_bits"])
@pytest.mark.parametrize("way", BATCHING_METHODS)
@pytest.mark.parametrize("limit", ["batch_steps", "batch_size"])
def test_each_batch_is_dealt_whole_and_evenly_to_any_number_of_replicas(kind, way, limit):
    for team in TEAMS:
        for value in {"batch_steps": (13, 100), "batch_size": (1, 3, 8)}[limit]:
            check_dealt(kind, way, team, **{limit: value})


@pytest.mark.parametrize("way", datasets.some(BATCHING_METHODS, ["window"]))
@settings(max_examples=settings.default.max_examples // 25)
@given(st.sampled_from([(1, 1), (2, 2), (3, 1)]), st.floats(0, 1))
def test_dealing_can_start_at_any_batch(way, team, share):
    plan, expected = whole("step_class", way, batch_steps=40)
    first = round(share * plan.num_batches)
    found = batches_of("step_class", plan, team, first_batch=first)
    for (rows, contents, _), (parts, batch) in zip(expected[first:], found, strict=True):
        assert (sorted(batch.rows()), batch.records) == (rows, len(rows))
        assert sorted(sum(map(contents_of, parts), [])) == contents


@pytest.mark.parametrize("way", datasets.some(["window", "pad"], ["window"]))
def test_a_filler_row_has_one_step_and_weight_0(way):
    plan, _ = whole("step_class", way, batch_size=1)
    for parts, batch in batches_of("step_class", plan, (3, 1)):
        assert batch.records == 1
        for features, _, weight in parts[1:]:
            assert features["length"].numpy().tolist() == [1]
            assert not weight.numpy().any()
            assert not any(features[name].numpy().astype(bool).any() for name in features.keys() - {"length"})


def test_truncated_steps_are_not_counted():
    limits = {"batching": "pad", "pad_length": 5, "truncate": "tail", "batch_size": 7}
    plan = plan_epoch(dataset_of("step_class"), "train", **limits)
    for team in [(1, 1), (2, 2)]:
        for parts, batch in batches_of("step_class", plan, team):
            assert batch.steps == np.minimum(lengths_of("step_class")[batch.rows()], 5).sum()
            assert batch.padded_steps == sum(5 * len(features["length"]) for features, _, _ in parts)
