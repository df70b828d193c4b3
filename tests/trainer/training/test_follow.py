"""A run with `follow` reads the newest commit in each epoch, and resumes on the commit of its checkpoint."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import threading
import time
import types
from unittest import mock

import cluster
import datasets
import kafka
import keras
import numpy as np
import pytest
import tensorflow as tf
from interruptions import InterruptAt, Interrupted, change, lines_of
from paths import ROOT
from plain_prepare import prepare

from pipeline.beam.prepare import PrepareOptions
from pipeline.errors import UserError
from pipeline.inspection.verify import verify
from pipeline.schema.schema import Schema
from pipeline.writing.compact import compact
from trainer.config import TrainConfig
from trainer.data.dataset import open_dataset
from trainer.data.newer_commits import Newer
from trainer.devices.replicas import find_replicas
from trainer.devices.signals import Preempted
from trainer.devices.tensorflow_setup import start_tensorflow
from trainer.evaluation.evaluate import evaluate
from trainer.model.build import build_model
from trainer.runs import contents
from trainer.runs.checkpoints import read_state, weights_sha256
from trainer.runs.run import Run
from trainer.runs.state import State
from trainer.training import followed
from trainer.training.deal import BatchDealer
from trainer.training.epoch_source import plan_next_epoch
from trainer.training.memory_probe import probe_largest
from trainer.training.train import train
from trainer.training.update import Update, make_optimizer

SCHEMA = """\
id: id
steps: {x: {dtype: float32, shape: [2]}, word: {dtype: string, vocabulary: 6}}
label: {name: y, kind: class, classes: [a, b]}
splits: {train: 0.7, validation: 0.3}
"""
CONFIG = TrainConfig(units=[4], epochs=2, batch_size=8, dropout=0.1, follow=True, checkpoint_updates=2)


@pytest.fixture(scope="module", autouse=True)
def deterministic():
    start_tensorflow()


def texts(first, last, *, longest=6):
    numbers = np.random.default_rng(first)
    for n in range(first, last):
        length = n % longest + 1
        x = (numbers.normal(size=(length, 2)) + first / 30).round(3).tolist()
        yield json.dumps({"id": f"r{n}", "x": x, "word": [f"w{n % 9}"] * length, "y": "ab"[n % 2]})


def write(path, first, last, *, longest=6):
    with open(path, "w") as file:
        file.writelines(f"{text}\n" for text in texts(first, last, longest=longest))


def job(*raw, **options):
    values = {"raw": raw, "schema": "schema.yaml", "output": "dataset", "num_shards": 2, "append": True} | options
    return prepare(PrepareOptions(**values))


class AppendIn(keras.callbacks.Callback):
    """Appends two.jsonl to the dataset in the middle of the first epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch
        self.steps = self.params["steps"]

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch) == (0, 3):
            job("two.jsonl")


@functools.cache
def uninterrupted():
    """Returns a folder with a dataset of two commits and a run that read one of them in each epoch, and its result."""
    folder = datasets.new_folder()
    with contextlib.chdir(folder):
        pathlib.Path("schema.yaml").write_text(SCHEMA)
        write("one.jsonl", 0, 90)
        write("two.jsonl", 90, 150, longest=9)
        write("three.jsonl", 150, 180)
        job("one.jsonl")
        shutil.copytree("dataset", "first")
        callback = AppendIn()
        with mock.patch("trainer.training.loop.probe_largest", wraps=probe_largest) as probe:
            result = train("dataset", "run", CONFIG, callbacks=[callback])
        # A batch of the second commit is larger, so it is computed before the epoch.
        assert [call.args[1].largest_batch for call in probe.call_args_list] == [(8, 6), (8, 8)]
        assert callback.steps == plan_next_epoch(open_dataset("dataset"), CONFIG, State(epoch=1)).num_batches
    return folder, result


