"""Commits and `clean` remove what is old, and nothing else."""

import json
import os
import pathlib
import re
import shutil

import object_store
import pytest
from commits import Clock, add_commit, copy_generation
from datasets import call
from holders import LOCK_DATASET, Holder
from paths import ROOT

from pipeline.errors import UserError
from pipeline.format.history import read_manifest_at
from pipeline.format.manifest import FILE_NAME, read_manifest
from pipeline.format.summary import GenerationSummary, summary_path
from pipeline.inspection.verify import verify
from pipeline.writing.base import Base
from pipeline.writing.clean import clean
from pipeline.writing.commit_log import Change, commit, write_summary
from pipeline.writing.marker import mark_writer

RECORDS = [{"id": str(n), "x": [0.5] * (1 + n % 3), "word": ["a"] * (1 + n % 3), "y": "a"} for n in range(20)]
SCHEMA = """\
id: id
steps: {x: {dtype: float32}, word: {dtype: string, vocabulary: 5}}
label: {name: y, kind: class, classes: [a, b]}
"""
FIRST, SECOND, THIRD, FOURTH = (f"20260101T000000-0000000{n}" for n in "1234")
GOLDEN = ROOT / "tests/golden/dataset"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """The folder of a dataset with one commit and a reject."""
    from plain_prepare import prepare

    from pipeline.beam.prepare import PrepareOptions

    folder = tmp_path_factory.mktemp("retention")
    (folder / "raw.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in RECORDS) + "{\n")
    (folder / "schema.yaml").write_text(SCHEMA)
    raw, schema, output = (str(folder / name) for name in ("raw.jsonl", "schema.yaml", "dataset"))
    prepare(PrepareOptions((raw,), schema, output, max_rejected=0.1, num_shards=1, processes=0))
    return folder / "dataset"


@pytest.fixture
def dataset(template, tmp_path):
    """The folder of a dataset whose only generation FIRST has replaced another one at commit 2."""
    shutil.copytree(template, tmp_path / "dataset")
    add_commit(tmp_path / "dataset", FIRST, retain=0)
    return tmp_path / "dataset"


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def snapshot(folder):
    """Returns the bytes and times of all files but the lock, by path."""
    files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def generations(folder):
    """Returns the generations whose shards exist, and those whose rejects exist."""
    return sorted(os.listdir(folder / "data")), sorted(path.stem for path in folder.glob("rejected/*"))


def test_a_replaced_generation_is_removed_by_the_first_commit_after_the_retention_time(dataset, clock):
    assert generations(dataset) == ([FIRST], [FIRST])
    clock.forward(hours=1)
    add_commit(dataset, SECOND)
    clock.forward(hours=23.5)
    add_commit(dataset, THIRD)
    assert generations(dataset) == ([FIRST, SECOND, THIRD],) * 2
    clock.forward(hours=1)
    add_commit(dataset, FOURTH)
    assert generations(dataset) == ([SECOND, THIRD, FOURTH],) * 2
    assert read_manifest_at(str(dataset), 3).generations == (SECOND,)
    with pytest.raises(UserError, match="commit 2 cannot be opened"):
        read_manifest_at(str(dataset), 2)
    assert verify(str(dataset)).faults == []


def test_a_compacted_generation_stays_for_the_retention_time_and_its_rejects_as_long_as_they_count(dataset, clock):
    add_commit(dataset, SECOND, "append")
    summary = copy_generation(dataset, THIRD)
    (file,) = summary.rejected.files
    (dataset / file.path).unlink()
    # The new generation lists the rejects of those that it was made from.
    rejected = summary.rejected.model_copy(
        update={"files": (file.model_copy(update={"path": file.path.replace(THIRD, SECOND)}),)}
    )
    summary = summary.model_copy(update={"rejected": rejected})
    write_summary(str(dataset), summary)
    change = Change("compact", Base("append", 3), summary, removed=(FIRST, SECOND))
    commit(str(dataset), change, lock_timeout=0, retain=3600)
    clock.forward(hours=0.9)
    assert clean(str(dataset), retain=3600, lock_timeout=0).removals == []
    clock.forward(hours=0.2)
    clean(str(dataset), retain=3600, lock_timeout=0)
    assert generations(dataset) == ([THIRD], [SECOND])


def test_clean_removes_what_dry_run_lists(dataset, capsys):
    add_commit(dataset, SECOND)
    killed = dataset / f"data/{FOURTH}/{'0f' * 16}.rows"
    killed.parent.mkdir()
    killed.write_bytes(b"12345")
    mine = [dataset / name for name in ("data/notes.txt", f"data/{FIRST}/notes.txt", "vocabulary/mine.txt", "README")]
    for path in mine:
        path.touch()
    before = snapshot(dataset)
    assert call(capsys, "clean", dataset) == (0, f"{dataset}: nothing to remove\n", [])
    assert snapshot(dataset) == before

    status, out, err = call(capsys, "clean", dataset, "--retain", "0", "--dry_run")
    assert (status, err, snapshot(dataset)) == (0, [], before)
    first, *lines = out.splitlines()
    listed = [line.strip() for line in lines if line.startswith("    ")]
    assert re.fullmatch(rf"{dataset}: would remove {len(listed)} files, [\d.]+ kB", first)
    reasons = [line for line in lines if not line.startswith("    ")]
    assert reasons[1:] == [f"  generation {FOURTH}, which no commit names: 1 file, 5 bytes"]
    assert re.fullmatch(
        rf"  generation {FIRST}, removed by commit 3 \([-\d]+T[:\d]+Z\): {len(listed) - 1} files, [\d.]+ kB", reasons[0]
    )

    status, out, err = call(capsys, "clean", dataset, "--retain", "0")
    assert (status, err) == (0, [])
    assert out.splitlines() == [first.replace("would remove", "removed"), *reasons]
    after = snapshot(dataset)
    assert before.keys() - after.keys() == set(listed)
    assert after == {path: before[path] for path in after}
    assert all(path.exists() for path in mine) and not killed.parent.exists()
    assert verify(str(dataset)).faults == []
    assert call(capsys, "clean", dataset, "--retain", "0") == (0, f"{dataset}: nothing to remove\n", [])


def test_the_files_of_a_writer_at_work_stay(dataset, capsys):
    with mark_writer(str(dataset), FOURTH, command="prepare"):
        run = dataset / f"data/{FOURTH}/{'0f' * 16}.rows"
        run.touch()
        for option in ("--dry_run", "--lock_timeout=0"):
            status, out, _ = call(capsys, "clean", dataset, "--retain", "0", option)
            first, second = out.splitlines()
            assert (status, first) == (0, f"{dataset}: nothing to remove")
            assert second.startswith(f"  kept: generation {FOURTH}: prepare, process {os.getpid()} on ")
        add_commit(dataset, SECOND, retain=0)
        assert run.exists()
    add_commit(dataset, THIRD, retain=0)
    assert generations(dataset) == ([THIRD], [THIRD])


def test_a_manifest_that_is_behind_is_rebuilt_before_anything_is_removed(dataset, capsys):
    older = (dataset / FILE_NAME).read_bytes()
    newest = add_commit(dataset, SECOND)
    (dataset / FILE_NAME).write_bytes(older)
    status, out, _ = call(capsys, "clean", dataset, "--retain", "0", "--dry_run")
    assert (status, f"data/{FIRST}/summary.json" in out, f"data/{SECOND}/summary.json" in out) == (0, True, False)
    assert read_manifest(str(dataset)).commit == 2
    assert call(capsys, "clean", dataset, "--retain", "0")[0] == 0
    assert read_manifest(str(dataset)) == newest
    assert generations(dataset) == ([SECOND], [SECOND])
    assert verify(str(dataset)).faults == []


def test_a_dataset_of_format_version_1_is_cleaned(tmp_path):
    dataset = tmp_path / "dataset"
    shutil.copytree(GOLDEN, dataset)
    (oldest,) = read_manifest(str(GOLDEN)).generations
    left = f"data/{oldest}/{'0f' * 16}.rows"
    (dataset / left).touch()
    assert [removal.path for removal in clean(str(dataset), retain=0, lock_timeout=0).removals] == [left]
    assert snapshot(dataset).keys() == snapshot(GOLDEN).keys()


def test_a_replaced_dataset_of_format_version_1_stays_for_the_retention_time(template, tmp_path, clock):
    dataset = tmp_path / "dataset"
    shutil.copytree(GOLDEN, dataset)
    (oldest,) = read_manifest(str(GOLDEN)).generations
    (newest,) = read_manifest(str(template)).generations
    for folder in ("data", "rejected"):
        shutil.copytree(template / folder, dataset / folder, dirs_exist_ok=True)
    path = summary_path(newest)
    summary = GenerationSummary.parse((template / path).read_bytes(), origin=path)
    commit(str(dataset), Change("replace", Base("replace"), summary), lock_timeout=0, retain=86400)
    clock.forward(hours=23)
    assert clean(str(dataset), retain=86400, lock_timeout=0).removals == []
    clock.forward(hours=2)
    reasons = {
        removal.reason.split(" by ")[0] for removal in clean(str(dataset), retain=86400, lock_timeout=0).removals
    }
    assert reasons == {f"generation {oldest}, removed"}
    assert generations(dataset) == ([newest], [newest])


def test_what_is_no_dataset_is_left_alone(tmp_path, dataset, capsys):
    status, _, (line,) = call(capsys, "clean", tmp_path / "none")
    assert (status, line) == (
        1,
        f"lengthwise clean: {tmp_path}/none: not a dataset: there is no such folder; make one with `lengthwise "
        "prepare`.",
    )
    assert not (tmp_path / "none").exists()
    # Of a later version, for example.
    add_commit(dataset, SECOND)
    (path,) = dataset.glob("commits/00000003.json")
    path.write_bytes(path.read_bytes().replace(b'"format_version": 2', b'"format_version": 3'))
    (dataset / FILE_NAME).unlink()
    before = snapshot(dataset)
    status, _, (line,) = call(capsys, "clean", dataset, "--retain", "0")
    assert (status, "has format version 3" in line, snapshot(dataset)) == (1, True, before)


def test_a_damaged_commit_keeps_all_files(dataset, capsys):
    add_commit(dataset, SECOND)
    add_commit(dataset, THIRD)
    (dataset / "commits/00000003.json").write_bytes(b"{")
    before = snapshot(dataset)
    status, _, (line,) = call(capsys, "clean", dataset, "--retain", "0")
    assert (status, snapshot(dataset)) == (1, before)
    assert line.startswith(f"lengthwise clean: {dataset}/commits/00000003.json: not a commit of a dataset")


def test_a_locked_dataset_is_not_cleaned(dataset, capsys):
    add_commit(dataset, SECOND)
    before = snapshot(dataset)
    with Holder(LOCK_DATASET, dataset):
        status, _, (line,) = call(capsys, "clean", dataset, "--retain", "0", "--lock_timeout", "0")
    assert (status, "another process held the lock of the dataset" in line) == (69, True)
    assert snapshot(dataset).keys() == before.keys()


def test_an_object_store_is_cleaned_if_it_tells_the_age_of_files(dataset, monkeypatch, capsys):
    add_commit(dataset, SECOND)
    url = "store://bucket/cleaned"
    before = {f"{url}/{path}": data for path, (data, _) in snapshot(dataset).items()}
    monkeypatch.setattr(object_store, "OBJECTS", dict(before))
    with monkeypatch.context() as patch:
        patch.setattr(object_store.ObjectStore, "last_updated", lambda self, path: 0.0)
        status, _, (line,) = call(capsys, "clean", url, "--retain", "0")
        assert (status, object_store.OBJECTS) == (1, before)
        assert line.startswith(f"lengthwise clean: {url}: this store does not tell when a file was changed")
    assert call(capsys, "clean", url)[1] == f"{url}: nothing to remove\n"
    assert call(capsys, "clean", url, "--retain", "0")[0] == 0
    left = {path for path in before if FIRST not in path}
    assert object_store.OBJECTS.keys() == left
    assert verify(url).faults == []
