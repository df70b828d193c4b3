"""Training survives SIGKILL and SIGTERM at any moment, with the same bits as an uninterrupted run."""

import collections
import functools
import itertools
import json
import math
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import children
import datasets
import keras
import numpy as np
import pytest
import tensorflow as tf
from interruptions import Gather, InterruptAt, Interrupted, change, lines_of
from paths import ROOT

from pipeline.errors import UserError
from trainer.config import TrainConfig
from trainer.data.dataset import open_dataset
from trainer.devices.environment import cudnn_obstacles, describe_kernel
from trainer.devices.replicas import find_replicas
from trainer.devices.signals import StopSignal
from trainer.devices.tensorflow_setup import start_tensorflow
from trainer.evaluation.evaluate import evaluate
from trainer.model.build import build_model, head_model
from trainer.model.chunks import find_stack
from trainer.model.losses import compute_losses
from trainer.reading.batches import batches, planned_batches
from trainer.runs.checkpoints import Checkpoints
from trainer.runs.lock import LOCK
from trainer.runs.run import Run
from trainer.runs.state import CLIP_RULE, State
from trainer.training.epoch_source import plan_next_epoch
from trainer.training.loop import Training
from trainer.training.memory_probe import blank_part
from trainer.training.train import train
from trainer.training.update import Update, make_optimizer

UPDATES = 13  # of an epoch
EVERY = 3  # updates between checkpoints
CONFIG = TrainConfig(units=(4,), batch_size=5, dropout=0.3, learning_rate=0.01, checkpoint_updates=EVERY)
# Records of several chunks: most updates are in the middle of some.
STATEFUL = change(CONFIG, batch_size=None, batching="stateful", chunk_steps=3, lanes=5, backprop_chunks=2)
DURING_A_SAVE = ["before a save", "data written", "index written", "state written", "state named", "index removed"]
DURING_A_SAVE += ["after a save"]


@pytest.fixture(scope="module", autouse=True)
def deterministic():
    """Starts TensorFlow as the command does: other kernels give other bits."""
    start_tensorflow()


@functools.cache
def made():
    """Makes 60 records to train on and 20 to validate, of 1 to 12 steps."""
    records = datasets.random_records([*range(1, 13)] * 5)
    records += datasets.random_records([*range(1, 11)] * 2, split="validation")
    return datasets.make(datasets.new_folder(), records)


def dataset():
    return made().path


@functools.cache
def uninterrupted(epochs, config=CONFIG):
    """Returns (folder, result) of an uninterrupted run."""
    folder = datasets.new_folder() / "run"
    return folder, train(dataset(), folder, change(config, epochs=epochs))


def command(run, epochs, config=CONFIG):
    values = config.model_dump(exclude_defaults=True) | {"units": config.units[0], "epochs": epochs}
    return ["train", dataset(), "--output", run, *(word for name in values for word in (f"--{name}", values[name]))]


def saved_update(run):
    """Returns the update of the run's last checkpoint, None before there is one."""
    path = tf.train.latest_checkpoint(str(run / "checkpoints" / "last"))
    if path is None:
        return None
    text = tf.train.load_checkpoint(path).get_tensor("state/.ATTRIBUTES/VARIABLE_VALUE")
    return State.model_validate_json(text).update


