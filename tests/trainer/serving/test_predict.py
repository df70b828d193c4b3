"""Predictions of raw records: one line for each, the same as from the dataset, whatever road they took."""

import functools
import gzip
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

import datasets
import numpy as np
import object_store
import pytest
import tensorflow as tf

from pipeline.beam.prepare import PrepareOptions, prepare
from pipeline.errors import UserError
from pipeline.format.examples import encode_record
from pipeline.raw.records import parse_record
from pipeline.schema.schema import Schema
from trainer.batching.plan import make_plan
from trainer.config import TrainConfig
from trainer.data.dataset import open_dataset
from trainer.data.target import Target, make_target
from trainer.model.build import build_model
from trainer.reading.batches import numbered_batches
from trainer.reading.bucket_reader import parse_batch
from trainer.runs.checkpoints import restore_weights
from trainer.runs.run import Run
from trainer.serving import padding, predictor
from trainer.serving import predict as job
from trainer.serving import publish as delivery
from trainer.serving.predict import PredictOptions, RunHandler, choose_batch_steps, predict
from trainer.serving.predictions import LineWriter
from trainer.training.train import train

KINDS = list(datasets.LABELS)
GENERATION = "20200101T000000-00000000"


@functools.cache
def run_of(kind, *, every_feature=False):
    """A run on the dataset of a kind of label, trained so hard that its outputs differ from record to record.

    With every feature they differ before it is trained.
    """
    made = (datasets.of_every_feature if every_feature else datasets.of_kind)(kind)
    output = datasets.new_folder() / "run"
    train(made.path, output, TrainConfig(epochs=0 if every_feature else 2, units=(8,), batch_size=8, learning_rate=0.1))
    return made, str(output)


@pytest.fixture
def run_predict(tmp_path, write_raw):
    """Predicts records with a run; gives the lines by id, or the list of all of them."""

    def run(run, records, *, output="predictions", beam_options=None, **options):
        raw = records if isinstance(records, str) else write_raw(records, "new.jsonl")
        options = PredictOptions(run, (raw,), str(tmp_path / output), **options)
        summary = predict(options, beam_options)
        return summary, lines_of(tmp_path / output)

    return run


