"""A warm start loads the weights of another run that have the same meaning, lists them, and happens once."""

import functools
import pathlib
import shutil

import datasets
import numpy as np
import pytest
from interruptions import InterruptAt, Interrupted, change, lines_of

from pipeline.errors import UserError
from trainer.config import TrainConfig
from trainer.data.dataset import open_dataset
from trainer.devices.tensorflow_setup import start_tensorflow
from trainer.model.build import build_model
from trainer.runs.checkpoints import restore_weights
from trainer.runs.run import Run
from trainer.training.train import train

CONFIG = TrainConfig(epochs=1, units=(4,), batch_size=8, learning_rate=0.01)
STEPS = f"{datasets.X}\n  word: {{dtype: string, vocabulary: 9}}\n  page: {{dtype: int64, num_values: 5}}"


@pytest.fixture(scope="module", autouse=True)
def deterministic():
    start_tensorflow()


def make(folder, *, words=("one", "two", "three"), steps=STEPS, classes="[a, b, c]", splits=("train",)):
    """Writes a dataset with a string feature and a category, and returns its path.

    Without a validation split, nothing is measured when a run starts, which takes less time.
    """
    records = []
    for split in splits:
        for record in datasets.random_records([3, 4, 5, 6] * 4, split=split):
            length = len(record["x"])
            more = {"word": [words[n % len(words)] for n in range(length)], "page": [n % 5 for n in range(length)]}
            records.append(record | more | {name: more["page"] for name in ("leaf",)})
    schema = datasets.schema_text(steps=steps).replace("[a, b, c]", classes)
    return datasets.make(folder, records, schema).path


@functools.cache
def first():
    """Returns the paths of a dataset and of a run that was trained on it."""
    folder = datasets.new_folder()
    path = make(folder, splits=("train", "validation"))
    train(path, folder / "run", CONFIG)
    return path, folder / "run"


@functools.cache
def only_train():
    """Returns the path of a dataset like that of `first`, without a validation split."""
    return make(datasets.new_folder())


