"""A warm start keeps the statistics and vocabularies that its weights were trained with, whatever the new data are."""

import functools
import json
import shutil

import datasets
import keras
import numpy as np
import pytest
import tensorflow as tf
from interruptions import InterruptAt, Interrupted, change, lines_of
from predict_runs import by_id, numbers_of
from predict_runs import lines_of as predictions_of

from pipeline.errors import UserError
from pipeline.raw.records import parse_record
from pipeline.schema.schema import Schema
from trainer.config import TrainConfig
from trainer.data.dataset import open_dataset
from trainer.devices.tensorflow_setup import start_tensorflow
from trainer.evaluation.evaluate import evaluate
from trainer.runs.run import Run
from trainer.runs.statistics import RunStatistics
from trainer.serving.predict import predict
from trainer.serving.predictor import load_predictor, pad_batch
from trainer.serving.saved_model import make
from trainer.training.train import train

CONFIG = TrainConfig(epochs=1, units=(4,), batch_size=8, learning_rate=0.01)
SCHEMA = """
id: id
steps:
  x: {dtype: float32, shape: [2]}
  word: {dtype: string, vocabulary: 3}
context:
  age: {dtype: float32, missing: {fill: mean}}
label: {name: y, kind: regression}
splits: {from: split}
"""
NEXT_WORD = SCHEMA.replace("{name: y, kind: regression}", "{next_of: word}")
# Other words, in another order of frequency; one of them is known.
WORDS = {"source": ["one", "two", "two", "three", "three", "three"], "shifted": ["two", "four", "four", "five", "five"]}


@pytest.fixture(scope="module", autouse=True)
def deterministic():
    start_tensorflow()


def of_dataset(manifest):
    """Returns the statistics of a run that starts on this dataset, by name."""
    return RunStatistics.of_dataset(manifest, origin="").statistics


def records_of(name):
    """Returns records; those of the dataset `shifted` have other means, deviations and words."""
    random, records = np.random.default_rng(len(name)), []
    scale, shift = (9.0, 100.0) if name == "shifted" else (1.0, 0.0)
    for split, count in (("train", 16), ("validation", 9), ("test", 9)):
        for record in datasets.random_records([3, 4, 5, 6, 2] * 4, split=split, kind="regression", seed=count)[:count]:
            record["x"] = (np.array(record["x"]) * scale + shift).astype(np.float32).tolist()
            record["word"] = random.choice(WORDS[name], len(record["x"])).tolist()
            record["age"] = None if random.random() < 0.2 else float(np.float32(random.normal(40 + shift, 9 * scale)))
            records.append(record | {"y": record["y"] * scale + shift})
    return records


@functools.cache
def dataset(name, schema=SCHEMA):
    records = records_of(name)
    if schema == SCHEMA:  # nothing is measured while its runs start, which takes less time
        records = [record for record in records if record["split"] != "validation"]
    return datasets.make(datasets.new_folder(), records, schema)


@functools.cache
def source(schema=SCHEMA):
    """Returns the folder of a run on the dataset `source`, with weights that no other run here begins with."""
    folder = datasets.new_folder() / "source"
    train(dataset("source", schema).path, folder, change(CONFIG, epochs=0, seed=5))
    return folder


@functools.cache
def started(name, schema=SCHEMA):
    """Returns the folder of a run with a warm start on a dataset, before its first update."""
    folder = datasets.new_folder() / "started"
    train(dataset(name, schema).path, folder, change(CONFIG, epochs=0, warm_start=str(source(schema))))
    return folder


def parsed(name, schema=SCHEMA):
    """Returns the test records of a dataset, parsed as `predict` parses them."""
    return [parse_record(each, Schema.parse(schema), labelled=False) for each in dataset(name, schema).of("test")]


@functools.cache
def outputs_of(run, name, schema=SCHEMA):
    """Returns the outputs of a run for the test records of a dataset."""
    return load_predictor(str(run))(parsed(name, schema))


