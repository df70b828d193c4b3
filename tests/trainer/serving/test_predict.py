"""Predictions of raw records: one line for each record, equal to the predictions from the dataset on every runner."""

import gzip
import json
import pathlib
import random

import datasets
import numpy as np
import pytest
from older_runs import remove_statistics
from predict_runs import assert_close, by_id, check_complete, numbers_of, run_of, snapshot

from pipeline.beam.prepare import PrepareOptions, prepare
from pipeline.errors import UserError
from trainer.batching.bucket import make_bucket_plan
from trainer.config import TrainConfig
from trainer.data.dataset import open_dataset
from trainer.data.target import make_target
from trainer.model.build import build_model
from trainer.reading.batches import planned_batches
from trainer.runs.checkpoints import restore_weights
from trainer.runs.run import Run
from trainer.serving import predict as job
from trainer.serving import predictions, predictor
from trainer.serving.predict import RunLoader
from trainer.training.train import train

KINDS = list(datasets.LABELS)


@pytest.mark.parametrize("kind", datasets.some(KINDS, ["step_regression"]))
def test_predictions_from_raw_records_equal_those_from_the_dataset(kind, run_predict):
    made, run = run_of(kind, every_feature=True)
    records = made.of("test")
    summary, lines = run_predict(run, records)
    assert summary["records"] == len(lines) == len(records)
    found = by_id(lines)
    lengths = {record["id"]: len(record["x"]) for record in records}
    for record_id, (target, outputs) in dataset_predictions(made, run).items():
        line = found.pop(record_id)
        assert line == expected_line(record_id, target, numbers_of(line))
        np.testing.assert_allclose(numbers_of(line), outputs, rtol=0, atol=1e-5)
        assert not target.per_step or len(outputs) == lengths[record_id]
    assert found == {}


def dataset_predictions(made, run_path):
    """Returns {id: (target, outputs)} of the split test, from batches that the reader of the dataset gives."""
    dataset, run = open_dataset(made.path), Run(run_path)
    manifest, vocabularies = run.manifest(), run.vocabularies()
    model = build_model(manifest.record_schema, run.statistics(), run.config(), vocabularies=vocabularies)
    restore_weights(run, model, None)
    target = make_target(manifest.record_schema, vocabularies)
    ids = dataset.index("test")["id"].to_pylist()
    found = {}
    plan = make_bucket_plan(dataset.split("test").length_counts, batching="exact")
    for features, _, _, rows in planned_batches(dataset, "test", plan):
        for row, outputs in zip(rows.numpy(), model(features).numpy(), strict=True):
            found[ids[row]] = (target, outputs)
    return found


def expected_line(record_id, target, numbers):
    """Returns the expected line with these numbers, computed in the simplest way."""
    numbers = json.loads(json.dumps([float(str(n)) for n in np.ravel(numbers)]))
    width = target.size if target.is_vector else 1
    steps = [numbers[start : start + width] for start in range(0, len(numbers), width)]
    if "regression" in target.kind:
        values = steps if target.is_vector else [step[0] for step in steps]
        return {"id": record_id, "values": values} if target.per_step else {"id": record_id, "value": values[0]}
    if "multilabel" in target.kind:
        labels = [[name for name, p in zip(target.names, step, strict=True) if p >= 0.5] for step in steps]
    else:
        labels = [target.names[step.index(max(step))] for step in steps]
    if target.per_step:
        return {"id": record_id, "labels": labels, "probabilities": steps}
    name = "labels" if target.kind == "multilabel" else "label"
    return {"id": record_id, name: labels[0], "probabilities": steps[0]}


def test_nothing_is_published_if_an_output_overflows(run_predict, tmp_path):
    records = datasets.random_records([3] * 20)
    for record in records:
        record["x"] = (np.array(record["x"]) * 1e-3).tolist()
    made = datasets.make(tmp_path / "made", records)
    result = train(made.path, tmp_path / "run", TrainConfig(epochs=0, units=(4,)))
    remove_statistics(tmp_path / "run", result)  # a run of an earlier version does not limit normalized numbers
    wild = {"id": "wild", "x": [[3e38, -3e38]] * 3}
    with pytest.raises(UserError, match=r"^The output of the model for the record 'wild' is not finite, [^\n]*$"):
        run_predict(str(tmp_path / "run"), [*records, wild])
    assert snapshot(tmp_path / "predictions") == {}


@pytest.mark.parametrize("kind", datasets.some(["class", "step_class"], ["class"]))
def test_a_prediction_is_independent_of_the_order_and_of_the_batches(kind, run_predict):
    made, run = run_of(kind)
    records = list(made.records)
    expected = by_id(run_predict(run, records)[1])
    random.Random(3).shuffle(records)
    for number, batch_steps in enumerate((1, 30, 10**6)):
        _, lines = run_predict(run, records[number:], batch_steps=batch_steps, overwrite=True)
        found = by_id(lines)
        assert_close(found, {key: expected[key] for key in found})
        assert len(found) == len(records) - number


