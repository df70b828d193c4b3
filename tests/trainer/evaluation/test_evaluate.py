"""Evaluation equals a plain computation over unpadded records, one at a time."""

import collections
import contextlib
import functools
import json
import os
import pathlib
import shutil

import datasets
import numpy as np
import pytest
from compiled import compiled
from metrics_by_hand import metrics_by_hand, rounded, table_by_hand
from plain_prepare import prepare

from pipeline.beam.prepare import PrepareOptions
from pipeline.errors import UserError
from trainer.config import TrainConfig
from trainer.data.dataset import Dataset, open_dataset
from trainer.data.target import make_target
from trainer.evaluation import worse_lengths
from trainer.evaluation.evaluate import evaluate
from trainer.model.build import build_model
from trainer.reading.batches import batches
from trainer.runs.checkpoints import restore_weights
from trainer.runs.run import Run
from trainer.training.train import train


def made(kind):
    return datasets.of_every_feature(kind) if kind in datasets.NEXT_LABELS else datasets.of_kind(kind)


@functools.cache
def run_of(kind):
    """Returns a run on the dataset of a kind of label. Most runs have no epoch, since any weights can be measured; the
    others have a learning rate so high that the last epoch is not the best."""
    output, epochs = datasets.new_folder() / "run", 3 if kind in ("class", "multilabel") else 0
    config = TrainConfig(epochs=epochs, units=(5,), batch_size=8, learning_rate=0.3, seed=2)
    train(made(kind).path, output, config)
    return str(output)


def call_evaluate(capsys, *arguments):
    """Calls the command; returns its status, stdout, and the lines of stderr without progress."""
    status, out, err = datasets.call(capsys, "evaluate", *arguments)
    return status, out, [line for line in err if not line.startswith("evaluate: ")]


def model_of(run):
    manifest = run.manifest()
    return build_model(manifest.record_schema, run.statistics(), run.config(), vocabularies=run.vocabularies())


def answers(kind, checkpoint, split):
    """Returns (target, [(length, outputs, labels)]); the model reads each record alone and unpadded.

    Probabilities are converted back to logarithms or logits.
    """
    run, dataset = Run(run_of(kind)), open_dataset(made(kind).path)
    model, target = model_of(run), make_target(dataset.schema, run.vocabularies())
    assert restore_weights(run, model, checkpoint) == checkpoint
    found, call = [], compiled(model)
    for features, label, weight in batches(dataset, split, batching="exact", batch_size=1):
        output = call(features).numpy().astype(np.float64)
        if target.kind not in ("regression", "step_regression"):
            output = np.log(output) - (np.log1p(-output) if "multilabel" in target.kind else 0)
        real = weight.numpy() > 0
        found.append((int(features["length"][0]), output[real], label.numpy()[real]))
    return target, found


def by_hand(target, answered, statistics):
    """Computes records, steps, loss and metrics in the most literal way."""
    outputs, labels = (np.concatenate([a[part] for a in answered]) for part in (1, 2))
    measured = {"records": len(answered), "steps": sum(length for length, _, _ in answered)}
    metrics = metrics_by_hand(target, outputs, labels)
    if target.per_step:
        measured["labelled_steps"] = len(labels)
    if "rmse" in metrics:
        # The columns of a vector weigh the same in the loss, whatever their units.
        scale = np.array(statistics[target.next_of].variance) if target.is_vector else 1.0
        loss = np.mean((outputs - labels) ** 2 / scale)
    else:
        loss = metrics.get("cross_entropy", metrics.get("nll"))
    return measured | {"loss": loss}, metrics


def check_baseline(target, labels, found):
    answer, metrics, metric = (found["baseline"][key] for key in ("answer", "metrics", "metric"))
    if metric == "rmse":
        assert metrics["rmse"] == pytest.approx(np.sqrt(np.mean((labels - answer) ** 2)))
    elif metric == "accuracy":
        classes = labels.argmax(-1) if target.kind == "distribution" else labels
        assert metrics["accuracy"] == pytest.approx(np.mean(classes == target.names.index(answer)))
    assert found["baseline"]["is_beaten"] in (True, False)
    is_lacking = target.kind == "distribution" or target.kind == "step_class" and target.next_of is not None
    assert found["baseline"]["source"] == ("test" if is_lacking else "train")