def lines_of(folder):
    paths = sorted(pathlib.Path(folder).glob("part-*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def by_id(lines):
    found = {line["id"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def numbers_of(line):
    """The numbers of a line as float32, whatever it calls them."""
    (numbers,) = [line[name] for name in ("probabilities", "value", "values") if name in line]
    return np.array(numbers, np.float32)


def snapshot(folder):
    """Every file of a folder and its bytes."""
    folder = pathlib.Path(folder)
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_close(first, second, atol=1e-5):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_allclose(numbers_of(first[key]), numbers_of(second[key]), rtol=0, atol=atol)


# Padding


def pad_slowly(records, schema):
    """The same rectangle, a value at a time."""
    longest = max(record.num_steps for record in records)
    batch = {"length": np.array([record.num_steps for record in records], np.int32)}
    for name, feature in schema.features.items():
        time = (longest,) if name in schema.steps else ()
        dtype = {"float32": np.float32, "int64": np.int64, "string": object}[feature.dtype]
        batch[name] = np.full((len(records), *time, *feature.shape), b"" if dtype is object else 0, dtype)
        for row, record in enumerate(records):
            values = (record.features | record.context)[name]
            flat = values if isinstance(values, list) else values.ravel()
            for number, value in enumerate(flat):
                place = divmod(number, feature.width) if time else (number,)
                inner = np.unravel_index(place[-1], feature.shape)
                batch[name][(row, *place[:-1], *inner)] = value
    return batch


ODD_SCHEMA = """
id: id
steps:
  a: {dtype: float32}
  b: {dtype: float32, shape: [2, 3], missing: indicator}
  c: {dtype: int64, num_values: 9, missing: indicator}
  d: {dtype: int64, num_values: 9, shape: [2]}
  e: {dtype: string, num_values: 9, missing: fill}
  f: {dtype: string, num_values: 9, shape: [2, 2]}
context:
  g: {dtype: float32, missing: indicator}
  h: {dtype: float32, shape: [2, 2]}
  i: {dtype: int64, num_values: 9}
  j: {dtype: string, num_values: 9, missing: fill}
  k: {dtype: string, num_values: 9, shape: [3]}
label: {name: y, kind: regression}
"""


def odd_record(number, length, numbers):
    def maybe(value):
        return None if numbers.random() < 0.3 else value

    def words(*shape):
        return numbers.choice(["", "ä", "word", "\0"], shape).tolist()

    return {
        "id": number,
        "a": numbers.normal(size=length).tolist(),
        "b": [maybe([[maybe(1.5), 2, 3], [4, 5, 6]]) for _ in range(length)],
        "c": [maybe(int(c)) for c in numbers.integers(0, 9, length)],
        "d": numbers.integers(0, 9, (length, 2)).tolist(),
        "e": [maybe(word) for word in words(length)],
        "f": words(length, 2, 2),
        "g": maybe(0.0),
        "h": numbers.normal(size=(2, 2)).tolist(),
        "i": 3,
        "j": maybe("x"),
        "k": words(3),
        "y": 0,
    }


@pytest.mark.parametrize("lengths", [[1], [3], [2, 2], [1, 7, 4], [5, 1, 1, 9, 2]])
def test_a_batch_is_what_the_reader_gives_for_the_same_records(lengths):
    schema, numbers = Schema.parse(ODD_SCHEMA), np.random.default_rng(len(lengths))
    records = [parse_record(odd_record(n, length, numbers), schema) for n, length in enumerate(lengths)]
    batch = padding.pad_batch(records, schema)
    slow = pad_slowly(records, schema)
    examples = tf.constant([encode_record(record, schema) for record in records])
    plan = make_plan({max(lengths): 1}, batching="pad")
    read, *_ = parse_batch(examples, tf.constant(lengths, tf.int32), schema=schema, plan=plan)
    assert batch.keys() == slow.keys() == read.keys()
    for name, values in batch.items():
        assert values.dtype == slow[name].dtype
        np.testing.assert_array_equal(values, slow[name])
        assert read[name].numpy().dtype == values.dtype
        np.testing.assert_array_equal(values, read[name].numpy())


def test_wide_steps_make_smaller_batches():
    def steps(width, label):
        schema = Schema.parse(f"steps: {{x: {{dtype: float32, shape: [{width}]}}}}\nlabel: {label}\n")
        return choose_batch_steps(schema, make_target(schema, {}))

    number = "{name: y, kind: regression}"
    assert steps(8, number) == steps(100, number) > steps(1000, number) > steps(10**6, number) > 0
    assert steps(10**9, number) == 1
    assert steps(1000, "{next_of: x}") < steps(1000, number)


# What a line says


@pytest.mark.parametrize("kind", datasets.some(KINDS, ["multilabel", "step_regression"]))
def test_predictions_of_raw_records_are_those_of_the_dataset(kind, run_predict):
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
    """{id: (target, outputs)} of the records of the split test, from the dataset's reader."""
    dataset, run = open_dataset(made.path), Run(run_path)
    manifest, vocabularies = run.manifest(), run.vocabularies()
    model = build_model(manifest.record_schema, manifest.statistics, run.config(), vocabularies=vocabularies)
    restore_weights(run, model, None)
    target = make_target(manifest.record_schema, vocabularies)
    ids = dataset.index("test")["id"].to_pylist()
    found = {}
    plan = make_plan(dataset.split("test").length_counts, batching="exact")
    for features, _, _, rows in numbered_batches(dataset, "test", plan):
        for row, outputs in zip(rows.numpy(), model(features).numpy(), strict=True):
            found[ids[row]] = (target, outputs)
    return found


def expected_line(record_id, target, numbers):
    """A line with these numbers, in the most literal way."""
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


def test_numbers_have_the_fewest_digits_that_give_them_back():
    outputs = np.array([[0.1, 0.9], [1 / 3, 2 / 3], [1e-8, 1], [5e-39, 1]], np.float32)
    lines = LineWriter(Target("class", 2, ("a", "b"))).write(list("pqrs"), np.ones(4, np.int32), outputs)
    assert lines[0] == b'{"id":"p","label":"b","probabilities":[0.1,0.9]}\n'
    assert lines[1] == b'{"id":"q","label":"b","probabilities":[0.33333334,0.6666667]}\n'
    read = np.array([json.loads(line)["probabilities"] for line in lines], np.float32)
    np.testing.assert_array_equal(read, outputs)


def test_names_and_ids_come_out_as_they_are():
    names = (True, 7, "7 ", 'ü"\n', 10**30)
    ids = ["ü", 'a"b', "\n", "\0", ""]
    lines = LineWriter(Target("class", 5, names)).write(ids, np.ones(5, np.int32), np.eye(5, dtype=np.float32))
    assert all(line.count(b"\n") == 1 for line in lines)
    assert [json.loads(line)["id"] for line in lines] == ids
    assert [json.loads(line)["label"] for line in lines] == list(names)


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_refused_unless_it_is_padding(per_step, number):
    target = Target("step_regression" if per_step else "regression", 1)
    outputs, lengths = np.zeros((3, 4) if per_step else 3, np.float32), np.array([4, 2, 3], np.int32)
    if per_step:
        outputs[1, 2:] = number
        assert len(LineWriter(target).write(list("abc"), lengths, outputs)) == 3
    outputs[2] = number
    with pytest.raises(UserError, match=r"^The model gives a number that is not finite for the record 'c'\. "):
        LineWriter(target).write(list("abc"), lengths, outputs)


def test_a_record_that_makes_the_model_overflow_publishes_nothing(run_predict, tmp_path):
    records = datasets.random_records([3] * 20)
    for record in records:
        record["x"] = (np.array(record["x"]) * 1e-3).tolist()
    made = datasets.make(tmp_path / "made", records)
    train(made.path, tmp_path / "run", TrainConfig(epochs=0, units=(4,)))
    wild = {"id": "wild", "x": [[3e38, -3e38]] * 3}
    with pytest.raises(
        UserError, match=r"^The model gives a number that is not finite for the record 'wild'\. [^\n]*$"
    ):
        run_predict(str(tmp_path / "run"), [*records, wild])
    assert snapshot(tmp_path / "predictions") == {}


# Neighbours, order, roads


def test_one_trace_serves_batches_of_all_shapes():
    made, run = run_of("class")
    model = predictor.load_predictor(run)
    records = [parse_record(record, model.schema) for record in made.of("test")]
    for rows in ([0], [1, 2], range(30), [3]):
        assert model([records[row] for row in rows]).shape == (len(rows), 3)
    assert model.forward.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("kind", datasets.some(["class", "step_class"], ["step_class"]))
def test_neighbours_order_and_batches_change_no_prediction(kind, run_predict):
    made, run = run_of(kind)
    records = list(made.records)
    expected = by_id(run_predict(run, records)[1])
    random.Random(3).shuffle(records)
    for number, batch_steps in enumerate((1, 30, 10**6)):
        _, lines = run_predict(run, records[number:], batch_steps=batch_steps, overwrite=True)
        found = by_id(lines)
        assert_close(found, {key: expected[key] for key in found})
        assert len(found) == len(records) - number


def test_a_full_buffer_and_a_full_part_lose_and_double_nothing(run_predict, monkeypatch):
    made, run = run_of("class")
    expected = by_id(run_predict(run, made.records)[1])
    monkeypatch.setattr(job, "_BUFFER_RECORDS", 7)
    monkeypatch.setattr(job, "_PART_BYTES", 1000)
    summary, lines = run_predict(run, made.records, overwrite=True)
    assert len(summary["parts"]) > 5
    assert_close(by_id(lines), expected)
    monkeypatch.setattr(job, "_BUFFER_BYTES", 100)
    assert_close(by_id(run_predict(run, made.records, overwrite=True)[1]), expected)


@pytest.mark.parametrize(
    "beam_options",
    [
        {"direct_running_mode": "multi_processing", "direct_num_workers": 2},
        pytest.param({"direct_running_mode": "multi_threading", "direct_num_workers": 2}, marks=pytest.mark.proof),
        {"direct_runner_bundle_repeat": 3},
        pytest.param({"runner": "BundleBasedDirectRunner"}, marks=pytest.mark.proof),
    ],
    ids=["multi_processing", "multi_threading", "bundle_repeat", "older_runner"],
)
def test_any_runner_predicts_the_same_once(run_predict, write_raw, tmp_path, beam_options):
    made, run = run_of("class")
    expected = by_id(run_predict(run, made.records)[1])
    for number in range(5):
        write_raw([*made.records[number::5], "{"], f"raw/{number}.jsonl")
    summary, lines = run_predict(
        run, str(tmp_path / "raw"), beam_options=beam_options, output="other", max_rejected=1, keep_raw=True
    )
    assert_close(by_id(lines), expected)
    assert summary["rejected"]["by_reason"] == {"not_json": 5}
    check_whole(tmp_path / "other")


def check_whole(folder):
    """What the summary lists is there, and nothing else."""
    summary = json.loads(pathlib.Path(folder, delivery.SUMMARY).read_text())
    listed = {part["path"] for part in summary["parts"]} | set(summary["rejected"]["files"])
    assert set(snapshot(folder)) == {delivery.SUMMARY, *listed}
    assert not pathlib.Path(folder, ".staging").exists()
    for part in summary["parts"]:
        data = pathlib.Path(folder, part["path"]).read_bytes()
        assert (data.count(b"\n"), len(data)) == (part["records"], part["bytes"])
    assert sum(part["records"] for part in summary["parts"]) == summary["records"]
    return summary


# Reading


def test_label_split_and_group_are_neither_needed_nor_read(run_predict):
    made, run = run_of("class")
    expected = by_id(run_predict(run, made.of("test"))[1])
    for change in ({}, {"y": "no such class", "split": 3}, {"y": None, "split": None}):
        bare = [{key: record[key] for key in ("id", "x")} | change for record in made.of("test")]
        summary, lines = run_predict(run, bare, overwrite=True)
        assert by_id(lines) == expected
        assert summary["rejected"] == {"total": 0, "by_reason": {}, "files": []}


def test_rejects_are_those_of_prepare(run_predict, tmp_path, write_raw):
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
    check_whole(tmp_path / "predictions")


def test_too_many_rejects_publish_nothing_and_stay(run_predict, tmp_path):
    made, run = run_of("class")
    with pytest.raises(
        UserError, match=r"1 of 31 records \(3\.23%\) were rejected: 1 not_json; at most 1\.00% may"
    ) as e:
        run_predict(run, [*made.of("test"), "{"])
    (path,) = (tmp_path / "predictions/rejected").iterdir()
    assert f"The rejects are in {path}; " in str(e.value)
    assert list(snapshot(tmp_path / "predictions")) == [f"rejected/{path.name}"]
    run_predict(run, [*made.of("test"), "{"], max_rejected=0.04)
    check_whole(tmp_path / "predictions")


def test_records_with_one_id_have_a_line_each(run_predict):
    made, run = run_of("class")
    first, second = made.of("test")[:2]
    _, lines = run_predict(run, [first, first, second | {"id": first["id"]}])
    assert [line["id"] for line in lines] == [first["id"]] * 3
    assert len({line["probabilities"][0] for line in lines}) == 2


def test_over_length_is_what_the_schema_of_the_run_says(run_predict, tmp_path):
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


def test_the_best_checkpoint_is_taken_unless_another_is_asked_for(run_predict):
    made, run = run_of("class")
    best, best_lines = run_predict(run, made.of("test"))
    last, last_lines = run_predict(run, made.of("test"), checkpoint="last", overwrite=True)
    assert (best["checkpoint"], last["checkpoint"]) == ("best", "last")
    assert last["weights_sha256"] == Run(run).result()["weights_sha256"]
    assert (best_lines == last_lines) == (best["weights_sha256"] == last["weights_sha256"])


def test_a_worker_that_finds_other_weights_fails(run_predict, monkeypatch):
    made, run = run_of("class")
    monkeypatch.setattr(job, "RunHandler", lambda run, checkpoint, _: RunHandler(run, checkpoint, "0" * 64))
    with pytest.raises(UserError, match=f"^{run}: its weights changed while predictions were made. Run predict again"):
        run_predict(run, made.of("test"))


# The folder


def test_predictions_that_are_there_are_refused_or_replaced(run_predict, tmp_path):
    made, run = run_of("class")
    run_predict(run, made.of("test"))
    before = snapshot(tmp_path / "predictions")
    with pytest.raises(UserError, match="predictions: predictions are there already. Choose another --output, or repl"):
        run_predict(run, made.of("train"))
    assert snapshot(tmp_path / "predictions") == before
    summary, _ = run_predict(run, [*made.of("train"), "{"], overwrite=True, max_rejected=1)
    assert check_whole(tmp_path / "predictions") == summary
    assert summary["records"] == len(made.of("train"))


def test_a_job_that_fails_leaves_the_older_predictions_alone(run_predict, tmp_path, write_raw):
    made, run = run_of("class")
    run_predict(run, made.of("test"))
    before = snapshot(tmp_path / "predictions")
    good = pathlib.Path(write_raw(made.of("train")))
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(good.read_bytes() * 50)[:-20])
    with pytest.raises(UserError, match=rf"^{cut}: not a complete gzip file: [^\n]*$"):
        run_predict(run, str(cut), overwrite=True)
    assert snapshot(tmp_path / "predictions") == before
    assert not (tmp_path / "predictions/.staging").exists()


def test_what_killed_jobs_left_goes_and_what_is_others_stays(run_predict, tmp_path):
    made, run = run_of("class")
    left = [
        f"part-{GENERATION}-00000.jsonl",
        f".staging/{GENERATION}/{'0' * 32}.jsonl",
        f".staging/{GENERATION}/{'1' * 32}.jsonl.{'2' * 32}.tmp",
        f"rejected/{GENERATION}-{'0' * 16}.jsonl",
        f"predictions.json.{'0' * 32}.tmp",
    ]
    theirs = ["README.md", "rejected/mine.jsonl", "part-0", "deep/part-1.jsonl", "predictions.json.bak"]
    for name in [*left, *theirs]:
        path = tmp_path / "predictions" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}\n")
    summary, lines = run_predict(run, made.of("test"))
    assert len(lines) == len(made.of("test"))
    parts = [part["path"] for part in summary["parts"]]
    assert sorted(snapshot(tmp_path / "predictions")) == sorted([*theirs, *parts, delivery.SUMMARY])
    assert not (tmp_path / "predictions/.staging").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "predictions: a file is in the way, expected a folder or nothing"),
        (
            "part-0001.jsonl",
            "predictions: holds part-0001.jsonl, which is no prediction of ours and would be taken for",
        ),
        ("manifest.json", "predictions: a dataset or a run is there. Choose another --output"),
    ],
)
def test_a_folder_that_is_no_place_for_predictions_is_refused_before_any_work(run_predict, tmp_path, name, message):
    made, run = run_of("class")
    path = tmp_path / "predictions" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=f"{message}"):
            run_predict(run, made.of("test"), overwrite=overwrite)
    assert path.read_bytes() == b"mine"