def test_full_buffers_and_full_parts_lose_and_duplicate_no_record(run_predict, monkeypatch):
    made, run = run_of("class")
    expected = by_id(run_predict(run, made.records)[1])
    monkeypatch.setattr(predictor, "_BUFFER_RECORDS", 7)
    monkeypatch.setattr(predictions, "_PART_BYTES", 1000)
    summary, lines = run_predict(run, made.records, overwrite=True)
    assert len(summary["parts"]) > 5
    assert_close(by_id(lines), expected)
    monkeypatch.setattr(predictor, "_BUFFER_BYTES", 100)
    assert_close(by_id(run_predict(run, made.records, overwrite=True)[1]), expected)


@pytest.mark.parametrize(
    "beam_options",
    [
        pytest.param({"direct_running_mode": "multi_processing", "direct_num_workers": 2}, marks=pytest.mark.proof),
        {"direct_running_mode": "multi_threading", "direct_num_workers": 2},
        {"direct_runner_bundle_repeat": 3},
        pytest.param({"runner": "BundleBasedDirectRunner"}, marks=pytest.mark.proof),
    ],
    ids=["multi_processing", "multi_threading", "bundle_repeat", "older_runner"],
)
def test_every_runner_writes_each_prediction_once(run_predict, write_raw, tmp_path, beam_options):
    made, run = run_of("class")
    expected = by_id(run_predict(run, made.records)[1])
    for number in range(5):
        write_raw([*made.records[number::5], "{"], f"raw/{number}.jsonl")
    summary, lines = run_predict(
        run, str(tmp_path / "raw"), beam_options=beam_options, output="other", max_rejected=1, keep_raw=True
    )
    assert_close(by_id(lines), expected)
    assert summary["rejected"]["by_reason"] == {"not_json": 5}
    check_complete(tmp_path / "other")


def test_label_split_and_group_are_not_read(run_predict):
    made, run = run_of("class")
    expected = by_id(run_predict(run, made.of("test"))[1])
    for change in ({}, {"y": "no such class", "split": 3}):
        bare = [{key: record[key] for key in ("id", "x")} | change for record in made.of("test")]
        summary, lines = run_predict(run, bare, overwrite=True)
        assert by_id(lines) == expected
        assert summary["rejected"] == {"total": 0, "by_reason": {}, "files": []}


def test_predict_rejects_the_same_records_as_prepare(run_predict, tmp_path, write_raw):
    made, run = run_of("class")
    good = made.of("test")
    bad = [
        "{",
        "[]",
        {"id": 1.5, "x": [[1, 2]]},
        {"id": "no x"},
        {"id": "wide", "x": [[1, 2, 3]]},
        {"id": "empty", "x": []},
        {"id": "null", "x": [[1, None]]},
        '{"id": "infinite", "x": [[1, 1e999]]}',
    ]
    rows = [*good[:5], *(row | {"y": "a", "split": "test"} if isinstance(row, dict) else row for row in bad), *good[5:]]
    raw = write_raw(rows)
    summary, lines = run_predict(run, raw, max_rejected=0.5, keep_raw=True)
    schema = Run(run).manifest().record_schema
    (tmp_path / "schema.yaml").write_text(json.dumps(schema.canonical()))
    manifest = prepare(
        PrepareOptions((raw,), str(tmp_path / "schema.yaml"), str(tmp_path / "ds"), max_rejected=0.5, keep_raw=True)
    )
    assert summary["rejected"]["by_reason"] == manifest.rejected.by_reason
    assert summary["rejected"]["total"] == len(bad)
    (mine,), (theirs,) = summary["rejected"]["files"], manifest.rejected.files
    assert (tmp_path / "predictions" / mine).read_bytes() == (tmp_path / "ds" / theirs).read_bytes()
    assert sorted(by_id(lines)) == sorted(record["id"] for record in good)
    check_complete(tmp_path / "predictions")


def test_too_many_rejects_publish_nothing_and_their_file_remains(run_predict, tmp_path):
    made, run = run_of("class")
    with pytest.raises(
        UserError, match=r"1 of 31 records \(3\.23%\) was rejected: 1 not_json; at most 1\.00% may"
    ) as e:
        run_predict(run, [*made.of("test"), "{"])
    (path,) = (tmp_path / "predictions/rejected").iterdir()
    assert f"The rejects are in {path}; " in str(e.value)
    assert list(snapshot(tmp_path / "predictions")) == [f"rejected/{path.name}"]
    run_predict(run, [*made.of("test"), "{"], max_rejected=0.04)
    check_complete(tmp_path / "predictions")


