"""Evaluation equals a plain computation over unpadded records, one at a time."""

import functools
import json
import pathlib
import shutil

import datasets
import numpy as np
import pytest
from test_metrics import classes_by_hand

from pipeline.errors import UserError
from trainer.checkpoints import restore_weights
from trainer.config import TrainConfig
from trainer.evaluate import evaluate
from trainer.model import build_model
from trainer.run import Run
from trainer.train import train


@functools.cache
def run_of(kind):
    """A run on the dataset of a kind of label, that takes steps too large to get better all the time."""
    output = datasets.new_folder() / "run"
    config = TrainConfig(epochs=3, units=(5,), batch_size=8, learning_rate=0.3, seed=2)
    train(datasets.of_kind(kind).path, output, config)
    return str(output)


def answers(kind, checkpoint, split):
    """[(length, the model's output, raw label)] of each record, which the model reads alone and unpadded."""
    run = Run(run_of(kind))
    manifest = run.manifest()
    model = build_model(manifest.record_schema, manifest.statistics, run.config())
    assert restore_weights(run, model, checkpoint) == checkpoint
    found = []
    for record in datasets.of_kind(kind).of(split):
        x = np.array([record["x"]], np.float32)
        output = model({"x": x, "length": np.array([x.shape[1]], np.int32)}).numpy()[0]
        found.append((x.shape[1], output.astype(np.float64), record["y"]))
    return found


def by_hand(kind, answered):
    """Records, steps, loss and metrics, in the most literal way."""
    losses, actual, predicted, errors = [], [], [], []
    for _, output, label in answered:
        if kind == "regression":
            errors.append(output - label)
            losses.append((output - label) ** 2)
        elif kind == "distribution":
            losses.append(-sum(p * np.log(q) for p, q in zip(label, output, strict=True)))
            actual.append(int(np.argmax(label)))
            predicted.append(int(output.argmax()))
        else:
            rows, labels = (output, label) if kind == "step_class" else ([output], [label])
            for probabilities, y in zip(rows, labels, strict=True):
                if y is not None:
                    actual.append(datasets.CLASSES.index(y))
                    predicted.append(int(probabilities.argmax()))
                    losses.append(-np.log(probabilities[actual[-1]]))
    measured = {"records": len(answered), "steps": sum(length for length, _, _ in answered)}
    if kind == "regression":
        metrics = {"mae": np.abs(errors).mean(), "rmse": np.sqrt(np.mean(losses))}
    else:
        accuracy, f1 = classes_by_hand(actual, predicted)
        metrics = {"accuracy": accuracy, "macro_f1": f1, "cross_entropy": np.mean(losses)}
    return measured | {"loss": np.mean(losses)}, metrics


@pytest.mark.parametrize("kind", datasets.LABELS)
def test_loss_and_metrics_equal_a_plain_computation_whole_and_by_length(kind):
    found = evaluate(run_of(kind), datasets.of_kind(kind).path, checkpoint="last")
    answered = answers(kind, "last", "test")
    bands = found["by_length"]
    assert len(bands) > 3 and sum(band["records"] for band in bands) == 30
    for measured in (found, *bands):
        inside = [a for a in answered if measured.get("min_steps", 1) <= a[0] <= measured.get("max_steps", 99)]
        values, metrics = by_hand(kind, inside)
        assert {name: measured[name] for name in values} == pytest.approx(values, rel=1e-4)
        assert measured["metrics"] == pytest.approx(metrics, rel=1e-4)


def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss_and_the_default():
    path, run = datasets.of_kind("class").path, run_of("class")
    lines = [json.loads(line) for line in pathlib.Path(run, "metrics.jsonl").read_text().splitlines()]
    validation = [line["validation"]["loss"] for line in lines if "validation" in line]
    best = evaluate(run, path, split="validation")
    assert best["checkpoint"] == "best"
    assert best["loss"] == pytest.approx(min(validation), rel=1e-6)
    last = evaluate(run, path, split="validation", checkpoint="last")
    assert last["checkpoint"] == "last"
    assert last["loss"] == pytest.approx(validation[-1], rel=1e-6)
    assert last["loss"] > 1.001 * best["loss"]
    for checkpoint, loss in (("best", best["loss"]), ("last", last["loss"])):
        assert by_hand("class", answers("class", checkpoint, "validation"))[0]["loss"] == pytest.approx(loss, rel=1e-4)


