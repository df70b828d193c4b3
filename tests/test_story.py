"""The question that this project answers: one model of stacked LSTMs for records of 50 steps, then 10, then 60."""

import json
import pathlib

import datasets
import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.beam.prepare import PrepareOptions, prepare
from trainer.config import TrainConfig
from trainer.data.dataset import open_dataset
from trainer.devices.replicas import find_replicas
from trainer.model.build import build_model, count_parameters
from trainer.reading.batches import batches
from trainer.training.update import Update, make_optimizer


def test_one_model_learns_from_50_steps_then_10_then_60(tmp_path, capsys):
    """The records of `lengthwise sample seed`, with one dataset for each length."""
    raw = tmp_path / "raw.jsonl"
    assert datasets.call(capsys, "sample", "seed", "--num_records", 36, "--output", raw)[0] == 0
    by_length = {50: [], 10: [], 60: []}
    for line in raw.read_text().splitlines():
        by_length[len(json.loads(line)["x"])].append(line + "\n")
    schema = (tmp_path / "raw.schema.yaml").read_text()
    schema_path = tmp_path / "schema.yaml"
    schema_path.write_text(schema.replace("{train: 0.8, validation: 0.1, test: 0.1}", "{train: 1}"))
    parts = {}
    for steps, lines in by_length.items():
        part = pathlib.Path(tmp_path / f"{steps}.jsonl")
        part.write_text("".join(lines))
        prepare(PrepareOptions((str(part),), str(schema_path), str(tmp_path / str(steps))))
        parts[steps] = open_dataset(tmp_path / str(steps))

    keras.utils.set_random_seed(0)
    config = TrainConfig(units=(16, 16))  # two LSTM layers, softmax, RMSprop: the default, but smaller
    first = parts[50]
    assert first.schema.label.kind == "distribution"
    model = build_model(first.schema, first.manifest.statistics, config)
    shapes = [tuple(weight.shape) for weight in model.weights]
    assert shapes == [(100, 64), (16, 64), (64,), (16, 64), (16, 64), (64,), (16, 2), (2,)]
    update = Update(
        model,
        make_optimizer(config),
        kind="distribution",
        element_spec=batches(first, "train").element_spec,
        by_epoch=False,
        replicas=find_replicas("one"),
    )
    for steps, dataset in parts.items():
        before = [weight.numpy() for weight in model.weights]
        losses = []
        for epoch in range(5):
            total = np.zeros(2)
            for features, label, weight in batches(dataset, "train", batch_size=6, epoch=epoch):
                assert features["x"].shape[1:] == (steps, 100)
                total += [float(value) for value in update(((features, label, weight),))[:2]]
            losses.append(total[0] / total[1])
        assert losses[-1] < losses[0]  # the model memorizes the 12 records
        assert [tuple(weight.shape) for weight in model.weights] == shapes
        assert all((weight.numpy() != old).any() for weight, old in zip(model.weights, before, strict=True))
    assert count_parameters(model) == sum(np.prod(shape) for shape in shapes)
    answer = tf.function(model, reduce_retracing=True)  # 700 steps are slow without
    for steps in (1, 10, 50, 60, 700):
        x = np.random.default_rng(0).random((3, steps, 100), np.float32)
        outputs = answer({"x": tf.constant(x), "length": tf.fill([3], steps)})
        np.testing.assert_allclose(np.sum(outputs, -1), 1, rtol=1e-5)


@pytest.mark.proof
def test_the_same_records_in_one_dataset_train_by_one_command(tmp_path, capsys):
    """50, 10 and 60 steps in one epoch, each batch of one length: nothing is padded."""
    raw, dataset, run = tmp_path / "raw.jsonl", tmp_path / "dataset", tmp_path / "run"
    assert datasets.call(capsys, "sample", "seed", "--num_records", 60, "--output", raw)[0] == 0
    prepared = PrepareOptions((str(raw),), str(tmp_path / "raw.schema.yaml"), str(dataset))
    prepare(prepared)
    flags = ["--units", 8, 8, "--epochs", 1, "--batching", "exact", "--json"]
    status, out, err = datasets.call(capsys, "train", dataset, "--output", run, *flags)
    assert status == 0, err
    assert json.loads(out)["useful_share"] == 1
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lengths = {line["padded_steps"] / line["records"] for line in lines if "update" in line}
    assert lengths == {10, 50, 60}