@pytest.mark.parametrize(
    "kind",
    datasets.some(datasets.LABELS | datasets.NEXT_LABELS, ["next_x"]),
)
def test_loss_and_metrics_equal_a_plain_computation_whole_and_by_length(kind, monkeypatch):
    for name, least in (("MIN_RECORDS", 1), ("LEAST_RATIO", 0), ("STANDARD_ERRORS", -np.inf)):
        monkeypatch.setattr(worse_lengths, name, least)  # so that every length with a label is listed
    found = evaluate(run_of(kind), made(kind).path, checkpoint="last")
    target, answered = answers(kind, "last", "test")
    statistics = Run(run_of(kind)).statistics()
    bands = found["by_length"]
    assert len(bands) > 3 and sum(band["records"] for band in bands) == 30
    for measured in (found, *bands):
        inside = [a for a in answered if measured.get("min_steps", 1) <= a[0] <= measured.get("max_steps", 99)]
        if not sum(len(labels) for _, _, labels in inside):
            assert measured["loss"] is None and not any(measured["metrics"].values())
            continue
        values, metrics = by_hand(target, inside, statistics)
        assert {name: measured[name] for name in values} == pytest.approx(values, rel=1e-4)
        defined = {name: value for name, value in metrics.items() if value is not None}
        assert {name: value for name, value in measured["metrics"].items() if value is not None} == pytest.approx(
            defined, rel=1e-4, abs=1e-6
        )
    lengths = {row["min_steps"]: row for row in found["worse_lengths"]}
    assert lengths.keys() == {band["min_steps"] for band in bands if band["loss"] is not None}
    for row in lengths.values():
        (band,) = (band for band in bands if band["min_steps"] == row["min_steps"])
        assert row["records"] == sum(len(a[2]) > 0 and row["min_steps"] <= a[0] <= row["max_steps"] for a in answered)
        assert (row["value"], row["all"]) == pytest.approx([m["metrics"][row["metric"]] for m in (band, found)])
    if "confusion" in found:
        assert found["confusion"]["classes"] == list(target.names)
        assert np.sum(found["confusion"]["counts"]) == sum(len(labels) for _, _, labels in answered)
    check_baseline(target, np.concatenate([labels for _, _, labels in answered]), found)
    assert ("by_class" in found) == bool(target.names)
    if "by_class" in found:
        outputs, labels = (np.concatenate([a[part] for a in answered]) for part in (1, 2))
        assert rounded(found["by_class"]) == rounded(table_by_hand(target, outputs, labels))
    assert ("confusion" in found) == (target.kind in ("class", "distribution", "step_class"))
    assert ("confused_pairs" in found) == ("confusion" in found)


@pytest.mark.proof
def test_the_default_is_the_checkpoint_with_the_lowest_validation_loss():
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
        target, answered = answers("class", checkpoint, "validation")
        assert by_hand(target, answered, {})[0]["loss"] == pytest.approx(loss, rel=1e-4)


