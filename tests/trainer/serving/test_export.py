"""An export serves anywhere, answers as the run's model did, and is never made of a run that anyone touched."""

import doctest
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import site
import subprocess
import sys
import time
import zipfile

import datasets
import keras
import numpy as np
import pytest
import tensorflow as tf

import trainer.runs.contents
import trainer.serving.export
import trainer.serving.signatures
from pipeline.errors import UserError
from pipeline.format.examples import decode_example, encode_example
from pipeline.schema.schema import Schema
from trainer.config import TrainConfig
from trainer.data.target import make_target
from trainer.devices.subprocess_call import call_in_subprocess
from trainer.evaluation.evaluate import evaluate
from trainer.model.build import build_model
from trainer.runs.checkpoints import BEST, LAST, checkpoint_sha256, restore_weights, weights_sha256
from trainer.runs.run import Run
from trainer.serving.export import export
from trainer.serving.export_check import add_garbage
from trainer.serving.golden import LENGTHS, Golden, load_golden, save_golden
from trainer.serving.saved_model import forbidden_operations, make
from trainer.serving.signatures import input_names, make_signatures
from trainer.training.train import train

LENGTHWISE = str(pathlib.Path(sys.executable).parent / "lengthwise")
SMALL = TrainConfig(units=(4,), epochs=1, batch_steps=60, learning_rate=0.02)


def change(config, **values):
    return config.model_copy(update=values)


VARIED = change(SMALL, bidirectional=True, dropout=0.2, cell="gru", pooling="mean")
# A kind of label -> what its output is called.
OUTPUTS = {
    "class": "probabilities",
    "step_class": "probabilities",
    "multilabel": "probabilities",
    "regression": "value",
    "next_word": "probabilities",
    "next_x": "values",
    "distribution": "probabilities",
    "step_multilabel": "probabilities",
    "step_regression": "values",
    "next_page": "probabilities",
    "next_bits": "probabilities",
}
# The others differ in their label only.
KINDS = [pytest.param(kind, marks=[] if number < 3 else pytest.mark.proof) for number, kind in enumerate(OUTPUTS)]


@functools.cache
def run_of(kind):
    """A small run over features of every kind; only that of `class` is trained, for only it needs a best checkpoint."""
    output = datasets.new_folder() / "run"
    train(datasets.of_every_feature(kind).path, output, VARIED if kind == "class" else change(SMALL, epochs=0))
    return str(output)


@functools.cache
def other_run():
    """A run with the same model as that of `class`, and other weights."""
    output = datasets.new_folder() / "run"
    train(datasets.of_every_feature("class").path, output, change(VARIED, seed=5, epochs=0))
    return output


@functools.cache
def model_of(kind):
    """The run's model, by way of evaluate's functions and not of export's."""
    run = Run(run_of(kind))
    manifest = run.manifest()
    vocabularies = run.vocabularies()
    model = build_model(manifest.record_schema, manifest.statistics, run.config(), vocabularies=vocabularies)
    restore_weights(run, model, None)
    return model


@functools.cache
def made_of(kind):
    """What the first process makes, here without a process: a folder, and golden.npz beside it."""
    folder = datasets.new_folder()
    make(run_of(kind), str(folder / "export"), str(folder / "golden.npz"), None)
    return folder


