"""A warm start takes of another run what means the same, says what it took, and happens once."""

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


def make(folder, *, words=("one", "two", "three"), steps=STEPS, classes="[a, b, c]"):
    """A dataset with a vocabulary and a category."""
    records = []
    for split in ("train", "validation"):
        for record in datasets.random_records([3, 4, 5, 6] * 4, split=split):
            length = len(record["x"])
            more = {"word": [words[n % len(words)] for n in range(length)], "page": [n % 5 for n in range(length)]}
            records.append(record | more | {name: more["page"] for name in ("leaf",)})
    schema = datasets.schema_text(steps=steps).replace("[a, b, c]", classes)
    return datasets.make(folder, records, schema).path


@functools.cache
def first():
    """(dataset, run) of a run that was trained."""
    folder = datasets.new_folder()
    path = make(folder)
    train(path, folder / "run", CONFIG)
    return path, folder / "run"


def begin(capsys, path, output, **values):
    """What a run that begins with the weights of the first says of it."""
    capsys.readouterr()
    train(path, output, change(CONFIG, epochs=0, warm_start=str(first()[1]), **values))
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warm start from ")]
    return told


def weights_of(run):
    """By path, the weights of a run's last checkpoint, or of the first run's best."""
    run = Run(str(run))
    manifest = run.manifest()
    model = build_model(manifest.record_schema, manifest.statistics, run.config(), vocabularies=run.vocabularies())
    restore_weights(run, model, None)
    return {weight.path: weight.numpy() for weight in model.weights}


def assert_taken(run, taken):
    """The weights whose paths begin so are those of the first run, and no other is."""
    theirs, ours = weights_of(first()[1]), weights_of(run)
    for path, value in ours.items():
        same = path in theirs and theirs[path].shape == value.shape and (theirs[path] == value).all()
        assert same == path.startswith(tuple(taken)), path


ALL = {"embedding_1", "embedding_2", "lstm_0", "head"}


def test_an_equal_run_gives_all_its_weights(tmp_path, capsys):
    told = begin(capsys, first()[0], tmp_path)
    assert told.startswith(f"Warm start from {first()[1]} (its best checkpoint): took embedding_1/embeddings, ")
    assert told.endswith("head/kernel, head/bias: all there is.")
    assert_taken(tmp_path, ALL)


def test_of_more_layers_those_are_taken_that_are_alike(tmp_path, capsys):
    told = begin(capsys, first()[0], tmp_path, units=(4, 3))
    assert_taken(tmp_path, ALL - {"head"} | {"head/bias"})
    taken, left = told.split("; began anew ")
    assert "lstm_0/lstm_cell/kernel" in taken and "lstm_1" not in taken and "head/kernel" not in taken
    assert "lstm_1/lstm_cell/kernel (not there)" in left
    assert "head/kernel (there 4 x 3, here 3 x 3)" in left


@pytest.mark.parametrize("classes", ["[a, b, c, d]", "[b, a, c]"])
def test_a_head_of_other_classes_begins_anew_though_its_shape_be_the_same(tmp_path, capsys, classes):
    told = begin(capsys, make(tmp_path, classes=classes), tmp_path / "run")
    assert told.endswith("; began anew head/kernel (the classes are others), head/bias (the classes are others).")
    assert_taken(tmp_path / "run", ALL - {"head"})


def test_an_embedding_of_other_words_begins_anew(tmp_path, capsys):
    told = begin(capsys, make(tmp_path, words=("one", "two", "four")), tmp_path / "run")
    assert told.endswith("; began anew embedding_1/embeddings (the vocabulary of word is another).")
    assert_taken(tmp_path / "run", ALL - {"embedding_1"})


def test_an_embedding_of_another_feature_begins_anew_and_what_reads_it_too(tmp_path, capsys):
    told = begin(capsys, make(tmp_path, steps=STEPS.replace("page", "leaf")), tmp_path / "run")
    assert "embedding_2/embeddings (there of another feature than leaf)" in told.split("; began anew ")[1]
    assert "lstm_0/lstm_cell/kernel (there of other features)" in told.split("; began anew ")[1]
    assert_taken(tmp_path / "run", {"embedding_1", "head"})


