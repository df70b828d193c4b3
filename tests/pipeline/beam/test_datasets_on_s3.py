"""A dataset on S3 is the one that is made on a disk, and two writers at once lose nothing, although S3 has no lock."""

import json

import plain_prepare
import pytest
import s3 as support

from pipeline import files
from pipeline.beam.prepare import PrepareOptions, prepare
from pipeline.errors import NothingNew, UserError
from pipeline.format.history import read_manifest_at
from pipeline.format.manifest import read_manifest
from pipeline.inspection.verify import verify
from pipeline.raw.find_files import find_files
from pipeline.schema.schema import Schema
from pipeline.writing import commit_log
from pipeline.writing.clean import clean
from pipeline.writing.compact import compact
from pipeline.writing.job import begin_job
from pipeline.writing.marker import mark_writer

SCHEMA = """\
id: id
steps: {x: {dtype: float32}}
label: {name: y, kind: class, classes: [a, b]}
splits: {train: 0.9, test: 0.1}
"""
DATASET = f"s3://{support.BUCKET}/some/dataset"


@pytest.fixture(scope="module")
def store():
    with support.with_environment() as client:
        yield client


@pytest.fixture
def write(store, tmp_path):
    """Returns a function that writes 12 records to a local raw file, and to one on S3."""

    def write(number):
        rows = [{"id": n, "x": [n / 7] * (n % 3 + 1), "y": "ab"[n % 2]} for n in range(12 * number, 12 * number + 12)]
        data = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{number}.jsonl").write_text(data)
        store.put_object(Bucket=support.BUCKET, Key=f"raw/{number}.jsonl", Body=data.encode())

    yield write
    files.remove(files.list_files(f"s3://{support.BUCKET}"))


def options(tmp_path, raw, output=DATASET, **more):
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    return PrepareOptions((raw,), str(tmp_path / "schema.yaml"), output, processes=0, num_shards=1, **more)


def on_s3(tmp_path, number, **more):
    return options(tmp_path, f"s3://{support.BUCKET}/raw/{number}.jsonl", **more)


@pytest.mark.proof
def test_it_is_the_dataset_that_is_made_on_a_disk(write, tmp_path):
    for number in range(2):
        write(number)
    local = str(tmp_path / "dataset")

    def check(manifest, of_disk):
        assert manifest.fingerprint == of_disk.fingerprint
        assert (read_manifest(DATASET).commit, sum_records(manifest)) == (of_disk.commit, sum_records(of_disk))
        assert all(shard.records for split in manifest.splits.values() for shard in split.shards)
        return manifest

    def prepare_both(number, prepare=plain_prepare.prepare, **more):
        more["retain"] = 0
        of_disk = plain_prepare.prepare(options(tmp_path, str(tmp_path / f"{number}.jsonl"), local, **more))
        return check(prepare(on_s3(tmp_path, number, **more)), of_disk)

    prepare_both(0)
    with pytest.raises(UserError, match=f"{DATASET}: a dataset is there already. Choose another --output, add to it"):
        prepare(on_s3(tmp_path, 0))
    prepare_both(1, append=True)
    with pytest.raises(NothingNew, match="has the raw file already"):
        prepare(on_s3(tmp_path, 1, append=True))
    compacted = compact(DATASET, num_shards=1, retain=0, lock_timeout=0).manifest
    assert verify(DATASET).faults == []
    check(compacted, compact(local, num_shards=1, retain=0, lock_timeout=0).manifest)
    last = prepare_both(1, prepare, overwrite=True)
    assert (last.commit, len(last.generations)) == (4, 1)
    files.replace(f"{DATASET}/data/20200101T000000-00000000/train-00000-of-00001.tfrecord").__enter__()
    clean(DATASET, retain=0, lock_timeout=0)
    of_last = last.generations[0]
    assert {path.split("/")[6] for path in files.list_files(f"{DATASET}/data")} == {of_last}
    assert all(item.num_bytes for item in files.list_details(DATASET))


def sum_records(manifest):
    return sum(split.records for split in manifest.splits.values())


def test_a_writer_that_finds_its_number_taken_commits_on_top_of_the_other(write, tmp_path, monkeypatch):
    for number in range(4):
        write(number)
    plain_prepare.prepare(on_s3(tmp_path, 0))
    create_once, others, working = commit_log.create_once, [1, 2], []

    def be_late(path, data):
        if others and not working:  # another writer is faster, twice
            other = others.pop()
            working.append(other)
            # It also removes the files that no writer at work has marked.
            plain_prepare.prepare(on_s3(tmp_path, other, append=True, retain=0))
            working.clear()
        create_once(path, data)

    monkeypatch.setattr(commit_log, "create_once", be_late)
    last = on_s3(tmp_path, 3, append=True)
    schema = Schema.read(last.schema)
    job = begin_job(DATASET, "append", schema, None, None)
    with mark_writer(DATASET, job.files.generation, command="prepare"):
        manifest = plain_prepare.run_job(last, schema, find_files(last.inputs), job)
    assert (manifest.commit, sum_records(manifest), len(manifest.generations)) == (4, 48, 4)
    assert read_manifest(DATASET) == manifest
    assert [sum_records(read_manifest_at(DATASET, number)) for number in range(1, 5)] == [12, 24, 36, 48]
    assert verify(DATASET).faults == []


@pytest.mark.proof
def test_a_replacement_is_refused_if_another_writer_was_faster(write, tmp_path, monkeypatch):
    for number in range(2):
        write(number)
    plain_prepare.prepare(on_s3(tmp_path, 0))
    create_once, others = commit_log.create_once, [1]

    def be_late(path, data):
        if others:
            plain_prepare.prepare(on_s3(tmp_path, others.pop(), append=True))
        create_once(path, data)

    monkeypatch.setattr(commit_log, "create_once", be_late)
    with pytest.raises(UserError, match=r"commit 2 \(append, .*\) was published meanwhile. Nothing was published"):
        plain_prepare.prepare(on_s3(tmp_path, 0, overwrite=True))
    assert sum_records(read_manifest(DATASET)) == 24


def test_the_last_manifest_that_is_written_is_the_newest(write, tmp_path, monkeypatch):
    for number in range(3):
        write(number)
    plain_prepare.prepare(on_s3(tmp_path, 0))
    write_manifest, others = commit_log.write_manifest, [2]

    def be_late(output, manifest):
        if others:  # another writer commits, and writes its manifest, between our commit and our manifest
            plain_prepare.prepare(on_s3(tmp_path, others.pop(), append=True))
        write_manifest(output, manifest)

    monkeypatch.setattr(commit_log, "write_manifest", be_late)
    assert plain_prepare.prepare(on_s3(tmp_path, 1, append=True)).commit == 2
    assert (read_manifest(DATASET).commit, sum_records(read_manifest(DATASET))) == (3, 36)


def test_a_store_without_conditions_gets_one_commit(write, tmp_path, monkeypatch):
    for number in range(2):
        write(number)
    monkeypatch.setattr(commit_log, "supports_create_once", lambda path: False)
    plain_prepare.prepare(on_s3(tmp_path, 0))
    with pytest.raises(UserError, match="A second commit must create a file only if it does not exist, which this"):
        plain_prepare.prepare(on_s3(tmp_path, 1, append=True))
