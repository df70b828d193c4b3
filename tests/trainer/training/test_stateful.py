"""Batching `stateful`: chunks with a carried state train, evaluate and resume as whole records do."""

import contextlib
import functools

import cluster
import datasets
import keras
import numpy as np
import pytest
from interruptions import Gather, InterruptAt, Interrupted, change, lines_of

from pipeline.schema.schema import VALIDATION
from trainer.batching.stateful import make_stateful_plan
from trainer.config import TrainConfig
from trainer.data.dataset import open_dataset
from trainer.data.target import make_target
from trainer.devices.replicas import find_replicas
from trainer.devices.tensorflow_setup import start_tensorflow
from trainer.evaluation import evaluate
from trainer.evaluation.evaluate import Evaluator
from trainer.model.build import build_model
from trainer.model.losses import column_scales
from trainer.reading.chunk_reader import ChunkReader
from trainer.runs.state import State
from trainer.training.deal import BatchDealer
from trainer.training.epoch_source import plan_next_epoch
from trainer.training.stateful_update import StatefulUpdate
from trainer.training.train import train
from trainer.training.update import Update

KINDS = [*datasets.LABELS, *datasets.NEXT_LABELS]


@pytest.fixture(scope="module", autouse=True)
def deterministic():
    start_tensorflow()


@functools.cache
def opened(kind):
    return open_dataset(datasets.of_every_feature(kind).path)


def kinds(often):
    return datasets.some(KINDS, often)


def make_model(kind, config):
    keras.utils.set_random_seed(1)
    dataset = opened(kind)
    return build_model(dataset.schema, dataset.manifest.statistics, config, vocabularies=dataset.vocabularies())


def gradients_of(kind, config, by_epoch=True):
    """Returns the sums of the gradients and of the losses and weights of all updates of an epoch; no weight changes."""
    dataset, model = opened(kind), make_model(kind, config)
    statistics, vocabularies = dataset.manifest.statistics, dataset.vocabularies()
    more = {"label_every_chunk": config.label_every_chunk, "reset_state": config.reset_state}
    dealer = BatchDealer(dataset, find_replicas("one"), seed=0, vocabularies=vocabularies, **more)
    gather = Gather(model)
    options = {
        "kind": dataset.schema.label.kind,
        "element_spec": dealer.element_spec,
        "by_epoch": by_epoch,
        "replicas": find_replicas("one"),
        "column_scale": column_scales(make_target(dataset.schema, vocabularies), statistics),
    }
    plan = plan_next_epoch(dataset, config, State())
    if config.batching == "stateful":
        update = StatefulUpdate(model, gather, schema=dataset.schema, backprop_chunks=config.backprop_chunks, **options)
        update.begin_epoch(plan.lanes)
    else:
        update = Update(model, gather, **options)
    loss = weight = records = 0
    for batch in dealer.batches(plan, epoch=1):
        sums = update(batch.parts)
        loss, weight, records = loss + float(sums.loss), weight + float(sums.weight), records + batch.records
    return [total.numpy() for total in gather.sums], loss, weight, records