def test_the_command_writes_and_prints_what_it_measured(capsys):
    dataset, run = datasets.of_kind("class"), pathlib.Path(run_of("class"))
    status, out, err = datasets.call(capsys, "evaluate", run, dataset.path, "--split", "validation", "--json")
    assert (status, err) == (0, [])
    found = json.loads(out)
    assert json.loads((run / "evaluation-validation.json").read_text()) == found
    assert found == evaluate(run, dataset.path, split="validation")
    assert (found["split"], found["records"], found["dataset_changed"]) == ("validation", 20, False)
    assert set(found) >= {"split", "records", "steps", "loss", "metrics", "by_length"}
    status, out, err = datasets.call(capsys, "evaluate", f"{run}/", f"{dataset.path}/", "--checkpoint", "last")
    assert (status, err) == (0, [])
    accuracy = json.loads((run / "evaluation-test.json").read_text())["metrics"]["accuracy"]
    assert f"{accuracy:.4f}" in out and "30" in out


def test_a_run_is_evaluated_wherever_it_was_moved(tmp_path):
    moved = shutil.copytree(run_of("class"), tmp_path / "moved here")
    path = datasets.of_kind("class").path
    assert evaluate(moved, path) == evaluate(run_of("class"), path)


def test_a_changed_dataset_is_a_note(tmp_path, capsys):
    records = datasets.random_records([3, 4, 5], split="test")
    other = datasets.make(tmp_path, records).path
    status, _, err = datasets.call(capsys, "evaluate", run_of("class"), other)
    assert status == 0
    assert err == ["Note: this is not the dataset that the run was trained on (another fingerprint)."]
    assert evaluate(run_of("class"), other)["dataset_changed"] is True


@pytest.mark.parametrize(
    ("schema", "change", "said"),
    [
        (
            datasets.schema_text("class", "x: {dtype: float32, shape: [3]}"),
            [1.0, 2.0, 3.0],
            "its schema has steps {'x'",
        ),
        (datasets.schema_text().replace("[a, b, c]", "[c, b, a]"), [1.0, 2.0], "its schema has label {'name': 'y'"),
    ],
)
def test_data_of_another_schema_are_refused_with_what_differs(tmp_path, capsys, schema, change, said):
    other = datasets.make(tmp_path, [{"id": 1, "split": "test", "x": [change], "y": "a"}], schema).path
    status, out, err = datasets.call(capsys, "evaluate", run_of("class"), other)
    assert (status, out, len(err)) == (1, "", 1)
    assert err[0].startswith(f"lengthwise evaluate: {other}: {said}")
    assert f"but {run_of('class')} was trained on {{'" in err[0]


def test_a_split_without_a_record_is_refused(tmp_path, capsys):
    other = datasets.make(tmp_path, datasets.random_records([3, 4]))
    status, _, err = datasets.call(capsys, "evaluate", run_of("class"), other.path)
    assert (status, len(err)) == (1, 1)
    assert err[0] == f"lengthwise evaluate: {other.path}: the split 'test' holds no record. It has train (2)."
    with pytest.raises(UserError, match="has no split 'dev'; it has train, validation, test"):
        evaluate(run_of("class"), other.path, split="dev")


def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys):
    status, out, err = datasets.call(capsys, "evaluate", tmp_path, datasets.of_kind("class").path)
    assert (status, out) == (1, "")
    assert err == [
        f"lengthwise evaluate: {tmp_path}: not a run: it has no config.yaml that can be read. Make one with "
        "`lengthwise train`."
    ]


def test_a_checkpoint_that_is_not_there_or_not_whole_is_one_line(tmp_path, capsys):
    run, path = pathlib.Path(shutil.copytree(run_of("class"), tmp_path / "run")), datasets.of_kind("class").path
    shutil.rmtree(run / "checkpoints" / "best")
    status, _, err = datasets.call(capsys, "evaluate", run, path, "--checkpoint", "best")
    assert (status, len(err)) == (1, 1) and f"{run}: has no best checkpoint yet." in err[0]
    assert evaluate(run, path)["checkpoint"] == "last"
    for file in (run / "checkpoints" / "last").glob("*.data-*"):
        file.write_bytes(file.read_bytes()[:100])
    status, _, err = datasets.call(capsys, "evaluate", run, path)
    assert (status, len(err)) == (1, 1) and "checkpoints/last/ckpt-3: not a checkpoint of this run's model" in err[0]
