"""The model: padding changes no result, and the recurrent layers compute the LSTM of the literature."""

import datasets
import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy_lstm import layers_of, weights_of

from pipeline.format.models import FeatureStatistics
from pipeline.format.scaling import ScaledStatistics
from pipeline.format.statistics import ColumnSums
from pipeline.schema.labels import MULTILABEL, REGRESSION
from pipeline.schema.schema import Schema
from trainer.config import TrainConfig
from trainer.model.build import build_model, count_parameters, head_model
from trainer.model.encoding import embedding_units
from trainer.model.layers import Standardize
from trainer.model.losses import compute_losses

STEPS = """x: {dtype: float32, shape: [2]}
  page: {dtype: int64, num_values: 5}
  word: {dtype: string, num_values: 7}"""
STATISTICS = {"x": FeatureStatistics(count=9, mean=(0.5, -1), variance=(2, 0.3), min=(-9, -9), max=(9, 9))}
LENGTHS = [1, 4, 9, 4]


def make_schema(kind="class", steps=datasets.X):
    return Schema.parse(datasets.schema_text(kind, steps))


def make_record(length, kind, random):
    """Returns a random record as a batch of one: (features, label, weight)."""
    features = {
        "x": random.normal(size=(1, length, 2)).astype(np.float32),
        "page": random.integers(0, 5, (1, length)),
        "word": np.array([[f"w{n}" for n in random.integers(0, 50, length)]], object),
        "length": np.array([length], np.int32),
    }
    if kind == "step_class":
        return features, random.integers(0, 3, (1, length)), random.integers(0, 2, (1, length)).astype(np.float32)
    if kind == "distribution":
        return features, random.dirichlet(np.ones(3), 1).astype(np.float32), np.ones(1, np.float32)
    if kind == "regression":
        return features, random.normal(size=1).astype(np.float32), np.ones(1, np.float32)
    return features, random.integers(0, 3, 1), np.ones(1, np.float32)


PADDING = {
    "zeros": {"x": 0, "page": 0, "word": ""},
    "large": {"x": 1e9, "page": 2**62, "word": "w1"},
    "negative": {"x": -1e9, "page": -(2**62), "word": "\x00"},
    "NaN": {"x": np.nan, "page": -1, "word": "NaN"},
}


def pad(record, extra, padding):
    """Returns the record with `extra` steps of padding. Their labels are an arbitrary class with weight 0."""
    features, label, weight = record
    padded = {"length": features["length"]}
    for name in ("x", "page", "word"):
        widths = [(0, 0), (0, extra)] + [(0, 0)] * (features[name].ndim - 2)
        padded[name] = np.pad(features[name], widths, constant_values=PADDING[padding][name])
    if weight.ndim == 2:
        label, weight = (
            np.pad(value, [(0, 0), (0, extra)], constant_values=c) for value, c in ((label, 2), (weight, 0))
        )
    return padded, label, weight


def stack(records):
    """Returns records of the same padded length as one batch."""
    features = {name: np.concatenate([record[0][name] for record in records]) for name in records[0][0]}
    return features, *(np.concatenate([record[part] for record in records]) for part in (1, 2))


def make_measure(model, kind):
    """Returns a function that maps (features, label, weight) to (output, losses, gradient of their sum as a vector)."""
    head = head_model(model)
    per_step = kind == "step_class"

    @tf.function(reduce_retracing=True)
    def compiled(features, label, weight):
        with tf.GradientTape() as tape:
            loss = weight * compute_losses(head(features, training=True), label, kind)
            total = tf.reduce_sum(loss)
        gradients = tape.gradient(total, [variable.value for variable in model.trainable_variables])
        return model(features), loss, [tf.convert_to_tensor(gradient) for gradient in gradients]

    label_dtype = tf.float32 if kind in ("distribution", "regression") else tf.int64
    label_shape = {"distribution": [None, 3], "step_class": [None, None]}.get(kind, [None])
    measure = compiled.get_concrete_function(
        {
            "x": tf.TensorSpec([None, None, 2]),
            "page": tf.TensorSpec([None, None], tf.int64),
            "word": tf.TensorSpec([None, None], tf.string),
            "length": tf.TensorSpec([None], tf.int32),
        },
        tf.TensorSpec(label_shape, label_dtype),
        tf.TensorSpec([None, None] if per_step else [None]),
    )

    def run(features, label, weight):
        features = {name: tf.constant(value) for name, value in features.items()}
        outputs, loss, gradients = measure(features, tf.constant(label), tf.constant(weight))
        return outputs.numpy(), loss.numpy(), np.concatenate([gradient.numpy().ravel() for gradient in gradients])

    return run


