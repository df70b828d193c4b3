"""Outputs, losses and gradients of padded batches equal those of a reference model in NumPy without batches."""

import itertools
import json

import datasets
import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy_lstm import ReferenceModel, layers_of, weights_of

from pipeline.format.models import FeatureStatistics
from pipeline.schema.schema import Schema
from trainer.config import TrainConfig
from trainer.data.dataset import open_dataset
from trainer.evaluation.evaluate import evaluate
from trainer.model.build import build_model, head_model
from trainer.model.losses import compute_losses
from trainer.training.train import train

# Tolerance of outputs and losses, relative to the largest one in a batch. Measured: 2e-7 in float32, 1e-15 in float64.
VALUE_TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
# Tolerance of gradients, relative to the largest entry of a weight's gradient. It is wider, because an entry is a sum
# over all steps of terms that cancel: measured 2e-6 in float32. Central differences are exact to 6e-8 only.
GRADIENT_TOLERANCE = {"float32": 5e-6, "float64": 3e-7}
STATISTICS = {
    "x": FeatureStatistics(count=9, mean=(0.5, -1), variance=(2, 0.3), min=(-9, -9), max=(9, 9)),
    "y": FeatureStatistics(count=9, mean=(5,), variance=(9,), min=(-9,), max=(9,)),
}
CASES = [
    ("class", {"units": (2, 2), "bidirectional": True}),
    ("class", {"units": (3, 2), "pooling": "mean", "cell": "gru"}),
    ("class", {"units": (3,), "pooling": "max"}),
    ("distribution", {"units": (2, 3, 2)}),
    ("multilabel", {"units": (2,), "cell": "gru", "bidirectional": True}),
    ("regression", {"units": (3,), "bidirectional": True}),
    ("step_class", {"units": (2, 2), "bidirectional": True}),
    ("step_multilabel", {"units": (3,)}),
    ("step_regression", {"units": (3, 2)}),
]


@pytest.fixture(autouse=True)
def same_dtype_afterwards():
    yield
    keras.config.set_dtype_policy("float32")


def ragged_records(kind):
    """Returns records of 1 to 9 steps. In some of them the first, middle or last steps are zeros, or all steps."""
    records = datasets.random_records([5, 1, 4, 4, 4, 1, 9, 2, 3], kind=kind, seed=3)
    for record, zeros in zip(records[2:6], (slice(0, 2), slice(1, 3), slice(2, 4), slice(None)), strict=True):
        record["x"][zeros] = [[0.0, 0.0]] * len(record["x"][zeros])
    if kind == "distribution":
        # The probabilities sum to exactly 1, which TensorFlow's gradient assumes.
        for record, place in zip(records, itertools.cycle(itertools.permutations([0.5, 0.375, 0.125])), strict=False):
            record["y"] = list(place)
    return records


def encode_label(label, kind):
    """Returns the label of a record, or of a step, as the model's loss expects it."""
    if "multilabel" in kind:
        return [float(name in label) for name in datasets.CLASSES]
    return datasets.CLASSES.index(label) if kind in ("class", "step_class") else label


def batch_of(records, kind, *, longest, padding, dtype):
    """Returns (features, label, weight) of records padded to `longest` steps. Padded steps have an arbitrary label."""
    x = np.full((len(records), longest, 2), padding, dtype)
    for row, record in enumerate(records):
        x[row, : len(record["x"])] = record["x"]
    features = {"x": tf.constant(x), "length": tf.constant([len(record["x"]) for record in records])}
    label_dtype = np.int64 if kind in ("class", "step_class") else dtype
    if not kind.startswith("step_"):
        label = [encode_label(record["y"], kind) for record in records]
        return features, tf.constant(label, label_dtype), tf.ones(len(records), dtype)
    arbitrary = {"step_class": 2, "step_multilabel": [1.0, 0.0, 1.0], "step_regression": 1e3}[kind]
    labels = [[*record["y"], *[None] * (longest - len(record["y"]))] for record in records]
    label = [[arbitrary if y is None else encode_label(y, kind) for y in row] for row in labels]
    weight = [[float(y is not None) for y in row] for row in labels]
    return features, tf.constant(label, label_dtype), tf.constant(weight, dtype)


def make_model(kind, config, dtype):
    """Returns a model with random weights, of which none is all zeros or ones, and its reference in NumPy."""
    keras.config.set_dtype_policy(dtype)
    model = build_model(Schema.parse(datasets.schema_text(kind)), STATISTICS, config)
    randomize(model)
    return model, ReferenceModel(kind, config, weights_of(model), STATISTICS)


def randomize(model):
    """Assigns random float32 numbers to all weights. They do not depend on the dtype of the model."""
    random = np.random.default_rng(2)
    for weight in model.weights:
        weight.assign(random.normal(0, 0.6, weight.shape).astype(np.float32))