@functools.cache
def exported():
    """The export of a run by the command, where strangers lie in wait: (folder, its JSON, lines of stderr)."""
    folder = datasets.new_folder()
    for stranger in ("trainer", "pipeline", "tensorflow", "json"):
        (folder / f"{stranger}.py").write_text("raise SystemExit('a stranger was imported')")
    command = [LENGTHWISE, "export", run_of("class"), "--output", "made/export", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "made" / "export", json.loads(done.stdout), done.stderr.splitlines()


def files_of(folder):
    return {str(path.relative_to(folder)) for path in pathlib.Path(folder).rglob("*") if path.is_file()}


def copy_run(tmp_path, kind="class"):
    return pathlib.Path(shutil.copytree(run_of(kind), tmp_path / "run"))


def difference(found, expected, length=None):
    """The largest, at real steps; of numbers beyond 1, as a share of the largest."""
    found, expected = np.array(found, np.float64), np.array(expected, np.float64)
    if length is not None:
        real = np.arange(expected.shape[1]) < np.array(length)[:, None]
        found, expected = found[:, : expected.shape[1]][real], expected[real]
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / max(1.0, np.abs(expected).max())


def shards_of(kind, split="test"):
    """The paths of a split's files, in the order of the manifest."""
    folder = pathlib.Path(datasets.of_every_feature(kind).path)
    shards = json.loads((folder / "manifest.json").read_text())["splits"][split]["shards"]
    return [str(folder / shard["path"]) for shard in shards]


def serialized_of(kind):
    """The test records as `prepare` wrote them."""
    return list(tf.data.TFRecordDataset(shards_of(kind)).as_numpy_iterator())


def test_an_export_holds_what_it_promises_and_leaves_nothing_beside():
    folder, told, stderr = exported()
    run = pathlib.Path(run_of("class"))
    vocabularies = {name for name in files_of(run) if name.startswith("vocabulary/")}
    assert len(vocabularies) == 2
    assert files_of(folder) == vocabularies | {
        "export.json",
        "manifest.json",
        "model.keras",
        "saved_model/fingerprint.pb",
        "saved_model/saved_model.pb",
        "saved_model/variables/variables.data-00000-of-00001",
        "saved_model/variables/variables.index",
    }
    for name in {"manifest.json"} | vocabularies:
        assert (folder / name).read_bytes() == (run / name).read_bytes()
    assert os.listdir(folder.parent) == ["export"]
    result = json.loads((run / "result.json").read_text())
    assert max(told.pop("differences").values()) <= 1e-6
    assert json.loads((folder / "export.json").read_text()) == told
    assert (told["checkpoint"], told["epoch"]) == ("best", result["best_epoch"])
    assert told["weights_sha256"] == result["best_weights_sha256"]
    assert told["classes"] == datasets.CLASSES
    assert told["output"] == {"name": "probabilities", "dtype": "float32", "shape": ["batch", 3]}
    assert told["inputs"]["x"] == {
        "name": "x", "dtype": "float32", "shape": ["batch", "time", 2], "missing": "NaN"
    }  # fmt: skip
    assert told["inputs"]["plan"] == {"name": "plan", "dtype": "int64", "shape": ["batch", 2]}
    assert told["inputs"]["length"] == {"name": "length", "dtype": "int32", "shape": ["batch"]}
    said = [line for line in stderr if "working" not in line]
    assert [line.split(",")[0] for line in said] == ["Making the model", "Reading it back in another"]


# Runs where no path file of a distribution is read, so that Lengthwise, installed in the same place, is not there.
WITHOUT_LENGTHWISE = """
import importlib.util, sys
sys.path.append(sys.argv[1])
assert not any(importlib.util.find_spec(name) for name in ("trainer", "pipeline", "lengthwise"))
import numpy as np
import tensorflow as tf

model = tf.saved_model.load(sys.argv[2])
serve, serialized = model.signatures["serving_default"], model.signatures["serialized"]
inputs = {name: tf.constant(values) for name, values in np.load("inputs.npz").items()}
examples = tf.data.TFRecordDataset(sys.argv[3:]).batch(1000).get_single_element()
np.savez("outputs.npz", served=serve(**inputs)["probabilities"], serialized=serialized(examples)["probabilities"])
"""


def raw_batch(records, extra_steps=0):
    """The inputs of serving_default by hand, from raw records of EVERY_FEATURE; their padding is garbage."""
    length = np.array([len(record["word"]) for record in records], np.int32)
    shape = (len(records), length.max() + extra_steps)
    inputs = {
        "x": np.full((*shape, 2), np.nan, np.float32),
        "bits": np.full((*shape, 3), 1e30, np.float32),
        "page": np.full(shape, 2**40),
        "word": np.full(shape, b"garbage", "S9"),
        "age": np.array([np.nan if record["age"] is None else record["age"] for record in records], np.float32),
        "city": np.array([b"\xff" if record["city"] is None else record["city"].encode() for record in records]),
        "plan": np.array([record["plan"] for record in records]),
        "length": length,
    }
    for row, record in enumerate(records):
        for step in range(length[row]):
            x, word, page = (record[name][step] for name in ("x", "word", "page"))
            inputs["x"][row, step] = np.nan if x is None else [np.nan if value is None else value for value in x]
            inputs["word"][row, step] = b"\xff" if word is None else word.encode()
            inputs["page"][row, step] = -1 if page is None else page
            inputs["bits"][row, step] = record["bits"][step]
    return inputs


def in_order(kind):
    """The raw test records in the order in which `prepare` wrote them."""
    by_id = {record["id"]: record for record in datasets.of_every_feature(kind).of("test")}
    return [by_id[decode_example(example)["id"][0].decode()] for example in serialized_of(kind)]


def as_tensors(inputs):
    return {name: tf.constant(values) for name, values in inputs.items()}


def test_the_saved_model_serves_where_lengthwise_is_not_installed(tmp_path):
    records = in_order("class")
    np.savez(tmp_path / "inputs.npz", **raw_batch(records))
    command = [sys.executable, "-I", "-S", "-c", WITHOUT_LENGTHWISE, site.getsitepackages()[0]]
    done = subprocess.run(
        [*command, exported()[0] / "saved_model", *shards_of("class")], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "outputs.npz") as outputs:
        served, serialized = outputs["served"], outputs["serialized"]
    assert len(records) == len(served) == 30
    assert difference(serialized, served) <= 1e-6
    assert difference(served, model_of("class")(as_tensors(raw_batch(records)), training=False)) <= 1e-6
    labels = [datasets.CLASSES.index(record["y"]) for record in records]
    evaluation = evaluate(run_of("class"), datasets.of_every_feature("class").path)
    assert np.mean(-np.log(served[np.arange(30), labels])) == pytest.approx(evaluation["loss"], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_answers_in_both_ways_as_the_run_does_whatever_the_padding(kind):
    model = tf.saved_model.load(str(made_of(kind) / "export" / "saved_model"))
    serve, serialized = model.signatures["serving_default"], model.signatures["serialized"]
    records = in_order(kind)
    about = json.loads((made_of(kind) / "export" / "export.json").read_text())
    per_step = about["kind"].startswith("step_")
    length = raw_batch(records)["length"]
    expected = model_of(kind)(as_tensors(raw_batch(records)), training=False)
    ways = {
        "as they are": serve(**as_tensors(raw_batch(records))),
        "with more padding": serve(**as_tensors(raw_batch(records, extra_steps=9))),
        "serialized": serialized(tf.constant(serialized_of(kind))),
    }
    for way, outputs in ways.items():
        assert set(outputs) == {OUTPUTS[kind], *(["length"] if per_step else [])}, way
        found = outputs[OUTPUTS[kind]]
        assert difference(found, expected, length if per_step else None) <= 1e-6, way
        if per_step:
            assert outputs["length"].numpy().tolist() == length.tolist()
    for row in (0, 7):  # alone, and so without any padding
        alone = serve(**as_tensors(raw_batch(records[row : row + 1])))[OUTPUTS[kind]][0]
        assert difference(alone, expected[row, : length[row]] if per_step else expected[row]) <= 1e-6
    assert about["output"]["shape"] == ["batch", *(["time"] if per_step else []), *expected.shape[1 + per_step :]]


def test_the_classes_are_told_in_the_order_of_the_output():
    about = json.loads((made_of("next_word") / "export" / "export.json").read_text())
    terms = Run(run_of("next_word")).vocabularies()["word"]
    assert about["classes"] == [*(term.decode() for term in terms), None] and len(terms) == 4
    assert about["output"]["shape"][-1] == 5


@pytest.mark.parametrize("kind", KINDS)
def test_the_keras_file_holds_no_code_and_loads_in_safe_mode(kind):
    path = made_of(kind) / "export" / "model.keras"
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == ["config.json", "metadata.json", "model.weights.h5"]
        config = archive.read("config.json").decode()
    assert "Lambda" not in config and "marshal" not in config and "pickle" not in config
    model = keras.saving.load_model(path, safe_mode=True)
    inputs = as_tensors(raw_batch(in_order(kind), extra_steps=3))
    length = inputs["length"].numpy() if kind.startswith(("step_", "next_")) else None
    assert difference(model(inputs, training=False), model_of(kind)(inputs, training=False), length) <= 1e-6


ODD_NAMES = ["x", "X", "a b", "a_b", "x-1", "ü.y", "速度", "1", "_", "class", "None", "self", "Length", "args", "name"]


def test_a_signature_has_a_plain_and_unique_name_for_every_feature():
    names = input_names(ODD_NAMES)
    assert list(names) == ODD_NAMES
    assert {name: names[name] for name in ("x", "a_b", "args", "name")} == {
        "x": "x", "a_b": "a_b", "args": "args", "name": "name"
    }  # fmt: skip
    assert len({name.lower() for name in names.values()} | {"length"}) == len(ODD_NAMES) + 1
    assert all(re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) for name in names.values())
    assert (names["X"], names["a b"], names["x-1"], names["ü.y"]) == ("X_1", "a_b_1", "x_1_1", "u_y")


def test_features_with_odd_names_are_served(tmp_path):
    steps = ODD_NAMES[:-2]
    schema = Schema.model_validate(
        {
            "steps": {name: {"dtype": "float32"} for name in steps},
            "context": {name: {"dtype": "string", "num_values": 9} for name in ODD_NAMES[-2:]},
            "label": {"name": "y", "kind": "class", "classes": ["a", "b"]},
        }
    )
    model = build_model(schema, {}, SMALL)
    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]
    tf.saved_model.save(module, str(tmp_path), signatures=make_signatures(model, schema, make_target(schema, {})))
    serve = tf.saved_model.load(str(tmp_path)).signatures
    names, random = input_names(ODD_NAMES), np.random.default_rng(0)
    features = {name: random.normal(size=(2, 3)).astype(np.float32) for name in steps}
    features |= {name: np.array([b"a", b"b"], object) for name in ODD_NAMES[-2:]}
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