@pytest.mark.parametrize("pooling", datasets.some(["last", "mean"], ["mean"]))
@pytest.mark.parametrize("kind", kinds(["regression"]))
def test_a_chunk_longer_than_all_records_gives_the_gradient_of_window(kind, pooling):
    if pooling != "last" and kind.startswith(("step_", "next_")):
        pytest.skip("labels per step have no pooling")
    config = TrainConfig(units=(4, 3), pooling=pooling)
    expected = gradients_of(kind, config)
    found = gradients_of(kind, change(config, batching="stateful", chunk_steps=100, lanes=7))
    assert found[1:] == (pytest.approx(expected[1], rel=1e-5), expected[2], expected[3])
    for ours, theirs in zip(found[0], expected[0], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("kind", kinds([]))
def test_with_enough_chunks_back_the_gradient_is_that_of_whole_records(kind):
    """Each update reads all chunks of its records again, and the weights stay as they are."""
    config = TrainConfig(units=(4,))
    expected = gradients_of(kind, config)
    found = gradients_of(kind, change(config, batching="stateful", chunk_steps=3, lanes=5, backprop_chunks=5))
    assert found[1:] == (pytest.approx(expected[1], rel=1e-5), pytest.approx(expected[2]), expected[3])
    for ours, theirs in zip(found[0], expected[0], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("every_chunk", [False, True])
def test_the_label_of_a_record_has_a_weight_of_one_over_its_chunks(every_chunk):
    dataset = opened("class")
    plan = make_stateful_plan(dataset.lengths("train"), chunk_steps=4, lanes=6)
    reader = ChunkReader(dataset, "train", vocabularies=dataset.vocabularies(), label_every_chunk=every_chunk)
    weights = np.zeros(plan.records)
    for batch in reader.batches(plan):
        np.add.at(weights, batch.chunks.record, batch.weight.numpy())
        assert every_chunk or batch.weight.numpy().tolist() == batch.chunks.ends.tolist()
    np.testing.assert_allclose(weights, 1, rtol=1e-6)


@pytest.mark.parametrize("chunk_steps", datasets.some([1, 5, 100], [5]))
@pytest.mark.parametrize("kind", kinds(["class", "next_word"]))
def test_chunks_are_measured_as_whole_records(kind, chunk_steps, monkeypatch):
    """Lanes whose records end at different updates: each gives the outputs of its record alone."""
    monkeypatch.setattr(evaluate, "DEFAULT_BATCH_STEPS", 6 * chunk_steps)  # six lanes
    config = TrainConfig(units=(4, 3), pooling="last" if kind.startswith(("step_", "next_")) else "max")
    dataset, model = opened(kind), make_model(kind, config)
    built_with = {"statistics": dataset.manifest.statistics, "vocabularies": dataset.vocabularies()}
    expected = Evaluator(model, dataset, **built_with).measure(VALIDATION).result()
    found = Evaluator(model, dataset, **built_with, chunk_steps=chunk_steps).measure(VALIDATION).result()
    assert found.keys() == expected.keys()
    for name in ("records", "steps", "labelled_steps"):
        assert found.get(name) == expected.get(name)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-4, nan_ok=True)


CONFIG = TrainConfig(
    units=(4,), epochs=2, batching="stateful", chunk_steps=3, lanes=5, dropout=0.1, checkpoint_updates=1
)


@functools.cache
def uninterrupted(**values):
    folder = datasets.new_folder()
    return folder, train(opened("class"), folder / "run", change(CONFIG, **values))


@pytest.mark.parametrize(
    ("values", "at"),
    datasets.some(
        [({}, (0, 0)), ({}, (0, 7)), ({}, (1, 3)), ({"backprop_chunks": 3}, (0, 1)), ({"backprop_chunks": 2}, (1, 9))],
        [],  # test_survival.py kills such a run
        unpack=True,
    ),
)
def test_a_run_that_is_interrupted_at_any_update_trains_to_the_same_bits(tmp_path, values, at):
    folder, result = uninterrupted(**values)
    config = change(CONFIG, **values)
    with contextlib.suppress(Interrupted):
        train(opened("class"), tmp_path / "run", config, callbacks=[InterruptAt(*at)])
    assert train(opened("class"), tmp_path / "run", config)["weights_sha256"] == result["weights_sha256"]
    assert lines_of(tmp_path / "run") == lines_of(folder / "run")


@pytest.mark.proof
def test_metrics_count_the_records_that_end_in_an_update():
    folder, _ = uninterrupted(backprop_chunks=2)
    lines = lines_of(folder / "run")
    records = opened("class").split("train").records
    for epoch in (1, 2):
        updates = [line for line in lines if line.get("update") and line["epoch"] == epoch]
        assert sum(line["records"] for line in updates) == records
        assert any(not line["records"] for line in updates)
        (whole,) = (line for line in lines if line.get("train") and line["epoch"] == epoch)
        assert whole["train"]["records"] == records
        assert whole["train"]["steps"] == opened("class").split("train").steps


def remembered_bit(number, chunk_steps):
    """A record of 5.1 to 6.3 chunks, whose class is the sign of a pulse in the first third of its first chunk."""
    random = np.random.default_rng(number)
    x = random.normal(size=(int(random.integers(chunk_steps * 51 // 10, chunk_steps * 63 // 10 + 1)), 1)) / 10
    bit, at = number % 2, int(random.integers(chunk_steps * 3 // 10))
    x[at] = 1 if bit else -1
    split = "train" if number < 640 else "validation"
    return {"id": f"r{number}", "x": x.round(3).tolist(), "y": "ab"[bit], "split": split}


@functools.cache
def remembered_bits(chunk_steps):
    schema = datasets.schema_text("class", "x: {dtype: float32, shape: [1]}").replace("[a, b, c]", "[a, b]")
    records = [remembered_bit(number, chunk_steps) for number in range(800)]
    return open_dataset(datasets.make(datasets.new_folder(), records, schema).path)


@pytest.mark.proof
@pytest.mark.parametrize(
    ("chunk_steps", "values", "is_solved"),
    [
        (50, {"label_every_chunk": True}, True),
        (50, {"label_every_chunk": True, "reset_state": "chunk"}, False),
        (50, {}, False),  # a gradient of one chunk never reaches the pulse
        # A gradient of six chunks does, over 60 steps. Over 300 steps, neither it nor whole records learn in 8 epochs.
        (10, {}, False),
        (10, {"backprop_chunks": 6}, True),
    ],
)
def test_a_task_that_needs_the_carried_state(tmp_path, chunk_steps, values, is_solved):
    config = TrainConfig(units=(24, 24), batching="stateful", chunk_steps=chunk_steps, lanes=32, epochs=8, **values)
    result = train(remembered_bits(chunk_steps), tmp_path / "run", config)
    found = [line["validation"]["metrics"]["accuracy"] for line in lines_of(tmp_path / "run") if line.get("train")]
    print(f"\nchunks of {chunk_steps}, {values}: accuracy {max(found):.3f}, useful {result['useful_share']:.1%}")
    assert max(found) > 0.95 if is_solved else max(found) < 0.65


# A label in each update: a loss is compared to 1e-5 of itself.
WORKERS: cluster.Config = {"batching": "stateful", "chunk_steps": 7, "lanes": 5, "epochs": 4, "units": (4,)}


@pytest.mark.proof
@pytest.mark.parametrize("backprop_chunks", [1, 3])
def test_two_workers_train_as_one_process_and_resume_each_other(tmp_path, backprop_chunks):
    """The second run starts with two workers, which SIGKILL ends within an epoch; one process ends it."""
    config = WORKERS | {"backprop_chunks": backprop_chunks, "checkpoint_updates": 1}
    train(cluster.uneven(), tmp_path / "one", TrainConfig(**config))
    assert cluster.launch(cluster.uneven(), tmp_path / "two", config).status == 0
    cluster.check_same(tmp_path / "two", tmp_path / "one")
    with cluster.launched(cluster.uneven(), tmp_path / "mixed", config) as process:
        cluster.wait_until(lambda: cluster.checkpoint_update(tmp_path / "mixed") >= 9)
        process.end()
    train(cluster.uneven(), tmp_path / "mixed", TrainConfig(**config))
    cluster.check_same(tmp_path / "mixed", tmp_path / "one")
