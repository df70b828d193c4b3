"""A run with `newest` trains on the newest windows of event time, of each commit anew if it follows the dataset."""

import contextlib
import functools
import json
import pathlib
import shutil

import datasets
import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from interruptions import InterruptAt, Interrupted, lines_of
from plain_prepare import prepare

from pipeline.beam.prepare import PrepareOptions
from pipeline.errors import UserError
from pipeline.format.models import Split
from pipeline.schema.windows import EventWindows
from pipeline.writing.compact import compact
from trainer.config import TrainConfig
from trainer.data.dataset import Dataset, open_dataset
from trainer.devices.replicas import find_replicas
from trainer.devices.tensorflow_setup import start_tensorflow
from trainer.evaluation.evaluate import evaluate
from trainer.model.build import build_model
from trainer.runs.checkpoints import weights_sha256
from trainer.runs.run import Run
from trainer.runs.state import State
from trainer.training.deal import BatchDealer
from trainer.training.epoch_source import plan_next_epoch
from trainer.training.train import train
from trainer.training.update import Update, make_optimizer

SCHEMA = datasets.schema_text("step_class")
HOUR = 3600
WINDOWS = EventWindows(field="at", seconds=HOUR)
CONFIG = TrainConfig(
    units=[4], epochs=2, batch_size=8, dropout=0.1, follow=True, checkpoint_updates=2, newest="2h", strategy="one"
)


@pytest.fixture(scope="module", autouse=True)
def deterministic():
    start_tensorflow()


def write(name, first, hours):
    """Writes records of these hours in any order, and returns them."""
    random = np.random.default_rng(first)
    records = datasets.random_records(random.integers(1, 7, 130).tolist(), kind="step_class", seed=first)
    for n, record in enumerate(records):
        at = int(random.choice(hours)) * HOUR + int(random.integers(HOUR))
        split = "validation" if n % 5 == 0 else "train"
        record |= {"id": f"r{first + n}", "at": at, "split": split}
    pathlib.Path(name).write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return records


def job(*raw):
    options = {"raw": raw, "schema": "schema.yaml", "output": "dataset", "num_shards": 2, "append": True}
    return prepare(PrepareOptions(**options, windows=WINDOWS))


