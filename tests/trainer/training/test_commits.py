"""A trainer reads one commit, whatever others publish meanwhile, and a run resumes on its commit."""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import datasets
import numpy as np
import pytest
from interruptions import InterruptAt, Interrupted, change, lines_of
from paths import ROOT
from plain_prepare import prepare

from pipeline.beam.prepare import PrepareOptions
from pipeline.errors import UserError
from pipeline.inspection.verify import verify
from trainer.batching.plan_epoch import plan_epoch
from trainer.config import TrainConfig
from trainer.data.dataset import open_dataset
from trainer.evaluation.evaluate import evaluate
from trainer.training.train import train

SCHEMA = """\
id: id
steps: {x: {dtype: float32, shape: [2]}, word: {dtype: string, vocabulary: 6}}
label: {name: y, kind: class, classes: [a, b]}
splits: {train: 0.7, validation: 0.3}
"""
CONFIG = TrainConfig(units=[4], epochs=3, batch_size=8, dropout=0.1)


def write(path, first, last, shift=0.0):
    numbers = np.random.default_rng(first)
    with open(path, "w") as file:
        for n in range(first, last):
            length = n % 6 + 1
            x = (numbers.normal(size=(length, 2)) + shift).round(3).tolist()
            record = {"id": f"r{n}", "x": x, "word": [f"w{n % 9}"] * length, "y": "ab"[n % 2]}
            file.write(json.dumps(record) + "\n")


@functools.cache
def undisturbed():
    """Returns a folder with a dataset of one commit, raw files and a run on it, and the result of the run."""
    folder = datasets.new_folder()
    with contextlib.chdir(folder):
        pathlib.Path("schema.yaml").write_text(SCHEMA)
        write("one.jsonl", 0, 90)
        write("two.jsonl", 90, 150, shift=3.0)
        job("one.jsonl", append=True)
        return folder, train("dataset", "undisturbed", CONFIG)