@pytest.mark.parametrize("name", datasets.some(["source", "shifted"], ["shifted"]))
@pytest.mark.parametrize("schema", datasets.some([SCHEMA, NEXT_WORD], [SCHEMA]))
def test_a_warm_start_predicts_the_same_bits_as_its_source(name, schema):
    run = started(name, schema)
    np.testing.assert_array_equal(outputs_of(run, name, schema), outputs_of(source(schema), name, schema))
    assert Run(str(run)).own_statistics() == Run(str(source(schema))).own_statistics()
    assert Run(str(run)).vocabularies() == open_dataset(dataset("source", schema).path).vocabularies()
    assert Run(str(run)).manifest() == open_dataset(dataset(name, schema).path).manifest


@pytest.mark.proof
def test_evaluate_and_predict_use_the_statistics_of_the_run(tmp_path):
    run, made = started("shifted"), dataset("shifted")
    found, expected = evaluate(run, made.path), evaluate(source(), made.path)
    assert (found["loss"], found["metrics"]) == (expected["loss"], expected["metrics"])
    assert (found["dataset_changed"], found["vocabularies_changed"]) == (False, ["word"])
    assert (expected["dataset_changed"], expected["vocabularies_changed"]) == (True, ["word"])
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(json.dumps(record) + "\n" for record in made.of("test")))
    predict(run, raw, tmp_path / "predictions")
    lines = by_id(predictions_of(tmp_path / "predictions"))
    ids = [record.id for record in parsed("shifted")]
    # The batches are others than those of `outputs_of`, so the last bits may differ.
    np.testing.assert_allclose([numbers_of(lines[i]) for i in ids], outputs_of(source(), "shifted"), rtol=1e-6)


@pytest.mark.proof
def test_an_export_has_the_statistics_and_vocabularies_of_the_run(tmp_path):
    run = started("shifted")
    make(str(run), str(tmp_path / "export"), str(tmp_path / "golden.npz"), None)
    model = keras.saving.load_model(tmp_path / "export" / "model.keras", compile=False)
    features = {
        name: tf.constant(values) for name, values in pad_batch(parsed("shifted"), Schema.parse(SCHEMA)).items()
    }
    np.testing.assert_allclose(model(features).numpy(), outputs_of(source(), "shifted"), rtol=1e-6)
    own = Run(str(source())).own_statistics()
    assert (tmp_path / "export" / "statistics.json").read_bytes() == own.to_json()
    assert (tmp_path / "export" / own.vocabularies["word"].path).read_bytes() == b"three\ntwo\none\n"


@pytest.mark.parametrize("batching", datasets.some(["window", "bucket"], []))
def test_the_next_string_has_the_number_of_the_run_in_training_and_validation(tmp_path, batching):
    """The learning rate is so small that the weights stay as they are."""
    config = change(CONFIG, learning_rate=1e-30, batching=batching, warm_start=str(source(NEXT_WORD)))
    path = dataset("shifted", NEXT_WORD).path
    result = train(path, tmp_path, config)
    (line,) = [line for line in lines_of(tmp_path) if "validation" in line]
    found = [line["train"]["loss"], result["validation"]["loss"]]
    expected = [evaluate(source(NEXT_WORD), path, split=split)["loss"] for split in ("train", "validation")]
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("is_compared", datasets.some([False, True], []))
def test_a_run_resumes_with_its_statistics_after_its_source_was_deleted(tmp_path, capsys, is_compared):
    copy, path = shutil.copytree(source(), tmp_path / "source"), dataset("shifted").path
    config = change(CONFIG, dropout=0.2, checkpoint_updates=1, warm_start=str(copy))
    whole = train(path, tmp_path / "whole", config) if is_compared else None
    capsys.readouterr()
    with pytest.raises(Interrupted):
        train(path, tmp_path / "cut", config, callbacks=[InterruptAt(0, 0)])
    assert f"\nStatistics and vocabularies: those of {copy}.\n" in capsys.readouterr().err
    shutil.rmtree(copy)
    result = train(path, tmp_path / "cut", config)
    assert result["epochs"] == 1
    if is_compared:
        assert result == whole
        assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")
    assert Run(str(tmp_path / "cut")).own_statistics() == Run(str(source())).own_statistics()


