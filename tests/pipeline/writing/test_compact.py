"""`compact` merges generations into the shards that one job over all raw files writes, byte for byte."""

import pathlib

import pytest
from datasets import call
from prepare_jobs import load, read_whole, snapshot

from pipeline.errors import UserError
from pipeline.format.history import read_manifest_at
from pipeline.format.manifest import FILE_NAME
from pipeline.format.summary import GenerationSummary, summary_path
from pipeline.writing import merge_shards, write_sources
from pipeline.writing.compact import compact
from pipeline.writing.paths import LOCK

SCHEMA = """\
id: id
steps:
  x: {dtype: float32, shape: [2], missing: {fill: mean}}
  word: {dtype: string, vocabulary: 5}
label: {name: y, kind: multilabel, classes: [a, b]}
group: who
"""


def record(number):
    words = [f"w{(number * n) % 11}" for n in range(number % 5 + 1)]
    x = [[number / 7, None if number % 9 == 0 else n * 1e20 / 3] for n in range(number % 5 + 1)]
    return {"id": f"id-{number}", "x": x, "word": words, "y": ["ab"[number % 2]], "who": number % 40}


@pytest.fixture
def parts(write_raw, run_prepare):
    """Raw files whose records are in the dataset, each in a generation of its own with other shards."""
    parts = [write_raw([record(n) for n in range(30 * k, 30 * k + 30)] + ["{"], f"raw/{k}.jsonl") for k in range(4)]
    for number, part in enumerate(parts):
        run_prepare(part, schema=SCHEMA, append=True, max_rejected=0.1, num_shards=number + 1, plain=True)
    return parts


def files_of(folder, manifest):
    """Returns the bytes of the files of the only generation of a dataset, by name without the generation."""
    (generation,) = manifest.generations
    inside = pathlib.Path(folder, "data", generation)
    return {
        str(p.relative_to(inside)): p.read_bytes() for p in inside.rglob("*") if p.suffix != ".json" and p.is_file()
    }


@pytest.mark.parametrize("memory", ["plenty", "little"])
def test_a_compacted_dataset_is_the_one_that_one_job_writes(parts, run_prepare, tmp_path, monkeypatch, memory):
    if memory == "little":  # records are read one by one, from files that are opened each time
        monkeypatch.setattr(merge_shards, "_PART_BYTES", 1)
        monkeypatch.setattr(merge_shards, "_MAX_OPEN", 2)
        monkeypatch.setattr(write_sources, "_MAX_OPEN", 2)
    before = load(tmp_path / "dataset")
    done = compact(str(tmp_path / "dataset"), num_shards=3)
    whole = run_prepare(*parts, schema=SCHEMA, output="whole", max_rejected=0.1, num_shards=3)
    manifest = read_whole(tmp_path / "dataset")
    assert (done.manifest, done.generations, manifest.commit) == (manifest, before.generations, 5)
    assert files_of(tmp_path / "dataset", manifest) == files_of(tmp_path / "whole", whole)
    assert manifest.fingerprint == whole.fingerprint
    same = {"commit", "commit_sha256", "generations", "summaries", "splits", "rejected", "vocabularies"}
    assert manifest.model_dump(exclude=same) == whole.model_dump(exclude=same)
    for name, split in whole.splits.items():
        assert manifest.splits[name].model_dump(exclude={"shards"}) == split.model_dump(exclude={"shards"})
    # The files of rejects keep their names.
    assert manifest.rejected == before.rejected
    # Readers of the older commit still find its shards.
    assert read_manifest_at(str(tmp_path / "dataset"), 4) == before


