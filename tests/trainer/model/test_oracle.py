"""The oracle: outputs, losses and gradients of padded batches are those of each record read alone in NumPy."""

import itertools
import json

import datasets
import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy_lstm import Twin, weights_of

from pipeline.format.manifest import FeatureStatistics
from pipeline.schema.schema import Schema
from trainer.config import TrainConfig
from trainer.data.dataset import open_dataset
from trainer.evaluation.evaluate import evaluate
from trainer.model.build import build_model, head_model
from trainer.model.losses import compute_losses
from trainer.training.train import train

# Outputs and losses: shares of the largest of their kind in a batch. In float32 up to 2e-7 was seen, in float64 1e-15.
CLOSE = {"float32": 1e-6, "float64": 1e-12}
# Gradients: shares of the largest entry of a weight. Wider, for an entry is what is left of the sum of all steps' parts
# of either sign, in float32 to 2e-6; and central differences are good to 6e-8, whatever they are compared with.
GRADIENT = {"float32": 5e-6, "float64": 3e-7}
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
    """Records of 1 to 9 steps, in no order; in some of them the first, middle or last steps are zeros, or all."""
    records = datasets.random_records([5, 1, 4, 4, 4, 1, 9, 2, 3], kind=kind, seed=3)
    for record, zeros in zip(records[2:6], (slice(0, 2), slice(1, 3), slice(2, 4), slice(None)), strict=True):
        record["x"][zeros] = [[0.0, 0.0]] * len(record["x"][zeros])
    if kind == "distribution":
        # Shares that add up to 1 exactly: TensorFlow's gradient takes that for granted.
        for record, place in zip(records, itertools.cycle(itertools.permutations([0.5, 0.375, 0.125])), strict=False):
            record["y"] = list(place)
    return records


def numbers_of(label, kind):
    """A label that is one value, as the model is given it."""
    if "multilabel" in kind:
        return [float(name in label) for name in datasets.CLASSES]
    return datasets.CLASSES.index(label) if kind in ("class", "step_class") else label


def batch_of(records, kind, *, longest, garbage, dtype):
    """(features, label, weight) of records padded to `longest` steps of garbage; a label there is some label."""
    x = np.full((len(records), longest, 2), garbage, dtype)
    for row, record in enumerate(records):
        x[row, : len(record["x"])] = record["x"]
    features = {"x": tf.constant(x), "length": tf.constant([len(record["x"]) for record in records])}
    label_dtype = np.int64 if kind in ("class", "step_class") else dtype
    if not kind.startswith("step_"):
        label = [numbers_of(record["y"], kind) for record in records]
        return features, tf.constant(label, label_dtype), tf.ones(len(records), dtype)
    some = {"step_class": 2, "step_multilabel": [1.0, 0.0, 1.0], "step_regression": 1e3}[kind]
    labels = [[*record["y"], *[None] * (longest - len(record["y"]))] for record in records]
    label = [[some if y is None else numbers_of(y, kind) for y in row] for row in labels]
    weight = [[float(y is not None) for y in row] for row in labels]
    return features, tf.constant(label, label_dtype), tf.constant(weight, dtype)


def make_model(kind, config, dtype):
    """A model whose weights are not the zeros and ones that Keras begins with, and its twin."""
    keras.config.set_dtype_policy(dtype)
    model = build_model(Schema.parse(datasets.schema_text(kind)), STATISTICS, config)
    scatter(model)
    return model, Twin(kind, config, weights_of(model), STATISTICS)


def scatter(model):
    """The same float32 numbers whichever the dtype of the model."""
    random = np.random.default_rng(2)
    for weight in model.weights:
        weight.assign(random.normal(0, 0.6, weight.shape).astype(np.float32))