def test_predictions_that_came_in_between_are_not_replaced(run_predict, tmp_path):
    made, run = run_of("class")
    early = delivery.Delivery(str(tmp_path / "predictions"), GENERATION, 0.0, False, {})
    early.check()
    summary, _ = run_predict(run, made.of("test"))
    with pytest.raises(UserError, match="predictions: others were published there meanwhile"):
        job._publish(early, [], [])
    assert check_whole(tmp_path / "predictions") == summary


def test_an_object_store_serves_as_a_disk_does(write_raw, tmp_path):
    made, run = run_of("class")
    lines = pathlib.Path(write_raw([*made.of("test"), "{"])).read_bytes()
    store = object_store.OBJECTS
    store |= {"store://bucket/raw/new.jsonl": lines, "store://bucket/out/README": b"mine"}
    before = dict(store)
    for overwrite in (False, True):
        options = {"overwrite": overwrite, "max_rejected": 0.1}
        summary = predict(PredictOptions(run, ("store://bucket/raw",), "store://bucket/out", **options))
        names = [delivery.SUMMARY, *summary["rejected"]["files"], *(part["path"] for part in summary["parts"])]
        assert sorted(store) == sorted([*before, *(f"store://bucket/out/{name}" for name in names)])
    (part,) = summary["parts"]
    found = by_id([json.loads(line) for line in store[f"store://bucket/out/{part['path']}"].splitlines()])
    assert sorted(found) == sorted(record["id"] for record in made.of("test"))
    after = dict(store)
    with pytest.raises(UserError, match=r"^store://bucket/out: predictions are there already"):
        predict(PredictOptions(run, ("store://bucket/raw",), "store://bucket/out", max_rejected=0.1))
    with pytest.raises(UserError, match=r"1 of 31 records .* were rejected"):
        predict(PredictOptions(run, ("store://bucket/raw",), "store://bucket/out", overwrite=True))
    assert [name for name in store if name not in after] == [n for n in store if "/rejected/" in n and n not in after]
    assert after.items() <= store.items()