@pytest.mark.parametrize(
    ("length", "message"),
    [(0, "a record has no step"), (-1, "a record has no step"), (99, "larger than the number of steps of ")],
)
def test_a_length_that_cannot_be_is_refused_by_the_saved_model(length, message):
    model = tf.saved_model.load(str(made_of("class") / "export" / "saved_model"))
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
        (without("age"), "age"),
        (without("length"), "length"),
        (lambda features: features | {"length": np.array([0])}, "the number of values is not length"),
    ],
)
def test_an_example_that_is_not_whole_is_refused_by_the_saved_model(change, message):
    model = tf.saved_model.load(str(made_of("class") / "export" / "saved_model"))
    examples = serialized_of("class")[:3]
    examples[1] = encode_example(change(decode_example(examples[1])))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        model.signatures["serialized"](tf.constant(examples))


def test_an_example_needs_no_label():
    model = tf.saved_model.load(str(made_of("class") / "export" / "saved_model"))
    examples = serialized_of("class")[:3]
    bare = [encode_example(without("id")(without("y")(decode_example(example)))) for example in examples]
    assert bare != examples
    found, expected = (model.signatures["serialized"](tf.constant(e))["probabilities"] for e in (bare, examples))
    np.testing.assert_array_equal(found, expected)


def test_an_empty_batch_has_an_empty_answer():
    model = tf.saved_model.load(str(made_of("class") / "export" / "saved_model"))
    empty = {name: values[:0] for name, values in raw_batch(in_order("class")[:1]).items()}
    assert model.signatures["serving_default"](**as_tensors(empty))["probabilities"].shape == (0, 3)
    assert model.signatures["serialized"](examples=tf.constant([], tf.string))["probabilities"].shape == (0, 3)