def report_of(capsys, path, output, *flags):
    """Starts a run by the command, and returns the lines that describe its statistics and vocabularies."""
    flags = ["--units", 4, "--epochs", 0, "--warm_start", source(), *flags]
    status, _, err = datasets.call(capsys, "train", path, "--output", output, *flags)
    assert status == 0, err
    return err[1 : [line.startswith("Devices: ") for line in err].index(True)]


def test_a_feature_of_the_dataset_alone_has_the_statistics_of_the_dataset(tmp_path, capsys):
    records = [record | {"income": 7.0 + len(record["x"])} for record in records_of("shifted")]
    schema = SCHEMA.replace("label:", "  income: {dtype: float32}\nlabel:")
    path = datasets.make(tmp_path, records, schema).path
    assert report_of(capsys, path, tmp_path / "run") == [
        f"Statistics and vocabularies: those of {source()}; those of the dataset for income (not in that run)."
    ]
    found, manifest = Run(str(tmp_path / "run")).statistics(), open_dataset(path).manifest
    assert found == Run(str(source())).statistics() | {"income": of_dataset(manifest)["income"]}
    assert list(found) == list(manifest.statistics)


def test_statistics_dataset_prints_what_changes_and_by_how_much_the_largest_change_first(tmp_path, capsys):
    title, *lines = report_of(capsys, dataset("shifted").path, tmp_path, "--statistics", "dataset")
    assert title == f"Statistics and vocabularies: those of the dataset. What changes from {source()}, most first:"
    before, after = (
        {
            "x": [row for record in dataset(name).of("train") for row in record["x"]],
            "age": [[record["age"]] for record in dataset(name).of("train") if record["age"] is not None],
            "y": [[record["y"]] for record in dataset(name).of("train")],
        }
        for name in ("source", "shifted")
    )
    found, sizes = {line.split()[0].strip(":"): line for line in lines}, {}
    assert found["word"] == "  word: 2 of 3 strings new, 2 of 3 gone, 1 at another position"
    for name, rows in before.items():
        old, new = np.array(rows), np.array(after[name])
        shift = (new.mean(axis=0) - old.mean(axis=0)) / old.std(axis=0)
        factor = new.std(axis=0) / old.std(axis=0)
        each = np.maximum(np.abs(shift), np.abs(np.log2(factor)))
        worst, sizes[name] = each.argmax(), each.max()
        assert f"({shift[worst]:+.2f} standard deviations)" in found[name]
        assert found[name].endswith(f"(x {factor[worst]:.3g})")
    assert list(found) == [*sorted(sizes, key=lambda name: -sizes[name]), "word"]
    run, opened = Run(str(tmp_path)), open_dataset(dataset("shifted").path)
    assert (run.statistics(), run.vocabularies()) == (of_dataset(opened.manifest), opened.vocabularies())
    # So much would the predictions of a warm start differ if it did not keep the statistics of its source.
    assert np.abs(outputs_of(tmp_path, "shifted") - outputs_of(source(), "shifted")).min() > 50


@pytest.mark.proof
def test_statistics_dataset_says_so_if_nothing_changes(tmp_path, capsys):
    assert report_of(capsys, dataset("source").path, tmp_path, "--statistics", "dataset") == [
        f"Statistics and vocabularies: those of the dataset, which do not differ from {source()}."
    ]


def test_a_run_that_was_killed_before_its_first_checkpoint_may_start_with_other_statistics(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise Interrupted

    path, config = dataset("shifted").path, change(CONFIG, epochs=0, warm_start=str(source()))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("trainer.training.loop.warm_start", interrupt)
        train(path, tmp_path, config)
    run = Run(str(tmp_path))
    assert run.statistics() == Run(str(source())).statistics()
    train(path, tmp_path, change(config, statistics="dataset"))
    assert run.statistics() == of_dataset(run.manifest())
    with pytest.raises(UserError, match="was started with statistics dataset, now run. Use the same values"):
        train(path, tmp_path, config)
