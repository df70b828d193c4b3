"""Training: the files of a run, resuming with the same bits, and the errors."""

import collections
import functools
import itertools
import json
import math
import pathlib
import shutil

import datasets
import keras
import numpy as np
import pytest
import tensorflow as tf
from interruptions import Gather, InterruptAt, Interrupted, change, lines_of

import trainer.training.journal
from pipeline.errors import UserError
from trainer.batching.plan_epoch import plan_epoch
from trainer.config import TrainConfig
from trainer.data.dataset import open_dataset
from trainer.devices.replicas import find_replicas
from trainer.devices.signals import StopSignal
from trainer.devices.tensorflow_setup import start_tensorflow
from trainer.evaluation.evaluate import evaluate
from trainer.model.build import build_model, head_model
from trainer.model.losses import compute_losses
from trainer.reading.batches import batches
from trainer.runs.checkpoints import weights_sha256
from trainer.runs.run import Run
from trainer.runs.state import State
from trainer.training.epoch_source import plan_next_epoch
from trainer.training.loop import Training
from trainer.training.train import train
from trainer.training.update import Update

SMALL = TrainConfig(epochs=3, units=(4,), batch_size=8, dropout=0.3, learning_rate=0.01)
FLAGS = ["--epochs", 3, "--units", 4, "--batch_size", 8, "--dropout", 0.3, "--learning_rate", 0.01]


def epoch_lines(run):
    return [line for line in lines_of(run) if "train" in line]


@pytest.fixture(scope="module", autouse=True)
def deterministic():
    """Starts TensorFlow as the command does, also for calls from Python: other kernels give other bits."""
    start_tensorflow()


@functools.cache
def finished():
    """Returns (folder, result) of an uninterrupted run of three epochs."""
    folder = datasets.new_folder() / "run"
    return folder, train(datasets.of_kind("class").path, folder, SMALL)


@pytest.fixture
def path():
    return datasets.of_kind("class").path


def test_a_line_for_each_update_and_one_for_each_epoch():
    run, result = finished()
    dataset = open_dataset(datasets.of_kind("class").path)
    train_split = dataset.split("train")
    plans = [plan_epoch(dataset, "train", batch_size=8, epoch=epoch) for epoch in (1, 2, 3)]
    lines = lines_of(run)
    updates = [line for line in lines if "update" in line]
    assert [line["update"] for line in updates] == list(range(1, sum(plan.num_batches for plan in plans) + 1))
    assert {tuple(line) for line in updates} == {("epoch", "update", "loss", "records", "steps", "padded_steps")}
    assert [line["epoch"] for line in lines if "train" in line] == [1, 2, 3]
    for epoch, plan in enumerate(plans, 1):
        own = [line for line in updates if line["epoch"] == epoch]
        sums = {name: sum(line[name] for line in own) for name in ("records", "steps", "padded_steps")}
        assert sums == {
            "records": train_split.records, "steps": train_split.steps, "padded_steps": plan.padded_steps
        }  # fmt: skip
        (summary,) = (line for line in lines if "train" in line and line["epoch"] == epoch)
        mean = sum(line["loss"] * line["records"] for line in own) / train_split.records
        assert summary["train"] == {"loss": pytest.approx(mean), **sums}
        assert set(summary["validation"]) == {"loss", "metrics"}
        position = lines.index(summary)
        assert all(line["epoch"] <= epoch for line in lines[:position])
        assert all(line["epoch"] > epoch for line in lines[position + 1 :])
    assert all(math.isfinite(line["loss"]) and line["loss"] > 0 for line in updates)