def test_operations_of_cudnn_and_of_python_are_found_in_every_function(tmp_path):
    assert forbidden_operations(str(made_of("class") / "export" / "saved_model")) == set()
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([4, 2, 3])])
    def inner(values):
        state, parameters = tf.zeros([1, 2, 3]), tf.zeros([200])
        output = tf.raw_ops.CudnnRNNV2(input=values, input_h=state, input_c=state, params=parameters).output
        return tf.py_function(lambda value: value, [output], tf.float32)

    module.outer = tf.function(
        lambda values: tf.cond(values[0, 0, 0] > 0, lambda: inner(values), lambda: values * 2),
        input_signature=[tf.TensorSpec([4, 2, 3])],
    )
    tf.saved_model.save(module, str(tmp_path))
    assert forbidden_operations(str(tmp_path)) == {"CudnnRNNV2", "EagerPyFunc"}


def test_golden_records_try_what_the_schema_allows():
    golden = load_golden(str(made_of("class") / "golden.npz"))
    features, real = golden.features, golden.features["word"] != b""
    assert sorted(features["length"]) == sorted(LENGTHS) and 1 in LENGTHS and max(LENGTHS) > 12
    terms = Run(run_of("class")).vocabularies()
    for name, values in (("word", features["word"][real]), ("city", features["city"])):
        assert b"\xff" in values and set(values) & set(terms[name])
        assert set(values) - set(terms[name]) - {b"\xff"}, name
    assert -1 in features["page"] and set(features["page"].ravel()) > {0, 1, 2, 3, 4}
    assert np.isnan(features["x"]).any() and np.isnan(features["age"]).any() and not np.isnan(features["age"]).all()
    assert not np.isnan(features["bits"]).any()
    assert np.isfinite(golden.outputs).all() and len(np.unique(golden.outputs)) > 10
    assert len(golden.examples) == len(LENGTHS) + 1


def test_golden_records_are_the_same_in_both_forms():
    schema = Schema.model_validate(json.loads((made_of("class") / "export" / "manifest.json").read_bytes())["schema"])
    golden = load_golden(str(made_of("class") / "golden.npz"))
    for row, length in enumerate(golden.features["length"]):
        example = decode_example(golden.examples[row])
        assert example["length"].tolist() == [length]
        for name in schema.features:
            values = golden.features[name]
            values = values[row, :length] if name in schema.steps else values[row : row + 1]
            stored = np.array(example[name], values.dtype)
            np.testing.assert_array_equal(stored, np.ravel(values))


def test_golden_predictions_come_back_from_their_file_to_the_byte(tmp_path):
    features = {
        "file": np.array([[b"a\0", b"", b"\xff"], [b"\0", "ü".encode(), b" "]], object),
        "allow_pickle": np.array([[np.nan, 1], [2, 3]], np.float32),
        "a/../b": np.array([b"", b""], object),
        "length": np.array([1, 2], np.int32),
    }
    golden = Golden(features, [b"a\0\0", b"", b"c"], np.ones((2, 3), np.float32))
    save_golden(str(tmp_path / "golden.npz"), golden)
    back = load_golden(str(tmp_path / "golden.npz"))
    assert list(back.features) == list(features) and back.examples == golden.examples
    for name, values in features.items():
        np.testing.assert_array_equal(back.features[name], values)
        assert back.features[name].dtype == values.dtype
    np.testing.assert_array_equal(back.outputs, golden.outputs)


def test_garbage_fills_the_padding_and_nothing_else():
    golden = load_golden(str(made_of("class") / "golden.npz"))
    about = json.loads((made_of("class") / "export" / "export.json").read_text())
    padded, longest = add_garbage(golden.features, about), max(LENGTHS)
    for name, values in golden.features.items():
        if "time" not in about["inputs"][name]["shape"]:
            np.testing.assert_array_equal(padded[name], values)
            continue
        assert padded[name].shape == (len(values), longest + 7, *values.shape[2:])
        for row, length in enumerate(golden.features["length"]):
            np.testing.assert_array_equal(padded[name][row, :length], values[row, :length])
    padding = np.arange(longest + 7) >= golden.features["length"][:, None]
    assert np.isnan(padded["x"][padding]).any() and (padded["x"][padding] == np.float32(1e30)).any()
    assert set(padded["page"][padding]) == {-(2**62), 2**62} and set(padded["word"][padding]) == {b"garbage", b"\xff"}


class Fakes:
    """Stands in for the first process: gives what was made before, changed; the second one is the real one."""

    def __init__(self, change):
        self.change = change

    def __call__(self, function, *arguments):
        if not function.endswith(":make"):
            return call_in_subprocess(function, *arguments)
        _, made, golden, _ = arguments
        shutil.copytree(made_of("class") / "export", made)
        shutil.copy(made_of("class") / "golden.npz", golden)
        self.change(pathlib.Path(made), golden)


