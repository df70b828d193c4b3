"""New raw files are told from those that a dataset has already, and only files that it may have are read."""

import gzip
import itertools
import os
import pathlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_contents import expected_row

from pipeline import progress
from pipeline.errors import UserError
from pipeline.files import file_sha256
from pipeline.format.sources import SourcesFile, write_sources
from pipeline.raw import json_lines
from pipeline.raw.find_files import RawFile, find_files
from pipeline.writing import classify_inputs as module
from pipeline.writing.classify_inputs import (
    ChangedInput,
    ClassifiedInputs,
    Content,
    TakenInput,
    classify_inputs,
    describe_taken,
)

CHUNK_BYTES = 30
# Some have the same size, some the same digest, and some several chunks.
PLAIN = [b"", b"\n", b"{}\n", b"[]\n", b"{}\r\n", b"{}", b'{"id": 1}\n' * 4, b'{"id": 2}\n' * 4]
CONTENTS = [*PLAIN, *map(gzip.compress, PLAIN[2:])]
NAMES = ["a.jsonl", "b.jsonl", "c/a.jsonl", "d", "ü.jsonl"]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(json_lines, "CHUNK_BYTES", CHUNK_BYTES)
    monkeypatch.setattr(module, "_ROWS", 3)


def write_files(folder, contents):
    """Writes raw files, and returns their rows sorted by path."""
    paths = [folder / name for name in sorted(contents)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[path.relative_to(folder).as_posix()])
    return sorted(expected_row(path, CHUNK_BYTES) for path in paths)


def write_list(dataset, rows):
    """Writes the list of the sources of the next generation of a dataset."""
    path = dataset / f"{len(list(dataset.glob('*'))):03d}.parquet"
    with open(path, "wb") as file:
        written = write_sources(file, rows)
    return SourcesFile(path=path.name, sha256=file_sha256(str(path)), **written._asdict())


def classify_slowly(files, history):
    """Classifies files in the simplest way, from all rows of the sources, from the oldest to the newest."""
    classified = ClassifiedInputs([], [], [])
    for file in files:
        with open(file.path, "rb") as stream:
            zipped = stream.read(2) == b"\x1f\x8b"
        now = expected_row(pathlib.Path(file.path), CHUNK_BYTES)
        before = [row for row in history if row.path == file.path]
        same = [row.path for row in history if row.sha256 == now.sha256]
        is_read = before or zipped or any(row.num_bytes == file.num_bytes for row in history)
        if is_read and same:
            classified.taken.append(TakenInput(file, same[-1]))
        elif before:
            contents = (Content(row.num_bytes, row.sha256) for row in (now, before[-1]))
            classified.changed.append(ChangedInput(file, *contents))
        else:
            classified.new.append(file)
    return classified


FILES = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(CONTENTS), max_size=5)
numbers = itertools.count()


@given(st.lists(FILES, max_size=4), FILES.filter(bool), st.sampled_from([0, 100, 2**24]))
def test_files_are_classified_as_by_hashing_all_of_them(tmp_path_factory, generations, new, kept_bytes):
    folder = tmp_path_factory.getbasetemp() / f"classify-{next(numbers)}"
    (folder / "dataset").mkdir(parents=True)
    history, sources = [], []
    for contents in generations:
        rows = write_files(folder / "raw", contents)
        history += rows
        sources.append(write_list(folder / "dataset", rows))
    write_files(folder / "raw", new)
    files = find_files([str(folder / "raw" / name) for name in new])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_KEPT_BYTES", kept_bytes)
        found = classify_inputs(files, str(folder / "dataset"), sources)
    assert found == classify_slowly(files, history)
    assert sorted(
        file.path for file in [*found.new, *(t.file for t in found.taken), *(c.file for c in found.changed)]
    ) == [file.path for file in files]