def last_update(run):
    """Returns the last update in metrics.jsonl, whose last line may be truncated."""
    known = 0
    for text in (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []:
        try:
            known = json.loads(text).get("update", known)
        except ValueError:
            break
    return known


def resumed_at(lines):
    """Returns the update after which a process resumed, None if it did not report one."""
    found = [int(line.split()[3].rstrip(".")) for line in lines if line.startswith("Resuming after update ")]
    return found[0] if found else None


def assert_equal_to_uninterrupted(run, epochs, config=CONFIG):
    """Checks that the run has the result and the lines of an uninterrupted run."""
    whole, result = uninterrupted(epochs, config)
    found = json.loads((run / "result.json").read_text())
    assert (found["weights_sha256"], found["best_weights_sha256"]) == (
        result["weights_sha256"],
        result["best_weights_sha256"],
    )
    assert found == result
    assert lines_of(run) == lines_of(whole)


def leftovers(run):
    """Returns the files in the checkpoints' folders that belong to no complete checkpoint."""
    found = []
    for folder in (run / "checkpoints").glob("*"):
        state = tf.train.get_checkpoint_state(str(folder))
        names = [path.rsplit("/", 1)[-1] for path in state.all_model_checkpoint_paths] if state else []
        known = {"checkpoint"} | {f"{n}{end}" for n in names for end in (".index", ".data-00000-of-00001")}
        found += [path.name for path in folder.iterdir() if path.name not in known]
    return found


def kill_and_resume(tmp_path, epochs, kills, config=CONFIG):
    """Kills a run at each spot in turn, then resumes it to its end.

    The number of an "update" counts from the last checkpoint. The number of a "moment" is the seconds since the process
    saved its first checkpoint, that of a "start" the seconds since the process started.
    """
    run, output, saved = tmp_path / "run", tmp_path / "output", None
    for spot, number in kills:
        if spot in ("moment", "start"):
            child = children.lengthwise(output, *command(run, epochs, config), pause=0.05)
            if spot == "moment":
                folder = str(run / "checkpoints" / "last")
                latest = tf.train.latest_checkpoint(folder)
                child.wait_until(lambda latest=latest, folder=folder: tf.train.latest_checkpoint(folder) != latest)
            time.sleep(number)
            child.send(signal.SIGKILL)
        else:
            number += (saved or 0) if spot == "update" else 0
            child = children.lengthwise(output, *command(run, epochs, config), spot=spot, number=number)
        assert child.wait() == -signal.SIGKILL, (spot, number, child.lines)
        resumed, before = resumed_at(child.lines), saved
        # Some are killed before they report it.
        assert resumed == before or resumed is None and spot in ("start", "file renamed"), (spot, number, child.lines)
        saved, written = saved_update(run), last_update(run)
        reached = number if spot == "update" else written
        assert before is None or before <= saved
        assert reached - (saved or 0) <= EVERY, (spot, number)
        print(f"{spot} {number}: began at {resumed}, saved {saved}, written {written}, left {sorted(leftovers(run))}")
        # The lock file of the killed process is still there, and stops no other process.
        assert spot == "start" or json.loads((run / LOCK).read_text())["pid"] == child.pid
    child = children.lengthwise(output, *command(run, epochs, config))
    assert child.wait() == 0, child.lines
    assert resumed_at(child.lines) == saved > 0 and not (run / LOCK).exists()
    assert leftovers(run) == []
    assert_equal_to_uninterrupted(run, epochs, config)


@pytest.mark.parametrize(
    "kills",
    datasets.some([[("index written", 3)], [("index written", 3), ("end of an epoch", 1)]], [[("index written", 3)]]),
)
def test_a_run_that_is_killed_resumes_to_the_same_bits(tmp_path, kills):
    kill_and_resume(tmp_path, 2, kills)


@pytest.mark.proof
def test_a_stateful_run_that_is_killed_within_records_resumes_to_the_same_bits(tmp_path):
    plan = plan_next_epoch(open_dataset(dataset()), STATEFUL, State())
    within_a_record = next(itertools.islice(plan.chunks(), EVERY, None))  # the chunks of the first update that is lost
    assert not within_a_record.ends.all() and within_a_record.first.any()
    kill_and_resume(tmp_path, 2, [("update", EVERY + 1), ("index written", 2), ("end of an epoch", 1)], STATEFUL)


@pytest.mark.proof
@pytest.mark.parametrize("config", [CONFIG, STATEFUL], ids=["window", "stateful"])
def test_a_run_that_is_killed_twenty_times_resumes_to_the_same_bits(tmp_path, config):
    chance = random.Random(0)
    kills = [(spot, chance.randint(1, 2)) for spot in DURING_A_SAVE] + [("end of an epoch", 1)] * 3
    kills += [("update", chance.randint(1, 6)) for _ in range(3)] + [("validation", 1), ("half a line", 2)]
    kills += [("file renamed", 2)] + [("moment", chance.uniform(0, 0.6)) for _ in range(2)]
    chance.shuffle(kills)
    kill_and_resume(tmp_path, 12, [("moment", 0.3), *kills, ("start", chance.uniform(0, 3))], config)


def checkpoints_and_variables(run_path):
    """Returns the Checkpoints of a run and all of its variables."""
    opened = open_dataset(dataset())
    model = build_model(opened.schema, opened.manifest.statistics, CONFIG)
    optimizer = make_optimizer(CONFIG)
    optimizer.build(model.trainable_variables)
    variables = [*model.variables, *optimizer.variables]
    return Checkpoints(Run(str(run_path)), model, optimizer, keep=2), variables


def save_forever(run_path):
    """Resumes a run and saves it again and again, each time with another number in every variable."""
    checkpoints, variables = checkpoints_and_variables(run_path)
    checkpoints.restore(checkpoints.latest)
    checkpoints.clean()
    assert leftovers(run_path) == []
    while True:
        checkpoints.state.update += 1
        for variable in variables:
            variable.assign(np.full(variable.shape, checkpoints.state.update))
        checkpoints.save(best=checkpoints.state.update % 3 == 0)
        print(checkpoints.state.update, flush=True)


def kill_while_saving(tmp_path, kills):
    run, output, chance = tmp_path / "run", tmp_path / "output", random.Random(1)
    run.mkdir()
    checkpoints, _ = checkpoints_and_variables(run)
    checkpoints.state.update = 3
    checkpoints.save(best=True)
    number, found = 0, collections.Counter()
    for _ in range(kills):
        child = children.Child(output, save_forever, run)
        assert child.wait_until(lambda child=child: child.lines[-1:] and child.lines[-1].isdigit()), child.lines
        time.sleep(chance.uniform(0, 0.5))
        child.send(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        left = leftovers(run)
        found[tuple(sorted("temporary" if "temp" in name or ".tmp" in name else "unlisted" for name in left))] += 1
        restored, variables = checkpoints_and_variables(run)
        for name in ("best", "last"):
            restored.restore(tf.train.latest_checkpoint(str(run / "checkpoints" / name)))
            assert restored.state.update > 0
            # The first checkpoint has the initial weights.
            values = [value for variable in variables for value in np.ravel(variable)]
            assert restored.state.update == 3 or set(values) == {restored.state.update}
        assert restored.state.update >= number
        number = restored.state.update
        restored.clean()
        assert len(leftovers(run)) <= 2
    print(f"{kills} kills while {number} checkpoints were saved; left before the next start: {dict(found)}")
    assert number > kills


def test_checkpoints_can_be_restored_after_a_kill_while_they_are_saved(tmp_path):
    kill_while_saving(tmp_path, 1)


@pytest.mark.proof
def test_checkpoints_can_be_restored_after_fifty_kills_while_they_are_saved(tmp_path):
    kill_while_saving(tmp_path, 50)


# Runs the command, but stops the process where TensorFlow would start.
HELD_AT_THE_START = """
import os, signal, sys, lengthwise, trainer.main
trainer.main.start_tensorflow = lambda **_: os.kill(os.getpid(), signal.SIGSTOP)
sys.exit(lengthwise.main(sys.argv[1:]))
"""


def test_sigterm_while_the_command_starts_ends_it_at_once(tmp_path):
    arguments = [sys.executable, "-c", HELD_AT_THE_START, *map(str, command(tmp_path / "run", 2))]
    with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not children.is_stopped(process.pid):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (
        75,
        "lengthwise train: SIGTERM came before the first or after the last update: nothing to save. Run the same "
        "command again to continue.\n",
    )


@pytest.mark.parametrize(
    "spots", datasets.some([("update", "validation"), ("probe", "update", "validation")], [("update", "validation")])
)
def test_sigterm_saves_and_stops_with_its_own_status_at_any_time(tmp_path, capsys, spots):
    """Before the first update, within an epoch, and during the validation; then the run ends with the same bits.

    Until the first process has ended, a second one is refused.
    """
    run, output = tmp_path / "run", tmp_path / "output"
    for spot in spots:
        update = {"probe": 0, "update": 5, "validation": UPDATES}[spot]
        # At an update, the signal comes from this process while the child is stopped, so that its moment is known.
        hit_by = signal.SIGSTOP if spot == "update" else signal.SIGTERM
        number = update if spot == "update" else 1
        child = children.lengthwise(output, *command(run, 2), spot=spot, number=number, hit_by=hit_by)
        if spot == "update":
            assert child.wait_until(lambda child=child: children.is_stopped(child.pid))
            assert saved_update(run) == EVERY
            for more in ([], ["--overwrite"]):
                status, out, err = datasets.call(capsys, *command(run, 2), *more)
                assert (status, out, len(err)) == (69, "", 1)
                assert err[0].startswith(f"lengthwise train: {run}: another process trains into it (")
                assert f"(train, process {child.pid} on " in err[0]
            begin = time.monotonic()
            child.send(signal.SIGTERM)
            child.send(signal.SIGCONT)
            assert child.wait() == 75
            assert time.monotonic() - begin < 10  # what users are promised
        assert child.wait() == 75
        assert child.lines[-1] == (
            f"lengthwise train: SIGTERM: saved after update {update} (epoch 1) and stopped. The same command resumes "
            "from there."
        )
        assert sum("SIGTERM" in line for line in child.lines) == 1
        # No update follows the one at which the signal came.
        assert saved_update(run) == update == last_update(run)
        assert not (run / "result.json").exists() and not (run / LOCK).exists()
    result = train(dataset(), run, change(CONFIG, epochs=2))
    assert result == uninterrupted(2)[1]
    assert_equal_to_uninterrupted(run, 2)


@pytest.mark.parametrize("values", [{}, {"units": (4, 3), "bidirectional": True}, {"cell": "gru"}])
def test_a_checkpoint_holds_every_variable_of_the_model_and_the_optimizer(tmp_path, values):
    config, opened = change(CONFIG, **values), open_dataset(dataset())
    model = build_model(opened.schema, opened.manifest.statistics, config)
    optimizer = make_optimizer(config)
    optimizer.build(model.trainable_variables)
    for number, variable in enumerate([*model.variables, *optimizer.variables]):
        variable.assign(np.full(variable.shape, number))
    checkpoints = Checkpoints(Run(str(tmp_path)), model, optimizer, keep=1)
    checkpoints.save()
    reader = tf.train.load_checkpoint(checkpoints.latest)
    random_states = [v for v in model.variables if not any(v is weight for weight in model.weights)]
    assert len(random_states) >= len(config.units)  # a generator for each dropout layer, and others
    for name, variables in (("weights", model.weights), ("states", random_states), ("optimizer", optimizer.variables)):
        keys = sorted(key for key in reader.get_variable_to_shape_map() if key.startswith(f"{name}/"))
        assert len(keys) == len(variables)
        for number, variable in enumerate(variables):
            saved = reader.get_tensor(f"{name}/{number}/.ATTRIBUTES/VARIABLE_VALUE")
            np.testing.assert_array_equal(saved, variable.numpy())


@pytest.mark.proof
@pytest.mark.parametrize("kept", datasets.some([True, False], [False]))
def test_dropout_resumes_with_the_masks_of_an_uninterrupted_run(tmp_path, monkeypatch, kept):
    """Without the random states it does not."""
    config = change(CONFIG, epochs=2)
    with pytest.raises(Interrupted):
        train(dataset(), tmp_path, config, callbacks=[InterruptAt(0, 7)])
    if not kept:
        restore = Checkpoints.restore

        def restore_without(checkpoints, path):
            before = checkpoints.random_states()
            restore(checkpoints, path)
            checkpoints.set_random_states(before)

        monkeypatch.setattr(Checkpoints, "restore", restore_without)
    train(dataset(), tmp_path, config)
    assert (lines_of(tmp_path) == lines_of(uninterrupted(2)[0])) == kept


def interrupt(run, config, *at):
    with pytest.raises(Interrupted):
        train(dataset(), run, config, callbacks=[InterruptAt(*at)])


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(values, marks=pytest.mark.proof)
        for values in (
            {"batching": "bucket"},
            {"batching": "pad"},
            {"batching": "exact"},
            {"optimizer": "adam", "clip_norm": 0.1},
        )
    ],
)
def test_every_batching_method_resumes_within_an_epoch_to_the_same_bits(tmp_path, values):
    config = change(CONFIG, epochs=2, checkpoint_updates=2, **values)
    whole = train(dataset(), tmp_path / "whole", config)
    interrupt(tmp_path / "run", config, 0, 5)
    assert 4 <= saved_update(tmp_path / "run") < whole["updates"] // 2
    assert train(dataset(), tmp_path / "run", config) == whole
    assert lines_of(tmp_path / "run") == lines_of(tmp_path / "whole")