def test_records_with_the_same_id_get_a_line_each_and_are_counted(run_predict, monkeypatch, capsys):
    made, run = run_of("class")
    first, second, third = made.of("test")[:3]
    rows = [first, first, third, second | {"id": first["id"]}]
    for part_bytes in (predictions._PART_BYTES, 1):  # in one part, and each in a part of its own
        monkeypatch.setattr(predictions, "_PART_BYTES", part_bytes)
        monkeypatch.setattr(predictor, "_BUFFER_RECORDS", 1 if part_bytes == 1 else predictor._BUFFER_RECORDS)
        summary, lines = run_predict(run, rows, overwrite=True)
        assert sorted(line["id"] for line in lines) == sorted(row["id"] for row in rows)
        assert len({line["probabilities"][0] for line in lines if line["id"] == first["id"]}) == 2
        assert summary["duplicate_ids"] == {"ids": 1, "records": 3, "examples": [first["id"]]}
        assert capsys.readouterr().err.splitlines()[-1] == (
            f'predict: 3 records share their id with another record (1 id: "{first["id"]}"). Each has a line, in no '
            "particular order; give each record an id of its own to tell their lines apart."
        )
    assert len(summary["parts"]) == 4
    summary, _ = run_predict(run, rows[1:3], overwrite=True)
    assert summary["duplicate_ids"] == {"ids": 0, "records": 0, "examples": []}
    assert "share their id" not in capsys.readouterr().err


def test_a_record_above_a_limit_is_rejected(run_predict):
    made, run = run_of("class")
    fits, wide, long = (datasets.random_records([length], split=str(length))[0] for length in (4, 1, 5))
    limits = {"max_record_bytes": 400, "max_record_steps": 4}
    summary, lines = run_predict(run, [fits, wide | {"note": "x" * 400}, long], max_rejected=0.9, **limits)
    assert summary["rejected"]["by_reason"] == {"too_large": 2}
    assert list(by_id(lines)) == [fits["id"]]


def test_long_records_are_truncated_as_the_schema_of_the_run_says(run_predict, tmp_path):
    records = datasets.random_records([3] * 20, kind="step_class")
    schema = datasets.schema_text("step_class") + "max_length: 4\nover_length: truncate_head\n"
    made = datasets.make(tmp_path / "made", records, schema)
    train(made.path, tmp_path / "run", TrainConfig(epochs=0, units=(4,)))
    whole = datasets.random_records([6], kind="step_class")[0]
    tail = whole | {"id": "tail", "x": whole["x"][2:]}
    _, lines = run_predict(str(tmp_path / "run"), [whole, tail])
    found = by_id(lines)
    assert len(found[whole["id"]]["labels"]) == 4
    assert found[whole["id"]]["probabilities"] == found["tail"]["probabilities"]


def test_files_globs_folders_and_gzip_are_read(run_predict, write_raw, tmp_path):
    made, run = run_of("class")
    records = made.of("test")
    write_raw(records[:10], "raw/a.jsonl")
    rest = pathlib.Path(write_raw(records[10:], "rest"))
    (tmp_path / "raw/b.jsonl.gz").write_bytes(gzip.compress(rest.read_bytes()))
    for raw in ("raw", "raw/*"):
        _, lines = run_predict(run, str(tmp_path / raw), overwrite=True)
        assert sorted(by_id(lines)) == sorted(record["id"] for record in records)


def test_predictions_are_never_read_as_raw_files(run_predict, write_raw, tmp_path):
    made, run = run_of("class")
    write_raw(made.of("test")[:2], "raw/a.jsonl")
    with pytest.raises(UserError, match=f"^{tmp_path}/raw/out: is inside {tmp_path}/raw, the folder of the raw files"):
        job.predict(run, f"{tmp_path}/raw", f"{tmp_path}/raw/out")
    summary, _ = run_predict(run, f"{tmp_path}/raw")
    (output,) = tmp_path.glob("*/predictions.json")
    with pytest.raises(UserError, match="part-.*: is not a raw file, but a file of the output"):
        job.predict(run, f"{output.parent}/*.jsonl", output.parent, overwrite=True)


def test_the_best_checkpoint_is_the_default(run_predict):
    made, run = run_of("class")
    best, best_lines = run_predict(run, made.of("test"))
    last, last_lines = run_predict(run, made.of("test"), checkpoint="last", overwrite=True)
    assert (best["checkpoint"], last["checkpoint"]) == ("best", "last")
    assert last["weights_sha256"] == Run(run).result()["weights_sha256"]
    assert (best_lines == last_lines) == (best["weights_sha256"] == last["weights_sha256"])


def test_a_worker_that_finds_other_weights_fails(run_predict, monkeypatch):
    made, run = run_of("class")
    monkeypatch.setattr(job, "RunLoader", lambda run, checkpoint, _: RunLoader(run, checkpoint, "0" * 64))
    with pytest.raises(UserError, match=f"^{run}: its weights changed while predictions were made. Run predict again"):
        run_predict(run, made.of("test"))
