"""Both signatures of an exported SavedModel give the outputs of the run's model."""

import doctest
import functools
import json
import re

import numpy as np
import pytest
import tensorflow as tf
from export_runs import (
    KINDS,
    OUTPUTS,
    SMALL,
    as_tensors,
    difference,
    in_order,
    made_of,
    model_of,
    raw_batch,
    serialized_of,
)

import trainer.runs.contents
import trainer.serving.signatures
from pipeline.format.examples import decode_example, encode_example
from pipeline.schema.schema import Schema
from trainer.data.target import make_target
from trainer.model.build import build_model
from trainer.serving import signatures
from trainer.serving.export import summarize
from trainer.serving.export_check import _call_streaming
from trainer.serving.golden_records import load_golden
from trainer.serving.signatures import input_names, make_signatures


@functools.cache
def loaded(kind):
    """Returns the SavedModel of a run."""
    return tf.saved_model.load(str(made_of(kind) / "export" / "saved_model"))


@pytest.mark.parametrize("kind", KINDS)
def test_both_signatures_give_the_outputs_of_the_run_with_any_padding(kind):
    model = loaded(kind)
    serve, serialized = model.signatures["serving_default"], model.signatures["serialized"]
    records = in_order(kind)
    about = json.loads((made_of(kind) / "export" / "export.json").read_text())
    per_step = about["kind"].startswith("step_")
    length = raw_batch(records)["length"]
    expected = model_of(kind)(as_tensors(raw_batch(records)), training=False)
    ways = {
        "unchanged": serve(**as_tensors(raw_batch(records))),
        "with more padding": serve(**as_tensors(raw_batch(records, extra_steps=9))),
        "serialized": serialized(tf.constant(serialized_of(kind))),
    }
    for way, outputs in ways.items():
        assert set(outputs) == {OUTPUTS[kind], *(["length"] if per_step else [])}, way
        found = outputs[OUTPUTS[kind]]
        assert difference(found, expected, length if per_step else None) <= 1e-6, way
        if per_step:
            assert outputs["length"].numpy().tolist() == length.tolist()
    for row in (0, 7):  # a batch of one record has no padding
        alone = serve(**as_tensors(raw_batch(records[row : row + 1])))[OUTPUTS[kind]][0]
        assert difference(alone, expected[row, : length[row]] if per_step else expected[row]) <= 1e-6
    assert about["output"]["shape"] == ["batch", *(["time"] if per_step else []), *expected.shape[1 + per_step :]]


@pytest.mark.parametrize("kind", KINDS)
def test_streaming_gives_the_golden_outputs_in_chunks_unless_the_model_is_bidirectional(kind):
    about = json.loads((made_of(kind) / "export" / "export.json").read_text())
    streaming, output = about["streaming"], about["output"]
    if kind == "class":
        assert streaming.keys() == {"unavailable"}
        assert streaming["unavailable"].startswith("The model is bidirectional: it reads each record from its end, too")
        assert set(loaded(kind).signatures) == {"serving_default", "serialized"}
        assert "  streaming        none: a bidirectional model " in summarize(about | {"differences": {"all": 0.0}})
        return
    state = [f"state_lstm_0_{part}" for part in ("output", "cell")]
    assert streaming["state"] == {name: {"dtype": "float32", "shape": ["batch", 4]} for name in state}
    assert "; takes and returns 2 state tensors\n" in summarize(about | {"differences": {"all": 0.0}})
    assert streaming["inputs"] == [*(entry["name"] for entry in about["inputs"].values()), *state]
    assert streaming["outputs"] == [output["name"], *(["length"] if "time" in output["shape"] else []), *state]
    golden = load_golden(str(made_of(kind) / "golden.npz"))
    length = golden.features["length"] if "time" in output["shape"] else None
    outputs = _call_streaming(loaded(kind).signatures["streaming"], about, golden)
    assert len(outputs) == 4
    for way, (_, found) in outputs.items():
        assert difference(found, golden.outputs, length) <= 1e-6, way


UNUSUAL_NAMES = [
    "x",
    "X",
    "a b",
    "a_b",
    "x-1",
    "ü.y",
    "速度",
    "1",
    "_",
    "class",
    "None",
    "self",
    "Length",
    "args",
    "name",
]


def test_a_signature_has_a_valid_and_unique_name_for_every_feature():
    names = input_names(UNUSUAL_NAMES)
    assert list(names) == UNUSUAL_NAMES
    assert {name: names[name] for name in ("x", "a_b", "args", "name")} == {
        "x": "x", "a_b": "a_b", "args": "args", "name": "name"
    }  # fmt: skip
    assert len({name.lower() for name in names.values()} | {"length"}) == len(UNUSUAL_NAMES) + 1
    assert all(re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) for name in names.values())
    assert (names["X"], names["a b"], names["x-1"], names["ü.y"]) == ("X_1", "a_b_1", "x_1_1", "u_y")