@pytest.mark.proof
def test_another_budget_applies_from_the_next_epoch_on(tmp_path):
    """Also if the run is interrupted several times."""
    old = change(CONFIG, epochs=3, batch_size=None, batch_steps=30)
    new = change(old, batch_steps=60)
    train(dataset(), tmp_path / "whole", change(old, epochs=1))
    train(dataset(), tmp_path / "whole", new)
    interrupt(tmp_path / "run", old, 0, 5)
    interrupt(tmp_path / "run", new, 0, 9)
    interrupt(tmp_path / "run", new, 1, 3)
    train(dataset(), tmp_path / "run", new)
    lines = lines_of(tmp_path / "run")
    assert lines == lines_of(tmp_path / "whole")
    largest = [max(line["padded_steps"] for line in lines if line["epoch"] == n and "loss" in line) for n in (1, 2, 3)]
    assert largest[0] <= 30 < min(largest[1:]) and max(largest) <= 60


@pytest.mark.proof
def test_fewer_epochs_than_were_started_are_refused(tmp_path, capsys):
    interrupt(tmp_path / "run", change(CONFIG, epochs=3), 1, 4)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    status, _, err = datasets.call(capsys, *command(tmp_path / "run", 1))
    assert (status, err[-1]) == (
        1,
        f"lengthwise train: {tmp_path}/run: stopped within epoch 2, but epochs is 1: expected at least 2, to finish "
        "that epoch.",
    )
    assert not (tmp_path / "run" / "result.json").exists()
    assert before.startswith((tmp_path / "run" / "metrics.jsonl").read_text())
    train(dataset(), tmp_path / "run", change(CONFIG, epochs=2))
    assert_equal_to_uninterrupted(tmp_path / "run", 2)