class Append(keras.callbacks.Callback):
    """Appends two.jsonl to the dataset in the middle of the first epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch) == (0, 3):
            job("two.jsonl")


@functools.cache
def uninterrupted():
    """Returns a folder with a dataset and a run of two epochs, the raw records of its two commits, and its result."""
    folder = datasets.new_folder()
    with contextlib.chdir(folder):
        pathlib.Path("schema.yaml").write_text(SCHEMA)
        # Some records of the second commit are late.
        raw = write("one.jsonl", 0, [0, 1, 2, 3]), write("two.jsonl", 200, [1, 3, 4, 5])
        write("three.jsonl", 400, [9])
        job("one.jsonl")
        shutil.copytree("dataset", "first")
        result = train("dataset", "run", CONFIG, callbacks=[Append()])
    return folder, (raw[0], raw[0] + raw[1]), result


@pytest.fixture
def place(tmp_path, monkeypatch):
    shutil.copytree(uninterrupted()[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def newest_by_hand(records, hours=2):
    """Returns the train records whose window overlaps the newest hours, the slow way."""
    newest = max(record["at"] for record in records)
    return [
        record
        for record in records
        if record["split"] == "train" and record["at"] // HOUR * HOUR + HOUR > newest - hours * HOUR
    ]


def restrict(dataset, records):
    """Returns a dataset whose train split is said to have only some raw records, which fill some of its shards."""
    windows = {record["at"] // HOUR * HOUR for record in records}
    shards = tuple(shard for shard in dataset.split("train").shards if shard.window in windows)
    lengths = [len(record["x"]) for record in records]
    split = Split(
        records=len(records),
        steps=sum(lengths),
        labels=sum(label is not None for record in records for label in record["y"]),
        truncated=0,
        shards=shards,
        length_counts={length: lengths.count(length) for length in sorted(set(lengths))},
        label_counts={},
    )
    splits = dataset.manifest.splits | {"train": split}
    return Dataset(dataset.path, dataset.manifest.model_copy(update={"splits": splits}))


def train_by_hand(commits, config=CONFIG, *, run="run"):
    """Trains an epoch on the newest records of each commit with a loop of its own; returns the digest of the weights.

    Args:
        commits: The number of the commit, and the raw records of the dataset, of each epoch.
    """
    run = Run(run)
    own = {"vocabularies": run.vocabularies()}
    keras.utils.set_random_seed(config.seed)
    model = build_model(run.manifest().record_schema, run.statistics(), config, **own)
    optimizer = make_optimizer(config)
    optimizer.build(model.trainable_variables)
    for epoch, (number, records) in enumerate(commits):
        dataset = restrict(open_dataset("dataset", commit=number), newest_by_hand(records))
        plan = plan_next_epoch(dataset, config, State(epoch=epoch))
        dealer = BatchDealer(dataset, find_replicas("one"), seed=config.seed, **own)
        options = {"element_spec": dealer.element_spec, "by_epoch": True, "replicas": find_replicas("one")}
        update = Update(model, optimizer, kind="step_class", **options)
        scale = tf.constant(plan.num_batches / dataset.split("train").labels, tf.float32)
        for batch in dealer.batches(plan, epoch=epoch + 1):
            update(batch.parts, scale)
    return weights_sha256(model)


def test_each_epoch_reads_the_newest_windows_of_its_commit(place):
    _, records, result = uninterrupted()
    lines = [line for line in lines_of("run") if "train" in line]
    expected = [newest_by_hand(each) for each in records]
    assert [line["train"]["records"] for line in lines] == [len(each) for each in expected]
    assert len(expected[0]) < len(records[0]) / 1.5
    assert result["windows"] == {
        "start": "1970-01-01T03:00:00Z",
        "end": "1970-01-01T06:00:00Z",
        "records": len(expected[1]),
    }
    assert yaml.safe_load(pathlib.Path("run/config.yaml").read_text())["newest"] == 7200
    # The run has the statistics and the validation split of the whole first commit.
    first = open_dataset("dataset", commit=1)
    assert Run("run").manifest() == first.manifest


@pytest.mark.proof
def test_the_weights_are_those_of_a_loop_over_the_newest_records(place):
    _, records, result = uninterrupted()
    first = open_dataset("dataset", commit=1)
    measured = evaluate("run", first, split="validation", checkpoint="last")
    assert measured["loss"] == pytest.approx(result["validation"]["loss"], rel=1e-6)
    assert result["weights_sha256"] == train_by_hand([(1, records[0]), (2, records[1])])


@pytest.mark.proof
def test_a_run_resumes_within_an_epoch_to_the_same_bits(place):
    shutil.rmtree("dataset")
    shutil.move("first", "dataset")
    with pytest.raises(Interrupted):
        train("dataset", "again", CONFIG, callbacks=[Append(), InterruptAt(1, 4)])
    job("three.jsonl")
    compact("dataset", num_shards=1)
    result = train("dataset", "again", CONFIG)
    # Each copy of the dataset has generations of its own, but the same records in the same order.
    left_out = ("fingerprint", "inputs_sha256")
    same = {name: value for name, value in uninterrupted()[2].items() if name not in left_out}
    assert same.items() <= result.items()


@pytest.mark.proof
def test_a_run_that_does_not_follow_reads_the_newest_windows_in_every_epoch(place, capsys):
    _, (_, records), _ = uninterrupted()
    config = TrainConfig(**(CONFIG.model_dump() | {"follow": False}))
    result = train("dataset", "plain", config)
    assert result["weights_sha256"] == train_by_hand([(2, records), (2, records)], config, run="plain")
    assert result["windows"]["records"] == len(newest_by_hand(records))
    total = sum(record["split"] == "train" for record in records)
    assert (
        "train: reads the windows from 1970-01-01T03:00:00Z to 1970-01-01T06:00:00Z: "
        f"{len(newest_by_hand(records))} of {total} records of the split train\n"
    ) in capsys.readouterr().err
    with pytest.raises(UserError, match=r"plain: was started with newest 7200.0, now 3600.0\. Use the same values"):
        train("dataset", "plain", TrainConfig(**(config.model_dump() | {"newest": "1h"})))


def test_a_dataset_without_windows_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no windows of event time, so that none can be selected"):
        train(datasets.of_kind("class").path, tmp_path / "run", TrainConfig(newest="7d"))
    assert not (tmp_path / "run").exists()