def test_large_generations_are_left_alone(parts, monkeypatch, tmp_path):
    dataset = tmp_path / "dataset"
    # The shards of the first generation, which has one for each split, are the largest.
    monkeypatch.setattr("pipeline.writing.choose_generations.SHARD_BYTES", 1500)
    before, manifest = load(dataset), (dataset / FILE_NAME).read_bytes()
    done = compact(str(dataset))
    assert done.generations == before.generations[1:]
    after = read_whole(dataset)
    assert after.generations[0] == before.generations[0] and len(after.generations) == 2
    assert {name: split.records for name, split in after.splits.items()} == {
        name: split.records for name, split in before.splits.items()
    }
    assert (after.statistics, after.rejected) == (before.statistics, before.rejected)
    files = snapshot(dataset)
    assert compact(str(dataset)).generations == ()
    assert snapshot(dataset) == files
    # As after a kill between the commit and the manifest, which is rebuilt although there is nothing to merge.
    (dataset / FILE_NAME).write_bytes(manifest)
    assert compact(str(dataset)).manifest == after
    assert snapshot(dataset) | {LOCK: b""} == files | {LOCK: b""}


def test_an_append_beside_a_compaction_is_kept(parts, run_prepare, write_raw, monkeypatch, tmp_path):
    more = write_raw([record(n) for n in range(500, 530)], "more.jsonl")
    write = merge_shards._write_shard

    def append_first(*arguments, **named):
        monkeypatch.setattr(merge_shards, "_write_shard", write)
        run_prepare(more, schema=SCHEMA, append=True)
        return write(*arguments, **named)

    monkeypatch.setattr(merge_shards, "_write_shard", append_first)
    compact(str(tmp_path / "dataset"))
    manifest = read_whole(tmp_path / "dataset")
    assert (manifest.commit, len(manifest.generations)) == (6, 2)
    assert sum(split.records for split in manifest.splits.values()) == 150


def test_a_compaction_beside_a_replacement_changes_nothing(parts, run_prepare, monkeypatch, tmp_path):
    write = merge_shards._write_shard

    def replace_first(*arguments, **named):
        monkeypatch.setattr(merge_shards, "_write_shard", write)
        run_prepare(*parts, schema=SCHEMA, overwrite=True, max_rejected=0.1)
        return write(*arguments, **named)

    monkeypatch.setattr(merge_shards, "_write_shard", replace_first)
    with pytest.raises(UserError, match=r"commit 5 \(replace, .*\) was published meanwhile"):
        compact(str(tmp_path / "dataset"))
    manifest = read_whole(tmp_path / "dataset")
    assert manifest.commit == 5
    # The files of the failed compaction are gone. Those that were replaced are kept for a time.
    assert len(list((tmp_path / "dataset" / "data").iterdir())) == 5


@pytest.mark.parametrize("ending", [".tfrecord", ".index.parquet"])
def test_a_damaged_file_is_named_and_nothing_changes(parts, tmp_path, ending):
    dataset = tmp_path / "dataset"
    (path, *_) = sorted(dataset.glob(f"data/*/train*{ending}"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    before = snapshot(dataset)
    with pytest.raises(UserError, match="`lengthwise verify` lists all errors. Nothing was changed"):
        compact(str(dataset))
    assert snapshot(dataset) == before


def test_the_command_says_what_it_merged(parts, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "compact", "dataset")[:2] == (0, "dataset: merged 4 generations into one (commit 5)\n")
    status, out, _ = call(capsys, "compact", "dataset")
    assert (status, out) == (0, "dataset: nothing to merge: it has fewer than two generations with small shards\n")
    status, _, err = call(capsys, "compact", "nowhere")
    assert (status, "nowhere: not a dataset: there is no such folder" in err[0]) == (1, True)
    (generation,) = load("dataset").generations
    data = pathlib.Path("dataset", summary_path(generation)).read_bytes()
    assert len(GenerationSummary.parse(data, origin="summary").rejected.files) == 4


def test_an_error_after_the_commit_keeps_the_new_files(parts, tmp_path, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise PermissionError(13, "Permission denied", "some file")

    monkeypatch.setattr("pipeline.writing.commit_log.remove_old", fail)
    status, _, err = call(capsys, "compact", tmp_path / "dataset")
    assert status == 1
    assert err[-1].startswith(f"lengthwise compact: {tmp_path}/dataset: was compacted, but the work after that was not")
    assert len(read_whole(tmp_path / "dataset").generations) == 1