def test_the_result_summarises_the_run():
    run, result = finished()
    assert json.loads((run / "result.json").read_text()) == result
    lines, epochs = lines_of(run), [line["train"] for line in epoch_lines(run)]
    last = epoch_lines(run)[-1]
    weights = [(2, 16), (4, 16), (16,), (4, 3), (3,)]
    validation = [line["validation"]["loss"] for line in epoch_lines(run)]
    assert result == {
        "epochs": 3,
        "updates": max(line.get("update", 0) for line in lines),
        "parameters": sum(math.prod(shape) for shape in weights),
        "useful_share": pytest.approx(sum(e["steps"] for e in epochs) / sum(e["padded_steps"] for e in epochs)),
        "commit": 1,
        "inputs_sha256": Run(str(run)).inputs_sha256(),
        "weights_sha256": result["weights_sha256"],
        "best_weights_sha256": result["best_weights_sha256"],
        "validation": last["validation"],
        "best_epoch": 1 + validation.index(min(validation)),
        "stopped_early": False,
    }
    assert evaluate(run, datasets.of_kind("class").path, split="validation", checkpoint="last")["loss"] == (
        pytest.approx(last["validation"]["loss"], rel=1e-6)
    )


def test_the_hash_depends_on_every_bit_of_the_last_weights():
    model = build_model(open_dataset(datasets.of_kind("class").path).schema, {}, SMALL)
    before = weights_sha256(model)
    model.weights[-1].assign(model.weights[-1] + 1e-7)
    assert weights_sha256(model) != before != finished()[1]["weights_sha256"]


def test_a_run_writes_only_its_own_files():
    run, _ = finished()
    assert {file.name for file in run.iterdir()} - {"evaluation-validation.json"} == {
        "config.yaml", "environment.json", "manifest.json", "statistics.json", "metrics.jsonl", "result.json",
        "checkpoints", "logs",
    }  # fmt: skip
    assert (run / "manifest.json").read_bytes() == pathlib.Path(
        datasets.of_kind("class").path, "manifest.json"
    ).read_bytes()
    assert list((run / "logs").rglob("events.out.tfevents.*"))
    assert len(list((run / "checkpoints" / "last").glob("*.index"))) == 2
    assert len(list((run / "checkpoints" / "best").glob("*.index"))) == 1


@pytest.mark.proof
def test_the_same_command_gives_the_same_bits(tmp_path, path, capsys):
    """By the command and from Python, also with dropout."""
    status, out, err = datasets.call(capsys, "train", path, "--output", tmp_path / "run", *FLAGS, "--json")
    assert err[-2].startswith("train: epoch 3/3, loss ") and err[-2].endswith(" s left")
    assert status == 0
    assert json.loads(out) == finished()[1]
    assert lines_of(tmp_path / "run") == lines_of(finished()[0])
    other = train(path, tmp_path / "other", change(SMALL, seed=1, epochs=0))
    assert other["weights_sha256"] != train(path, tmp_path / "zero", change(SMALL, epochs=0))["weights_sha256"]


@pytest.mark.parametrize("at", [pytest.param(at, marks=pytest.mark.proof) for at in ((0, 2), (1, None))])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, path, monkeypatch, at):
    monkeypatch.setattr(trainer.training.journal, "_WRITE_SECONDS", 0)  # writes the lines of the interrupted epoch
    with pytest.raises(Interrupted):
        train(path, tmp_path, SMALL, callbacks=[InterruptAt(*at)])
    lines = lines_of(tmp_path)
    assert lines[-1]["epoch"] == at[0] + 1 and not (tmp_path / "result.json").exists()
    assert train(path, tmp_path, SMALL) == finished()[1]
    assert lines_of(tmp_path) == lines_of(finished()[0])


@pytest.mark.parametrize("is_interrupted", datasets.some([True, False], []))
def test_more_epochs_later_give_the_same_bits_as_at_once(tmp_path, path, monkeypatch, is_interrupted):
    """Also if the run is interrupted in one of the later epochs."""
    assert train(path, tmp_path, change(SMALL, epochs=1))["epochs"] == 1
    if is_interrupted:
        monkeypatch.setattr(trainer.training.journal, "_WRITE_SECONDS", 0)
        with pytest.raises(Interrupted):
            train(path, tmp_path, SMALL, callbacks=[InterruptAt(1, 2)])
        assert lines_of(tmp_path)[-1]["epoch"] == 2 and not (tmp_path / "result.json").exists()
    assert train(path, tmp_path, SMALL) == finished()[1]
    assert lines_of(tmp_path) == lines_of(finished()[0])