def test_a_run_of_which_nothing_fits_is_refused(tmp_path):
    path = make(tmp_path, steps=datasets.X, classes="[a, b, c, d]")
    with pytest.raises(
        UserError, match=f"^warm_start: {first()[1]} has no weight that fits this model: gru_0/.* head/"
    ):
        train(path, tmp_path / "run", change(CONFIG, cell="gru", units=(2,), warm_start=str(first()[1])))


def test_a_head_that_reads_another_context_begins_anew_though_its_shape_be_the_same(tmp_path, capsys):
    def of_context(name):
        records = [record | {name: 1.5} for record in datasets.random_records([3, 4, 5])]
        schema = datasets.schema_text().replace("label:", f"context: {{{name}: {{dtype: float32}}}}\nlabel:")
        return datasets.make(tmp_path / name, records, schema).path

    train(of_context("age"), tmp_path / "theirs", change(CONFIG, epochs=0))
    capsys.readouterr()
    train(of_context("income"), tmp_path / "run", change(CONFIG, epochs=0, warm_start=str(tmp_path / "theirs")))
    told = capsys.readouterr().err
    assert "; began anew head/kernel (there of other context), head/bias (there of other context)." in told


def test_a_run_is_no_warm_start_of_itself(tmp_path, capsys):
    run = pathlib.Path(shutil.copytree(first()[1], tmp_path / "run"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    flags = ["train", first()[0], "--output", run, "--units", 4, "--epochs", 1, "--overwrite"]
    status, _, err = datasets.call(capsys, *flags, "--warm_start", f"{run}/../run/")
    assert (status, err[-1]) == (
        1,
        f"lengthwise train: warm_start is {run}/../run, the run that is to begin. Choose another --output.",
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["nowhere", "dataset"])
def test_a_run_that_is_not_there_is_one_line(tmp_path, capsys, name):
    wrong = first()[1].parent / name
    flags = ["train", first()[0], "--output", tmp_path / "run", "--units", 4, "--epochs", 0]
    status, out, err = datasets.call(capsys, *flags, "--warm_start", wrong)
    assert (status, out, len(err)) == (1, "", 1)
    assert err[0].startswith(f"lengthwise train: {wrong}: not a run: it has no ")


def test_a_run_goes_on_without_its_warm_start(tmp_path):
    """Which may be gone by then."""
    theirs = pathlib.Path(shutil.copytree(first()[1], tmp_path / "theirs"))
    config = change(CONFIG, epochs=2, dropout=0.2, checkpoint_updates=1, warm_start=str(theirs))
    whole = train(first()[0], tmp_path / "whole", config)
    with pytest.raises(Interrupted):
        train(first()[0], tmp_path / "cut", config, callbacks=[InterruptAt(1, 1)])
    shutil.rmtree(theirs)
    assert train(first()[0], tmp_path / "cut", config) == whole
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")


def test_a_run_that_is_killed_before_its_first_checkpoint_still_begins_with_the_weights(tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("trainer.training.loop.probe_largest", interrupt)
        train(first()[0], tmp_path, change(CONFIG, warm_start=str(first()[1])))
    begin(capsys, first()[0], tmp_path)
    assert_taken(tmp_path, ALL)


def test_a_warm_start_is_as_good_as_the_run_that_it_is_from(tmp_path):
    """Its validation loss at once is the best of that run."""
    best = min(line["validation"]["loss"] for line in lines_of(first()[1]) if "validation" in line)
    result = train(first()[0], tmp_path, change(CONFIG, epochs=0, warm_start=str(first()[1])))
    assert result["validation"]["loss"] == pytest.approx(best, rel=1e-6)
    assert open_dataset(first()[0]).has_labels("validation") and np.isfinite(best)


def test_a_mistyped_run_leaves_the_folder_free(tmp_path):
    path = datasets.of_kind("class").path
    with pytest.raises(UserError, match="not a run"):
        train(path, tmp_path / "run", TrainConfig(epochs=0, units=(4,), warm_start=str(tmp_path / "nowhere")))
    assert not (tmp_path / "run").exists()
    assert train(path, tmp_path / "run", TrainConfig(epochs=0, units=(4,)))["epochs"] == 0