def test_another_schema_is_refused_and_both_are_shown(tmp_path):
    run = shutil.copytree(uninterrupted(2)[0], tmp_path / "run")
    records = [record | {"z": record["x"]} for record in datasets.random_records([3, 4, 5])]
    schema = datasets.schema_text(steps=f"{datasets.X}\n  z: {{dtype: float32, shape: [2]}}")
    other = datasets.make(tmp_path / "other", records, schema).path
    with pytest.raises(UserError) as raised:
        train(other, run, change(CONFIG, epochs=3))
    assert str(run) in str(raised.value) and other in str(raised.value)
    assert "z" in str(raised.value)


def test_a_resumed_run_reports_changes_of_the_environment(tmp_path, capsys):
    config, opened = change(CONFIG, epochs=3), open_dataset(dataset())
    shutil.copytree(uninterrupted(2)[0], tmp_path, dirs_exist_ok=True)
    file = tmp_path / "environment.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps(before | {"tensorflow": "2.0", "intra_op_threads": 64}))
    capsys.readouterr()
    deterministic = before["deterministic"]
    training = Training(
        Run(str(tmp_path)), opened, config, find_replicas("one"), StopSignal(), deterministic=deterministic
    )
    assert [line["epoch"] for line in training._resume()] == [1, 2]
    changes = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("The environment of this run has changed: ")
    ]
    assert len(changes) == 1
    assert f"tensorflow 2.0, now {tf.__version__}" in changes[0]
    assert f"intra_op_threads 64, now {before['intra_op_threads']}" in changes[0]
    assert json.loads(file.read_text()) == before


