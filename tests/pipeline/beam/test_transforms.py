"""The transforms work in any Beam pipeline."""

import copy
import datetime
import json
import os
import pathlib
import shutil

import apache_beam as beam
import numpy as np
import orjson
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.window import FixedWindows
from datasets import some
from prepare_jobs import PLAIN, load, read_whole

from pipeline.beam.parse_records import ParseRecords, _Parse
from pipeline.beam.prepare_files import PrepareFiles
from pipeline.beam.read_lines import ReadLines, _ReadChunks
from pipeline.beam.runners import make_pipeline
from pipeline.beam.write_dataset import WriteDataset
from pipeline.errors import UserError
from pipeline.format.manifest import FILE_NAME
from pipeline.raw.find_files import RawFile
from pipeline.raw.json_lines import Chunk, LineBatch, read_chunk, split_file
from pipeline.raw.records import LIMITS, Limits, parse_record
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows
from pipeline.writing.base import Base
from pipeline.writing.job import DatasetJob, name_files
from pipeline.writing.published_ids import list_published


@pytest.fixture(scope="module")
def schema(schema_text):
    return Schema.parse(schema_text)


def rejects(folder):
    manifest = load(folder)
    files = [pathlib.Path(folder, name) for name in manifest.rejected.files]
    return [json.loads(row) for file in files for row in file.read_text().splitlines()]


def write(elements, schema, output, **options):
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = pipeline | beam.Create(elements) | ParseRecords(schema) | WriteDataset(schema, str(output), **options)


@pytest.mark.parametrize("keep_lines", [True, False])
def test_the_lines_of_a_batch_are_kept_unless_no_other_step_reads_them(keep_lines, schema, tmp_path, records):
    (tmp_path / "raw").write_text("".join(json.dumps(record) + "\n" for record in records))
    (chunk,) = split_file(RawFile(str(tmp_path / "raw"), os.path.getsize(tmp_path / "raw")))
    batch = next(read_chunk(chunk))
    step = _Parse(schema, {}, False, None, keep_lines)
    step.start_bundle()
    (parsed,) = step.process(batch)
    assert [sequence.id for sequence, _ in parsed] == [record["id"] for record in records]
    assert len(batch.lines) == (len(records) if keep_lines else 0)


def test_records_from_a_pipeline_give_the_dataset_that_prepare_makes(dataset, records, schema, tmp_path):
    def as_arrays(record):
        # Values as a pipeline may have them: a list of arrays, an array, a list of lists.
        return record | {
            "x": [np.array(row, np.float32) for row in record["x"]],
            "page": np.array(record["page"]),
            "word": [list(row) for row in record["word"]],
        }

    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = (
            pipeline
            | beam.Create(records)
            | beam.Map(as_arrays)
            | ParseRecords(schema)
            | WriteDataset(schema, str(tmp_path / "out"), num_shards=4)
            | beam.Map(lambda manifest: (tmp_path / "published").write_text(manifest.fingerprint))
        )
    assert load(tmp_path / "out").fingerprint == load(dataset).fingerprint
    assert (tmp_path / "published").read_text() == load(dataset).fingerprint
    assert load(tmp_path / "out").rejected.total == 0


@pytest.mark.parametrize("as_bytes", [False, True])
def test_lines_are_parsed_as_records_and_blank_lines_are_skipped(dataset, records, schema, tmp_path, as_bytes):
    lines = ["", *(json.dumps(record) for record in records), " \t"]
    write([line.encode() if as_bytes else line for line in lines], schema, tmp_path / "out", num_shards=4)
    assert load(tmp_path / "out").fingerprint == load(dataset).fingerprint
    assert load(tmp_path / "out").rejected.total == 0


def test_sequences_can_be_written_directly(dataset, records, schema, tmp_path):
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = (
            pipeline
            | beam.Create([parse_record(record, schema) for record in records])
            | WriteDataset(schema, str(tmp_path / "out"), num_shards=4)
        )
    assert load(tmp_path / "out").fingerprint == load(dataset).fingerprint