def other_saved_model(made, golden):
    shutil.rmtree(made / "saved_model" / "variables")
    other = datasets.new_folder()
    make(str(other_run()), str(other / "export"), str(other / "golden.npz"), None)
    shutil.copytree(other / "export" / "saved_model" / "variables", made / "saved_model" / "variables")


def other_keras_file(made, golden):
    model = keras.saving.load_model(made / "model.keras")
    model.weights[-1].assign(model.weights[-1] + 1e-3)
    model.save(made / "model.keras")


def other_answers(made, golden):
    found = load_golden(golden)
    outputs = found.outputs.copy()
    outputs[3, 1] += 2e-6
    save_golden(golden, Golden(found.features, found.examples, outputs))


def other_examples(made, golden):
    """What `serialized` is asked is not what the golden answers are of."""
    found = load_golden(golden)
    examples = [found.examples[1], found.examples[0], *found.examples[2:]]
    save_golden(golden, Golden(found.features, examples, found.outputs))


def no_answer(made, golden):
    found = load_golden(golden)
    save_golden(golden, Golden(found.features, found.examples, np.full_like(found.outputs, np.nan)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(other_saved_model, "saved_model: its weights have the SHA-256 ", marks=pytest.mark.proof),
        pytest.param(other_keras_file, "model.keras: its weights have the SHA-256 ", marks=pytest.mark.proof),
        (other_answers, "serving_default is off by 2e-06, expected at most 1e-06. Nothing was published."),
        pytest.param(other_examples, "serialized is off by ", marks=pytest.mark.proof),
        pytest.param(no_answer, "serving_default is off by nan, ", marks=pytest.mark.proof),
    ],
)
def test_an_export_that_answers_otherwise_is_never_published(tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.setattr(trainer.serving.export, "call_in_subprocess", Fakes(change))
    output = tmp_path / "made" / "export"
    status, out, err = datasets.call(capsys, "export", run_of("class"), "--output", output)
    assert (status, out) == (1, "")
    assert err[-1].startswith("lengthwise export: ") and message in err[-1]
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_stays_when_an_export_fails_and_goes_when_one_is_published(tmp_path, monkeypatch):
    output = tmp_path / "export"
    shutil.copytree(made_of("multilabel") / "export", output)
    before = (output / "export.json").read_bytes()
    fakes = Fakes(lambda made, golden: None)
    monkeypatch.setattr(
        trainer.serving.export,
        "call_in_subprocess",
        lambda function, *rest: fail() if "export_check" in function else fakes(function, *rest),
    )
    with pytest.raises(UserError, match="on purpose"):
        export(run_of("class"), output, overwrite=True)
    assert (output / "export.json").read_bytes() == before and os.listdir(tmp_path) == ["export"]
    monkeypatch.setattr(
        trainer.serving.export,
        "call_in_subprocess",
        lambda function, *rest: {"all": 0.0} if "proof" in function else fakes(function, *rest),
    )
    assert export(run_of("class"), output, overwrite=True)["kind"] == "class"
    assert files_of(output) == files_of(made_of("class") / "export") and os.listdir(tmp_path) == ["export"]
    assert json.loads((output / "export.json").read_text())["kind"] == "class"


def test_an_output_that_came_while_the_export_was_made_stays(tmp_path, monkeypatch):
    output = tmp_path / "export"

    def fake(function, *arguments):
        if function.endswith(":make"):
            return Fakes(lambda made, golden: None)(function, *arguments)
        output.mkdir()
        (output / "mine.txt").write_text("mine")
        return {"all": 0.0}

    monkeypatch.setattr(trainer.serving.export, "call_in_subprocess", fake)
    with pytest.raises(UserError, match="export: the export cannot be put there: Directory not empty."):
        export(run_of("class"), output)
    assert files_of(tmp_path) == {"export/mine.txt"} and os.listdir(tmp_path) == ["export"]


def test_what_cannot_be_replaced_is_put_back(tmp_path):
    (tmp_path / "export").mkdir()
    with pytest.raises(UserError, match="export: the export cannot be put there: No such file"):
        trainer.serving.export._publish(str(tmp_path / "gone"), str(tmp_path / "export"), overwrite=True)
    assert os.listdir(tmp_path) == ["export"]


def fail(*arguments):
    raise UserError("on purpose")


def lambda_model(run):
    inputs = keras.Input((2,))
    keras.Model(inputs, keras.layers.Lambda(lambda values: values * 2)(inputs)).save(run / "model.keras")
    return "model.keras"


def linked_weights(run):
    import h5py

    with h5py.File(run / "checkpoints" / "weights.h5", "w") as file:
        file["kernel"] = h5py.ExternalLink("/etc/passwd", "/x")
    return "checkpoints/weights.h5"


def climbing_archive(run):
    with zipfile.ZipFile(run / "vocabulary" / "words.zip", "w") as archive:
        archive.writestr("../../evil.py", "raise SystemExit")
    return "vocabulary/words.zip"


def pickled(run):
    (run / "logs" / "train" / "model.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    return "logs/train/model.pkl"


def saved_model(run):
    (run / "saved_model.pb").write_bytes((made_of("class") / "export" / "saved_model" / "saved_model.pb").read_bytes())
    return "saved_model.pb"


def folder(run):
    (run / "assets" / "more").mkdir(parents=True)
    (run / "assets" / "a.txt").write_text("")
    return "assets/"


def link_out(run):
    (run / "manifest.json").rename(run.parent / "elsewhere.json")
    (run / "manifest.json").symlink_to(run.parent / "elsewhere.json")
    return "manifest.json (a link)"


def linked_folder(run):
    (run / "checkpoints" / "best").rename(run.parent / "elsewhere")
    (run / "checkpoints" / "best").symlink_to(run.parent / "elsewhere")
    return "checkpoints/best (a link)"


def pipe(run):
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    return "metrics.jsonl (no file)"


def dots(run):
    (run / "..evil").write_text("")
    (run / "..\\..\\evil\n.txt").write_text("")
    return "'..\\\\..\\\\evil\\n.txt', ..evil"


def beside_a_checkpoint(run):
    for number in range(7):
        (run / "checkpoints" / "last" / f"ckpt-{number}.index.py").write_text("")
    return ", ".join(f"checkpoints/last/ckpt-{number}.index.py" for number in range(5)) + " and 2 more"


STRANGERS = [
    lambda_model,
    linked_weights,
    climbing_archive,
    pickled,
    saved_model,
    folder,
    link_out,
    linked_folder,
    pipe,
    dots,
    beside_a_checkpoint,
]


@pytest.mark.parametrize("put", STRANGERS, ids=lambda put: put.__name__)
def test_a_run_that_holds_what_no_run_writes_is_refused_and_nothing_created(tmp_path, capsys, put):
    run = copy_run(tmp_path)
    listed = put(run)
    before = sorted(os.listdir(tmp_path))
    status, out, (line,) = datasets.call(capsys, "export", run, "--output", tmp_path / "made" / "export")
    assert (status, out) == (1, "")
    assert line.startswith(f"lengthwise export: {run}: holds what no run of ours writes: {listed}. Move it ")
    assert sorted(os.listdir(tmp_path)) == before


def test_what_a_killed_training_leaves_is_no_stranger(tmp_path):
    run = copy_run(tmp_path)
    last = run / "checkpoints" / "last"
    (last / "ckpt-2_temp").mkdir()
    for name in ("ckpt-2_temp/part-00000-of-00001.index", "checkpoint.tmpbeef12", "../../config.yaml.tmp"):
        (last / name).write_text("")
    (run / "evaluation-validation.json").write_text("{}")
    trainer.runs.contents.refuse_foreign_files(str(run))


def edit(name, old, new):
    def change(run):
        data = (run / name).read_bytes()
        assert old in data
        (run / name).write_bytes(data.replace(old, new, 1))

    return change


def word_file(run):
    (path,) = (run / "vocabulary").glob("*/word.txt")
    return path


def misplace_vocabulary(run):
    """A vocabulary's file where an export has another."""
    name = str(word_file(run).relative_to(run))
    (run / "saved_model").mkdir()
    word_file(run).rename(run / "saved_model" / "saved_model.pb")
    edit("manifest.json", name.encode(), b"saved_model/saved_model.pb")(run)


def overwrite(name, data):
    return lambda run: (run / name).write_bytes(data)


def checkpoint_file(run, ending):
    (path,) = (run / "checkpoints" / "best").glob(f"*{ending}")
    return path


def flip_a_weight(run):
    """One bit of a weight, and not of what else is in the file."""
    path = checkpoint_file(run, "data-00000-of-00001")
    data, weight = bytearray(path.read_bytes()), model_of("class").weights[-2].numpy().tobytes()
    data[bytes(data).index(weight)] ^= 1
    path.write_bytes(data)


def cut(ending):
    return lambda run: os.truncate(checkpoint_file(run, ending), 100)


def put_another_checkpoint(run):
    """One that is whole, of the same model, and not the run's."""
    shutil.rmtree(run / "checkpoints" / "best")
    shutil.copytree(other_run() / "checkpoints" / "last", run / "checkpoints" / "best")


def huge_tensors(run):
    """A checkpoint whose weights are larger than the model's: none is read."""
    shapes = [(2**10, 2**10)] * len(model_of("class").weights)
    checkpoint = tf.train.Checkpoint(weights=[tf.Variable(tf.zeros(shape)) for shape in shapes])
    path = checkpoint.write(str(run / "huge"))
    for ending in ("index", "data-00000-of-00001"):
        os.replace(f"{path}.{ending}", checkpoint_file(run, ending))


def shift_the_mean(run):
    manifest = json.loads((run / "manifest.json").read_bytes())
    manifest["statistics"]["x"]["mean"][0] += 1
    (run / "manifest.json").write_text(json.dumps(manifest))


BEST_KEY = b'best_weights_sha256": "'
DAMAGES = {
    "no YAML": (overwrite("config.yaml", b"units: [4"), "config.yaml, line 1, column 10: not valid YAML"),
    "no configuration": (overwrite("config.yaml", b"unit: [4]"), "config.yaml: unit: unknown key; did you mean"),
    "code in YAML": (
        overwrite("config.yaml", b"units: !!python/object/apply:os.system ['true']"),
        "config.yaml, line 1, column 8: not valid YAML: could not determine a constructor",
    ),
    "2 billion units": (edit("config.yaml", b"- 4", b"- 2147483647"), "expected float32[14, 6442450941]."),
    "another pooling": (edit("config.yaml", b"pooling: mean", b"pooling: last"), "not those that the run ended with"),
    "another mean": (shift_the_mean, "not those that the run ended with"),
    "other layers": (edit("config.yaml", b"- 4", b"- 4\n- 4"), "it holds 1"),
    "no manifest": (lambda run: (run / "manifest.json").unlink(), "it has no manifest.json that can be read"),
    "no JSON": (overwrite("manifest.json", b"{"), "manifest.json: not a manifest of a dataset: b'{'"),
    "another schema": (
        edit("manifest.json", b'"num_values": 5', b'"num_values": 6'),
        "the fingerprint does not match what the manifest lists",
    ),
    "another vocabulary": (
        lambda run: word_file(run).write_bytes(b"teh\n"),
        "word.txt is not the file that was written",
    ),
    "no vocabulary": (lambda run: word_file(run).unlink(), "word.txt cannot be read"),
    "a vocabulary elsewhere": (misplace_vocabulary, "is saved_model/saved_model.pb, expected a file in vocabulary/."),
    "no result": (lambda run: (run / "result.json").unlink(), "is not finished. Go on with the command that began it"),
    "result of no run": (overwrite("result.json", b"[]"), "result.json: not the result of a run"),
    "deep result": (overwrite("result.json", b"[" * 100_000), "result.json: not JSON"),
    "no digest": (edit("result.json", b"best_weights", b"bestweights"), "result.json says None: they are not those"),
    "another digest": (
        lambda run: edit("result.json", BEST_KEY + digest_of(run), BEST_KEY + b"0" * 64)(run),
        f"result.json says {'0' * 64}: they are not those that the run ended with",
    ),
    "no checkpoint": (lambda run: shutil.rmtree(run / "checkpoints" / "best"), "has no best checkpoint yet"),
    "a checkpoint's index that is cut": (cut("index"), "best/ckpt-1: not a checkpoint of this run's model"),
    "a checkpoint that is cut": (cut("data-00000-of-00001"), "best/ckpt-1: not a checkpoint of this run's model"),
    "a bit of a weight": (flip_a_weight, "best/ckpt-1: not a checkpoint of this run's model: TensorBundle at "),
    "no checkpoint state": (overwrite("checkpoints/best/checkpoint", b"?"), "best/checkpoint: names no checkpoint"),
    "a checkpoint elsewhere": (
        edit("checkpoints/best/checkpoint", b'"ckpt-1"', b'"../../../../elsewhere/ckpt-1"'),
        "elsewhere/ckpt-1', expected a checkpoint beside it",
    ),
    "another checkpoint": (put_another_checkpoint, "best/ckpt-0: its weights have the SHA-256"),
    "huge tensors": (huge_tensors, "is float32[1024, 1024], expected float32[5, "),
}


def digest_of(run):
    return json.loads((run / "result.json").read_text())["best_weights_sha256"].encode()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_that_is_not_as_it_was_written_is_refused_before_anything_is_made(tmp_path, damage):
    change, message = DAMAGES[damage]
    run = copy_run(tmp_path)
    change(run)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        make(str(run), str(tmp_path / "made"), str(tmp_path / "golden.npz"), None)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["run"]


def test_a_damaged_run_is_one_line_of_the_command_and_leaves_nothing(tmp_path):
    run = copy_run(tmp_path)
    cut("data-00000-of-00001")(run)
    done = subprocess.run(
        [LENGTHWISE, "export", "run", "--output", "made/export"], cwd=tmp_path, capture_output=True, text=True
    )
    lines = [line for line in done.stderr.splitlines() if "working" not in line]
    assert (done.returncode, done.stdout, len(lines)) == (1, "", 2)
    assert lines[1].startswith("lengthwise export: run/checkpoints/best/ckpt-1: not a checkpoint of this run's model")
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("which", ["best", "last"])
def test_evaluate_refuses_weights_that_are_not_the_runs(tmp_path, which):
    run, path = copy_run(tmp_path), datasets.of_every_feature("class").path
    assert evaluate(run, path, checkpoint=which)["checkpoint"] == which
    key = {"best": b"best_weights_sha256", "last": b"weights_sha256"}[which]
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {key.decode(): "0" * 64}))
    with pytest.raises(UserError, match="they are not those that the run ended with"):
        evaluate(run, path, checkpoint=which)
    (run / "result.json").unlink()  # of a run that goes on nothing is known
    assert evaluate(run, path, checkpoint=which)["checkpoint"] == which


