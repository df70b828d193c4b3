"""`prepare --append` adds raw files in one commit, and gives the same dataset as one job over all of them."""

import json

import pytest
from prepare_jobs import listed_files, load, read_whole, snapshot

from pipeline.beam import prepare as prepare_module
from pipeline.errors import NothingNew, TryAgain, UserError
from pipeline.format.history import read_manifest_at
from pipeline.format.models import TRAIN
from pipeline.writing.paths import LOCK

SCHEMA = """\
id: id
steps:
  x: {dtype: float32, shape: [2], missing: {fill: mean}}
  word: {dtype: string, vocabulary: 5}
label: {name: y, kind: class, classes: [a, b]}
"""


def record(number, **fields):
    words = [f"w{(number * n) % 11}" for n in range(number % 5 + 1)]
    x = [[number / 7, None if number % 9 == 0 else n * 1e20 / 3] for n in range(number % 5 + 1)]
    return {"id": f"id-{number}", "x": x, "word": words, "y": "ab"[number % 2]} | fields


@pytest.fixture
def append(run_prepare):
    def run(*raw, **options):
        return run_prepare(*raw, schema=SCHEMA, append=True, **options)

    return run


def records_by_split(folder, read_records):
    return {name: {bytes(example["id"][0]) for example in read_records(folder, name)} for name in load(folder).splits}


@pytest.mark.proof
def test_ten_appends_give_what_one_job_gives(append, run_prepare, write_raw, tmp_path, read_records):
    parts = [write_raw([record(n) for n in range(20 * k, 20 * k + 20)] + ["{"], f"raw/{k}.jsonl") for k in range(10)]
    for part in parts:
        manifest = append(part, max_rejected=0.1)
    whole = run_prepare(*parts, schema=SCHEMA, output="whole", max_rejected=0.1)
    assert read_whole(tmp_path / "dataset") == manifest
    assert (manifest.commit, len(manifest.generations), whole.commit) == (10, 10, 1)
    for name, split in whole.splits.items():
        assert manifest.splits[name].model_dump(exclude={"shards"}) == split.model_dump(exclude={"shards"})
    assert manifest.statistics == whole.statistics  # the same bits: the sums are exact
    assert {name: v.sha256 for name, v in manifest.vocabularies.items()} == {
        name: v.sha256 for name, v in whole.vocabularies.items()
    }
    assert (manifest.rejected.total, manifest.rejected.by_reason) == (10, {"not_json": 10})
    assert manifest.inputs == whole.inputs
    found = records_by_split(tmp_path / "dataset", read_records)
    assert found == records_by_split(tmp_path / "whole", read_records)
    assert sorted(snapshot(tmp_path / "dataset")) == sorted(
        {*listed_files(tmp_path / "dataset"), *vocabularies(tmp_path)}
    )
    # Each commit is the dataset that the first appends made.
    third = read_manifest_at(str(tmp_path / "dataset"), 3)
    again = run_prepare(*parts[:3], schema=SCHEMA, output="third", max_rejected=0.1)
    assert (third.commit, third.statistics, third.inputs) == (3, again.statistics, again.inputs)
    assert third.splits[TRAIN].length_counts == again.splits[TRAIN].length_counts
    assert third.splits[TRAIN].unknown == again.splits[TRAIN].unknown


def vocabularies(tmp_path):
    """Returns the paths of the vocabularies of all commits."""
    dataset = str(tmp_path / "dataset")
    commits = [read_manifest_at(dataset, number) for number in range(1, load(dataset).commit + 1)]
    return {vocabulary.path for manifest in commits for vocabulary in manifest.vocabularies.values()}


def test_a_manifest_that_is_behind_is_rebuilt_even_if_nothing_is_new(append, write_raw, tmp_path):
    """As after a kill between the second commit and its manifest."""
    first, second = (write_raw([record(n) for n in range(9 * k, 9 * k + 9)], f"{k}.jsonl") for k in range(2))
    append(first)
    dataset = tmp_path / "dataset"
    behind = {path: path.read_bytes() for path in (dataset / "manifest.json", dataset / "vocabulary/word.txt")}
    append(second)
    files = snapshot(dataset)
    for path, data in behind.items():
        assert path.read_bytes() != data
        path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(NothingNew):
            append(second)
        assert snapshot(dataset) | {LOCK: b""} == files | {LOCK: b""}
        # As after an error that left the older copy, but not the manifest.
        (dataset / "vocabulary/word.txt").write_bytes(behind[dataset / "vocabulary/word.txt"])


def test_files_that_the_dataset_has_are_skipped_and_named(append, write_raw, tmp_path, capsys):
    first, second = (write_raw([record(n)], f"{n}.jsonl") for n in (1, 2))
    append(first)
    manifest = append(first, second)
    assert f"{first}: skipped, the dataset has it already." in capsys.readouterr().err
    assert sum(split.records for split in manifest.splits.values()) == 2
    copy = write_raw([record(2)], "copy.jsonl")
    before = snapshot(tmp_path / "dataset")
    with pytest.raises(NothingNew, match="has all 3 raw files already. Nothing was added") as error:
        append(first, second, copy)
    assert error.value.status == 3
    assert f"{copy}: skipped, the dataset has it already as {second}." in capsys.readouterr().err
    assert snapshot(tmp_path / "dataset") == before