def assert_close(found, expected, tolerance, what=""):
    """Equal within a share of the largest value that is expected."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max(initial=0) <= tolerance * np.abs(expected).max(initial=0), what


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_a_padded_batch_gives_what_each_record_alone_gives(kind, options):
    config, dtype = TrainConfig(**options), "float32"
    model, twin = make_model(kind, config, dtype)
    records, both = ragged_records(kind), keras.Model(model.input, [model.output, head_model(model).output])
    for which, extra, garbage in [(range(9), 3, np.nan), ([3, 1, 6], 0, -1e9), ([5], 1, np.nan)]:
        chosen = [records[number] for number in which]
        longest = max(len(record["x"]) for record in chosen) + extra
        features, label, weight = batch_of(chosen, kind, longest=longest, garbage=garbage, dtype=dtype)
        answers, outputs = both(features, training=True)
        loss = (weight * compute_losses(outputs, label, kind)).numpy()
        expected = [twin.losses(record) for record in chosen]
        for row, record in enumerate(chosen):
            real = slice(len(record["x"])) if kind.startswith("step_") else ...
            assert_close(answers[row][real], twin.answers(record), CLOSE[dtype])
        every = np.array(list(itertools.chain(*expected)))
        assert_close(loss[weight.numpy() > 0], every, CLOSE[dtype])
        # In float64, so that what is measured is the losses, and not how many of them one float32 adds up.
        assert loss.astype(np.float64).sum() == pytest.approx(every.sum(), rel=CLOSE[dtype])


def differences(twin, records, *, step=3e-5):
    """The gradient of the records' summed loss by central differences, for every entry of every weight."""

    def total():
        return sum(sum(twin.losses(record)) for record in records)

    found = {name: [np.zeros_like(array) for array in arrays] for name, arrays in twin.weights.items()}
    for name, arrays in twin.weights.items():
        for array, slope in zip(arrays, found[name], strict=True):
            for place in np.ndindex(array.shape):
                before = array[place]
                array[place] = before + step
                above = total()
                array[place] = before - step
                slope[place] = (above - total()) / (2 * step)
                array[place] = before
    return found


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_the_gradient_of_a_padded_batch_is_that_of_the_records(kind, options):
    config = TrainConfig(**options)
    records, expected = ragged_records(kind)[:5], None
    for dtype in ("float64", "float32"):
        model, twin = make_model(kind, config, dtype)
        if expected is None:
            expected = differences(twin, records)
        features, label, weight = batch_of(records, kind, longest=7, garbage=np.nan, dtype=dtype)
        head = head_model(model)
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(weight * compute_losses(head(features, training=True), label, kind))
        assert float(total) == pytest.approx(sum(sum(twin.losses(record)) for record in records), rel=CLOSE[dtype])
        variables = {layer.name: [w.value for w in layer.weights] for layer in model.layers if layer.weights}
        gradients = tape.gradient(total, variables)
        assert gradients.keys() == expected.keys()
        for name, arrays in expected.items():
            for number, array in enumerate(arrays):
                assert_close(gradients[name][number], array, GRADIENT[dtype], f"{name} {number}, {dtype}")


class Scatter(keras.callbacks.Callback):
    """Gives the model other weights than those that Keras begins with, and keeps those that it ends with."""

    def on_train_begin(self, logs=None):
        scatter(self.model)
        self.begun = weights_of(self.model)

    def on_epoch_end(self, epoch, logs=None):
        self.ended = weights_of(self.model)


def unequal_records(kind):
    """Records to train on, and to test, of such lengths that batches are unequal in every way."""
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
        ("next_x", {"batch_steps": 40, "pad_to_multiple": 4}),
    ],
)
def test_the_losses_that_are_reported_are_means_over_all_records_or_labelled_steps(tmp_path, kind, options):
    """Where a batch of two counts as much as one of five, or a padded step as a real one, the mean is another."""
    text = datasets.schema_text("class" if kind == "next_x" else kind)
    text = text.replace(datasets.LABELS["class"], "{next_of: x}") if kind == "next_x" else text
    made = datasets.make(tmp_path, unequal_records(kind), text)
    # A rate at which no weight moves: each batch is measured with the same ones.
    config = TrainConfig(**({"epochs": 1, "units": (3,), "learning_rate": 1e-30} | options))
    scattered = Scatter()
    train(made.path, tmp_path / "run", config, callbacks=[scattered])
    assert all(
        np.abs(now - then).max() < 1e-20
        for name, arrays in scattered.begun.items()
        for now, then in zip(scattered.ended[name], arrays, strict=True)
    )
    dataset = open_dataset(made.path)
    twin = Twin(dataset.schema.label.kind, config, scattered.ended, dataset.manifest.statistics)

    def mean(split, steps=slice(None)):
        cut = [record | {name: record[name][steps] for name in ("x", "y") if steps.start} for record in made.of(split)]
        return np.mean(list(itertools.chain(*map(twin.losses, cut))))

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (epoch,) = (line for line in lines if "train" in line)
    expected = mean("train", slice(-config.pad_length, None) if config.pad_length else slice(None))
    assert epoch["train"]["loss"] == pytest.approx(expected, rel=1e-6)
    # Another number, or this would prove little.
    assert np.mean([line["loss"] for line in lines if "update" in line]) != pytest.approx(expected, rel=1e-3)
    measured = evaluate(tmp_path / "run", made.path, split="test")
    assert (measured["records"], measured["loss"]) == (5, pytest.approx(mean("test"), rel=1e-6))