def test_features_with_unusual_names_are_served(tmp_path):
    steps = UNUSUAL_NAMES[:-2]
    schema = Schema.model_validate(
        {
            "steps": {name: {"dtype": "float32"} for name in steps},
            "context": {name: {"dtype": "string", "num_values": 9} for name in UNUSUAL_NAMES[-2:]},
            "label": {"name": "y", "kind": "class", "classes": ["a", "b"]},
        }
    )
    model = build_model(schema, {}, SMALL)
    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]
    tf.saved_model.save(module, str(tmp_path), signatures=make_signatures(model, schema, make_target(schema, {})))
    serve = tf.saved_model.load(str(tmp_path)).signatures
    names, random = input_names(UNUSUAL_NAMES), np.random.default_rng(0)
    features = {name: random.normal(size=(2, 3)).astype(np.float32) for name in steps}
    features |= {name: np.array([b"a", b"b"], object) for name in UNUSUAL_NAMES[-2:]}
    features["length"] = np.array([3, 2], np.int32)
    expected = model(as_tensors(features), training=False)
    found = serve["serving_default"](**{names.get(n, n): tf.constant(v) for n, v in features.items()})
    assert difference(found["probabilities"], expected) <= 1e-6
    examples = [
        encode_example(
            {n: v[row, :length] if n in steps else [v[row]] for n, v in features.items() if n != "length"}
            | {"length": np.array([length])}
        )
        for row, length in enumerate([3, 2])
    ]
    assert difference(serve["serialized"](tf.constant(examples))["probabilities"], expected) <= 1e-6


def test_an_absent_context_feature_of_a_serialized_record_is_missing_where_the_schema_allows_it():
    context = (
        "{age: {dtype: float32, shape: [2], missing: indicator}, city: {dtype: string, vocabulary: 3, missing: fill}}"
    )
    schema = Schema.parse(
        f"steps: {{x: {{dtype: float32}}}}\ncontext: {context}\nlabel: {{name: y, kind: class, classes: [a, b]}}"
    )
    own = {"x": np.ones(2, np.float32), "length": np.array([2])}
    missing = {"age": np.full(2, np.nan, np.float32), "city": [b"\xff"]}
    absent, written = (signatures._parse(tf.constant([encode_example(r)]), schema) for r in (own, own | missing))
    for name, values in written.items():
        np.testing.assert_array_equal(absent[name], values)


@pytest.mark.parametrize(
    ("length", "message"),
    [(0, "a record has no step"), (-1, "a record has no step"), (99, "larger than the number of steps of ")],
)
def test_the_saved_model_refuses_an_invalid_length(length, message):
    model = loaded("class")
    inputs = raw_batch(in_order("class")[:3])
    inputs["length"][1] = length
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        model.signatures["serving_default"](**as_tensors(inputs))


def cut_short(features):
    return features | {"page": features["page"][:-1]}


def without(name):
    return lambda features: {key: values for key, values in features.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut_short, "page: the number of values is not length x 1"),
        (without("x"), "x: the number of values is not length x 2"),
        (without("plan"), "plan"),
        (without("length"), "length"),
        (lambda features: features | {"length": np.array([0])}, "the number of values is not length"),
    ],
)
def test_the_saved_model_refuses_an_incomplete_example(change, message):
    model = loaded("class")
    examples = serialized_of("class")[:3]
    examples[1] = encode_example(change(decode_example(examples[1])))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        model.signatures["serialized"](tf.constant(examples))


def test_an_example_needs_no_label():
    model = loaded("class")
    examples = serialized_of("class")[:3]
    bare = [encode_example(without("id")(without("y")(decode_example(example)))) for example in examples]
    assert bare != examples
    found, expected = (model.signatures["serialized"](tf.constant(e))["probabilities"] for e in (bare, examples))
    np.testing.assert_array_equal(found, expected)


def test_an_empty_batch_gives_an_empty_output():
    model = loaded("class")
    empty = {name: values[:0] for name, values in raw_batch(in_order("class")[:1]).items()}
    assert model.signatures["serving_default"](**as_tensors(empty))["probabilities"].shape == (0, 3)
    assert model.signatures["serialized"](examples=tf.constant([], tf.string))["probabilities"].shape == (0, 3)


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(trainer.serving.signatures).failed == 0