def test_shards_are_labelled_with_windows_of_event_time(records, schema, tmp_path):
    windows = EventWindows(field="at", seconds=3600)
    timed = [record | {"at": datetime.datetime(1970, 1, 1, n % 3)} for n, record in enumerate(records)]

    def write_with(options, name, **more):
        with beam.Pipeline(runner=FnApiRunner()) as pipeline:
            parsed = pipeline | beam.Create(timed) | ParseRecords(schema, **options)
            _ = parsed | WriteDataset(schema, str(tmp_path / name), num_shards=1, **options, **more)

    write_with({"windows": windows}, "out")
    manifest = read_whole(tmp_path / "out")
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    assert {w: sum(s.records for s in shards if s.window == w) for w in (0, 3600, 7200)} == {0: 67, 3600: 67, 7200: 66}
    # The dataset needs an event time of each new record.
    with pytest.raises(Exception, match=r"has no event time, but the dataset has windows of 1h by the field 'at'"):
        write_with({}, "out", append=True)


def test_records_with_a_published_id_are_rejected(dataset, records, schema, tmp_path, read_records):
    """Half of the records are in an earlier generation, with one shard less."""
    half = records[::2]
    write(half, schema, tmp_path / "half", num_shards=3)
    published = list_published(str(tmp_path / "half"), load(tmp_path / "half").splits)
    changed = [record | {"y": "a"} for record in half[:5]]
    job = DatasetJob(name_files(str(tmp_path / "out")), Base("create", published=published))
    options = {"num_shards": 4, "max_rejected": 1, "job": job}
    write([*records, *changed], schema, tmp_path / "out", **options)
    for split in ("train", "validation", "test"):
        kept = {example["id"][0].decode() for example in read_records(dataset, split)} - {row["id"] for row in half}
        assert {example["id"][0].decode() for example in read_records(tmp_path / "out", split)} == kept
    rows = rejects(tmp_path / "out")
    assert sorted(row["id"] for row in rows) == sorted(row["id"] for row in [*half, *changed])
    assert all("that an earlier commit published (generation 2" in row["message"] for row in rows)


def test_any_element_becomes_a_sequence_or_a_reject(records, schema, tmp_path):
    odd = [
        3,
        None,
        ["a"],
        object(),
        b"\xff",
        {"id": 10**30, "x": {1, 2}},
        {1: 2, "id": 0.5, None: b"\xff"},
        {"id": "deep", "x": json.loads("[" * 300 + "]" * 300)},
        {"id": datetime.date(2026, 1, 1)},
    ]
    write([*odd, records[0]], schema, tmp_path / "out", max_rejected=1)
    rows = rejects(tmp_path / "out")
    assert sorted((row["reason"], row["id"] or "") for row in rows) == [
        ("bad_id", ""),
        ("bad_id", ""),
        ("not_a_record", ""),
        ("not_a_record", ""),
        ("not_a_record", ""),
        ("not_a_record", ""),
        ("not_json", ""),
        ("wrong_shape", "deep"),
        ("wrong_type", "1" + "0" * 30),
    ]
    assert {(row["file"], row["byte_offset"], row["line"]) for row in rows} == {(None, None, None)}
    assert sum(split.records for split in load(tmp_path / "out").splits.values()) == 1


def test_several_steps_may_parse_the_same_elements(records, schema, raw_file):
    (chunk,) = split_file(RawFile(raw_file, os.path.getsize(raw_file)))
    batch, *_ = read_chunk(chunk)
    record = records[0] | {"x": np.array(records[0]["x"]), "word": tuple(records[0]["word"])}
    for element in (batch, record, json.dumps(record, default=list), 3):
        before = copy.deepcopy(element)
        parse = _Parse(schema, {"labelled": True, "limits": LIMITS}, keep_raw=True, stop=None)
        parse.start_bundle()
        first, second = ([getattr(output, "value", output) for output in parse.process(element)] for _ in range(2))
        assert repr(first) == repr(second)
        assert repr(element) == repr(before)


