"""Updates that take seconds are announced, and SIGTERM ends a run after the one under way. The tests set the time."""

import os
import signal
import types

import datasets
import keras
import numpy as np
import pytest
import tensorflow as tf
from interruptions import lines_of

from trainer.batching.bucket import make_bucket_plan
from trainer.config import TrainConfig
from trainer.devices.replicas import Replicas, find_replicas
from trainer.devices.signals import Preempted
from trainer.training import loop, memory_probe
from trainer.training.epoch_runner import EpochRunner
from trainer.training.memory_probe import probe_largest
from trainer.training.reporter import Reporter
from trainer.training.train import train

CONFIG = TrainConfig(units=(4,), batch_size=5, epochs=1)
SPEC = ({"x": tf.TensorSpec([None, None], tf.float32)}, tf.TensorSpec([None], tf.int64), tf.TensorSpec([None]))


class TimedUpdate:
    """Takes `seconds(rows, steps)` for the gradients of a batch, and an hour for the first one.

    Attributes:
        now: The time.
        computed: (rows, steps) of each batch.
    """

    element_spec = SPEC

    def __init__(self, monkeypatch, seconds):
        self._seconds, self.now, self.computed = seconds, 0.0, []
        monkeypatch.setattr(memory_probe, "time", types.SimpleNamespace(monotonic=lambda: self.now))

    def gradients(self, parts):
        rows, steps = map(int, parts[0][0]["x"].shape)
        self.now += self._seconds(rows, steps) if self.computed else 3600
        self.computed.append((rows, steps))
        return types.SimpleNamespace(norm=1.0), []


def probe(monkeypatch, shape, seconds):
    """Returns (seconds of the largest batch, announced seconds, shapes that were computed)."""
    update, announced = TimedUpdate(monkeypatch, seconds), []
    plan = types.SimpleNamespace(largest_batch=shape)
    found = probe_largest(update, plan, find_replicas("one"), lambda: "", announced.append)
    return found, announced, update.computed


def test_a_slow_batch_is_announced_before_it_is_computed(monkeypatch):
    found, announced, computed = probe(monkeypatch, (1, 32_000), lambda rows, steps: steps / 1000)
    assert (found, announced, computed) == (32, [32], [(1, 1), (1, 2000), (1, 8000), (1, 32_000)])
    found, announced, computed = probe(monkeypatch, (3200, 3), lambda rows, steps: rows * steps / 1024)
    assert (found, announced, computed) == (9.375, [9.375], [(1, 1), (200, 3), (800, 3), (3200, 3)])


@pytest.mark.parametrize(
    ("shape", "seconds"),
    [
        ((200, 24), lambda rows, steps: 1 / 128),
        ((200, 24), lambda rows, steps: 4 if steps == 1 else 1 / 128),  # one computation was delayed
        ((1, 1), lambda rows, steps: 1 / 128),
        ((3, 2), lambda rows, steps: 4),
    ],
)
def test_a_fast_batch_is_not_announced(monkeypatch, shape, seconds):
    found, announced, computed = probe(monkeypatch, shape, seconds)
    assert (found, announced, computed[-1]) == (seconds(*shape), [], shape)


def told(capsys, seconds, shape):
    rows, steps = shape
    plan = make_bucket_plan({steps: rows}, batching="pad", batch_size=rows)
    Reporter(epochs=1).describe_slow_updates(seconds, saving_seconds=1.2, plan=plan)
    return capsys.readouterr().err


def test_slow_updates_are_described_with_the_notice_that_sigterm_needs(capsys):
    said = "SIGTERM takes effect after the update under way: give the process 55 s to save and end."
    assert told(capsys, 24, (3, 2000)) == (
        f"train: an update takes up to about 24 s (3 x 2,000 steps); progress is shown after each. {said} "
        "Updates get shorter with a --batch_steps smaller than 6000.\n"
    )
    assert told(capsys, 24, (1, 32_000)).endswith(
        f"{said} That batch is one record, so only shorter records make updates shorter.\n"
    )
    assert told(capsys, 4.9, (3, 2000)) == ""


def test_sigterm_while_the_largest_batch_is_computed_stops_before_the_first_update(tmp_path, monkeypatch):
    def stop(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return 24.0

    monkeypatch.setattr(loop, "probe_largest", stop)
    with pytest.raises(Preempted, match=r"saved after update 0 \(epoch 1\)"):
        train(datasets.of_kind("class").path, tmp_path, CONFIG)
    assert lines_of(tmp_path) == [] and list(tmp_path.rglob("*.index"))


def test_sigterm_in_a_slow_update_stops_after_it(tmp_path, monkeypatch, capsys):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "probe_largest", lambda *arguments: 24.0)
    with pytest.raises(Preempted, match=r"saved after update 2 \(epoch 1\)"):
        train(datasets.of_kind("class").path, tmp_path, CONFIG, callbacks=[Stop()])
    assert [line["update"] for line in lines_of(tmp_path)] == [1, 2]
    assert "train: an update takes up to about 24 s (5 x " in capsys.readouterr().err


@pytest.mark.parametrize(("waits", "stops"), [(True, [True, True, True]), (False, [False, False, True])])
def test_several_workers_stop_after_the_update_under_way_if_updates_are_slow(monkeypatch, waits, stops):
    """The other worker gets the signal in the first update; its request is in the sums of the second one."""
    monkeypatch.setattr(Replicas, "any_worker", lambda self, value: True)
    runner = object.__new__(EpochRunner)
    replicas = Replicas(tf.distribute.get_strategy(), num_workers=2)
    vars(runner).update(waits=waits, replicas=replicas, stop=types.SimpleNamespace(received=False))
    sums = [types.SimpleNamespace(loss=np.float32(1), stop_requests=np.float32(n > 0)) for n in range(3)]
    assert [runner._should_stop(now, before) for now, before in zip(sums, [None, *sums], strict=False)] == stops