def assert_same(found, *parts, at_least=0.0):
    """Asserts that a value equals the sum of the parts, within 1e-6 of the largest values that are summed."""
    scale = max(sum(np.abs(part).max() for part in parts), at_least)
    assert np.abs(found - sum(parts)).max() <= 1e-6 * scale


@pytest.mark.parametrize(
    ("cell", "bidirectional", "layers", "kind"),
    [
        pytest.param("lstm", False, 1, "step_class", marks=pytest.mark.proof),
        pytest.param("lstm", False, 2, "class", marks=pytest.mark.proof),
        pytest.param("lstm", False, 3, "step_class", marks=pytest.mark.proof),
        pytest.param("lstm", True, 1, "class", marks=pytest.mark.proof),
        ("lstm", True, 2, "step_class"),
        pytest.param("lstm", True, 3, "distribution", marks=pytest.mark.proof),
        pytest.param("gru", False, 1, "regression", marks=pytest.mark.proof),
        pytest.param("gru", False, 3, "class", marks=pytest.mark.proof),
        pytest.param("gru", True, 2, "step_class", marks=pytest.mark.proof),
    ],
)
def test_padding_changes_nothing(cell, bidirectional, layers, kind):
    keras.utils.set_random_seed(1)
    random = np.random.default_rng(2)
    schema = make_schema(kind, STEPS)
    config = TrainConfig(units=(4, 3, 5)[:layers], cell=cell, bidirectional=bidirectional)
    measure = make_measure(build_model(schema, STATISTICS, config), kind)
    records = [make_record(length, kind, random) for length in LENGTHS]
    alone = [measure(*record) for record in records]
    assert (alone[2][2] != 0).mean() > 0.5

    def check(found, which):
        outputs, loss, gradient = found
        for row, number in enumerate(which):
            real = slice(LENGTHS[number]) if kind == "step_class" else ...
            assert_same(outputs[row][real], alone[number][0][0], at_least=0.1)
            assert_same(loss[row][real], alone[number][1][0], at_least=0.1)
        assert_same(gradient, *(alone[number][2] for number in which))

    for padding in PADDING:
        for extra in (1, 7, 200):
            check(measure(*pad(records[1], extra, padding)), [1])
        for which in ([0, 1, 2, 3], [2, 0], [3, 1, 0]):
            longest = max(LENGTHS[number] for number in which) + 2
            batch = stack([pad(records[number], longest - LENGTHS[number], padding) for number in which])
            check(measure(*batch), which)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(x, kernel, recurrent, bias):
    """Returns h[time, units] of an LSTM with a forget gate for x[time, width], step by step in float64."""
    units = recurrent.shape[0]
    h, c, states = np.zeros(units), np.zeros(units), []
    for step in x:
        i, f, g, o = np.split(step @ kernel + h @ recurrent + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.array(states)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def with_zero_steps(random):
    """Returns records with real steps of zeros: none, at the start, in the middle, at the end, and all."""
    records = [random.normal(size=(6, 2)) for _ in range(5)]
    for record, zeros in zip(records, (slice(0), slice(0, 2), slice(2, 4), slice(4, 6), slice(None)), strict=True):
        record[zeros] = 0
    return [*records, np.zeros((1, 2)), random.normal(size=(9, 2))]


@pytest.mark.parametrize("kind", ["class", "step_class"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_real_step_of_zeros_is_not_masked(bidirectional, kind):
    """The model equals an LSTM in NumPy that has no mask: it reads each record alone and without padding."""
    keras.utils.set_random_seed(4)
    model = build_model(make_schema(kind), {}, TrainConfig(units=(4, 3), bidirectional=bidirectional))
    for weight in model.weights:  # some of Keras's initial weights are all zeros or ones
        weight.assign(weight.numpy() + np.random.default_rng(len(weight.shape)).normal(size=weight.shape) / 2)
    weights = weights_of(model)

    def expected(x):
        hidden = x
        for number in range(2):
            forward = lstm(hidden, *weights[f"lstm_{number}"])
            if bidirectional:
                backward = lstm(hidden[::-1], *weights[f"lstm_{number}_backward"])[::-1]
                forward = np.concatenate([forward, backward], -1)
            hidden = forward
        if kind == "class":
            # The state of each direction after it has read all steps.
            hidden = np.concatenate([hidden[-1, :3], hidden[0, 3:]])
        return softmax(hidden @ weights["head"][0] + weights["head"][1])

    records = [record.astype(np.float32) for record in with_zero_steps(np.random.default_rng(3))]
    longest = max(map(len, records))
    batch = np.stack([np.pad(record, [(0, longest - len(record)), (0, 0)]) for record in records])
    length = np.array([len(record) for record in records], np.int32)
    outputs = model({"x": batch, "length": length}).numpy()
    for record, output in zip(records, outputs, strict=True):
        real = output[: len(record)] if kind == "step_class" else output
        np.testing.assert_allclose(real, expected(record.astype(np.float64)), rtol=1e-5, atol=1e-6)
    if kind == "class":
        zeros_at_end, zeros_at_start = outputs[3], outputs[1]
        shortened = model({"x": batch[3:4, :4], "length": np.array([4], np.int32)}).numpy()[0]
        assert np.abs(zeros_at_end - shortened).max() > 1e-3
        assert np.abs(zeros_at_start - outputs[0]).max() > 1e-3


def test_the_default_model_has_two_lstm_layers_of_100_units():
    model = build_model(make_schema(), {})
    assert [weight.shape for weight in model.weights] == [
        (2, 400), (100, 400), (400,), (100, 400), (100, 400), (400,), (100, 3), (3,),
    ]  # fmt: skip
    assert count_parameters(model) == model.count_params() == 41_200 + 80_400 + 303


@pytest.mark.parametrize("kind", datasets.LABELS)
def test_the_output_has_the_shape_of_the_label(kind):
    outputs = build_model(make_schema(kind), {}, TrainConfig(units=(3,)))(
        {"x": np.random.default_rng(0).normal(size=(5, 6, 2)), "length": np.array([6, 1, 2, 3, 4])}
    ).numpy()
    rows = (5, 6) if kind.startswith("step_") else (5,)
    shape = rows if kind in REGRESSION else (*rows, 3)
    assert (outputs.shape, outputs.dtype) == (shape, np.float32)
    if kind in MULTILABEL:
        assert ((outputs > 0) & (outputs < 1)).all()
    elif kind not in REGRESSION:
        np.testing.assert_allclose(outputs.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("feature", "shape"),
    [
        ("{dtype: int64, num_values: 9}", ()),
        ("{dtype: int64, num_values: 9, shape: [3]}", (3,)),
        ("{dtype: string, num_values: 9}", ()),
        ("{dtype: string, num_values: 9, shape: [3]}", (3,)),
        ("{dtype: float32}", ()),
        ("{dtype: float32, shape: [2, 2]}", (2, 2)),
    ],
)
def test_the_output_depends_on_every_value_of_every_step(feature, shape):
    keras.utils.set_random_seed(1)
    model = build_model(make_schema(steps=f"f: {feature}"), {}, TrainConfig(units=(5,)))
    numbers = np.random.default_rng(0).integers(0, 4, (1, 3, *shape))

    def predict(values):
        values = values.astype(str).astype(object) if "string" in feature else values
        values = values.astype(np.float32) if "float" in feature else values
        return model({"f": tf.constant(values), "length": tf.constant([3])}).numpy()

    before = predict(numbers)
    for position in np.ndindex(numbers.shape):
        changed = numbers.copy()
        changed[position] += 4
        assert np.abs(predict(changed) - before).max() > 1e-6, position


def test_all_features_are_concatenated():
    model = build_model(make_schema(steps=STEPS), STATISTICS, TrainConfig(units=(3,)))
    embedding = embedding_units(5) + embedding_units(7)
    assert layers_of(model)["lstm_0"].weights[0].shape == (2 + embedding, 12)


def test_a_saved_layer_of_an_older_version_divides_by_the_standard_deviation():
    layer = Standardize.from_config({"mean": [1e6, 3.0, 0.0, 5.0], "variance": [0.0, 4.0, 0.0, 1e-14]})
    rows = np.array([[[1e6, 5, 0, 5], [1e6 + 1, 1, 0.25, 5.001]]], np.float32)
    np.testing.assert_allclose(layer(rows), [[[0, 1, 0, 0], [1, -1, 0.25, 0.001]]], atol=1e-6)


def test_a_model_reads_scaled_values_up_to_the_bound_and_one_of_an_older_run_reads_all():
    """Columns: a rare 1; a constant; numbers with an outlier."""
    rows = np.zeros((1, 400, 3), np.float32)
    rows[0, :1, 0], rows[0, :, 1], rows[0, :, 2] = 1, 7, np.random.default_rng(0).normal(size=400)
    rows[0, 5, 2] = 1e4
    sums = ColumnSums(3)
    sums.add(rows[0])
    found = sums.sums().statistics()
    schema = make_schema(steps="x: {dtype: float32, shape: [3]}")
    features = {"x": rows, "length": np.array([400])}

    def scaled(statistics):
        model = build_model(schema, {"x": statistics}, TrainConfig(units=(3,)))
        return keras.Model(model.inputs, model.get_layer("standard_0").output)(features).numpy()

    shifted, deviation = rows - rows.mean((0, 1)), rows.std((0, 1))
    np.testing.assert_allclose(scaled(found), np.clip(shifted / [0.1, 1, deviation[2]], -10, 10), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(scaled(ScaledStatistics.of(found)), scaled(found))
    old = scaled(ScaledStatistics(**found.model_dump()))
    np.testing.assert_allclose(old, shifted / [deviation[0], 1, deviation[2]], rtol=1e-3, atol=1e-4)
    assert old[..., 0].max() > 19 > 10 > scaled(found)[..., 0].max()


def test_a_regression_predicts_in_the_units_of_the_label():
    statistics = {"y": FeatureStatistics(count=9, mean=(1000.0,), variance=(25.0,), min=(0,), max=(1,))}
    model = build_model(make_schema("regression"), statistics, TrainConfig(units=(3,)))
    plain = build_model(make_schema("regression"), {}, TrainConfig(units=(3,)))
    plain.set_weights(model.get_weights())
    features = {"x": np.random.default_rng(0).normal(size=(4, 5, 2)), "length": np.array([5, 4, 3, 2])}
    np.testing.assert_allclose(model(features), plain(features) * 5 + 1000, rtol=1e-6)


def test_dropout_applies_in_training_only():
    model = build_model(make_schema(), {}, TrainConfig(units=(8,), dropout=0.5))
    features = {"x": np.ones((2, 3, 2), np.float32), "length": np.array([3, 2])}
    assert (model(features).numpy() == model(features).numpy()).all()
    assert (model(features, training=True).numpy() != model(features, training=True).numpy()).any()


@pytest.mark.parametrize("kind", ["class", "regression"])
def test_a_saved_model_gives_the_same_predictions(tmp_path, kind):
    config = TrainConfig(units=(3, 3), bidirectional=True)
    model = build_model(make_schema(kind, STEPS), STATISTICS, config)
    features, _, _ = pad(make_record(4, "class", np.random.default_rng(0)), 3, "NaN")
    features = {name: tf.constant(value) for name, value in features.items()}
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(features), model(features))


def test_losses_match_their_definitions():
    random = np.random.default_rng(0)
    logits = random.normal(size=(4, 3)).astype(np.float32)
    log_p = np.log(softmax(logits.astype(np.float64)))
    label = np.array([0, 2, 1, 1])
    shares = random.dirichlet(np.ones(3), 4)
    np.testing.assert_allclose(compute_losses(logits, label, "class"), -log_p[range(4), label], rtol=1e-6)
    np.testing.assert_allclose(
        compute_losses(logits[None], label[None], "step_class")[0], -log_p[range(4), label], rtol=1e-6
    )
    np.testing.assert_allclose(
        compute_losses(logits, shares.astype(np.float32), "distribution"), -(shares * log_p).sum(-1), rtol=1e-5
    )
    np.testing.assert_allclose(compute_losses(np.array([1.0, 4.0]), np.array([3.0, 3.0]), "regression"), [4, 1])


def test_a_probability_rounded_to_zero_still_has_a_gradient():
    model = build_model(make_schema(), {}, TrainConfig(units=(3,)))
    head = model.get_layer("head")
    head.set_weights([head.get_weights()[0], np.array([200.0, 0, 0])])
    features = {"x": np.ones((1, 2, 2), np.float32), "length": np.array([2])}
    assert model(features).numpy()[0, 1] == 0
    with tf.GradientTape() as tape:
        loss = compute_losses(head_model(model)(features), tf.constant([1]), "class")
    assert loss.numpy()[0] == pytest.approx(200, rel=0.05)
    assert np.abs(tape.gradient(loss, head.weights[1].value)).max() == pytest.approx(1)