@pytest.fixture
def place(tmp_path, monkeypatch):
    shutil.copytree(undisturbed()[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(raw, **options):
    return prepare(PrepareOptions(raw=(raw,), schema="schema.yaml", output="dataset", num_shards=2, **options))


class Publish(InterruptAt):
    """Replaces or extends the dataset at the begin of each epoch."""

    def __init__(self, **options):
        super().__init__(epoch=-1)
        self.options = options

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        job("two.jsonl", **self.options)


@pytest.mark.proof
def test_a_dataset_that_is_replaced_meanwhile_does_not_disturb_a_trainer(place):
    _, expected = undisturbed()
    assert expected["commit"] == 1
    shards = [shard.path for split in open_dataset("dataset").manifest.splits.values() for shard in split.shards]
    found = train("dataset", "disturbed", CONFIG, callbacks=[Publish(overwrite=True)])
    assert found["weights_sha256"] == expected["weights_sha256"]
    assert lines_of("disturbed") == lines_of("undisturbed")
    assert open_dataset("dataset").manifest.commit == 4
    assert all(pathlib.Path("dataset", path).exists() for path in shards)
    assert verify("dataset").faults == []
    # The old commit can still be opened, and trained on.
    assert train("dataset", "older", change(CONFIG, epochs=0), commit=1)["commit"] == 1
    measured = evaluate("disturbed", open_dataset("dataset", commit=1), split="validation", checkpoint="last")
    assert measured["loss"] == pytest.approx(expected["validation"]["loss"], rel=1e-6)
    assert measured["dataset_changed"] is False
    assert evaluate("disturbed", "dataset", split="validation")["dataset_changed"] is True


@pytest.mark.proof
def test_a_run_on_an_older_commit_is_that_of_its_records(place):
    job("two.jsonl", overwrite=True)
    found = train("dataset", "again", CONFIG, commit=1)
    assert (found["commit"], found["weights_sha256"]) == (1, undisturbed()[1]["weights_sha256"])


@pytest.mark.proof
def test_a_run_resumes_on_its_commit(place):
    with pytest.raises(Interrupted):
        train("dataset", "run", CONFIG, callbacks=[InterruptAt(0)])
    job("two.jsonl", append=True)
    assert open_dataset("dataset").manifest.commit == 2
    found = train("dataset", "run", CONFIG)
    assert (found["commit"], found["weights_sha256"]) == (1, undisturbed()[1]["weights_sha256"])
    # A new run starts on the newest commit, and a finished one stays what it is.
    assert train("dataset", "new", change(CONFIG, epochs=0))["commit"] == 2
    assert train("dataset", "run", CONFIG) == found
    with pytest.raises(UserError, match="was started on a dataset with fingerprint"):
        train("dataset", "run", CONFIG, commit=2)


@pytest.mark.proof
def test_a_commit_whose_files_were_removed_is_named(place, capsys):
    job("two.jsonl", overwrite=True)
    (generation,) = open_dataset("dataset", commit=1).manifest.generations
    for path in sorted(pathlib.Path("dataset", "data", generation).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    with pytest.raises(
        UserError, match=f"commit 1 cannot be opened: its generation {generation} is not there any more"
    ):
        open_dataset("dataset", commit=1)
    for command in (["plan", "dataset"], ["inspect", "dataset"], ["train", "dataset", "--output", "run"]):
        status, _, err = datasets.call(capsys, *command, "--commit", "1")
        assert (status, "its generation" in err[-1]) == (1, True), err
        status, _, err = datasets.call(capsys, *command, "--commit", "7")
        assert (status, "has no commit 7; expected 1 to 2, which is the newest one" in err[-1]) == (1, True), err
    status, out, _ = datasets.call(capsys, "inspect", "dataset", "--commits", "--json")
    rows = json.loads(out)
    assert [(row["commit"], row["operation"], row["available"]) for row in rows] == [
        (1, "create", False),
        (2, "replace", True),
    ]
    assert [row["records"] for row in rows] == [None, 60]


def test_the_plan_of_an_older_commit_is_that_of_its_records(place):
    def plan(commit):
        return plan_epoch(open_dataset("dataset", commit=commit), "train", batching="window", batch_size=8).to_dict()

    before = plan(None)
    job("two.jsonl", append=True)
    assert plan(1) == before
    assert plan(2) == plan(None) != before


@pytest.mark.proof
def test_a_trainer_in_a_process_of_its_own_is_not_disturbed_by_ten_overwrites(place):
    write("many.jsonl", 0, 5000)
    job("many.jsonl", overwrite=True)
    listed = open_dataset("dataset").manifest
    shards = {shard.path: shard.sha256 for split in listed.splits.values() for shard in split.shards}
    expected = train("dataset", "whole", CONFIG)
    flags = ["--units", "4", "--epochs", "3", "--batch_size", "8", "--dropout", "0.1", "--output", "disturbed"]
    command = [sys.executable, "-m", "lengthwise", "train", "dataset", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as trainer:
        while "epoch 1/3" not in (line := trainer.stderr.readline()):
            assert line, "the trainer ended before its first epoch"
        running = 0
        for number in range(10):
            job("two.jsonl" if number % 2 else "one.jsonl", overwrite=True)
            running += trainer.poll() is None
        lines = trainer.communicate()[1]
    assert trainer.returncode == 0, lines
    print(f"\n{running} of ten overwrites ended before the run did")
    assert running > 0
    found = json.loads(pathlib.Path("disturbed", "result.json").read_text())
    assert (found["commit"], found["weights_sha256"]) == (2, expected["weights_sha256"])
    assert open_dataset("dataset").manifest.commit == 12
    # The old shards are there as they were.
    assert {path: hashlib.sha256(pathlib.Path("dataset", path).read_bytes()).hexdigest() for path in shards} == shards
    assert verify("dataset", commit=2).faults == verify("dataset").faults == []