def test_the_command_writes_and_prints_what_it_measured(capsys):
    dataset, run = datasets.of_kind("class"), pathlib.Path(run_of("class"))
    status, out, err = call_evaluate(capsys, run, dataset.path, "--split", "validation", "--json")
    assert (status, err) == (0, [])
    found = json.loads(out)
    assert json.loads((run / "evaluation-validation.json").read_text()) == found
    assert found == evaluate(run, dataset.path, split="validation")
    assert (found["split"], found["records"], found["dataset_changed"]) == ("validation", 20, False)
    assert set(found) >= {"split", "records", "steps", "loss", "metrics", "by_length"}
    status, out, err = call_evaluate(capsys, f"{run}/", f"{dataset.path}/", "--checkpoint", "last")
    assert (status, err) == (0, [])
    found = json.loads((run / "evaluation-test.json").read_text())
    lines = [line.split() for line in out.splitlines()]
    assert ["steps", "records", "loss", "accuracy", "macro_f1", "ECE"] in lines
    names = ("accuracy", "macro_f1", "expected_calibration_error")
    values = [found["loss"], *(found["metrics"][name] for name in names)]
    assert ["all", "30", *(f"{value:.4f}" for value in values)] in lines
    values = [found["baseline"]["metrics"][name] for name in ("cross_entropy", "accuracy", "macro_f1")]
    assert ["baseline", *(f"{value:.4f}" for value in values), "-"] in lines
    counts = zip("abc", found["confusion"]["counts"], strict=True)
    assert lines[lines.index(["a", "b", "c"]) + 2 :][:3] == [[name, *map(str, row)] for name, row in counts]
    measures = ("precision", "recall", "f1")
    rows = [[r["class"], *(f"{r[name]:.4f}" for name in measures), f"{r['support']}"] for r in found["by_class"]]
    assert lines[lines.index(["class", "precision", "recall", "F1", "support"]) + 2 :][:3] == rows
    assert all(len(line) <= 100 for line in out.splitlines())


def test_an_epoch_has_the_metrics_of_evaluate_except_for_rankings():
    run, path = run_of("multilabel"), datasets.of_kind("multilabel").path
    lines = [json.loads(line) for line in pathlib.Path(run, "metrics.jsonl").read_text().splitlines()]
    found = evaluate(run, path, split="validation", checkpoint="last")["metrics"]
    assert all(0 < found.pop(name) < 1 for name in ("auc", "average_precision"))
    assert lines[-1]["validation"]["metrics"] == pytest.approx(found, rel=1e-6)


GROUPED = """
id: id
steps: {x: {dtype: float32, shape: [2]}}
label: {name: y, kind: class, classes: [a, b, c]}
splits: {train: 0.3, test: 0.7}
group: person
"""


@pytest.fixture(scope="module")
def grouped():
    """Returns (dataset, run, raw records by id) for raw files of two days and 60 people."""
    folder = datasets.new_folder()
    records = datasets.random_records(np.random.default_rng(3).integers(1, 9, 200).tolist(), split="all")
    for number, record in enumerate(records):
        # Person 0 has the most records, and so on; the first record of everyone is of the first day.
        record |= {"person": f"person {int(60 * (number / 200) ** 2)}", "day": number % 2}
    (folder / "schema.yaml").write_text(GROUPED)
    for day in (0, 1):
        lines = (json.dumps(record) + "\n" for record in records if record["day"] == day)
        (folder / f"day-{day}.jsonl").write_text("".join(lines))
    raw = tuple(str(folder / f"day-{day}.jsonl") for day in (0, 1))
    with contextlib.redirect_stderr(None):
        prepare(PrepareOptions(raw, str(folder / "schema.yaml"), str(folder / "dataset"), num_shards=3))
    train(str(folder / "dataset"), folder / "run", TrainConfig(epochs=1, units=(5,)))
    return folder / "dataset", folder / "run", {record["id"]: record for record in records}


def are_correct(run, records):
    """Returns bool[records], whether the model predicts the class of each record, which it reads alone."""
    run = Run(str(run))
    model, found = model_of(run), []
    restore_weights(run, model, None)
    call = compiled(model)
    for record in records:
        x = np.array([record["x"]], np.float32)
        output = call({"x": x, "length": np.array([x.shape[1]], np.int32)}).numpy()[0]
        found.append(datasets.CLASSES[output.argmax()] == record["y"])
    return np.array(found)