# The command


def test_the_command_says_what_it_did(capsys, write_raw, tmp_path):
    made, run = run_of("class")
    raw = write_raw([*made.of("test"), "{", "[]"])
    command = ("predict", run, raw, "--output", tmp_path / "out", "--max_rejected", "0.1")
    status, out, err = datasets.call(capsys, *command)
    assert (status, err) == (0, ["Running in this process (FnApiRunner)."])
    first, *rest = out.splitlines()
    assert first.startswith("30 records predicted in ")
    assert rest == [
        f"2 records rejected: 1 not_a_record, 1 not_json; see {tmp_path}/out/rejected.",
        f"By the best checkpoint of {run}.",
        f"Predictions: {tmp_path}/out/part-*.jsonl (1 file).",
    ]
    status, out, _ = datasets.call(capsys, *command, "--overwrite", "--json", "--runner=DirectRunner")
    summary = json.loads(out)
    assert status == 0
    assert summary.pop("seconds") > 0
    assert check_whole(tmp_path / "out") == summary
    assert by_id(lines_of(tmp_path / "out")).keys() == {record["id"] for record in made.of("test")}


def test_paths_are_made_absolute(capsys, monkeypatch, write_raw, tmp_path):
    made, run = run_of("class")
    write_raw(made.of("test"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(run)
    assert datasets.call(capsys, "predict", "run", "raw.jsonl", "--output", "out")[0] == 0
    assert check_whole(tmp_path / "out")["run"] == str(tmp_path / "run")


@pytest.mark.parametrize(
    ("run", "raw", "output", "flags", "status", "message"),
    [
        ("gone", "raw.jsonl", "out", [], 1, "{here}/gone: not a run: it has no config.yaml that can be read."),
        ("unfinished", "raw.jsonl", "out", [], 1, "{here}/unfinished: has no last checkpoint yet."),
        ("{dataset}", "raw.jsonl", "out", [], 1, "{dataset}: not a run: it has no config.yaml that can be read."),
        ("no_best", "raw.jsonl", "out", ["--checkpoint", "best"], 1, "{here}/no_best: has no best checkpoint yet."),
        ("{run}", "gone*", "out", [], 1, "{here}/gone*: matches no file."),
        (
            "{run}",
            "blank",
            "out",
            [],
            1,
            "The input contains no records: its files are empty, or all lines are blank. Nothing was published.",
        ),
        ("{run}", "bad", "out", ["--max_rejected=1"], 1, "All 1 records were rejected: 1 not_json. Nothing was"),
        ("{run}", "raw.jsonl", "raw.jsonl", [], 1, "{here}/raw.jsonl: a file is in the way, expected a folder or"),
        ("{run}", "raw.jsonl", "raw.jsonl/out", [], 1, "A file could not be read or written: [Errno 20] Not a direct"),
        ("{run}", "raw.jsonl", "{run}", ["--overwrite"], 1, "{run}: a dataset or a run is there."),
        (
            "{run}",
            "raw.jsonl",
            "{run}/out",
            [],
            1,
            "{run}/out: is in the folder of the run, where nothing else may lie",
        ),
        ("{run}", "raw.jsonl", "out", ["--runner=FooRunner"], 1, "--runner FooRunner: "),
        ("{run}", "raw.jsonl", "out", ["--overwrit"], 2, "unknown flag --overwrit; did you mean --overwrite?"),
        ("{run}", "raw.jsonl", "out", ["--direct_num_worker=2"], 2, "unknown flag --direct_num_worker; did you mean"),
        ("{run}", "raw.jsonl", "out", ["--batch_steps=0"], 2, "argument --batch_steps: 0 is too small, expected a"),
        ("{run}", "raw.jsonl", "out", ["--checkpoint=first"], 2, "argument --checkpoint: invalid choice: 'first'"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    capsys, monkeypatch, write_raw, tmp_path, run, raw, output, flags, status, message
):
    made, good_run = run_of("class")
    write_raw(made.of("test"))
    write_raw(["", " "], "blank")
    write_raw(["{"], "bad")
    for name in ("unfinished", "no_best"):
        shutil.copytree(good_run, tmp_path / name)
    shutil.rmtree(tmp_path / "unfinished/checkpoints")
    shutil.rmtree(tmp_path / "no_best/checkpoints/best")
    monkeypatch.chdir(tmp_path)
    places = {"here": tmp_path, "run": good_run, "dataset": made.path}
    before = snapshot(tmp_path)
    arguments = [argument.format(**places) for argument in (run, raw, "--output", output, *flags)]
    found, out, err = datasets.call(capsys, "predict", *arguments)
    # Once the job has started, a note says where it runs.
    (line,) = [line for line in err if line != "Running in this process (FnApiRunner)."]
    assert (found, out) == (status, "")
    assert line.startswith(f"lengthwise predict: {message.format(**places)}")
    left = snapshot(tmp_path)
    assert before.items() <= left.items()
    assert all(name.startswith("out/rejected/") for name in left.keys() - before.keys())


def test_a_missing_flag_or_argument_exits_2(capsys):
    status, _, (line,) = datasets.call(capsys, "predict", "run", "--output", "out")
    assert (status, line) == (2, "lengthwise predict: the following arguments are required: RAW")
    status, _, (line,) = datasets.call(capsys, "predict", "run", "raw.jsonl")
    assert (status, line) == (2, "lengthwise predict: the following arguments are required: --output")


def test_an_interrupt_is_one_line_and_leaves_nothing(capsys, monkeypatch, write_raw, tmp_path):
    made, run = run_of("class")
    raw = write_raw(made.of("test"))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(predictor.Predictor, "__call__", interrupted)
    status, out, err = datasets.call(capsys, "predict", run, raw, "--output", tmp_path / "out")
    assert (status, out, err[-1]) == (130, "", "lengthwise predict: interrupted.")
    assert snapshot(tmp_path / "out") == {}


# Memory


def peak_mebibytes(command):
    """The most memory that a process held, which is started as it would be by hand."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss / 1024


def assert_memory_is_bounded(folder, num_records, length, dimensions):
    """Ten times the records take the same memory, within a fifth."""
    schema = f"id: id\nsteps: {{x: {{dtype: float32, shape: [{dimensions}]}}}}\n"
    schema += "label: {name: y, kind: class, classes: [a, b, c]}\nsplits: {train: 1}\n"
    record = {"x": np.full((length, dimensions), 0.125).tolist(), "y": "a"}
    made = datasets.make(folder / "made", [record | {"id": number} for number in range(20)], schema)
    train(made.path, folder / "run", TrainConfig(epochs=0, units=(4,)))
    line = json.dumps(record).removeprefix("{")
    peaks = []
    for times in (1, 10):
        raw = folder / f"{times}.jsonl"
        with open(raw, "w") as file:
            file.writelines(f'{{"id": {number}, {line}\n' for number in range(times * num_records))
        command = ["predict", str(folder / "run"), str(raw), "--output", str(folder / f"out-{times}")]
        peaks.append(peak_mebibytes([sys.executable, "-m", "lengthwise", *command]))
        assert check_whole(folder / f"out-{times}")["records"] == times * num_records
        raw.unlink()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.proof
def test_ten_times_the_records_take_no_more_memory(tmp_path):
    # Held in any form, 80,000 of these records, or their lines, would take more than the fifth that is allowed.
    assert_memory_is_bounded(tmp_path, 8000, length=40, dimensions=8)


@pytest.mark.proof
def test_ten_times_many_records_take_no_more_memory(tmp_path):
    assert_memory_is_bounded(tmp_path, 40_000, length=33, dimensions=8)