def test_a_finished_run_only_prints_its_result(tmp_path, path, capsys):
    run = pathlib.Path(shutil.copytree(finished()[0], tmp_path / "run"))
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    status, out, err = datasets.call(capsys, "train", path, "--output", run, *FLAGS, "--json")
    assert (status, json.loads(out), err) == (0, finished()[1], [])
    status, out, err = datasets.call(capsys, "train", path, "--output", f"{run}/", *FLAGS, "--epochs", 2)
    assert (status, err) == (0, []) and finished()[1]["weights_sha256"] in out
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


def test_another_configuration_is_refused_and_both_values_are_named(tmp_path, path, capsys):
    run = shutil.copytree(finished()[0], tmp_path / "run")
    status, out, err = datasets.call(capsys, "train", path, "--output", run, *FLAGS, "--seed", 7, "--units", 5, 6)
    assert (status, out) == (1, "")
    assert err == [
        f"lengthwise train: {run}: was started with seed 0, now 7, units [4], now [5, 6]. Use the same values, or "
        "start over with --overwrite."
    ]


def test_another_dataset_is_refused(tmp_path, path):
    other = datasets.make(tmp_path / "other", datasets.random_records([3, 4, 5])).path
    run = shutil.copytree(finished()[0], tmp_path / "run")
    theirs, ours = (open_dataset(dataset).manifest.fingerprint for dataset in (path, other))
    expected = f"{run}: was started on a dataset with fingerprint {theirs}, but {other} has {ours}. Resume with"
    for config in (change(SMALL, epochs=4), SMALL):  # a finished run is refused for other data too
        with pytest.raises(UserError, match=expected):
            train(other, run, config)