def test_groups_and_raw_files_are_each_measured_alone(grouped):
    dataset, run, records = grouped
    found = evaluate(run, dataset)
    inside = [records[name] for name in open_dataset(dataset).index("test")["id"].to_pylist()]
    people = collections.Counter(record["person"] for record in inside)
    order = sorted(people, key=lambda name: (-people[name], name))
    assert [(part["group"], part["records"]) for part in found["by_group"]] == [(n, people[n]) for n in order]
    days = collections.Counter(record["day"] for record in inside)
    files = {os.path.basename(part["source"]): part["records"] for part in found["by_source"]}
    assert files == {f"day-{day}.jsonl": count for day, count in days.items()}
    assert (found["groups_left_out"], found["sources_left_out"]) == (0, 0)
    for parts in (found["by_group"], found["by_source"], found["by_length"]):
        records_of = np.array([part["records"] for part in parts])
        for name in ("accuracy", "cross_entropy"):
            values = [part["metrics"][name] for part in parts]
            assert np.dot(values, records_of) / len(inside) == pytest.approx(found["metrics"][name])
    right = are_correct(run, inside)
    for part in found["by_group"]:
        mine = [number for number, record in enumerate(inside) if record["person"] == part["group"]]
        assert part["steps"] == sum(len(inside[number]["x"]) for number in mine)
        assert part["metrics"]["accuracy"] == pytest.approx(right[mine].mean())


def test_the_largest_groups_are_printed(grouped, capsys):
    dataset, run, _ = grouped
    status, out, _ = call_evaluate(capsys, run, dataset)
    found = json.loads((run / "evaluation-test.json").read_text())
    assert status == 0 and len(found["by_group"]) > 20
    assert f"By group, the 20 of {len(found['by_group'])} with the most records" in out
    printed = [line.split()[:3] for line in out.splitlines() if line.startswith(" person ")]
    assert printed == [[*part["group"].split(), str(part["records"])] for part in found["by_group"][:20]]
    assert "By source\n" in out and all(len(line) <= 100 for line in out.splitlines())


def test_an_index_without_groups_and_sources_is_broken_down_by_length_only(grouped, monkeypatch):
    dataset, run, _ = grouped
    before = evaluate(run, dataset)
    whole = Dataset.index
    monkeypatch.setattr(Dataset, "index", lambda self, split: whole(self, split).drop_columns(["group", "source"]))
    after = evaluate(run, dataset)
    del before["by_group"], before["groups_left_out"], before["by_source"], before["sources_left_out"]
    assert after == before


@pytest.mark.proof
def test_the_run_uses_its_own_vocabulary_and_notes_another_one_in_the_data(tmp_path, capsys):
    """The other dataset has the same test split and another train split."""
    mine, kind = made("next_word"), "next_word"
    other = [record | {"word": ["rarer"] * len(record["x"])} for record in mine.of("train")]
    schema = f"id: id{datasets.EVERY_FEATURE}label: {datasets.NEXT_LABELS[kind]}\nsplits: {{from: split}}\n"
    changed = datasets.make(tmp_path, other + mine.of("test"), schema)
    before, after = evaluate(run_of(kind), mine.path), evaluate(run_of(kind), changed.path)
    assert (before["vocabularies_changed"], after["vocabularies_changed"]) == ([], ["word"])
    for name in ("loss", "metrics"):
        assert after[name] == pytest.approx(before[name], rel=1e-6)
    assert after["confusion"] == before["confusion"]
    status, _, err = call_evaluate(capsys, run_of(kind), changed.path)
    assert status == 0
    assert "Note: the dataset has a different vocabulary for word; the vocabulary of the run was used." in err


def test_a_moved_run_can_be_evaluated(tmp_path):
    moved = shutil.copytree(run_of("class"), tmp_path / "moved here")
    path = datasets.of_kind("class").path
    assert evaluate(moved, path) == evaluate(run_of("class"), path)