def assert_close(found, expected, tolerance, what=""):
    """Asserts equality within a tolerance relative to the largest expected value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max(initial=0) <= tolerance * np.abs(expected).max(initial=0), what


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_outputs_and_losses_of_a_padded_batch_equal_those_of_each_record_alone(kind, options):
    config, dtype = TrainConfig(**options), "float32"
    model, reference = make_model(kind, config, dtype)
    records, both = ragged_records(kind), keras.Model(model.input, [model.output, head_model(model).output])
    for which, extra, padding in [(range(9), 3, np.nan), ([3, 1, 6], 0, -1e9), ([5], 1, np.nan)]:
        chosen = [records[number] for number in which]
        longest = max(len(record["x"]) for record in chosen) + extra
        features, label, weight = batch_of(chosen, kind, longest=longest, padding=padding, dtype=dtype)
        predictions, outputs = both(features, training=True)
        loss = (weight * compute_losses(outputs, label, kind)).numpy()
        expected = [reference.losses(record) for record in chosen]
        for row, record in enumerate(chosen):
            real = slice(len(record["x"])) if kind.startswith("step_") else ...
            assert_close(predictions[row][real], reference.predictions(record), VALUE_TOLERANCE[dtype])
        every = np.array(list(itertools.chain(*expected)))
        assert_close(loss[weight.numpy() > 0], every, VALUE_TOLERANCE[dtype])
        # The sum is in float64, so that it adds no rounding error of its own.
        assert loss.astype(np.float64).sum() == pytest.approx(every.sum(), rel=VALUE_TOLERANCE[dtype])


def central_differences(reference, records, *, step=3e-5):
    """Returns the gradient of the sum of the losses by central differences, for every entry of every weight."""

    def total():
        return sum(sum(reference.losses(record)) for record in records)

    found = {name: [np.zeros_like(array) for array in arrays] for name, arrays in reference.weights.items()}
    for name, arrays in reference.weights.items():
        for array, slope in zip(arrays, found[name], strict=True):
            for place in np.ndindex(array.shape):
                before = array[place]
                array[place] = before + step
                above = total()
                array[place] = before - step
                slope[place] = (above - total()) / (2 * step)
                array[place] = before
    return found


@pytest.mark.parametrize(("kind", "options"), datasets.some(CASES, [CASES[1], CASES[6]], unpack=True))
def test_the_gradient_of_a_padded_batch_equals_the_sum_over_its_records(kind, options):
    config = TrainConfig(**options)
    records, expected = ragged_records(kind)[:5], None
    for dtype in ("float64", "float32"):
        model, reference = make_model(kind, config, dtype)
        if expected is None:
            expected = central_differences(reference, records)
        features, label, weight = batch_of(records, kind, longest=7, padding=np.nan, dtype=dtype)
        head = head_model(model)
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(weight * compute_losses(head(features, training=True), label, kind))
        assert float(total) == pytest.approx(
            sum(sum(reference.losses(record)) for record in records), rel=VALUE_TOLERANCE[dtype]
        )
        variables = {name: [w.value for w in layer.weights] for name, layer in layers_of(model).items()}
        gradients = tape.gradient(total, variables)
        assert gradients.keys() == expected.keys()
        for name, arrays in expected.items():
            for number, array in enumerate(arrays):
                assert_close(gradients[name][number], array, GRADIENT_TOLERANCE[dtype], f"{name} {number}, {dtype}")


class RandomizeWeights(keras.callbacks.Callback):
    """Randomizes the weights at the start of training, and stores the first and the last ones."""

    def on_train_begin(self, logs=None):
        randomize(self.model)
        self.first = weights_of(self.model)

    def on_epoch_end(self, epoch, logs=None):
        self.last = weights_of(self.model)


def unequal_records(kind):
    """Returns records for train and test whose lengths give batches of different sizes and lengths."""
    lengths = {"train": [1, 1, 29, 3, 2, 11, 5, 5, 17, 4, 1, 8, 2], "test": [9, 1, 2, 23, 2]}
    records = []
    for split, found in lengths.items():
        made = datasets.random_records(found, split=split, kind="class" if kind == "next_x" else kind)
        for record in made:
            record["x"][1:3] = [[0.0, 0.0]] * len(record["x"][1:3])
            if kind == "next_x":
                del record["y"]
        records += made
    return records


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param("class", {"batch_size": 3, "units": (3, 2)}, marks=pytest.mark.proof),
        ("step_class", {"batching": "pad", "batch_size": 4, "pad_length": 10, "truncate": "head"}),
        pytest.param(
            "step_regression", {"batching": "bucket", "batch_steps": 30, "loss_scale": "batch"}, marks=pytest.mark.proof
        ),
        pytest.param("next_x", {"batch_steps": 40, "pad_to_multiple": 4}, marks=pytest.mark.proof),
    ],
)
def test_reported_losses_are_means_over_all_records_or_labelled_steps(tmp_path, kind, options):
    """A mean over batches, or over padded steps, would be different."""
    text = datasets.schema_text("class" if kind == "next_x" else kind)
    text = text.replace(datasets.LABELS["class"], "{next_of: x}") if kind == "next_x" else text
    made = datasets.make(tmp_path, unequal_records(kind), text)
    # With this learning rate no weight changes, so the same weights give every loss.
    config = TrainConfig(**({"epochs": 1, "units": (3,), "learning_rate": 1e-30} | options))
    weights = RandomizeWeights()
    train(made.path, tmp_path / "run", config, callbacks=[weights])
    assert all(
        np.abs(now - then).max() < 1e-20
        for name, arrays in weights.first.items()
        for now, then in zip(weights.last[name], arrays, strict=True)
    )
    dataset = open_dataset(made.path)
    reference = ReferenceModel(dataset.schema.label.kind, config, weights.last, dataset.manifest.statistics)

    def mean(split, steps=slice(None)):
        cut = [record | {name: record[name][steps] for name in ("x", "y") if steps.start} for record in made.of(split)]
        return np.mean(list(itertools.chain(*map(reference.losses, cut))))

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (epoch,) = (line for line in lines if "train" in line)
    expected = mean("train", slice(-config.pad_length, None) if config.pad_length else slice(None))
    assert epoch["train"]["loss"] == pytest.approx(expected, rel=1e-6)
    # The mean over batches is different, so the comparison above can fail.
    assert np.mean([line["loss"] for line in lines if "update" in line]) != pytest.approx(expected, rel=1e-3)
    measured = evaluate(tmp_path / "run", made.path, split="test")
    assert (measured["records"], measured["loss"]) == (5, pytest.approx(mean("test"), rel=1e-6))