def test_lines_are_read_with_the_limits_of_the_parser(tmp_path):
    path, widths = tmp_path / "raw", (300_000, 300_001, 900_000)
    path.write_text("\n".join("x" * width for width in widths))
    for record_bytes, read in ((300_000, [300_000, 300_001, 300_002]), (900_000, list(widths))):
        step = _ReadChunks(Limits(record_bytes=record_bytes))
        batches = [
            item
            for item in step.process(Chunk(str(path), 0, path.stat().st_size, False, path.stat().st_size))
            if isinstance(item, LineBatch)
        ]
        assert [len(line) for batch in batches for line in batch.lines] == read


@pytest.mark.proof
def test_a_record_above_the_default_limit_is_written_where_the_limits_allow_it(tmp_path):
    """A million steps of 8 features: the line has more than 64 MiB."""
    schema = Schema.parse(PLAIN + "splits: {train: 1}\n")
    rows = np.random.default_rng(0).normal(size=(1_000_000, 8)).astype(np.float32).round(6)
    line = orjson.dumps({"id": 1, "y": "a", "x": rows}, option=orjson.OPT_SERIALIZE_NUMPY)
    (tmp_path / "raw").write_bytes(line)
    assert len(line) > LIMITS.record_bytes
    limits = Limits(record_bytes=2**27)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        read = pipeline | ReadLines(tmp_path / "raw", limits)
        parsed = read["lines"] | ParseRecords(schema, limits=limits)
        _ = {**parsed, "chunks": read["chunks"]} | WriteDataset(schema, str(tmp_path / "out"))
    assert load(tmp_path / "out").splits["train"].steps == 1_000_000
    shutil.rmtree(tmp_path)


def test_duplicates_from_files_and_from_elsewhere_are_found(records, schema, tmp_path, raw_file):
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        read = pipeline | ReadLines(raw_file)
        mine = pipeline | beam.Create(records)
        parsed = (read["lines"], mine) | beam.Flatten() | ParseRecords(schema)
        _ = {**parsed, "chunks": read["chunks"]} | WriteDataset(schema, str(tmp_path / "out"), max_rejected=0.5)
    manifest = load(tmp_path / "out")
    assert manifest.rejected.by_reason == {"duplicate_id": len(records)}
    assert sum(split.records for split in manifest.splits.values()) == len(records)


@pytest.mark.parametrize("directly", [True, False])
def test_windows_have_no_effect(dataset, records, schema, tmp_path, directly):
    times = (beam.window.TimestampedValue(record, number) for number, record in enumerate([*records, {"id": "wrong"}]))
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        windows = pipeline | beam.Create(list(times)[: -1 if directly else None]) | beam.WindowInto(FixedWindows(7))
        write = WriteDataset(schema, str(tmp_path / "out"), num_shards=4, max_rejected=0.5)
        if directly:
            manifests = windows | beam.Map(parse_record, schema) | write
        else:
            manifests = windows | ParseRecords(schema) | write
        _ = manifests | beam.combiners.Count.Globally() | beam.Map(lambda count: (tmp_path / str(count)).touch())
    assert load(tmp_path / "out").fingerprint == load(dataset).fingerprint or not directly
    assert load(tmp_path / "out").rejected.total == (not directly)
    assert sum(split.records for split in load(tmp_path / "out").splits.values()) == len(records)
    assert (tmp_path / "1").exists()


def test_too_many_rejects_fail_the_pipeline(records, schema, tmp_path):
    with pytest.raises(Exception, match=r"1 of 2 records \(50\.00%\) was rejected: 1 not_a_record"):
        write([3, records[0]], schema, tmp_path / "out")
    assert not (tmp_path / "out" / FILE_NAME).exists()


def test_an_existing_dataset_is_an_error_when_the_pipeline_is_built(dataset, records, schema):
    with pytest.raises(Exception, match="a dataset is there already"):
        write(records, schema, dataset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_shards": 0}, "num_shards is 0, expected at least 1"),
        ({"max_rejected": 1.5}, "max_rejected is 1.5, expected a share from 0 to 1"),
    ],
)
def test_a_wrong_option_is_an_error_when_the_transform_is_made(schema, options, message):
    with pytest.raises(ValueError, match=message):
        WriteDataset(schema, "out", **options)


