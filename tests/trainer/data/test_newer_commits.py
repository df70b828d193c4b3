"""A trainer that follows a dataset sees its newest commit, whether that has other records, and a replaced dataset."""

import json
import pathlib
import shutil

import datasets
import pytest
from commits import add_commit

from pipeline.writing.compact import compact
from trainer.data.dataset import forget_indexes, open_dataset
from trainer.data.newer_commits import PinnedCommit, Replaced, check_is_logged, find_newer, has_files
from trainer.data.shard_index import read_shard_index


def pin(path):
    return PinnedCommit.of(open_dataset(path).manifest, origin=path)


@pytest.fixture
def path(tmp_path):
    return str(datasets.copy(datasets.of_kind("class"), tmp_path))


def test_a_dataset_without_a_newer_commit_is_not_opened(path, monkeypatch):
    pinned = pin(path)
    monkeypatch.setattr("trainer.data.newer_commits.open_dataset", None)
    assert find_newer(path, pinned) is None


def test_a_commit_without_its_manifest_is_not_there_yet(path):
    pinned, manifest = pin(path), pathlib.Path(path, "manifest.json")
    before = manifest.read_bytes()
    add_commit(pathlib.Path(path), "20260101T000000-00000001", "append")
    after = manifest.read_bytes()
    manifest.write_bytes(before)
    assert find_newer(path, pinned) is None
    manifest.write_bytes(after)
    newer = find_newer(path, pinned)
    assert newer.has_other_records and newer.dataset.manifest.commit == 2
    assert find_newer(path, pin(path)) is None


def test_neither_a_compaction_nor_a_commit_that_adds_nothing_has_other_records(path):
    first, folder = pin(path), pathlib.Path(path)
    add_commit(folder, "20260101T000000-00000001", "stream")
    second = pin(path)
    compact(path, num_shards=1)
    assert not find_newer(path, second).has_other_records
    assert find_newer(path, first).has_other_records  # the stream added records
    log = json.loads((folder / "commits" / "00000003.json").read_text())
    third = pin(path)
    text = json.dumps(
        log | {"number": 4, "operation": "stream", "added": [], "removed": [], "previous_sha256": third.sha256}
    )
    (folder / "commits" / "00000004.json").write_text(text)
    manifest = open_dataset(path).manifest.model_copy(update={"commit": 4})
    (folder / "manifest.json").write_bytes(manifest.to_json())
    assert not find_newer(path, third).has_other_records
    assert find_newer(path, second).dataset.manifest.commit == 4


def test_a_dataset_that_was_replaced_is_refused(path, tmp_path):
    pinned, folder = pin(path), pathlib.Path(path)
    copy = shutil.copytree(path, tmp_path / "other")
    add_commit(folder, "20260101T000000-00000001", "append")
    second = pin(path)
    add_commit(folder, "20260101T000000-00000002", "replace")
    for since in (pinned, second):
        with pytest.raises(Replaced, match=rf"commit 3 of \S+ \(replace\) replaced .* up to commit {since.number}\."):
            find_newer(path, since)
    # Another dataset, with fewer commits, as many, and more.
    other = pinned.model_copy(update={"sha256": "0" * 64})
    for since in (second, other):
        with pytest.raises(Replaced, match=f"it has no commit {since.number} with the SHA-256 {since.sha256}"):
            find_newer(str(copy), since)
        with pytest.raises(Replaced, match="is not the dataset that this run has followed"):
            check_is_logged(str(copy), since)
    with pytest.raises(Replaced, match="it has no commit 1 with the SHA-256 0000"):
        find_newer(path, other)


def test_removed_files_and_forgotten_indexes(path):
    add_commit(pathlib.Path(path), "20260101T000000-00000001", "append")
    dataset = open_dataset(path)
    assert has_files(dataset)
    dataset.indexes("train")
    assert read_shard_index.cache_info().currsize >= 4
    forget_indexes()
    assert read_shard_index.cache_info().currsize == 0
    compact(path, num_shards=1, retain=0)
    assert not has_files(dataset) and has_files(open_dataset(path))