def change_update(monkeypatch, number, change_batch):
    """Changes the input of the `number`-th update; the result gets its features and the weights before and after."""
    seen, call = [], Update.__call__

    def changed(update, parts, scale=1.0, stop_request=0.0):
        seen.append(None)
        if len(seen) != number:
            return call(update, parts, scale, stop_request)
        before = [variable.numpy() for variable in update._variables]
        sums = call(update, *change_batch(parts, scale), stop_request)
        seen[-1] = (parts[0][0], before, [variable.numpy() for variable in update._variables])
        return sums

    monkeypatch.setattr(Update, "__call__", changed)
    return seen


def nan_loss(parts, scale):
    ((features, label, weight),) = parts
    return ((features, label, weight * math.nan),), scale


def infinite_gradient(parts, scale):
    return parts, tf.constant(math.inf)


@pytest.mark.parametrize(
    ("change_batch", "what"),
    [pytest.param(nan_loss, "loss", marks=pytest.mark.proof), (infinite_gradient, "gradient's norm")],
)
def test_a_non_finite_update_changes_no_weight_and_its_records_are_named(
    tmp_path, monkeypatch, capsys, change_batch, what
):
    opened = open_dataset(dataset())
    with monkeypatch.context() as patch:
        seen = change_update(patch, 8, change_batch)
        status, out, err = datasets.call(capsys, *command(tmp_path / "run", 2))
    assert (status, out) == (1, "")
    features, before, after = seen[7]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    by_values = {str(np.float32(record["x"])): record["id"] for record in made().records if record["split"] == "train"}
    rows = zip(features["x"].numpy(), features["length"].numpy(), strict=True)
    ids = [by_values[str(x[:length])] for x, length in rows]
    failed = json.loads((tmp_path / "run" / "failed-update.json").read_text())
    assert (failed["epoch"], failed["update"], failed["records"]) == (1, 8, len(ids))
    assert sorted(failed["ids"]) == sorted(ids)
    plan = plan_next_epoch(opened, CONFIG, State())
    of_plan = list(planned_batches(opened, "train", plan, seed=0, epoch=1))[7]
    assert failed["ids"] == opened.index("train")["id"].take(of_plan[3].numpy()).to_pylist()
    value = failed["loss"] if what == "loss" else failed["gradient_norm"]
    assert value in ("nan", "inf")
    assert err[-1].startswith(
        f"lengthwise train: The {what} of update 8 (epoch 1) is {value}; the update changed no weight. The ids in "
        f"its batch: {', '.join(map(repr, failed['ids']))}; all are in {tmp_path}/run/failed-update.json. "
        "The last checkpoint is of update 6. "
    )
    assert last_update(tmp_path / "run") == 7
    assert math.isfinite(evaluate(tmp_path / "run", dataset(), split="validation")["loss"])


