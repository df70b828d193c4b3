"""Metrics are appended on a disk, and written in parts on an object store, where a resumed run finds all of them."""

import itertools
import json
import math
import types

import datasets
import pytest
import tensorflow as tf
from interruptions import InterruptAt, Interrupted, lines_of

from trainer.config import TrainConfig
from trainer.runs import metrics_log
from trainer.runs.contents import names_to_clear, refuse_foreign_files
from trainer.runs.metrics_log import MetricsLog
from trainer.runs.run import Run
from trainer.training import checkpoint_policy, journal, loop
from trainer.training.train import train


def update(number):
    return {"epoch": 1, "update": number, "loss": 0.5}


def epoch(number):
    return {"epoch": number, "train": {"loss": 0.5}, "validation": None}


@pytest.fixture(params=["local", "remote"])
def run(request, tmp_path):
    """A run on a disk, and one in TensorFlow's file system in memory, which is an object store to us: ram://."""
    made = Run(str(tmp_path) if request.param == "local" else f"ram://{tmp_path.name}")
    tf.io.gfile.makedirs(made.path)
    made.write("metrics.jsonl", b"")
    return made


@pytest.fixture
def clock(monkeypatch):
    """The time of the log, which a test sets."""
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(metrics_log, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def files(run):
    """Returns the lines of each file of metrics, by its name."""
    names = [name for name in sorted(run.names()) if name.startswith("metrics")]
    return {name: [json.loads(line) for line in run.read(name).splitlines()] for name in names}


def test_lines_are_appended_on_a_disk_and_written_in_parts_elsewhere(run, clock):
    """Every second at first, then less and less often; before a checkpoint, at once. No part is written twice."""
    log, written = MetricsLog(run), []
    for second in range(1, 301):
        clock.now = second
        log.append([update(second)])
        if second == 200:
            log.flush()
        written.append(len(files(run)) - 1)
    if run.path.startswith("ram://"):
        ends = [second for second in range(1, 301) if written[second - 1] > [0, *written][second - 1]]
        assert ends == [1, 3, 7, 15, 31, 63, 123, 183, 200, 260]
        updates = [[line["update"] for line in lines] for lines in files(run).values()]
        assert updates == [*([*range(a + 1, b + 1)] for a, b in itertools.pairwise([0, *ends])), []]
        assert list(files(run))[:2] == ["metrics-00001.jsonl", "metrics-00002.jsonl"]
    else:
        text = "".join(json.dumps(update(number)) + "\n" for number in range(1, 301))
        assert run.read("metrics.jsonl") == text.encode()
    log.append([epoch(1)])
    log.compact()
    assert files(run) == {"metrics.jsonl": [*map(update, range(1, 301)), epoch(1)]}


def test_a_resumed_run_finds_the_lines_before_its_checkpoint_in_all_parts(run, clock):
    log = MetricsLog(run)
    for lines in ([update(1), update(2), epoch(1)], [update(3), update(4)], [update(5), epoch(2), update(6)]):
        log.append(lines)
        log.flush()
    assert MetricsLog(run).truncate(epoch=1, update=4) == [epoch(1)]
    assert files(run) == {"metrics.jsonl": [update(1), update(2), epoch(1), update(3), update(4)]}
    again = MetricsLog(run)
    again.append([update(5)])
    again.flush()
    assert MetricsLog(run).truncate(epoch=1, update=5) == [epoch(1)]
    assert files(run)["metrics.jsonl"][-2:] == [update(4), update(5)]


def test_a_kill_while_parts_are_merged_loses_and_doubles_no_line(run, clock, monkeypatch):
    log, remove = MetricsLog(run), tf.io.gfile.remove
    for number in range(1, 6):
        log.append([update(number), epoch(number)])
        log.flush()
    whole = [line for number in range(1, 6) for line in (update(number), epoch(number))]
    for left in range(6):
        removed = []

        def kill(path, removed=removed, left=left):
            removed.append(path)
            if len(removed) > left:
                raise Interrupted
            remove(path)

        with monkeypatch.context() as patch:
            patch.setattr(tf.io.gfile, "remove", kill)
            try:
                MetricsLog(run).truncate(epoch=9, update=9)
            except Interrupted:
                pass
        assert files(run)["metrics.jsonl"] == whole
    assert list(files(run)) == ["metrics.jsonl"]


def test_many_parts_are_merged_while_the_run_trains(run, clock, monkeypatch):
    monkeypatch.setattr(metrics_log, "_MAX_PARTS", 3)
    log, most = MetricsLog(run), 0
    for number in range(1, 9):
        log.append([update(number)])
        log.flush()
        most = max(most, len(files(run)))
    assert most <= 3
    log.compact()
    assert files(run) == {"metrics.jsonl": [*map(update, range(1, 9))]}


def test_parts_are_files_of_a_run(tmp_path):
    names = ["metrics-00012.jsonl", "metrics.jsonl", "metrics-1.jsonl", "metrics-000012.jsonl"]
    assert names_to_clear(names) == ["metrics-00012.jsonl", "metrics.jsonl"]
    (tmp_path / names[0]).write_text("")
    refuse_foreign_files(str(tmp_path))


@pytest.mark.proof
def test_a_run_on_an_object_store_that_is_interrupted_has_the_metrics_of_one_on_a_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "_WRITE_SECONDS", 0)
    monkeypatch.setattr(metrics_log, "_FIRST_SECONDS", math.inf)
    monkeypatch.setattr(checkpoint_policy.CheckpointPolicy, "is_due", lambda self: self.state.update == 4)
    dataset, config = datasets.of_kind("class").path, TrainConfig(units=(3,), batch_size=10, epochs=2)
    train(dataset, tmp_path / "disk", config)
    remote = Run(f"ram://{tmp_path.name}/run")
    with pytest.raises(Interrupted):
        train(dataset, remote.path, config, callbacks=[InterruptAt(1, 2)])
    # A checkpoint is preceded by its lines. The last ones are written when the interruption ends the run.
    updates = {name: [line.get("update") for line in lines] for name, lines in files(remote).items()}
    parts = {"metrics-00001.jsonl": [1, 2, 3, 4], "metrics-00002.jsonl": [5, None], "metrics-00003.jsonl": [6, 7, 8]}
    assert updates == {**parts, "metrics.jsonl": []}
    # In ram://, TensorFlow takes the path of a checkpoint for a folder, because names of files begin with it.
    monkeypatch.setattr(loop, "checkpoint_sha256", lambda *_: None)
    train(dataset, remote.path, config)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "metrics.jsonl").write_bytes(remote.read("metrics.jsonl"))
    assert lines_of(tmp_path / "store") == lines_of(tmp_path / "disk")
    assert [name for name in remote.names() if name.startswith("metrics")] == ["metrics.jsonl"]