def test_a_run_keeps_the_digest_of_its_best_weights_and_loses_its_result_while_it_goes_on(tmp_path):
    folder, path = tmp_path / "run", datasets.of_kind("class").path
    short, longer = change(SMALL, epochs=1), change(SMALL, epochs=4, learning_rate=SMALL.learning_rate)
    result = train(path, folder, short)
    assert result["best_weights_sha256"] == result["weights_sha256"]

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(path, folder, longer, callbacks=[Stop()])
    assert not (folder / "result.json").exists()
    with pytest.raises(UserError, match="is not finished"):
        make(str(folder), str(tmp_path / "made"), str(tmp_path / "golden.npz"), None)
    result = train(path, folder, longer)
    run = Run(str(folder))
    model = build_model(run.manifest().record_schema, run.manifest().statistics, longer)
    for which, key in ((BEST, "best_weights_sha256"), (LAST, "weights_sha256")):
        assert restore_weights(run, model, which) == which
        assert weights_sha256(model) == result[key] == checkpoint_sha256(run, model, which)


def test_a_run_without_a_best_checkpoint_has_no_digest_of_it(tmp_path):
    records = datasets.random_records([3, 4, 5])
    result = train(datasets.make(tmp_path, records).path, tmp_path / "run", SMALL)
    assert result["best_weights_sha256"] is None
    about = make(str(tmp_path / "run"), str(tmp_path / "made"), str(tmp_path / "golden.npz"), None)
    assert about is None
    assert json.loads((tmp_path / "made" / "export.json").read_text())["checkpoint"] == "last"
    with pytest.raises(UserError, match="has no best checkpoint yet"):
        make(str(tmp_path / "run"), str(tmp_path / "again"), str(tmp_path / "golden.npz"), "best")