@pytest.mark.proof
def test_a_run_resumes_after_a_non_finite_update_to_the_same_bits(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        change_update(patch, 8, infinite_gradient)
        assert datasets.call(capsys, *command(tmp_path / "run", 2))[0] == 1
    assert (tmp_path / "run" / "failed-update.json").exists()
    train(dataset(), tmp_path / "run", change(CONFIG, epochs=2))
    assert not (tmp_path / "run" / "failed-update.json").exists()
    assert_equal_to_uninterrupted(tmp_path / "run", 2)


@pytest.mark.proof
def test_a_worker_that_lost_another_one_to_a_non_finite_update_names_the_update_too(tmp_path, monkeypatch, capsys):
    call = Update.__call__

    def lost(update, parts, scale=1.0, stop_request=0.0):
        if lost.calls == 8:
            raise tf.errors.UnavailableError(None, None, "Socket closed")
        lost.calls += 1
        return call(update, *(nan_loss(parts, scale) if lost.calls == 8 else (parts, scale)), stop_request)

    lost.calls = 0
    monkeypatch.setattr(Update, "__call__", lost)
    status, _, err = datasets.call(capsys, *command(tmp_path / "run", 2))
    assert (status, json.loads((tmp_path / "run" / "failed-update.json").read_text())["update"]) == (1, 8)
    assert err[-1].startswith("lengthwise train: The loss of update 8 (epoch 1) is nan")

    lost.calls = 8
    status, _, err = datasets.call(capsys, *command(tmp_path / "other", 2))
    assert (status, (tmp_path / "other" / "failed-update.json").exists()) == (1, False)
    assert err[-1].startswith("lengthwise train: Another worker was lost: Socket closed")


@pytest.mark.proof
def test_the_last_checkpoints_and_the_best_one_are_kept(tmp_path):
    """With this learning rate nothing is learnt, so the first epoch is the best one."""
    config = change(CONFIG, epochs=6, keep_checkpoints=3, learning_rate=1e-30, dropout=0)
    result = train(dataset(), tmp_path, config)
    assert result["best_epoch"] == 1
    found = {}
    for name in ("last", "best"):
        state = tf.train.get_checkpoint_state(str(tmp_path / "checkpoints" / name))
        readers = map(tf.train.load_checkpoint, state.all_model_checkpoint_paths)
        texts = [reader.get_tensor("state/.ATTRIBUTES/VARIABLE_VALUE") for reader in readers]
        found[name] = [State.model_validate_json(text).update for text in texts]
        assert len(list((tmp_path / "checkpoints" / name).glob("*.index"))) == len(found[name])
    end = 6 * UPDATES
    assert found == {"last": [end - 4, end - 1, end], "best": [UPDATES]}


@pytest.mark.parametrize("share", datasets.some([0.1, 2.0], [0.1]))
def test_the_gradient_of_the_whole_batch_is_clipped(share):
    """By its mean loss: neither the scale nor three times the records change by how much.

    With a limit below the gradient's norm, and one above it.
    """
    opened = open_dataset(dataset())
    keras.utils.set_random_seed(3)
    model = build_model(opened.schema, opened.manifest.statistics, change(CONFIG, dropout=0))
    (part,) = batches(opened, "train", batching="pad", batch_size=1000)
    features, label, weight = part
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(weight * compute_losses(head_model(model)(features), label, "class")) / tf.reduce_sum(
            weight
        )
    gradients = [g.numpy() for g in tape.gradient(loss, [variable.value for variable in model.trainable_variables])]
    norm = np.sqrt(sum(np.square(gradient.astype(np.float64)).sum() for gradient in gradients))
    spec = tf.nest.map_structure(lambda value: tf.TensorSpec([None] * len(value.shape), value.dtype), part)
    spec[0]["x"] = tf.TensorSpec([None, None, 2], tf.float32)
    options = {"kind": "class", "element_spec": spec, "replicas": find_replicas("one"), "clip_norm": share * norm}
    thrice = tf.nest.map_structure(lambda value: tf.concat([value] * 3, 0), part)
    records = len(label)
    for by_epoch, batch, scale, share_of_epoch in (
        (False, part, 1.0, 1.0), (True, part, 0.5, 0.5 * records), (True, thrice, 0.002, 0.006 * records)
    ):  # fmt: skip
        gathered = Gather(model)
        sums = Update(model, gathered, by_epoch=by_epoch, **options)((batch,), scale)
        assert float(sums.norm) == pytest.approx(share_of_epoch * norm, rel=1e-5)
        for total, gradient in zip(gathered.sums, gradients, strict=True):
            expected = share_of_epoch * gradient * min(share, 1)
            np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-6 * norm * share_of_epoch)


def test_a_run_that_was_clipped_by_the_earlier_rule_is_refused_and_unchanged(tmp_path):
    """The checkpoint of such a run has no clip_rule."""
    config = change(CONFIG, epochs=1, clip_norm=0.1)
    train(dataset(), tmp_path, config)
    opened, more = open_dataset(dataset()), change(config, epochs=2)
    training = Training(Run(str(tmp_path)), opened, config, find_replicas("one"), StopSignal())
    training._checkpoints.restore(training._checkpoints.latest)
    assert training._checkpoints.state.clip_rule == CLIP_RULE
    training._checkpoints.state.clip_rule = State().clip_rule
    training._checkpoints.save()
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.json*")}
    with pytest.raises(UserError, match=rf"^{tmp_path}: its {UPDATES} updates were made by a version that compared "):
        train(dataset(), tmp_path, more)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.json*")} == before
    assert train(dataset(), tmp_path, config)["updates"] == UPDATES  # a finished run has its result


