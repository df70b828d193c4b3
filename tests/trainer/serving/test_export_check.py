"""An export is checked with golden records, and an export that gives other outputs is never published."""

import json
import shutil

import datasets
import keras
import numpy as np
import pytest
from export_runs import Fakes, made_of, other_run, run_of

import trainer.runs.contents
import trainer.serving.export
from pipeline.format.examples import decode_example
from pipeline.format.models import FeatureStatistics
from pipeline.schema.schema import Schema
from trainer.runs.run import Run
from trainer.serving.export_check import fill_padding
from trainer.serving.golden_records import LENGTHS, Golden, draw_golden_records, load_golden, save_golden
from trainer.serving.saved_model import make


def test_golden_records_cover_what_the_schema_allows():
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


@pytest.mark.filterwarnings("error")
def test_golden_numbers_are_float32_for_any_statistics():
    """Values around the largest number of float32 are possible in a record, larger ones are not."""
    schema = Schema.parse("steps: {x: {dtype: float32}}\nlabel: {name: y, kind: regression}\n")
    huge = FeatureStatistics(count=2, mean=(1e38,), variance=(4e76,), min=(-1e38,), max=(3e38,))
    values = np.concatenate([record.features["x"] for record in draw_golden_records(schema, {"x": huge}, {})])
    assert np.isfinite(values).all() and (np.abs(values) > 3e38).any()


def test_the_golden_batch_and_the_golden_examples_hold_the_same_records():
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


def test_golden_records_are_restored_from_their_file_exactly(tmp_path):
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


def test_arbitrary_values_fill_the_padding_only():
    golden = load_golden(str(made_of("class") / "golden.npz"))
    about = json.loads((made_of("class") / "export" / "export.json").read_text())
    padded, longest = fill_padding(golden.features, about), max(LENGTHS)
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


def other_saved_model(made, golden):
    shutil.rmtree(made / "saved_model" / "variables")
    other = datasets.new_folder()
    make(str(other_run()), str(other / "export"), str(other / "golden.npz"), None)
    shutil.copytree(other / "export" / "saved_model" / "variables", made / "saved_model" / "variables")


def other_keras_file(made, golden):
    model = keras.saving.load_model(made / "model.keras")
    model.weights[-1].assign(model.weights[-1] + 1e-3)
    model.save(made / "model.keras")


def other_golden_outputs(made, golden):
    found = load_golden(golden)
    outputs = found.outputs.copy()
    outputs[3, 1] += 2e-6
    save_golden(golden, Golden(found.features, found.examples, outputs))


def other_golden_examples(made, golden):
    """Swaps two examples, so that the inputs of `serialized` do not belong to the golden outputs."""
    found = load_golden(golden)
    examples = [found.examples[1], found.examples[0], *found.examples[2:]]
    save_golden(golden, Golden(found.features, examples, found.outputs))


def non_finite_golden_outputs(made, golden):
    found = load_golden(golden)
    save_golden(golden, Golden(found.features, found.examples, np.full_like(found.outputs, np.nan)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(other_saved_model, "saved_model: its weights have the SHA-256 ", marks=pytest.mark.proof),
        pytest.param(other_keras_file, "model.keras: its weights have the SHA-256 ", marks=pytest.mark.proof),
        (other_golden_outputs, "serving_default is off by 2e-06, expected at most 1e-06. Nothing was published."),
        pytest.param(other_golden_examples, "serialized is off by ", marks=pytest.mark.proof),
        pytest.param(non_finite_golden_outputs, "serving_default is off by nan, ", marks=pytest.mark.proof),
    ],
)
def test_an_export_with_other_outputs_is_never_published(tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.setattr(trainer.serving.export, "call_in_subprocess", Fakes(change))
    output = tmp_path / "made" / "export"
    status, out, err = datasets.call(capsys, "export", run_of("class"), "--output", output)
    assert (status, out) == (1, "")
    assert err[-1].startswith("lengthwise export: ") and message in err[-1]
    assert list(tmp_path.iterdir()) == []
