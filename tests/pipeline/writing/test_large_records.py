"""A record that is larger than a block is written as the others are, without copies of it in memory."""

import shutil
import tracemalloc

import datasets
import numpy as np
import pytest
from prepare_jobs import contents, read_whole

from pipeline.format import batch_decoding, statistics
from pipeline.raw.find_files import find_files
from pipeline.raw.json_lines import split_file
from pipeline.schema.schema import Schema
from pipeline.writing import open_shard, stages

SCHEMA = "id: id\nsteps: {x: {dtype: float32, shape: [8]}}\nlabel: {name: y, kind: class, classes: [a, b]}\n"
STEPS = 100_000
FLOAT_BYTES = STEPS * 8 * 4


@pytest.mark.parametrize("kind", ["class", "step_class", "step_regression"])
@pytest.mark.parametrize("more", ["", "max_length: 7\nover_length: parts\n"])
def test_records_larger_than_a_block_are_written_as_others(kind, more, tmp_path, monkeypatch):
    records = datasets.random_records([3, 30, 1, 14, 2000] * 9, kind=kind)
    schema = datasets.schema_text(kind) + more
    found = []
    for is_large in (False, True):
        if is_large:
            monkeypatch.setattr(open_shard, "_BLOCK_BYTES", 300)
            monkeypatch.setattr(batch_decoding, "_LARGE_BYTES", 100)
            monkeypatch.setattr(statistics, "_MIN_VALUES", 8)
            monkeypatch.setattr(statistics, "_MANY_VALUES", 1024)
        made = datasets.make(tmp_path, records, schema)  # each time from the same raw file
        found.append((contents(made.path), read_whole(made.path).fingerprint))
        shutil.rmtree(made.path)
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A file with two records of 100,000 steps."""
    path = tmp_path_factory.mktemp("raw") / "raw.jsonl"
    rows = np.random.default_rng(0).normal(size=(1000, 8)).round(5).tolist()
    text = str(rows * (STEPS // 1000)).replace(" ", "")
    path.write_text("".join(f'{{"id": {number}, "x": {text}, "y": "a"}}\n' for number in range(2)))
    return path


@pytest.fixture
def peak():
    """Returns a function that returns the bytes of Python and NumPy that this process has allocated most of all."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize(
    "schema", [SCHEMA, pytest.param(SCHEMA.removeprefix("id: id\n"), marks=pytest.mark.proof)], ids=["id", "hash"]
)
def test_memory_holds_a_line_and_its_numbers_once(schema, raw, tmp_path, monkeypatch, peak):
    """And then its numbers and its Example. The parsers hold a small piece of the line besides."""
    monkeypatch.setattr("pipeline.raw.json_arrays._PIECE_BYTES", 2**16)
    monkeypatch.setattr("pipeline.shuffle.record_runs.BUFFER_BYTES", 2**20)
    line_bytes = raw.stat().st_size / 2
    chunks = list(split_file(find_files([str(raw)])[0]))
    parsed = stages.parse_into_runs(chunks, Schema.parse(schema), seed=0, folder=str(tmp_path), keep_raw=False)
    assert parsed.parsed == 2 and sum(run.num_rows for run in parsed.runs) == 2
    # A line that grows has space for an eighth more.
    assert peak() < max(1.15 * line_bytes + FLOAT_BYTES, 2 * FLOAT_BYTES) + 2**21