@pytest.mark.parametrize("optimizer", datasets.some(["rmsprop", "adam"], ["rmsprop"]))
@pytest.mark.proof
def test_a_non_finite_update_changes_no_weight_by_momentum_either(optimizer):
    opened, config = open_dataset(dataset()), change(CONFIG, dropout=0, optimizer=optimizer)
    model, made = build_model(opened.schema, opened.manifest.statistics, config), make_optimizer(config)
    made.build(model.trainable_variables)
    spec = batches(opened, "train").element_spec
    update = Update(model, made, kind="class", element_spec=spec, by_epoch=True, replicas=find_replicas("one"))
    (part,) = batches(opened, "train", batching="pad", batch_size=1000)
    weights = [[weight.numpy() for weight in model.weights]]
    for scale in (1.0, math.nan, 1.0):
        update((part,), scale)
        weights.append([weight.numpy() for weight in model.weights])
    same = [all(map(np.array_equal, one, other)) for one, other in itertools.pairwise(weights)]
    assert same == [False, True, False]


OOM = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
CUDNN = tf.errors.InternalError(None, None, "Failed to call DoRnnForward with model config: [1, 2]")


def limit_memory(monkeypatch, most, error=OOM):
    """Makes memory run out above `most` padded steps in a batch."""
    gradients = Update.gradients

    def limited_gradients(update, parts):
        if np.prod(parts[0][0]["x"].shape[:2]) > most:
            raise error
        return gradients(update, parts)

    monkeypatch.setattr(Update, "gradients", limited_gradients)


@pytest.mark.parametrize("resumes", datasets.some([False, True], [False]))
def test_running_out_of_memory_is_reported_early_with_a_budget_that_fits(tmp_path, monkeypatch, capsys, resumes):
    limit_memory(monkeypatch, 100)
    flags = ["train", dataset(), "--units", 4, "--epochs", 1, "--output", tmp_path / "run"]
    status, out, err = datasets.call(capsys, *flags, "--batch_steps", 300)
    assert (status, out) == (1, "")
    match = re.search(
        r"^lengthwise train: Out of memory: the largest batch, \d+ records of \d+ steps, does not fit. It fits with "
        r"--batch_steps (\d+) \(this batch has (\d+) padded steps\).$",
        err[-1],
    )
    assert 80 <= int(match[1]) <= 100 < int(match[2]) <= 300
    assert last_update(tmp_path / "run") == 0
    if not resumes:
        return
    status, _, err = datasets.call(capsys, *flags, "--batch_steps", match[1])
    assert status == 0, err
    status, _, err = datasets.call(capsys, *flags[:-1], tmp_path / "other", "--batch_size", 20)
    assert (status, "It fits with --batch_steps" in err[-1]) == (1, True)


@pytest.mark.proof
def test_a_larger_budget_of_the_next_epoch_is_probed_too(tmp_path, monkeypatch):
    old = change(CONFIG, epochs=3, batch_size=None, batch_steps=30)
    interrupt(tmp_path, old, 0, 5)
    limit_memory(monkeypatch, 100)
    with pytest.raises(UserError, match="Out of memory: the largest batch"):
        train(dataset(), tmp_path, change(old, batch_steps=300))
    train(
        dataset(), tmp_path, change(old, batch_steps=300, epochs=1)
    )  # finishes the epoch that was started, with the old budget


def test_memory_too_small_for_one_record_is_reported(tmp_path, monkeypatch):
    limit_memory(monkeypatch, 1, CUDNN)
    expected = "does not fit, and one of its records alone does not fit either. Choose fewer --units, or leave out "
    with pytest.raises(UserError, match=expected):
        train(dataset(), tmp_path, change(CONFIG, epochs=1))


def test_memory_too_small_for_the_model_is_reported_with_its_largest_weight(tmp_path, monkeypatch):
    limit_memory(monkeypatch, 0, CUDNN)
    with pytest.raises(UserError) as caught:
        train(dataset(), tmp_path, change(CONFIG, epochs=1))
    assert str(caught.value).startswith(
        "Out of memory: not even one record of one step fits: the weights of the model take "
    )
    assert "lstm_0/lstm_cell/recurrent_kernel, a recurrent layer: " in str(caught.value)
    assert str(caught.value).endswith("(Reported as: Failed to call DoRnnForward with model config: [1, 2].)")


def test_memory_that_runs_out_in_an_update_is_reported_with_its_batch(tmp_path, monkeypatch):
    def run_out(parts, scale):
        raise CUDNN

    change_update(monkeypatch, 3, run_out)
    with pytest.raises(UserError) as caught:
        train(dataset(), tmp_path, change(CONFIG, epochs=1))
    plan = plan_next_epoch(open_dataset(dataset()), CONFIG, State())
    records, steps = plan.count[2], plan.count[2] * plan.batch_shapes(0).pad_length[2]
    assert str(caught.value).startswith(
        f"Out of memory: the batch of update 3, {records} records with {steps} padded steps, does not fit. Choose a "
        f"--batch_steps smaller than {steps}."
    )