def start_from_first(capsys, path, output, **values):
    """Starts a run with the weights of the first run, and returns the line that lists them."""
    capsys.readouterr()
    train(path, output, change(CONFIG, epochs=0, warm_start=str(first()[1]), **values))
    (report,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warm start from ")]
    return report


def weights_of(run):
    """Returns the weights in the best checkpoint of a run, or in its last one, by path."""
    run = Run(str(run))
    manifest = run.manifest()
    model = build_model(manifest.record_schema, run.statistics(), run.config(), vocabularies=run.vocabularies())
    restore_weights(run, model, None)
    return {weight.path: weight.numpy() for weight in model.weights}


def assert_loaded(run, loaded):
    """Asserts that exactly the weights with these path prefixes equal those of the first run."""
    source, weights = weights_of(first()[1]), weights_of(run)
    for path, value in weights.items():
        same = path in source and source[path].shape == value.shape and (source[path] == value).all()
        assert same == path.startswith(tuple(loaded)), path


ALL = {"embedding_1", "embedding_2", "lstm_0", "head"}


def test_a_run_with_the_same_model_and_data_loads_all_weights(tmp_path, capsys):
    report = start_from_first(capsys, only_train(), tmp_path)
    assert report.startswith(f"Warm start from {first()[1]} (best checkpoint): loaded embedding_1/embeddings, ")
    assert report.endswith("head/kernel, head/bias, which are all weights.")
    assert_loaded(tmp_path, ALL)


def test_only_matching_layers_are_loaded_into_a_deeper_model(tmp_path, capsys):
    report = start_from_first(capsys, only_train(), tmp_path, units=(4, 3))
    assert_loaded(tmp_path, ALL - {"head"} | {"head/bias"})
    loaded, skipped = report.split("; not loaded: ")
    assert "lstm_0/lstm_cell/kernel" in loaded and "lstm_1" not in loaded and "head/kernel" not in loaded
    assert "lstm_1/lstm_cell/kernel (not in that run)" in skipped
    assert "head/kernel (4 x 3 in that run, 3 x 3 in this one)" in skipped


@pytest.mark.parametrize("classes", datasets.some(["[a, b, c, d]", "[b, a, c]"], ["[b, a, c]"]))
def test_a_head_for_other_classes_is_not_loaded_even_if_its_shape_is_the_same(tmp_path, capsys, classes):
    report = start_from_first(capsys, make(tmp_path, classes=classes), tmp_path / "run")
    assert report.endswith("; not loaded: head/kernel (the classes differ), head/bias (the classes differ).")
    assert_loaded(tmp_path / "run", ALL - {"head"})


def test_an_embedding_for_another_vocabulary_is_not_loaded(tmp_path, capsys):
    path = make(tmp_path, words=("one", "two", "four"))
    report = start_from_first(capsys, path, tmp_path / "run", statistics="dataset")
    assert report.endswith("; not loaded: embedding_1/embeddings (the vocabulary of word differs).")
    assert_loaded(tmp_path / "run", ALL - {"embedding_1"})


def test_an_embedding_of_another_feature_and_the_layer_that_reads_it_are_not_loaded(tmp_path, capsys):
    report = start_from_first(capsys, make(tmp_path, steps=STEPS.replace("page", "leaf")), tmp_path / "run")
    skipped = report.split("; not loaded: ")[1]
    assert "embedding_2/embeddings (in that run for another feature than leaf)" in skipped
    assert "lstm_0/lstm_cell/kernel (the step features differ)" in skipped
    assert_loaded(tmp_path / "run", {"embedding_1", "head"})


def test_a_run_without_a_matching_weight_is_refused(tmp_path):
    path = make(tmp_path, steps=datasets.X, classes="[a, b, c, d]")
    with pytest.raises(
        UserError, match=f"^warm_start: {first()[1]} has no weight that fits this model: gru_0/.* head/"
    ):
        train(path, tmp_path / "run", change(CONFIG, cell="gru", units=(2,), warm_start=str(first()[1])))


def test_a_head_with_another_context_feature_is_not_loaded_even_if_its_shape_is_the_same(tmp_path, capsys):
    def make_with_context(name):
        records = [record | {name: 1.5} for record in datasets.random_records([3, 4, 5])]
        schema = datasets.schema_text().replace("label:", f"context: {{{name}: {{dtype: float32}}}}\nlabel:")
        return datasets.make(tmp_path / name, records, schema).path

    train(make_with_context("age"), tmp_path / "source", change(CONFIG, epochs=0))
    capsys.readouterr()
    train(make_with_context("income"), tmp_path / "run", change(CONFIG, epochs=0, warm_start=str(tmp_path / "source")))
    report = capsys.readouterr().err
    assert "; not loaded: head/kernel (the context features differ), head/bias (the context features differ)." in report


def test_a_run_cannot_start_from_itself(tmp_path, capsys):
    run = pathlib.Path(shutil.copytree(first()[1], tmp_path / "run"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    flags = ["train", first()[0], "--output", run, "--units", 4, "--epochs", 1, "--overwrite"]
    status, _, err = datasets.call(capsys, *flags, "--warm_start", f"{run}/../run/")
    assert (status, err[-1]) == (
        1,
        f"lengthwise train: warm_start is {run}/../run, the same run as --output. Choose another --output.",
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["nowhere", "dataset"])
def test_a_folder_that_is_not_a_run_is_reported_in_one_line(tmp_path, capsys, name):
    wrong = first()[1].parent / name
    flags = ["train", first()[0], "--output", tmp_path / "run", "--units", 4, "--epochs", 0]
    status, out, err = datasets.call(capsys, *flags, "--warm_start", wrong)
    assert (status, out, len(err)) == (1, "", 1)
    assert err[0].startswith(f"lengthwise train: {wrong}: not a run: it has no ")


@pytest.mark.proof
@pytest.mark.parametrize("is_compared", datasets.some([False, True], [False]))
def test_a_run_resumes_after_its_source_was_deleted(tmp_path, is_compared):
    source = pathlib.Path(shutil.copytree(first()[1], tmp_path / "source"))
    config = change(CONFIG, epochs=2, dropout=0.2, checkpoint_updates=1, warm_start=str(source))
    whole = train(first()[0], tmp_path / "whole", config) if is_compared else None
    with pytest.raises(Interrupted):
        train(first()[0], tmp_path / "cut", config, callbacks=[InterruptAt(1, 1)])
    shutil.rmtree(source)
    result = train(first()[0], tmp_path / "cut", config)
    assert result["epochs"] == 2
    if is_compared:
        assert result == whole
        assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")


def test_a_run_that_was_killed_before_its_first_checkpoint_still_loads_the_weights(tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("trainer.training.loop.probe_largest", interrupt)
        train(only_train(), tmp_path, change(CONFIG, warm_start=str(first()[1])))
    start_from_first(capsys, only_train(), tmp_path)
    assert_loaded(tmp_path, ALL)


def test_a_warm_start_has_the_validation_loss_of_its_source(tmp_path):
    best = min(line["validation"]["loss"] for line in lines_of(first()[1]) if "validation" in line)
    result = train(first()[0], tmp_path, change(CONFIG, epochs=0, warm_start=str(first()[1])))
    assert result["validation"]["loss"] == pytest.approx(best, rel=1e-6)
    assert open_dataset(first()[0]).has_labels("validation") and np.isfinite(best)


def test_a_wrong_source_leaves_no_output_folder(tmp_path):
    path = datasets.of_kind("class").path
    with pytest.raises(UserError, match="not a run"):
        train(path, tmp_path / "run", TrainConfig(epochs=0, units=(4,), warm_start=str(tmp_path / "nowhere")))
    assert not (tmp_path / "run").exists()
    assert train(path, tmp_path / "run", TrainConfig(epochs=0, units=(4,)))["epochs"] == 0