def test_a_file_that_has_changed_is_refused_unless_its_records_are_wanted(append, write_raw):
    raw = write_raw([record(1)])
    append(raw)
    write_raw([record(1), *(record(n) for n in range(100, 300))])
    with pytest.raises(UserError, match=r"raw\.jsonl: has .* now, but had .*--changed_inputs add"):
        append(raw)
    manifest = append(raw, changed_inputs="add")
    assert sum(split.records for split in manifest.splits.values()) == 201
    assert manifest.rejected.by_reason == {"duplicate_id": 1}


def test_of_duplicates_in_two_commits_the_published_one_stays(append, write_raw, tmp_path, read_records):
    append(write_raw([record(n) for n in range(50)], "one.jsonl"))
    before = {bytes(example["id"][0]): example for example in read_records(tmp_path / "dataset")}
    # The content of these two is other than the published one, and they are duplicates of each other.
    changed = [record(7, y="b", x=[[0, 0]], word=["new"]), record(7, x=[[1, 1]], word=["newer"])]
    manifest = append(write_raw([*changed, *(record(n) for n in range(100, 350))], "two.jsonl"))
    after = {bytes(example["id"][0]): example for example in read_records(tmp_path / "dataset")}
    assert len(after) == 300
    assert str(after[b"id-7"]) == str(before[b"id-7"])
    rows = [json.loads(line) for line in (tmp_path / "dataset" / manifest.rejected.files[0]).read_text().splitlines()]
    assert [(row["reason"], row["id"], row["line"]) for row in rows] == [
        ("duplicate_id", "id-7", 1),
        ("duplicate_id", "id-7", 2),
    ]
    assert "is also the id of a record that an earlier commit published" in rows[0]["message"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schema": SCHEMA.replace("vocabulary: 5", "vocabulary: 6")}, r"steps\.word\.vocabulary is 6, but 5 in the"),
        ({"schema": SCHEMA, "seed": 3}, r"has the seed 0, so records with seed 3 cannot be added. Leave --seed out"),
    ],
)
def test_another_schema_or_seed_is_refused(append, run_prepare, write_raw, options, message):
    append(write_raw([record(1)]))
    with pytest.raises(UserError, match=message):
        run_prepare(write_raw([record(2)], "two.jsonl"), append=True, **options)


def test_the_seed_of_the_dataset_is_kept(append, run_prepare, write_raw, tmp_path, read_records):
    parts = [write_raw([record(n) for n in range(60 * k, 60 * k + 60)], f"{k}.jsonl") for k in range(2)]
    append(parts[0], seed=5)
    append(parts[1])
    run_prepare(*parts, schema=SCHEMA, seed=5, output="whole")
    assert records_by_split(tmp_path / "dataset", read_records) == records_by_split(tmp_path / "whole", read_records)


@pytest.mark.proof
def test_what_another_job_appends_meanwhile_is_kept(append, write_raw, monkeypatch, tmp_path):
    """The second job is published on top of what was published after it began, or done again if both have a record."""
    append(write_raw([record(0)], "zero.jsonl"))
    begin, others = prepare_module.open_base, []

    def open_base_and_wait(*arguments, **options):
        base = begin(*arguments, **options)
        if others:
            append(others.pop())
        return base

    monkeypatch.setattr(prepare_module, "open_base", open_base_and_wait)
    others.append(write_raw([record(1)], "one.jsonl"))
    manifest = append(write_raw([record(2)], "two.jsonl"))
    assert (manifest.commit, len(manifest.generations)) == (3, 3)
    # The other job adds one of the ids of this one: all of this job is done again.
    others.append(write_raw([record(3)], "three.jsonl"))
    manifest = append(write_raw([record(n) for n in range(3, 300)], "four.jsonl"))
    assert (manifest.commit, manifest.rejected.by_reason) == (5, {"duplicate_id": 1})
    # The other job takes the same file.
    others.append(write_raw([record(400)], "five.jsonl"))
    with pytest.raises(NothingNew):
        append(str(tmp_path / "five.jsonl"))
    assert sum(split.records for split in read_whole(tmp_path / "dataset").splits.values()) == 301
    # It does so each time.
    monkeypatch.setattr(prepare_module, "_prepare_once", lambda *arguments: raise_try_again())
    with pytest.raises(TryAgain, match="again and again"):
        append(str(tmp_path / "five.jsonl"))


def raise_try_again():
    raise TryAgain("again and again")


def test_a_dataset_of_another_format_is_not_appended_to(append, write_raw, tmp_path):
    raw = write_raw([record(1)])
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="not a manifest of a dataset, so nothing can be added"):
        append(raw)


def test_new_files_without_records_add_nothing(append, write_raw):
    append(write_raw([record(1)]))
    with pytest.raises(NothingNew, match="the new raw files contain no records"):
        append(write_raw([""], "empty.jsonl"))