def test_another_dataset_is_noted(tmp_path, capsys):
    records = datasets.random_records([3, 4, 5], split="test")
    other = datasets.make(tmp_path, records).path
    status, _, err = call_evaluate(capsys, run_of("class"), other)
    assert status == 0
    assert err == ["Note: this is not the dataset that the run was trained on (the fingerprints differ)."]
    assert evaluate(run_of("class"), other)["dataset_changed"] is True


@pytest.mark.parametrize(
    ("schema", "change", "difference"),
    [
        (
            datasets.schema_text("class", "x: {dtype: float32, shape: [3]}"),
            [1.0, 2.0, 3.0],
            'its schema has steps.x {"dtype": "float32", "shape": [3]',
        ),
        (
            datasets.schema_text().replace("[a, b, c]", "[c, b, a]"),
            [1.0, 2.0],
            'its schema has label.classes ["c", "b", "a"], but',
        ),
        (
            f"{datasets.schema_text()}context: {{z: {{dtype: float32}}}}\n",
            [1.0, 2.0],
            'its schema has context.z {"dtype": "float32"',
        ),
    ],
)
def test_data_of_another_schema_is_refused_and_the_difference_is_named(tmp_path, capsys, schema, change, difference):
    other = datasets.make(tmp_path, [{"id": 1, "split": "test", "x": [change], "y": "a", "z": 1.0}], schema).path
    status, out, err = call_evaluate(capsys, run_of("class"), other)
    assert (status, out, len(err)) == (1, "", 1)
    assert err[0].startswith(f"lengthwise evaluate: {other}: {difference}")
    assert f"but {run_of('class')} was trained on " in err[0]
    assert len(err[0]) < 600


def test_a_split_without_records_is_refused(tmp_path, capsys):
    other = datasets.make(tmp_path, datasets.random_records([3, 4]))
    status, _, err = call_evaluate(capsys, run_of("class"), other.path)
    assert (status, len(err)) == (1, 1)
    assert (
        err[0] == f"lengthwise evaluate: {other.path}: the split 'test' has no record. Splits with records: train (2)."
    )
    with pytest.raises(UserError, match="has no split 'dev'; it has train, validation, test"):
        evaluate(run_of("class"), other.path, split="dev")


def test_a_folder_that_is_not_a_run_is_reported_in_one_line(tmp_path, capsys):
    status, out, err = call_evaluate(capsys, tmp_path, datasets.of_kind("class").path)
    assert (status, out) == (1, "")
    assert err == [
        f"lengthwise evaluate: {tmp_path}: not a run: it has no config.yaml that can be read. Make one with "
        "`lengthwise train`."
    ]


def test_a_missing_or_damaged_checkpoint_is_reported_in_one_line(tmp_path, capsys):
    run, path = pathlib.Path(shutil.copytree(run_of("class"), tmp_path / "run")), datasets.of_kind("class").path
    shutil.rmtree(run / "checkpoints" / "best")
    status, _, err = call_evaluate(capsys, run, path, "--checkpoint", "best")
    assert (status, len(err)) == (1, 1) and f"{run}: has no best checkpoint yet." in err[0]
    assert evaluate(run, path)["checkpoint"] == "last"
    for file in (run / "checkpoints" / "last").glob("*.data-*"):
        file.write_bytes(file.read_bytes()[:100])
    status, _, err = call_evaluate(capsys, run, path)
    assert (status, len(err)) == (1, 1) and "checkpoints/last/ckpt-4: not a checkpoint of this run's model" in err[0]


def test_memory_that_runs_out_is_reported_with_the_batch(monkeypatch):
    """The advice is not --batch_steps, which this command does not have."""
    run = run_of("regression")

    def run_out(*_, **__):
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr("trainer.evaluation.evaluate.Metrics.update", run_out)
    expected = (
        r"^Out of memory: a batch of the split 'test', \d+ x \d+ steps, does not fit beside the weights of the model\. "
        r"End other processes that use the memory, or train a model with fewer --units\. \(Reported as: std::bad_alloc"
    )
    with pytest.raises(UserError, match=expected):
        evaluate(run, made("regression").path)
