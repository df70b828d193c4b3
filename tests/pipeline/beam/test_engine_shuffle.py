"""The engine's shuffle writes the bytes that the shuffle through files writes."""

import collections
import json
import os
import re
import tempfile

import apache_beam as beam
import datasets
import numpy as np
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from prepare_jobs import contents, unlisted

from pipeline.beam import engine_shuffle
from pipeline.beam.parse_records import ParseRecords
from pipeline.beam.prepare_files import PrepareFiles
from pipeline.beam.read_lines import ReadLines
from pipeline.beam.write_dataset import WriteDataset
from pipeline.format.manifest import read_manifest
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows
from pipeline.shuffle import packed_blocks, spooled_blocks
from pipeline.writing import shards

WORDS = """\
id: id
steps:
  x: {dtype: float32, shape: [2], missing: {fill: mean}}
  word: {dtype: string, vocabulary: 5}
label: {name: y, kind: multilabel, classes: [a, b]}
"""
NUMBERS = """\
id: id
steps: {x: {dtype: float32, shape: [2]}}
label: {name: y, kind: class, classes: [a, b]}
"""
WITHOUT_ID = NUMBERS.removeprefix("id: id\n")
GROUPS = f"{NUMBERS}splits: {{train: 0.5, test: 0.5}}\ngroup: person\n"
REPEATED = {"direct_runner_bundle_repeat": 3}
GENERATION = re.compile(rb"\d{8}T\d{6}-[0-9a-f]{8}")


def rows_of(first, last):
    """Returns records, some of which occur twice, and lines that are rejected."""
    random, rows = np.random.default_rng(first), []
    for number in range(first, last):
        length = int(random.integers(1, 30))
        x = random.normal(size=(length, 2)).astype(np.float32).tolist()
        word = [f"w{n}" for n in random.integers(0, 9, length)]
        row = {"id": f"id-{number}", "x": x, "word": word, "y": ["ab"[number % 2]], "person": f"p-{number % 7}"}
        rows.append(row | {"time": 1_700_000_000 + 40 * number})
    return [*rows, "{", rows[0], rows[0] | {"y": []}, {"id": "no x"}]


def of_numbers(rows):
    return [row | {"y": row["y"][0]} if isinstance(row, dict) and row.get("y") else row for row in rows]


def without_generations(folder):
    """Returns the contents of a dataset. The message of a duplicate names the generation that has the record."""
    return {path: [GENERATION.sub(b"", data) for data in found] for path, found in contents(folder).items()}


@pytest.fixture
def both(run_prepare, tmp_path):
    """Returns a function that runs a job both ways, and checks that the datasets are equal."""

    def run(*raw, beam=None, **options):
        found = []
        for name in ("files", "engine"):
            # Plain calls write what a job writes that sorts through files.
            in_job = {"beam": beam, "shuffle": name, "processes": 0}
            more = {"plain": True} if name == "files" and "num_shards" in options else in_job
            found.append(run_prepare(*raw, output=name, **more, **options))
        first, second = found
        assert first.fingerprint == second.fingerprint
        assert first.rejected.by_reason == second.rejected.by_reason
        assert without_generations(tmp_path / "files") == without_generations(tmp_path / "engine")
        # A vocabulary of the commit before is kept for its readers.
        assert [path for path in unlisted(tmp_path / "engine") if "vocabulary" not in path.parts] == []
        return second

    return run


@pytest.mark.parametrize("beam_options", datasets.some([None, REPEATED], [REPEATED]))
def test_both_ways_give_the_same_bytes(both, write_raw, beam_options):
    options = {"schema": WORDS, "max_rejected": 0.5, "keep_raw": True, "beam": beam_options, "num_shards": 3}
    assert len(both(write_raw(rows_of(0, 300)), **options).rejected.by_reason) >= 3
    # Some of these records were published by the first job.
    manifest = both(write_raw(rows_of(250, 400), "more.jsonl"), append=True, **options)
    assert manifest.rejected.by_reason["duplicate_id"] > 50


def test_the_default_number_of_shards_is_the_same(both, write_raw, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 2000)
    monkeypatch.setattr("pipeline.writing.stages.SHARD_BYTES", 2000)
    manifest = both(write_raw(of_numbers(rows_of(0, 200))), schema=NUMBERS, max_rejected=0.5)
    assert len(manifest.splits["train"].shards) > 5


OTHER_DATASETS = {
    "copies": (WITHOUT_ID, None),
    "groups": (GROUPS, None),
    "windows": (NUMBERS, EventWindows(field="time", seconds=3600)),
}