@pytest.mark.parametrize(
    ("output", "flags", "message"),
    [
        ("there", [], "there: is there already. Choose another --output, or replace an export with --overwrite."),
        ("there", ["--overwrite"], "there: is no export: it holds 'mine.txt'. Choose another --output."),
        ("file", ["--overwrite"], "file: a file or a link is in the way, expected nothing. Choose another --output."),
        ("link", ["--overwrite"], "link: a file or a link is in the way, expected nothing. Choose another --output."),
        ("run", ["--overwrite"], "run: is in the folder of the run. Choose an --output outside of "),
        ("run/export", [], "run/export: is in the folder of the run. Choose an --output outside of "),
        ("there/../run/export", [], "run/export: is in the folder of the run. Choose an --output outside of "),
        ("to-run/export", [], "to-run/export: is in the folder of the run. Choose an --output outside of "),
        ("gs://bucket/export", [], "gs://bucket/export: an export is made on a local disk. Choose a local --output"),
    ],
)
def test_an_output_that_cannot_be_is_refused_and_not_touched(tmp_path, monkeypatch, capsys, output, flags, message):
    monkeypatch.chdir(tmp_path)
    run = copy_run(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "to-run").symlink_to("run")
    before = files_of(tmp_path)
    status, out, (line,) = datasets.call(capsys, "export", run, "--output", output, *flags)
    assert (status, out) == (1, "") and line.startswith("lengthwise export: ") and message in line
    assert files_of(tmp_path) == before