def test_a_relative_output_becomes_absolute_when_the_transform_is_made(schema, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert WriteDataset(schema, "out").output == str(tmp_path / "out")
    assert WriteDataset(schema, "gs://bucket/out").output == "gs://bucket/out"


def test_a_pipeline_that_runs_twice_never_changes_the_dataset_of_its_first_run(records, schema, tmp_path):
    pipeline = beam.Pipeline(runner=FnApiRunner())
    write = WriteDataset(schema, str(tmp_path), max_rejected=1)
    _ = pipeline | beam.Create([*records, 3]) | ParseRecords(schema) | write
    pipeline.run().wait_until_finish()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(Exception, match=f"{tmp_path}: a dataset is there already"):
        pipeline.run().wait_until_finish()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    read_whole(tmp_path)


RUNNERS = [
    {"direct_runner_bundle_repeat": 1},
    {"runner": "BundleBasedDirectRunner"},
    {"direct_running_mode": "multi_processing", "direct_num_workers": 2},
]


@pytest.mark.parametrize("options", some(RUNNERS, RUNNERS[:1]), ids=repr)
def test_a_pipeline_that_runs_twice_replaces_the_dataset_of_its_first_run(raw_file, schema, tmp_path, options):
    pipeline = make_pipeline(options)
    _ = pipeline | PrepareFiles(raw_file, WriteDataset(schema, str(tmp_path / "out"), overwrite=True))
    generations, fingerprints = [], set()
    for number in range(2):
        pipeline.run().wait_until_finish()
        manifest = read_whole(tmp_path / "out")
        generations += manifest.generations
        fingerprints.add(manifest.fingerprint)
        assert manifest.commit == number + 1
    assert len(set(generations)) == 2 and len(fingerprints) == 1


def test_a_pipeline_that_runs_twice_adds_nothing_that_its_first_run_added(records, schema, tmp_path):
    pipeline = beam.Pipeline(runner=FnApiRunner())
    write = WriteDataset(schema, str(tmp_path), append=True, max_rejected=1)
    _ = pipeline | beam.Create([parse_record(record, schema) for record in records]) | write
    pipeline.run().wait_until_finish()
    first = read_whole(tmp_path)
    with pytest.raises(Exception, match=r"All 200 records were rejected: 200 duplicate_id"):
        pipeline.run().wait_until_finish()
    assert read_whole(tmp_path) == first


SCHEMA_OF_SIZES = """
id: id
steps: {x: {dtype: float32}}
label: {name: y, kind: regression}
splits: {train: 0.8, test: 0.2}
"""


@pytest.mark.parametrize(("target", "expected"), [(2**26, 1), (20_000, 4)])
def test_the_default_number_of_shards_depends_on_the_largest_split(tmp_path, monkeypatch, target, expected):
    schema = Schema.parse(SCHEMA_OF_SIZES)
    records = [{"id": n, "x": [0.5] * 100, "y": 1.0} for n in range(200)]
    monkeypatch.setattr("pipeline.writing.stages.SHARD_BYTES", target)
    with beam.Pipeline(runner=FnApiRunner()) as job:
        _ = job | beam.Create(records) | ParseRecords(schema) | WriteDataset(schema, str(tmp_path / "out"))
    splits = load(str(tmp_path / "out")).splits
    assert {name: len(split.shards) for name, split in splits.items()} == {"train": expected, "test": expected}
    assert sum(split.records for split in splits.values()) == 200
    # The sorted runs were removed.
    left = [path.name for path in tmp_path.glob("out/data/**/*") if path.is_file()]
    assert len(left) == 4 * expected + 2
    assert {"sources.parquet", "summary.json"} < set(left) and not any(
        name.endswith((".rows", ".examples", ".chunks")) for name in left
    )


def test_files_that_do_not_exist_are_an_error_when_the_transform_is_applied(tmp_path):
    pipeline = beam.Pipeline(runner=FnApiRunner())
    for files in (f"{tmp_path}/none.jsonl", [f"{tmp_path}/*.jsonl"]):
        with pytest.raises(UserError, match="no file"):
            pipeline | f"Read {files}" >> ReadLines(files)