def test_probing_memory_changes_nothing_in_the_run(tmp_path):
    opened, config = open_dataset(dataset()), change(CONFIG, epochs=1)
    run = Run(str(tmp_path))
    run.create(config, opened)
    training = Training(run, opened, config, find_replicas("one"), StopSignal())
    plan = plan_next_epoch(opened, config, State())
    update = training._make_update()
    variables = [*training._model.variables, *training._optimizer.variables]
    before = [variable.numpy() for variable in variables]
    training._probe_memory(update, plan)
    for variable, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    # Without restoring them, the probe changes the random states: it draws a dropout mask.
    update.gradients((blank_part(training._dealer.element_spec, 2, 3),))
    assert any((v.numpy() != value).any() for v, value in zip(variables, before, strict=True))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_no_configuration_rules_out_the_cudnn_kernel(cell, bidirectional, dropout):
    config = TrainConfig(units=(3, 2), cell=cell, bidirectional=bidirectional, dropout=dropout)
    model = build_model(open_dataset(dataset()).schema, {}, config)
    assert cudnn_obstacles(model) == []
    last = find_stack(model).layers[-1]
    last.use_cudnn = False
    assert cudnn_obstacles(model) == [f"{last.name} has use_cudnn False"]


@pytest.mark.parametrize(
    ("layer", "values", "expected"),
    [
        ("LSTM", {"activation": "relu"}, "layer has activation relu"),
        ("LSTM", {"recurrent_activation": "tanh"}, "layer has recurrent_activation tanh"),
        ("LSTM", {"recurrent_dropout": 0.1}, "layer has recurrent_dropout 0.1"),
        ("GRU", {"unroll": True}, "layer has unroll True"),
        ("GRU", {"use_bias": False}, "layer has use_bias False"),
        ("GRU", {"reset_after": False}, "layer has reset_after False"),
        ("GRU", {"use_cudnn": False}, "layer has use_cudnn False"),
        ("LSTM", {"dropout": 0.5}, None),
        ("GRU", {}, None),
    ],
)
def test_a_setting_that_rules_out_the_cudnn_kernel_is_named(layer, values, expected):
    inputs = keras.Input((5, 2))
    model = keras.Model(inputs, getattr(keras.layers, layer)(3, name="layer", **values)(inputs))
    assert cudnn_obstacles(model) == ([expected] if expected else [])
    assert expected is None or f"not cuDNN's: {expected}." in describe_kernel(model)


def memory_and_files_of(pid):
    """Returns (MB of resident memory, open files) of a process."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS:"))
    return resident / 1024, len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.proof
@pytest.mark.parametrize(
    ("num_records", "num_epochs", "way"), [(12_000, 100, "window"), (100, 400, "window"), (12_000, 100, "bucket")]
)
def test_memory_and_open_files_do_not_grow_with_the_epochs(tmp_path, num_records, num_epochs, way):
    lengths = np.random.default_rng(0).integers(5, 60, num_records)
    records = datasets.random_records(lengths.tolist())
    records += datasets.random_records(lengths[:500].tolist(), split="validation")
    path = datasets.make(tmp_path / "made", records).path
    run, rows = tmp_path / "run", []
    flags = ["--epochs", num_epochs, "--batching", way, "--units", 16, "--dropout", 0.2, "--checkpoint_minutes", 0.05]
    arguments = [sys.executable, "-m", "lengthwise", "train", path, "--output", run, *flags]
    with subprocess.Popen(list(map(str, arguments)), cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        begin = time.monotonic()
        while process.poll() is None:
            try:
                done = (run / "metrics.jsonl").read_text().count('"train"')
                rows.append(((time.monotonic() - begin) / 60, done, *memory_and_files_of(process.pid)))
            except (OSError, StopIteration):  # not started yet, or ended
                pass
            time.sleep(0.5)
    assert process.returncode == 0
    minutes, epochs, megabytes, files = np.array(rows).T
    # TensorFlow's allocators grow for some dozen epochs: 684 MB after 10, 700 after 100, 703 after 200.
    warm = (epochs >= num_epochs // 2) & (epochs < num_epochs)
    # By epoch: a growth in a minute depends on the speed of the machine.
    slope = np.polyfit(epochs[warm], megabytes[warm], 1)[0]
    print(
        f"{megabytes[warm].min():.1f} to {megabytes[warm].max():.1f} MB over {np.ptp(epochs[warm]):.0f} epochs and "
        f"{np.ptp(minutes[warm]):.1f} minutes, {slope:.3f} MB an epoch; {files[warm].min():.0f} to "
        f"{files[warm].max():.0f} open files"
    )
    assert slope * np.ptp(epochs[warm]) < 10
    assert np.ptp(files[warm]) <= 1  # a file that is being written