@pytest.fixture
def dataset(tmp_path):
    """Makes a dataset of three raw files, and returns a function that classifies the files of the folder."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    old = {"a.jsonl": b'{"id": 1}\n', "b.jsonl": b'{"id": 22}\n', "c.jsonl.gz": gzip.compress(b'{"id": 333}\n')}
    sources = [write_list(folder, [row]) for row in write_files(tmp_path / "raw", old)]

    def classify(**options):
        return classify_inputs(find_files(str(tmp_path / "raw")), str(folder), sources, **options)

    return classify


def names(files):
    return [os.path.basename(file.path) for file in files]


def test_only_files_that_may_be_known_are_read(dataset, tmp_path, monkeypatch):
    new = {"new.jsonl": b'{"id": 4444}\n', "same-size.jsonl": b'{"id": 8}\n', "new.jsonl.gz": gzip.compress(b"[]")}
    write_files(tmp_path / "raw", new)
    summarize, hashed = module.summarize_chunk, []

    def record(chunk, **options):
        hashed.append(os.path.basename(chunk.path))
        return summarize(chunk, **options)

    monkeypatch.setattr(module, "summarize_chunk", record)
    found = dataset()
    assert hashed == ["a.jsonl", "b.jsonl", "c.jsonl.gz", "new.jsonl.gz", "same-size.jsonl"]
    assert names(found.new) == ["new.jsonl", "new.jsonl.gz", "same-size.jsonl"]


def test_renamed_copied_and_linked_files_are_taken(dataset, tmp_path):
    raw = tmp_path / "raw"
    (raw / "a.jsonl").rename(raw / "z.jsonl")
    (raw / "copy.jsonl").write_bytes(gzip.decompress((raw / "c.jsonl.gz").read_bytes()))
    (raw / "copy.jsonl.gz").write_bytes(gzip.compress((raw / "b.jsonl").read_bytes(), 1))
    (raw / "link.jsonl").symlink_to(raw / "b.jsonl")
    found = dataset()
    assert (found.new, found.changed) == ([], [])
    assert [(os.path.basename(file.path), os.path.basename(source)) for file, source, _ in found.taken] == [
        ("b.jsonl", "b.jsonl"),
        ("c.jsonl.gz", "c.jsonl.gz"),
        ("copy.jsonl", "c.jsonl.gz"),
        ("copy.jsonl.gz", "b.jsonl"),
        ("link.jsonl", "b.jsonl"),
        ("z.jsonl", "a.jsonl"),
    ]
    assert describe_taken(found.taken, most=3) == [
        f"{raw}/b.jsonl: skipped, the dataset has it already.",
        f"{raw}/c.jsonl.gz: skipped, the dataset has it already.",
        f"{raw}/copy.jsonl: skipped, the dataset has it already as {raw}/c.jsonl.gz.",
        "3 more files: skipped, too.",
    ]


def test_a_file_is_the_same_by_any_relative_path(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "dataset")
    sources = [write_list(tmp_path / "dataset", write_files(tmp_path / "raw", {"a.jsonl": b"1", "b.jsonl": b"2"}))]
    files = find_files(["../raw/a.jsonl", "../dataset/../raw/b.jsonl"])
    assert names(taken.file for taken in classify_inputs(files, ".", sources).taken) == ["a.jsonl", "b.jsonl"]


def test_a_changed_file_is_refused_unless_it_may_be_added(dataset, tmp_path):
    write_files(tmp_path / "raw", {"b.jsonl": b'{"id": 22}\n{"id": 3}\n', "d.jsonl": b"new"})
    found = dataset()
    with pytest.raises(
        UserError,
        match=rf"^{tmp_path}/raw/b\.jsonl: has 21 bytes with the digest [0-9a-f]{{12}} now, but had 11 bytes with the "
        r"digest [0-9a-f]{12} when the dataset took it; expected the same content or another path\. Restore .*, or add "
        r"all records of changed files with --changed_inputs add\.$",
    ):
        found.to_add(add_changed=False)
    assert names(found.to_add(add_changed=True)) == ["b.jsonl", "d.jsonl"]
    write_files(tmp_path / "raw", {"a.jsonl": b"{}"})
    with pytest.raises(UserError, match=r"/a\.jsonl \(and 1 more\): has 2 bytes"):
        dataset().to_add(add_changed=False)


def test_without_sources_no_file_is_opened(tmp_path):
    files = [RawFile("/gone/a.jsonl", 5)]
    assert classify_inputs(files, str(tmp_path), []) == ClassifiedInputs(files, [], [])
    assert classify_inputs(files, str(tmp_path), [write_list(tmp_path, [])]) == ClassifiedInputs(files, [], [])


def test_a_file_that_cannot_be_read_is_named(dataset, tmp_path):
    (tmp_path / "dataset/002.parquet").write_bytes(b"damaged")
    with pytest.raises(
        UserError, match=rf"^{tmp_path}/dataset/002.parquet: has the SHA-256 .* Restore the file from a"
    ):
        dataset()
    (tmp_path / "dataset/001.parquet").unlink()
    with pytest.raises(UserError, match=f"^{tmp_path}/dataset/001.parquet: cannot be read: No such file or directory"):
        dataset()


@pytest.mark.parametrize("name", ["a.jsonl", "new.jsonl"])
def test_a_raw_file_that_vanishes_is_named(tmp_path, name):
    sources = [write_list(tmp_path, write_files(tmp_path, {"a.jsonl": b"{}"}))]
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(UserError, match=f"^{tmp_path}/{name}: cannot be read: No such file or directory"):
        classify_inputs([RawFile(f"{tmp_path}/{name}", 7)], str(tmp_path), sources)


def test_progress_is_shown_while_files_are_read(dataset, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_INTERVAL_SECONDS", 0.01)
    shown = []

    def map_slowly(function, chunks):
        for chunk in chunks:
            yield function(chunk)
            while not any("1 record" in line for line in shown):
                shown.extend(capsys.readouterr().err.splitlines())
                time.sleep(0.01)

    assert len(dataset(map_chunks=map_slowly).taken) == 3
    assert "prepare: comparing raw files with the dataset: 1 record, " in shown[-1]


def test_many_small_lists_are_compared_together(tmp_path, monkeypatch):
    sources = [write_list(tmp_path, write_files(tmp_path / "raw", {name: name.encode()})) for name in NAMES * 2]
    assert [len(table) for table in module._read_all(str(tmp_path), sources)] == [3, 3, 3, 1]
    monkeypatch.setattr(module, "_BYTES", 1)
    assert [len(table) for table in module._read_all(str(tmp_path), sources)] == [1] * 10