@pytest.mark.parametrize("name", datasets.some(OTHER_DATASETS, ["copies"]))
def test_both_ways_give_the_same_bytes_of_other_datasets(both, write_raw, name):
    schema, windows = OTHER_DATASETS[name]
    paths = [write_raw(of_numbers(rows_of(60 * n, 60 * n + 80)), f"{n}.jsonl") for n in range(3)]
    both(*paths, schema=schema, windows=windows, max_rejected=0.5, num_shards=2)


def test_blocks_are_cut_and_a_shard_is_spooled(run_prepare, write_raw, monkeypatch, tmp_path):
    """With a bound of 1 MiB, a worker spools the blocks of a shard several times."""
    random = np.random.default_rng(0)
    rows = [{"id": str(n), "x": random.normal(size=(99, 2)).round(3).tolist(), "y": "ab"[n % 2]} for n in range(4000)]
    raw, spooled, made = write_raw(rows), tmp_path / "spooled", []
    run_prepare(raw, schema=NUMBERS, output="files", num_shards=1, plain=True)
    spooled.mkdir()
    make = spooled_blocks.new_run

    def record(folder, kind):
        made.append(folder)
        return make(folder, kind)

    monkeypatch.setattr(tempfile, "tempdir", str(spooled))
    monkeypatch.setattr(spooled_blocks, "new_run", record)
    monkeypatch.setattr(packed_blocks, "PACKED_BYTES", 2**17)
    monkeypatch.setattr(engine_shuffle, "keyed_bytes", lambda num_shards: 2**19)
    output = str(tmp_path / "engine")
    write = WriteDataset(Schema.parse(NUMBERS), output, num_shards=1, shuffle="engine", spool_bytes=2**20)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = pipeline | PrepareFiles(raw, write)
    assert contents(tmp_path / "files") == contents(tmp_path / "engine")
    assert len(made) > 2 and {os.path.dirname(folder) for folder in made} == {str(spooled)}
    assert list(spooled.iterdir()) == []


@pytest.mark.parametrize("transforms", datasets.some(["one", "three"], ["three"]))
def test_transforms_in_another_pipeline_give_the_same_bytes(run_prepare, write_raw, tmp_path, transforms):
    raw, schema = write_raw(rows_of(0, 100)), Schema.parse(WORDS)
    run_prepare(raw, schema=WORDS, output="files", num_shards=2, max_rejected=0.5, plain=True)
    write = WriteDataset(schema, str(tmp_path / "engine"), num_shards=2, max_rejected=0.5, shuffle="engine")
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        if transforms == "one":
            _ = pipeline | PrepareFiles(raw, write)
        else:
            read = pipeline | ReadLines(raw)
            _ = {**(read["lines"] | ParseRecords(schema)), "chunks": read["chunks"]} | write
    assert contents(tmp_path / "files") == contents(tmp_path / "engine")
    assert unlisted(tmp_path / "engine") == []


def test_records_that_come_from_no_file_are_written(tmp_path):
    rows = [row for row in of_numbers(rows_of(0, 50)) if isinstance(row, dict)]
    for name in ("files", "engine"):
        with beam.Pipeline(runner=FnApiRunner()) as pipeline:
            parsed = pipeline | beam.Create(list(map(json.dumps, rows))) | ParseRecords(Schema.parse(NUMBERS))
            output = str(tmp_path / name)
            _ = parsed | WriteDataset(Schema.parse(NUMBERS), output, max_rejected=0.5, num_shards=2, shuffle=name)
    assert contents(tmp_path / "files") == contents(tmp_path / "engine")


@pytest.mark.parametrize("shuffle", datasets.some(["files", "engine"], ["engine"]))
def test_the_metric_of_rejects_counts_duplicates(write_raw, tmp_path, shuffle):
    raw, schema = write_raw(rows_of(0, 50)), Schema.parse(WORDS)
    write = WriteDataset(schema, str(tmp_path / "dataset"), num_shards=2, max_rejected=0.5, shuffle=shuffle)
    pipeline = beam.Pipeline(runner=FnApiRunner())
    _ = pipeline | PrepareFiles(raw, write)
    result = pipeline.run()
    result.wait_until_finish()
    found = collections.Counter()  # two steps count rejects
    for each in result.metrics().query()["counters"]:
        found[each.key.metric.name] += each.committed
    rejected = read_manifest(str(tmp_path / "dataset")).rejected
    assert rejected.by_reason["duplicate_id"] == 2
    assert (found["records_parsed"], found["records_rejected"]) == (52, rejected.total)