def test_overwrite_starts_over_and_leaves_foreign_files(tmp_path, path):
    run = pathlib.Path(shutil.copytree(finished()[0], tmp_path / "run"))
    events = set((run / "logs").rglob("events.out.tfevents.*"))
    (run / "evaluation-test.json").write_text("{}")
    (run / "notes.txt").write_text("mine")
    result = train(path, run, change(SMALL, epochs=0, units=(3,)), overwrite=True)
    assert (result["epochs"], result["updates"]) == (0, 0)
    assert (run / "notes.txt").read_text() == "mine"
    assert not (run / "evaluation-test.json").exists()
    assert lines_of(run) == []
    assert [file.name for file in (run / "checkpoints").rglob("*.index")] == ["ckpt-0.index"]
    assert events and not events & set((run / "logs").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_not_a_run_is_refused_and_unchanged(tmp_path, path, overwrite):
    """For example a dataset, which has a manifest.json as a run has."""
    folder = pathlib.Path(datasets.copy(datasets.of_kind("class"), tmp_path))
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    with pytest.raises(UserError, match=f"^{folder}: exists and is not a run. Choose another --output.$"):
        train(path, folder, SMALL, overwrite=overwrite)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


@pytest.mark.parametrize("callbacks", ["EarlyStopping", [keras.callbacks.Callback], [print]])
def test_what_is_no_callback_is_refused_before_anything_is_written(tmp_path, path, callbacks):
    with pytest.raises(UserError, match=r"^callbacks: .*: expected a list of instances of keras.callbacks.Callback\.$"):
        train(path, tmp_path / "run", SMALL, callbacks=callbacks)
    assert not (tmp_path / "run").exists()


def test_a_file_in_the_place_of_a_run_is_refused_and_unchanged(tmp_path, path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match=f"^{tmp_path}/run: a file is in the way, expected a folder or nothing. Choose"):
        train(path, tmp_path / "run", SMALL, overwrite=True)
    assert (tmp_path / "run").read_text() == "mine"


def test_a_run_that_was_stopped_while_it_was_created_is_created_again(tmp_path, path):
    for name in ("statistics.json", "manifest.json", "metrics.jsonl", "config.yaml.tmp"):
        (tmp_path / name).write_text("half")
    assert train(path, tmp_path, change(SMALL, epochs=0))["epochs"] == 0


def test_an_impossible_output_is_reported_in_one_line(tmp_path, path, capsys):
    (tmp_path / "file").write_text("")
    for output, named in (("file", "file"), ("file/run", "file"), ("run[1]", "run[1]")):
        status, out, err = datasets.call(capsys, "train", path, "--output", tmp_path / output, *FLAGS)
        assert (status, out, len(err)) == (1, "", 1)
        assert str(tmp_path / named) in err[0]


def test_a_run_of_no_epochs_can_be_evaluated(tmp_path, path):
    result = train(path, tmp_path, change(SMALL, epochs=0))
    assert (result["epochs"], result["updates"], result["best_epoch"]) == (0, 0, None)
    assert lines_of(tmp_path) == []
    found = evaluate(tmp_path, path, split="validation")
    assert (found["checkpoint"], found["loss"]) == ("last", pytest.approx(result["validation"]["loss"], rel=1e-6))


@pytest.mark.proof
def test_without_a_validation_split_the_last_checkpoint_is_kept(tmp_path, capsys):
    made = datasets.make(tmp_path, datasets.random_records([3, 4, 5, 9]))
    result = train(made.path, tmp_path / "run", change(SMALL, epochs=2))
    assert (result["validation"], result["best_epoch"]) == (None, None)
    assert "No validation split: the last checkpoint is kept, none is the best." in capsys.readouterr().err
    assert [line["validation"] for line in epoch_lines(tmp_path / "run")] == [None, None]
    assert evaluate(tmp_path / "run", made.path, split="train")["checkpoint"] == "last"
    with pytest.raises(UserError, match="has no best checkpoint yet"):
        evaluate(tmp_path / "run", made.path, split="train", checkpoint="best")
    with pytest.raises(UserError, match="early_stopping needs labels in the split 'validation'"):
        train(made.path, tmp_path / "other", change(SMALL, early_stopping=2))


def test_a_train_split_without_records_is_refused(tmp_path):
    made = datasets.make(tmp_path, datasets.random_records([3, 4], split="test"))
    with pytest.raises(UserError, match="the split 'train' has no label, so there is nothing to train on"):
        train(made.path, tmp_path / "run", SMALL)
    assert not (tmp_path / "run").exists()


def test_a_validation_split_without_labels_is_not_measured(tmp_path):
    """Neither one of the batches nor the validation split has a label."""
    records = datasets.random_records([3, 4, 5], kind="step_class")
    records += datasets.random_records([2, 2], kind="step_class", split="validation")
    for record in (records[0], *records[3:]):
        record["y"] = [None] * len(record["x"])
    made = datasets.make(tmp_path, records, datasets.schema_text("step_class"))
    result = train(made.path, tmp_path / "run", change(SMALL, epochs=1, batch_size=1))
    assert (result["updates"], result["validation"]) == (3, None)
    assert sorted(line["loss"] for line in lines_of(tmp_path / "run") if "loss" in line)[0] == 0


@pytest.mark.proof
def test_a_single_class_is_learnt_immediately(tmp_path):
    records = [record | {"y": "a"} for record in datasets.random_records([2, 3, 4])]
    made = datasets.make(tmp_path, records, datasets.schema_text().replace("[a, b, c]", "[a]"))
    train(made.path, tmp_path / "run", change(SMALL, epochs=1))
    found = evaluate(tmp_path / "run", made.path, split="train")
    expected = {"accuracy": 1.0, "macro_f1": 1.0, "cross_entropy": 0.0}
    assert {name: found["metrics"][name] for name in expected} == expected


@pytest.mark.proof
def test_a_batch_may_be_one_record(tmp_path):
    made = datasets.make(tmp_path, datasets.random_records([1, 7, 3, 1]))
    result = train(made.path, tmp_path / "run", change(SMALL, epochs=1, batch_size=1))
    assert result["updates"] == 4
    updates = [line for line in lines_of(tmp_path / "run") if "update" in line]
    assert sorted(line["steps"] for line in updates) == [1, 1, 3, 7]
    assert {line["records"] for line in updates} == {1}


@pytest.mark.proof
@pytest.mark.parametrize("kind", datasets.some(["regression", "step_class"], ["step_class"]))
def test_training_learns_from_truncated_records(tmp_path, kind):
    config = change(SMALL, dropout=0, optimizer="adam", learning_rate=0.05, batching="pad", epochs=6)
    config = change(config, pad_length=8, truncate="head")
    train(datasets.of_kind(kind).path, tmp_path, config)
    loss = [line["train"]["loss"] for line in epoch_lines(tmp_path)]
    assert loss[-1] < loss[0]


@pytest.mark.proof
def test_early_stopping_also_stops_a_resumed_run(tmp_path, path):
    """With this learning rate nothing is learnt, so the first epoch is the best: training stops after two more."""
    config = change(SMALL, epochs=9, early_stopping=2, learning_rate=1e-30, dropout=0)
    with pytest.raises(Interrupted):
        train(path, tmp_path / "cut", config, callbacks=[InterruptAt(1)])
    result = train(path, tmp_path / "cut", config)
    assert (result["epochs"], result["stopped_early"], result["best_epoch"]) == (3, True, 1)
    assert train(path, tmp_path / "cut", config) == result  # a finished run is not trained further


@pytest.mark.proof
def test_early_stopping_stops_a_resumed_run_where_it_stops_an_uninterrupted_run(tmp_path, path):
    config = change(SMALL, epochs=9, early_stopping=2, learning_rate=1e-30, dropout=0)
    with pytest.raises(Interrupted):
        train(path, tmp_path / "cut", config, callbacks=[InterruptAt(1)])
    assert train(path, tmp_path / "cut", config) == train(path, tmp_path / "whole", config)


def test_a_non_finite_loss_stops_with_one_line_and_keeps_the_last_checkpoint(tmp_path, path, capsys):
    flags = ["--units", 4, "--batch_size", 8, "--learning_rate", 1e38, "--epochs", 2]
    status, out, err = datasets.call(capsys, "train", path, "--output", tmp_path, *flags)
    assert (status, out) == (1, "")
    assert "epoch 1" in err[-1] and "is nan" in err[-1] or "is inf" in err[-1] or "non-finite" in err[-1]
    assert err[-1].endswith(
        "The last checkpoint is of update 0. Start over with a smaller --learning_rate, or with --clip_norm 1."
    )
    assert not (tmp_path / "result.json").exists()
    assert math.isfinite(evaluate(tmp_path, path)["loss"])


@pytest.mark.proof
def test_a_run_that_diverges_with_categories_is_reported_in_one_line_too(tmp_path, capsys):
    """An embedding's update fails on non-finite weights before the loss is read."""
    records = [r | {"c": [3] * len(r["x"])} for r in datasets.random_records([3, 5, 4] * 12, kind="regression")]
    schema = datasets.schema_text("regression", datasets.X + "\n  c: {dtype: int64, num_values: 9}")
    made = datasets.make(tmp_path, records, schema)
    flags = ["--units", 4, "--batch_size", 2, "--learning_rate", 1e30, "--epochs", 2]
    status, _, err = datasets.call(capsys, "train", made.path, "--output", tmp_path / "run", *flags)
    assert status == 1
    assert "is non-finite after update" in err[-1] or "the update changed no weight" in err[-1]
    assert "The last checkpoint is of update 0. Start over with a smaller --learning_rate" in err[-1]
    assert "Traceback" not in "".join(err)


@pytest.mark.parametrize("splits", datasets.some([("train",), ("train", "validation")], [("train",)]))
def test_non_finite_weights_are_never_saved(tmp_path, splits):
    """The only update of the epoch makes them non-finite, after a finite loss."""
    records = [record for split in splits for record in datasets.random_records([3, 4, 5], split=split)]
    made = datasets.make(tmp_path, records)
    config = change(SMALL, batching="pad", learning_rate=3e38, epochs=2, dropout=0)
    with pytest.raises(UserError, match=r"(update [12]|epoch 1).* The last checkpoint is of update"):
        train(made.path, tmp_path / "run", config)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    found = evaluate(tmp_path / "run", made.path, split="train", checkpoint="last")
    assert math.isfinite(found["loss"])


def test_callbacks_are_called_with_the_usual_logs(tmp_path, path):
    calls = []

    class Recorder(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            assert isinstance(self.model.optimizer, keras.optimizers.RMSprop)
            calls.append(("begin", dict(self.params)))

        def on_epoch_begin(self, epoch, logs=None):
            calls.append(("epoch", epoch))

        def on_train_batch_begin(self, batch, logs=None):
            calls.append(("batch", batch))

        def on_train_batch_end(self, batch, logs=None):
            losses.append((batch, logs))

        def on_epoch_end(self, epoch, logs=None):
            calls.append(("end", epoch, logs))

        def on_train_end(self, logs=None):
            calls.append(("done",))

    losses = []
    result = train(path, tmp_path, change(SMALL, epochs=2), callbacks=[Recorder()])
    updates = [line for line in lines_of(tmp_path) if "update" in line]
    assert [logs for _, logs in losses] == [{"loss": pytest.approx(line["loss"])} for line in updates]
    assert [batch for batch, _ in losses] == 2 * list(range(len(updates) // 2))
    updates = result["updates"] // 2
    expected = [("begin", {"epochs": 2, "steps": updates, "verbose": 0})]
    for epoch, line in enumerate(epoch_lines(tmp_path)):
        validation = {"loss": line["validation"]["loss"], **line["validation"]["metrics"]}
        logs = {"loss": line["train"]["loss"]} | {f"val_{name}": value for name, value in validation.items()}
        assert {"loss", "val_loss", "val_accuracy"} <= set(logs)
        expected += [("epoch", epoch), *(("batch", batch) for batch in range(updates)), ("end", epoch, logs)]
    assert calls == [*expected, ("done",)]


def test_a_damaged_checkpoint_is_reported_in_one_line(tmp_path, path):
    run = pathlib.Path(shutil.copytree(finished()[0], tmp_path / "run"))
    for file in (run / "checkpoints" / "last").glob("ckpt-*.data-*"):
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"checkpoints/last/ckpt-\d+: cannot be restored: .*again with --overwrite"):
        train(path, run, change(SMALL, epochs=4))


@pytest.mark.proof
def test_more_epochs_create_no_more_functions(tmp_path, monkeypatch):
    """TensorFlow never frees a function and the objects that it refers to."""
    made = datasets.make(
        tmp_path, datasets.random_records([3, 4, 5]) + datasets.random_records([3], split="validation")
    )
    original, calls, counts = tf.numpy_function, [], []
    monkeypatch.setattr(tf, "numpy_function", lambda *args: calls.append(1) or original(*args))
    count = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: counts.append(len(calls)))
    train(made.path, tmp_path / "run", change(SMALL, epochs=3), callbacks=[count])
    assert counts == [len(calls)] * 3 and calls


@pytest.mark.proof
def test_training_accepts_a_constant_column(tmp_path):
    records = datasets.random_records([3, 4, 5, 6]) + datasets.random_records([3, 4], split="test")
    for record in records:
        for step in record["x"]:
            step[1] = 1e6 if record["split"] == "train" else 1e6 + 1
    made = datasets.make(tmp_path, records)
    result = train(made.path, tmp_path / "run", change(SMALL, epochs=2))
    assert result["epochs"] == 2
    assert evaluate(tmp_path / "run", made.path)["loss"] < 3


@pytest.mark.parametrize(
    ("kind", "way"),
    datasets.some(
        itertools.product(["class", "step_class"], ["window", "bucket"]),
        [("step_class", "window")],
        unpack=True,
    ),
)
def test_an_epoch_has_the_gradient_of_all_records_for_any_batches(kind, way):
    """Some batches have few long records, others many short ones: a mean of each batch would favour long records."""
    dataset = open_dataset(datasets.of_kind(kind).path)
    keras.utils.set_random_seed(1)
    model = build_model(dataset.schema, dataset.manifest.statistics, TrainConfig(units=(4,)))
    limits = {"batching": way, "batch_steps": 30}
    num_batches = plan_epoch(dataset, "train", **limits).num_batches

    def epoch(scale, *, by_epoch):
        gathered = Gather(model)
        parts = batches(dataset, "train", **limits)
        spec, replicas = parts.element_spec, find_replicas("one")
        update = Update(model, gathered, kind=kind, element_spec=spec, by_epoch=by_epoch, replicas=replicas)
        factor = tf.constant(scale, tf.float32)
        sums = np.sum([[float(value) for value in update((batch,), factor)[:2]] for batch in parts], axis=0)
        return np.concatenate([total.numpy().ravel() for total in gathered.sums]), sums

    ((features, label, weight),) = batches(dataset, "train", batching="pad", batch_size=1000)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(weight * compute_losses(head_model(model)(features), label, kind))
        mean = loss / tf.reduce_sum(weight)
    gradients = tape.gradient(mean, [variable.value for variable in model.trainable_variables])
    whole = num_batches * np.concatenate([gradient.numpy().ravel() for gradient in gradients])
    labels = dataset.split("train").labels

    found, (loss_sum, weight_sum) = epoch(num_batches / labels, by_epoch=True)
    assert weight_sum == labels == float(tf.reduce_sum(weight))
    assert loss_sum == pytest.approx(float(loss), rel=1e-5)
    assert np.abs(found - whole).max() <= 1e-5 * np.abs(whole).max()
    by_batch, _ = epoch(1.0, by_epoch=False)
    assert np.abs(by_batch - whole).max() > 0.05 * np.abs(whole).max()


def test_the_total_weight_excludes_truncated_labels(tmp_path):
    """Records truncated to two steps lose most of their labels, which must not count in the mean."""
    records = datasets.random_records([2, 9, 9, 9], kind="step_class")
    made = datasets.make(tmp_path, records, datasets.schema_text("step_class"))
    config = change(SMALL, batching="pad", pad_length=2, truncate="tail", batch_size=4)
    dataset, run = open_dataset(made.path), Run(str(tmp_path / "run"))
    run.create(config, dataset)
    training = Training(run, dataset, config, find_replicas("one"), StopSignal())
    kept = sum(y is not None for record in records for y in record["y"][:2])
    assert (
        training._source.total_weight(plan_next_epoch(dataset, config, State())) == kept < dataset.split("train").labels
    )


@pytest.mark.proof
@pytest.mark.parametrize(
    ("ways", "seeds"),
    [(("window",), (0,)), pytest.param(("window", "bucket", "pad"), (0, 1, 2), marks=pytest.mark.proof)],
)
def test_labels_that_depend_on_the_length_are_learnt_from_sorted_batches_too(tmp_path, ways, seeds):
    """Nearly every batch of similar lengths has records of one class only."""
    random = np.random.default_rng(0)
    records = []
    for split in ("train", "test"):
        for record in datasets.random_records(random.integers(1, 9, 200).tolist(), split=split):
            records.append(record | {"y": "a" if len(record["x"]) <= 4 else "b"})
    made = datasets.make(tmp_path, records)
    accuracy = collections.defaultdict(list)
    for way in ways:
        for seed in seeds:
            output = tmp_path / f"{way}-{seed}"
            config = TrainConfig(
                epochs=12, units=(12,), batching=way, batch_size=10, seed=seed, optimizer="adam", learning_rate=0.01
            )
            train(made.path, output, config)
            accuracy[way].append(evaluate(output, made.path)["metrics"]["accuracy"])
    assert np.mean(accuracy[ways[-1]]) > 0.97
    for way in ways:
        assert np.mean(accuracy[way]) >= np.mean(accuracy[ways[-1]]) - 0.01