@pytest.fixture
def place(tmp_path, monkeypatch):
    shutil.copytree(uninterrupted()[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def epoch_lines(run="run"):
    return [line for line in lines_of(run) if "train" in line]


def train_by_hand(config=CONFIG, *, run="run"):
    """Trains an epoch on each commit that a run names, with a loop of its own; returns the SHA-256 of the weights."""
    run = Run(run)
    own = {"vocabularies": run.vocabularies()}
    keras.utils.set_random_seed(config.seed)
    model = build_model(run.manifest().record_schema, run.statistics(), config, **own)
    optimizer = make_optimizer(config)
    optimizer.build(model.trainable_variables)
    for epoch, line in enumerate(epoch_lines(run.path)):
        dataset = open_dataset("dataset", commit=line["commit"])
        plan = plan_next_epoch(dataset, config, State(epoch=epoch))
        dealer = BatchDealer(dataset, find_replicas("one"), seed=config.seed, **own)
        update = Update(
            model,
            optimizer,
            kind="class",
            element_spec=dealer.element_spec,
            by_epoch=True,
            replicas=find_replicas("one"),
        )
        scale = tf.constant(plan.num_batches / dataset.split("train").records, tf.float32)
        for batch in dealer.batches(plan, epoch=epoch + 1):
            update(batch.parts, scale)
    return weights_sha256(model)


def test_each_epoch_reads_the_commit_that_was_the_newest_at_its_start(place):
    _, result = uninterrupted()
    commits = [open_dataset("dataset", commit=number) for number in (1, 2)]
    fingerprints = [dataset.manifest.fingerprint for dataset in commits]
    lines = epoch_lines()
    assert [(line["commit"], line["fingerprint"]) for line in lines] == [*zip((1, 2), fingerprints, strict=True)]
    records = [dataset.split("train").records for dataset in commits]
    assert [line["train"]["records"] for line in lines] == records and records[0] < records[1]
    updates = [line for line in lines_of("run") if "update" in line]
    assert [line["commit"] for line in updates] == [line["epoch"] for line in updates]
    assert (result["commit"], result["fingerprint"], result["first_commit"]) == (2, fingerprints[1], 1)
    assert result["weights_sha256"] == train_by_hand()
    # Later records change neither the statistics nor the validation split of the run.
    assert Run("run").statistics() != {name: s for name, s in commits[1].manifest.statistics.items()}
    assert set(Run("run").vocabularies()["word"]) == set(commits[0].vocabularies()["word"])
    measured = evaluate("run", commits[0], split="validation", checkpoint="last")
    assert measured["loss"] == pytest.approx(result["validation"]["loss"], rel=1e-6)
    assert [evaluate("run", each, split="validation")["dataset_changed"] for each in commits] == [True, False]


@pytest.mark.proof
def test_a_run_resumes_within_an_epoch_to_the_same_bits_after_an_append_and_a_compaction(place):
    shutil.rmtree("dataset")
    shutil.move("first", "dataset")
    with pytest.raises(Interrupted):
        train("dataset", "again", CONFIG, callbacks=[AppendIn(), InterruptAt(1, 6)])
    state = read_state(Run("again"))
    assert (state.pinned.number, state.epoch) == (2, 1) and state.batch > 0
    job("three.jsonl")
    assert compact("dataset", num_shards=1).manifest.commit == 4
    result = train("dataset", "again", CONFIG)
    same = {name: value for name, value in uninterrupted()[1].items() if name not in ("fingerprint", "inputs_sha256")}
    # Each copy of the dataset has generations of its own, but the same records in the same order.
    assert same.items() <= result.items()
    assert [line for line in lines_of("again") if "update" in line] == [
        line for line in lines_of("run") if "update" in line
    ]
    # Later epochs read the compacted dataset.
    assert train("dataset", "again", change(CONFIG, epochs=3))["commit"] == 4
    assert epoch_lines("again")[-1]["train"]["records"] == open_dataset("dataset").split("train").records


@pytest.mark.proof
def test_a_run_without_epochs_waits_for_commits_and_ends_when_it_is_idle(place, capsys, monkeypatch):
    open_ended = change(CONFIG, epochs=None, idle=0)
    assert train("dataset", "run", open_ended)["epochs"] == 2
    expected = "train: dataset has had no new records for 0 s (idle), so the run ends; its newest commit is 2\n"
    assert expected in capsys.readouterr().err
    compact("dataset", num_shards=1)
    assert train("dataset", "run", open_ended)["epochs"] == 2

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 1:
            job("three.jsonl")
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    waits = []
    monkeypatch.setattr(followed, "time", types.SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    with pytest.raises(Preempted, match="saved after update"):
        train("dataset", "run", change(open_ended, idle=None))
    assert len(waits) == 2
    result = train("dataset", "run", open_ended)
    assert [line["commit"] for line in epoch_lines()] == [1, 2, 4]
    assert (result["epochs"], result["commit"]) == (3, 4)


def test_a_run_waits_for_the_first_commit_of_a_dataset(place, capsys, monkeypatch):
    with pytest.raises(UserError, match=r"^other: there is no dataset, and none came for 0 s \(idle\)\."):
        train("other", "new", change(CONFIG, idle=0))
    assert not os.path.exists("new")

    def sleep(seconds):
        os.rename("dataset", "other")

    monkeypatch.setattr(followed, "time", types.SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    assert train("other", "new", change(CONFIG, epochs=1))["commit"] == 2
    assert "train: waiting for the first commit of other, which is no dataset yet\n" in capsys.readouterr().err


def test_a_dataset_that_was_replaced_is_refused_and_the_run_can_be_finished(place, capsys):
    job("two.jsonl", append=False, overwrite=True)
    more = change(CONFIG, epochs=3)
    expected = (
        r"dataset: commit 3 of \S+ \(replace\) replaced the dataset that this run has followed up to commit 2\. .*"
    )
    with pytest.raises(UserError, match=expected + r"--epochs 2 finishes run as it is\."):
        train("dataset", "run", more)
    assert train("dataset", "run", CONFIG)["weights_sha256"] == uninterrupted()[1]["weights_sha256"]
    shutil.rmtree("dataset")
    job("three.jsonl")
    with pytest.raises(UserError, match="is not the dataset that this run has followed: it has no commit 2 with"):
        train("dataset", "run", more)


@pytest.mark.proof
def test_an_epoch_whose_commit_was_removed_starts_again(place, capsys):
    shutil.rmtree("dataset")
    shutil.move("first", "dataset")
    with pytest.raises(Interrupted):
        train("dataset", "again", change(CONFIG, epochs=1), callbacks=[InterruptAt(0, 6)])
    job("two.jsonl")
    compact("dataset", num_shards=1, retain=0)
    capsys.readouterr()
    result = train("dataset", "again", change(CONFIG, epochs=1))
    assert "train: epoch 1 starts again on the newest commit, after 6 updates that stay" in capsys.readouterr().err
    (line,) = epoch_lines("again")
    assert (line["commit"], result["commit"], result["first_commit"]) == (3, 3, 1)
    assert line["train"]["records"] == open_dataset("dataset").split("train").records


@pytest.mark.proof
def test_an_epoch_whose_files_are_removed_says_so(place):
    class Compact(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if open_dataset("dataset").manifest.commit == 1:
                job("two.jsonl")
                compact("dataset", num_shards=1, retain=0)

    shutil.rmtree("dataset")
    shutil.move("first", "dataset")
    with pytest.raises(UserError, match="dataset: the files of commit 1 were removed while an epoch read them. Let `"):
        train("dataset", "again", change(CONFIG, epochs=1), callbacks=[Compact()])
    assert train("dataset", "again", change(CONFIG, epochs=1))["commit"] == 3


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        ("splits:", "max_length: 6\nsplits:", None),
        ("[a, b]", "[a, b, c]", r'its schema has label.classes \["a", "b", "c"\], but run was trained on \["a", "b"\]'),
        ("shape: [2]", "shape: [2], missing: fill", "its schema has steps.x .*, but run was trained on"),
    ],
)
def test_a_schema_that_accepts_more_is_refused_unless_the_features_stay(place, monkeypatch, before, after, refused):
    """`prepare --append --replay` may change the schema of a dataset."""
    opened = open_dataset("dataset")
    schema = Schema.parse(SCHEMA.replace(before, after), origin="schema.yaml")
    changed = opened.manifest.model_copy(update={"commit": 3, "record_schema": schema})
    newer = Newer(dataclasses.replace(opened, manifest=changed), has_other_records=True)
    monkeypatch.setattr(followed, "find_newer", lambda path, pinned: newer)
    dataset = followed.FollowedDataset("dataset", Run("run"), CONFIG, find_replicas("one"), print)
    if refused is None:
        assert dataset.start(State()) is newer.dataset
    else:
        with pytest.raises(UserError, match=refused):
            dataset.start(State())


def test_a_worker_tries_again_if_a_shared_file_system_shows_a_commit_later_than_to_the_chief(place, monkeypatch):
    answers = [UserError("not there yet"), UserError("not there yet"), open_dataset("dataset")]
    waits = []

    def open_later(path, *, commit):
        answer = answers.pop(0)
        if isinstance(answer, UserError):
            raise answer
        return answer

    clock = types.SimpleNamespace(sleep=waits.append, monotonic=time.monotonic)
    monkeypatch.setattr(followed, "time", clock)
    monkeypatch.setattr(followed, "open_dataset", open_later)
    worker = types.SimpleNamespace(is_chief=False, from_chief=lambda function: [2, True, False])
    dataset = followed.FollowedDataset("dataset", Run("run"), CONFIG, worker, print)
    assert (dataset.start(State()).manifest.commit, len(waits)) == (2, 2)
    answers[:] = [UserError("not there yet")]
    worker = types.SimpleNamespace(is_chief=True, from_chief=lambda function: [2, True, False])
    with pytest.raises(UserError, match="not there yet"):
        followed.FollowedDataset("dataset", Run("run"), CONFIG, worker, print).start(State())


def test_a_commit_is_not_chosen_by_hand(place):
    with pytest.raises(UserError, match="commit is 1, but a run with follow reads the newest commit"):
        train("dataset", "other", CONFIG, commit=1)


def test_a_run_with_a_copy_of_its_validation_split_is_no_foreign_folder(place):
    contents.refuse_foreign_files("run")
    names = [path.name for path in pathlib.Path("run").iterdir()]
    assert set(contents.names_to_clear(names)) == set(names)
    (split,) = pathlib.Path("run", "validation", "data").iterdir()
    (split / "other.tfrecord").write_text("")
    with pytest.raises(UserError, match="holds files that no run writes: validation/data/.*/other.tfrecord"):
        contents.refuse_foreign_files("run")


def start(*arguments):
    return cluster.Process([sys.executable, ROOT / "lengthwise.py", *arguments])


@pytest.mark.proof
@pytest.mark.parametrize("way", ["window", "bucket"])
def test_a_run_that_follows_a_stream_and_is_killed_trains_as_one_without_a_kill(tmp_path, monkeypatch, way):
    """Records arrive until the run ends. The run without a kill is a loop over the commits that its epochs read."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("schema.yaml").write_text(SCHEMA)
    pathlib.Path("raw").mkdir()
    write("raw/0.jsonl", 0, 200)
    flags = ["--schema", "schema.yaml", "--output", "dataset", "--streaming", "--commit_interval", "1s"]
    stream = start("prepare", "raw", *flags)
    chance, number, kills, updates = np.random.default_rng(4), 200, 0, []
    config = change(CONFIG, epochs=8, batching=way)
    flags = ["--units", 4, "--epochs", 8, "--batch_size", 8, "--dropout", 0.1, "--checkpoint_updates", 2, "--follow"]
    command = ["train", "dataset", "--output", "run", *flags, "--batching", way]
    try:
        cluster.wait_until(pathlib.Path("dataset", "manifest.json").exists)
        trainer = start(*command)
        while trainer.is_running():
            time.sleep(0.3)
            write(f"raw/{number}.jsonl", number, number + 10)
            number += 10
            if kills < 3 and last_update() > (updates[-1] if updates else 0) + chance.integers(10, 40):
                trainer.end()
                kills += 1
                updates.append(last_update())
                compact("dataset", num_shards=1)
                trainer = start(*command)
    finally:
        trainer.end()
        stream.send(signal.SIGTERM)
        ended = stream.wait()
    assert (trainer.wait().status, ended.status) == (0, 0), (trainer.err, ended.err)
    result = json.loads(pathlib.Path("run", "result.json").read_text())
    commits = [line["commit"] for line in epoch_lines()]
    print(f"\nkills after updates {updates}, epochs on commits {commits}, {number} records")
    assert kills == 3 and len(set(commits)) > 2 and commits == sorted(commits)
    assert [line["update"] for line in lines_of("run") if "update" in line] == list(range(1, result["updates"] + 1))
    assert result["weights_sha256"] == train_by_hand(config)


class Arrivals(threading.Thread):
    """Lets 100,000 records arrive: lines of a file that is rotated, or messages of four partitions.

    Attributes:
        quota: Number of records that may have arrived.
    """

    records, part, seconds = 100_000, 100, 0.1

    def __init__(self, broker):
        super().__init__()
        self.broker, self.number, self.quota, self.is_cancelled = broker, 0, 0, False

    def run(self):
        chance = random.Random(1)
        while self.number < self.records and not self.is_cancelled:
            if self.number >= self.quota:
                time.sleep(self.seconds)
                continue
            lines = list(texts(self.number, self.number + self.part))
            if self.broker is not None:
                self.broker.send("t", lines, partition=chance.randrange(4))
            else:
                text = "".join(f"{line}\n" for line in lines)
                cut = chance.randrange(len(text))
                for piece in (text[:cut], text[cut:]):
                    with open("raw/now.jsonl", "a") as file:
                        file.write(piece)
                    time.sleep(self.seconds / 4)
                if chance.random() < 0.02:
                    os.replace("raw/now.jsonl", f"raw/{self.number}.jsonl")
            self.number += self.part
            time.sleep(self.seconds / 2)


@pytest.mark.proof
@pytest.mark.parametrize("source", ["folder", "topic"])
def test_thirty_kills_of_a_stream_that_a_killed_run_follows(tmp_path, monkeypatch, read_records, source):
    """No record is lost or repeated, no shard is ever damaged, and the run trains as one that was not killed."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("schema.yaml").write_text(SCHEMA)
    pathlib.Path("raw").mkdir()
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(kafka.MockBroker()) if source == "topic" else None
        where = ["raw"]
        if broker is not None:
            broker.make_topic("t", 4)
            where = ["--kafka", broker.servers, "--topic", "t"]
        stream = ["prepare", *where, "--schema", "schema.yaml", "--output", "dataset", "--streaming"]
        stream += ["--commit_interval", "0.5s"]
        config = change(CONFIG, epochs=None, idle=20, batch_size=1024, checkpoint_updates=20)
        flags = ["--units", 4, "--idle", "20s", "--batch_size", 1024, "--dropout", 0.1, "--checkpoint_updates", 20]
        command = ["train", "dataset", "--output", "run", *flags, "--follow"]
        arrivals = Arrivals(broker)
        arrivals.start()
        stack.callback(setattr, arrivals, "is_cancelled", True)
        chance, looks, trainer_kills, commits = random.Random(2), 0, 0, set()
        trainer = start(*command)
        try:
            for kill in range(30):
                process = start(*stream)
                arrivals.quota = (kill + 1) * arrivals.records // 30
                before, begin = newest(), time.monotonic()
                # Every second run is killed at any moment, also before it has begun, and the others after a commit.
                while not kill % 2 and newest() == before and time.monotonic() < begin + cluster.PATIENCE:
                    time.sleep(0.1)
                time.sleep(chance.uniform(0, 4))
                assert process.is_running(), process.err
                process.send(signal.SIGKILL)
                process.wait()
                commits.add(newest())
                if newest():
                    assert verify("dataset").faults == []
                    looks += 1
                if kill % 5 == 4 and trainer.is_running():
                    trainer.send(signal.SIGKILL)
                    trainer.wait()
                    trainer_kills += 1
                    trainer = start(*command)
            arrivals.join()
            ended = start(*stream, "--idle", "3s").wait()
            assert ended.status == 0, ended.err
            ended = trainer.wait(5 * cluster.PATIENCE)
            assert ended.status == 0, ended.err
        finally:
            trainer.end()
    assert arrivals.number == arrivals.records
    ids = sorted(int(bytes(example["id"][0]).decode()[1:]) for example in read_records(tmp_path / "dataset"))
    assert ids == [*range(arrivals.records)]
    assert verify("dataset").faults == [] and open_dataset("dataset").manifest.rejected.total == 0
    read = [line["commit"] for line in epoch_lines()]
    updates = [line["update"] for line in lines_of("run") if "update" in line]
    print(
        f"\n{source}: {newest()} commits, {len(commits)} of them the newest at a kill; {looks} looks without a fault;"
    )
    print(f"run: {trainer_kills} kills, {updates[-1]:,} updates, epochs on commits {read}")
    assert len(commits) >= 10 and len(set(read)) >= 5 and trainer_kills >= 3
    assert updates == [*range(1, updates[-1] + 1)]
    result = json.loads(pathlib.Path("run", "result.json").read_text())
    assert result["weights_sha256"] == train_by_hand(config)


def newest():
    """Returns the number of the newest commit, or 0."""
    return len(list(pathlib.Path("dataset", "commits").glob("*.json")))


def last_update():
    """Returns the last update in metrics.jsonl."""
    file = pathlib.Path("run", "metrics.jsonl")
    return max([0, *map(int, re.findall(r'"update": (\d+)', file.read_text()))]) if file.exists() else 0


@pytest.mark.proof
def test_two_workers_read_the_same_commits_as_one_process(place):
    """Two workers, then one, then two, which SIGTERM stops while they wait; a commit arrives in between."""
    flags = {"units": (4,), "batch_size": 8}
    for run in ("alone", "two"):
        shutil.rmtree("dataset")
        shutil.copytree("first", "dataset")
        for epochs, name in ((1, "two.jsonl"), (2, "three.jsonl"), (3, None)):
            if run == "alone" or epochs == 2:
                train("dataset", run, TrainConfig(**flags, epochs=epochs, follow=True))
            else:
                ended = cluster.launch("dataset", run, flags | {"epochs": epochs}, "--follow")
                assert ended.status == 0, ended.err
            if name is not None:
                job(name)
    assert [line["commit"] for line in epoch_lines("two")] == [1, 2, 3]
    cluster.check_same(pathlib.Path("two"), pathlib.Path("alone"))
    with cluster.launched("dataset", "two", flags, "--follow") as process:
        cluster.wait_until(lambda: "waiting for a commit after 3 of dataset" in process.err, what="the wait")
        process.send(signal.SIGTERM)
        ended = process.wait()
    assert ended.status == 75, ended.err