def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys):
    for run in (tmp_path / "none", datasets.of_every_feature("class").path):
        status, out, (line,) = datasets.call(capsys, "export", run, "--output", tmp_path / "export")
        assert (status, out) == (1, "") and line.startswith(f"lengthwise export: {run}: ")
    assert list(tmp_path.iterdir()) == []


def test_what_killed_exports_left_is_removed_and_a_living_one_is_let_be(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.serving.export, "call_in_subprocess", fail)
    output = tmp_path / "[export]*"
    left, living = tmp_path / "[export]*.dead.tmp", tmp_path / "[export]*.living.tmp"
    others = tmp_path / "export.other.tmp"
    for path in (left / "export", living, others):
        path.mkdir(parents=True)
    with trainer.serving.export._locked(str(living)):
        with pytest.raises(UserError, match="on purpose"):
            export(run_of("class"), output)
    assert sorted(tmp_path.iterdir()) == sorted([living, others])


@pytest.mark.proof
def test_a_killed_export_publishes_nothing_and_the_next_one_cleans_up(tmp_path):
    command = [LENGTHWISE, "export", run_of("class"), "--output", str(tmp_path / "export")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    while not list(tmp_path.glob("export.*.tmp/export/model.keras")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert os.listdir(tmp_path) == ["export"]


@pytest.mark.proof
def test_an_interrupted_export_leaves_nothing(tmp_path):
    command = [LENGTHWISE, "export", run_of("class"), "--output", str(tmp_path / "export")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(tmp_path.glob("export.*.tmp/export/saved_model")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    lines = process.communicate()[1].splitlines()
    assert (process.returncode, lines[-1]) == (130, "lengthwise export: interrupted.")
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_dies_is_told_in_one_line(capfd):
    with pytest.raises(UserError, match="was to call os:abort, was ended by SIGABRT. A file that it read may be dam"):
        call_in_subprocess("os:abort")
    capfd.readouterr()


def test_a_fresh_process_sees_no_gpu_and_what_it_prints_is_no_answer(capfd):
    assert call_in_subprocess("os:system", 'echo "GPUs: <$CUDA_VISIBLE_DEVICES>"') == 0
    assert "GPUs: <>\n" in capfd.readouterr().err


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(trainer.serving.signatures).failed == 0
