"""The list of the raw files of a generation has the size and the digest of each file."""

import gzip
import hashlib

import pytest
from raw_contents import expected_row
from spills import spill

from pipeline.files import file_sha256
from pipeline.format.sources import SourceRow, read_sources
from pipeline.raw import json_lines
from pipeline.raw.find_files import find_files
from pipeline.raw.json_lines import ChunkSummary, read_chunk, split_file
from pipeline.shuffle.chunk_runs import ChunkBuffer
from pipeline.writing.commit_log import read_summaries
from pipeline.writing.paths import sources_path
from pipeline.writing.write_sources import join_parts, list_sources

GENERATION = "20260102T030405-0123abcd"
CHUNK_BYTES = 50


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A folder of raw files that are empty, blank, plain, of several chunks, or gzip. Chunks have 50 bytes."""
    monkeypatch.setattr(json_lines, "CHUNK_BYTES", CHUNK_BYTES)
    line = b'{"id": %d}'
    contents = {
        "empty.jsonl": b"",
        "blank.jsonl": b"\n \r\n",
        "open.jsonl": b"\n".join(line % n for n in range(20)),
        "windows.jsonl": b"".join(line % n + b"\r\n" for n in range(20)),
        "long.jsonl": b'{"id": "' + b"x" * 200 + b'"}\n' + line,
        "zipped.jsonl": gzip.compress(b"\n".join(line % n for n in range(20))),
        "deep/a.jsonl.gz": gzip.compress(b""),
    }
    for name, content in contents.items():
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "raw"


def rows_of(dataset, file):
    return [SourceRow(*row.values()) for block in read_sources(str(dataset), file) for row in block.to_pylist()]


@pytest.mark.parametrize("run_size", [1, 3, 100])
def test_every_raw_file_is_listed_with_its_size_and_digest(raw, tmp_path, run_size):
    files = find_files(raw)
    items = [item for file in files for chunk in split_file(file) for item in read_chunk(chunk)]
    chunks = [item for item in items if isinstance(item, ChunkSummary)][::-1]
    runs = spill(ChunkBuffer, chunks, tmp_path, size=run_size)
    file = list_sources(runs, output=str(tmp_path), generation=GENERATION)
    expected = [expected_row(path, CHUNK_BYTES) for path in sorted(path for path in raw.rglob("*") if path.is_file())]
    assert rows_of(tmp_path, file) == expected
    assert (file.files, file.bytes) == (7, sum(row.num_bytes for row in expected))
    assert (file.path, file.sha256) == (sources_path(GENERATION), file_sha256(f"{tmp_path}/{file.path}"))
    # A retried call writes the same bytes.
    assert list_sources(runs, output=str(tmp_path), generation=GENERATION) == file


def test_without_a_raw_file_the_list_is_empty(tmp_path):
    file = list_sources([], output=str(tmp_path), generation=GENERATION)
    assert (file.files, file.bytes, rows_of(tmp_path, file)) == (0, 0, [])


def test_an_empty_file_that_grows_after_it_was_listed_is_empty(tmp_path):
    path = tmp_path / "raw.jsonl"
    path.write_bytes(b"")
    (file,) = find_files(str(path))
    path.write_bytes(b"{}\n{}\n")
    assert [item.num_bytes for chunk in split_file(file) for item in read_chunk(chunk)] == [0]


def test_prepare_lists_its_raw_files(raw, tmp_path, run_prepare):
    schema = "id: id\nsteps: {x: {dtype: float32}}\nlabel: {name: y, kind: class, classes: [a, b]}\n"
    (raw / "good.jsonl").write_bytes(b'{"id": "good", "x": [1], "y": "a"}\n')
    manifest = run_prepare(str(raw), schema=schema, max_rejected=1)
    expected = [expected_row(path, CHUNK_BYTES) for path in sorted(path for path in raw.rglob("*") if path.is_file())]
    (summary,) = read_summaries(str(tmp_path / "dataset"), manifest.summaries)
    assert rows_of(tmp_path / "dataset", summary.sources) == expected
    assert manifest.inputs is not None
    assert (manifest.inputs.files, manifest.inputs.bytes) == (8, sum(row.num_bytes for row in expected))


def test_neighbouring_parts_of_a_file_become_one_row():
    def part(start, end, *, path="a", rewrites=0, split=None, joined=None):
        digest = bytes([start, end]) * 16
        return SourceRow(path, 2 * (end - start), end - start, digest, split, start, end // 2, rewrites, digest, joined)

    whole = SourceRow("a", 7, 7, bytes(32))
    apart = [
        part(0, 10),  # the next one does not begin where it ends
        part(12, 20),
        part(20, 30, rewrites=1),
        part(0, 10, path="b"),
        part(10, 20, path="b", split="train"),
    ]
    assert list(join_parts([whole, *apart])) == [whole, *apart]
    rows = [part(20, 30, joined=3), part(0, 4, rewrites=1), part(0, 10), part(10, 20), whole]
    digest = hashlib.sha256(b"".join(bytes(pair) * 16 for pair in ((0, 10), (10, 20), (20, 30)))).digest()
    joined = part(20, 30)._replace(num_bytes=60, stored_bytes=30, sha256=digest, start=0, joined=5)
    assert list(join_parts(rows)) == [whole, joined, part(0, 4, rewrites=1)]
