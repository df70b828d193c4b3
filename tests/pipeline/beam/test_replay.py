"""`prepare --append --replay` gives the dataset that one job with the new schema gives."""

import functools
import json
import pathlib
import shutil

import numpy as np
import pytest
from datasets import call
from prepare_jobs import load, read_whole, snapshot

from pipeline.beam import prepare as prepare_module
from pipeline.beam.prepare import PrepareOptions, prepare
from pipeline.errors import NothingNew, UserError
from pipeline.format.history import read_manifest_at, read_summary
from pipeline.format.summary import summary_path
from pipeline.inspection.verify import verify
from pipeline.writing.compact import compact

OLD = """\
id: id
steps:
  x: {dtype: float32, shape: [2]}
  word: {dtype: string, vocabulary: 5}
  page: {dtype: int64, num_values: 6}
label: {name: y, kind: class, classes: [a, b]}
max_length: 6
"""
NEW = (
    OLD.replace("shape: [2]", "shape: [2], missing: {fill: mean}")
    .replace("values: 6", "values: 7")
    .replace("[a, b]", "[a, b, c]")
    .replace("max_length: 6", "max_length: 8")
)


def record(number, **fields):
    length = number % 9 + 1
    return {
        "id": f"id-{number}",
        "x": [[number / 7, None if number % 11 == 0 else n * 1e20 / 3] for n in range(length)],
        "word": [f"w{(number * n) % 11}" for n in range(length)],
        "page": [number % 7] * length,
        "y": "abc"[number % 3],
    } | fields


def lines(numbers, **fields):
    return "".join(json.dumps(record(number, **fields)) + "\n" for number in numbers)


class Folder:
    """A folder with raw files and datasets."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.dataset = path / "dataset"

    def prepare(self, *raw, schema, output="dataset", **options):
        (self.path / "schema.yaml").write_text(schema)
        paths = tuple(str(self.path / name) for name in raw)
        options = {"keep_raw": True, "max_rejected": 1.0} | options
        return prepare(PrepareOptions(paths, str(self.path / "schema.yaml"), str(self.path / output), **options))

    def replay(self, *raw, schema=NEW, rejects=None, **options):
        files = tuple(str(path) for path in rejects or [self.dataset / "rejected"])
        return self.prepare(*raw, schema=schema, append=True, replay=files, **options)

    def rejects(self, manifest, output="dataset"):
        files = [(self.path / output / path).read_text().splitlines() for path in manifest.rejected.files]
        return sorted(line for file in files for line in file)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A dataset of the old schema. Tests must not change it."""
    folder = Folder(tmp_path_factory.mktemp("first"))
    # The last record has the id of another one, and is rejected by the old schema only.
    (folder.path / "one.jsonl").write_text("{\n\n" + lines(range(40)) + lines([2], page=[6, 6, 6], y="b"))
    (folder.path / "two.jsonl").write_bytes(lines(range(40, 60)).encode() + b'{"\xff"}\n')
    folder.prepare("one.jsonl", "two.jsonl", schema=OLD)
    return folder


@pytest.fixture(scope="module")
def second(first, tmp_path_factory):
    """The same after a replay with the new schema. Tests must not change it."""
    folder = Folder(tmp_path_factory.mktemp("second"))
    shutil.copytree(first.dataset, folder.dataset)
    folder.replay()
    return folder


@pytest.fixture
def folder(first, tmp_path):
    """A copy of the first dataset."""
    shutil.copytree(first.path, tmp_path / "folder")
    return Folder(tmp_path / "folder")


def records_by_split(path, read_records):
    return {
        name: {bytes(example["id"][0]): str(example) for example in read_records(path, name)}
        for name in load(path).splits
    }


def without_messages(rows):
    """Returns rejects without the messages of duplicates, which name the record that was kept, or the commit."""
    rows = [json.loads(row) for row in rows]
    return [row | {"message": ""} if row["reason"] == "duplicate_id" else row for row in rows]


def test_a_replay_gives_what_one_job_with_the_new_schema_gives(first, second, read_records, tmp_path):
    found = read_whole(second.dataset)
    whole = first.prepare("one.jsonl", "two.jsonl", schema=NEW, output="whole")
    assert (found.commit, len(found.generations)) == (2, 2)
    assert found.record_schema == whole.record_schema
    for name, split in whole.splits.items():
        assert found.splits[name].model_dump(exclude={"shards"}) == split.model_dump(exclude={"shards"})
    assert found.statistics == whole.statistics
    assert {n: v.sha256 for n, v in found.vocabularies.items()} == {n: v.sha256 for n, v in whole.vocabularies.items()}
    assert found.rejected.by_reason == whole.rejected.by_reason
    assert set(found.rejected.by_reason) == {"not_json", "over_length", "duplicate_id"}
    assert without_messages(second.rejects(found)) == without_messages(first.rejects(whole, "whole"))
    assert found.inputs == whole.inputs
    assert records_by_split(second.dataset, read_records) == records_by_split(first.path / "whole", read_records)
    # Compaction gives the same shards, and a fingerprint that depends on nothing else than schema, seed and shards.
    shutil.copytree(second.dataset, tmp_path / "compacted")
    compact(str(tmp_path / "compacted"), num_shards=1)
    compacted = read_whole(tmp_path / "compacted")
    assert compacted.fingerprint == whole.fingerprint
    assert compacted.rejected == found.rejected
    # The rejects that were taken back are not named any more.
    summary = newest_summary(tmp_path / "compacted")
    assert (summary.rejected.total, summary.replayed.total) == (found.rejected.total, 0)
    assert [file.path for file in summary.rejected.files] == list(found.rejected.files)


TEXT = """\
id: id
steps:
  x: {dtype: float32}
  word: {dtype: string, vocabulary: 4}
  page: {dtype: int64, num_values: 3}
context:
  age: {dtype: float32}
  city: {dtype: string, num_values: 7}
label: {name: y, kind: step_class, classes: [a, b]}
splits: {train: 0.5, validation: 0.2, test: 0.3}
group: user
max_length: 4
"""
# What a schema replaces in TEXT, in the old and in the new schema; and what only the new one replaces.
CASES = {
    "truncation": ([], [("max_length: 4", "max_length: 4\nover_length: truncate_head")]),
    "longer": (
        [("label: {name: y, kind: step_class, classes: [a, b]}", "label: {next_of: word}")],
        [("max_length: 4", "")],
    ),
    "nulls": (
        [("label: {name: y, kind: step_class, classes: [a, b]}", "label: {next_of: page}")],
        [
            ("values: 3", "values: 3, missing: {fill: 2}"),
            ("{dtype: float32}\n  city", "{dtype: float32, missing: fill}\n  city"),
        ],
    ),
    "strings": ([("group: user\n", "")], [("vocabulary: 4", "vocabulary: 4, missing: indicator")]),
    "classes": (
        [("{train: 0.5, validation: 0.2, test: 0.3}\ngroup: user", "{from: split}")],
        [("[a, b]", "[a, b, c]")],
    ),
    "categories": ([("name: y, kind: step_class, classes: [a, b]", "next_of: page")], [("values: 3", "values: 5")]),
}


def random_record(number, random):
    length = int(random.integers(1, 8))

    def some(values):
        return None if random.random() < 0.04 else random.choice(values).item()

    return {
        "id": f"{number}",
        "x": [n / 7 for n in range(length)],
        "word": [some(["the", "of", "and", "to", "rare"]) for _ in range(length)],
        "page": [some(range(5) if number % 5 == 0 else range(3)) for _ in range(length)],
        "age": some([20.5, 30]),
        "city": "bath",
        "y": [some(["a", "b", "c"] if number % 4 == 0 else ["a", "b"]) for _ in range(length)],
        "user": f"u{number % 40}",
        "split": ["train", "test"][number % 2],
    }


@pytest.mark.proof
@pytest.mark.parametrize("name", CASES)
def test_a_replay_gives_what_one_job_gives_for_other_schemas(name, tmp_path, read_records):
    both, only_new = CASES[name]
    old = functools.reduce(lambda text, pair: text.replace(*pair), both, TEXT)
    new = functools.reduce(lambda text, pair: text.replace(*pair), only_new, old)
    assert TEXT != new != old
    random, folder = np.random.default_rng(3), Folder(tmp_path)
    rows = [random_record(number, random) for number in range(180)]
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = folder.prepare("one.jsonl", schema=old)
    folder.replay(schema=new)
    whole = folder.prepare("one.jsonl", schema=new, output="whole", num_shards=1)
    found = compact(str(folder.dataset), num_shards=1).manifest
    read_whole(folder.dataset)
    unlike = {"commit", "commit_sha256", "generations", "summaries", "splits", "rejected", "vocabularies"}
    assert found.model_dump(exclude=unlike) == whole.model_dump(exclude=unlike)
    for split in whole.splits:
        shards = {"shards": {"__all__": {"path", "index_path"}}}
        assert found.splits[split].model_dump(exclude=shards) == whole.splits[split].model_dump(exclude=shards)
    assert found.rejected.total < before.rejected.total
    assert folder.rejects(found) == folder.rejects(whole, "whole")
    assert {n: v.sha256 for n, v in found.vocabularies.items()} == {n: v.sha256 for n, v in whole.vocabularies.items()}


def newest_summary(dataset):
    name, sha256 = list(load(dataset).summaries.items())[-1]
    return read_summary(lambda path, _: (dataset / path).read_bytes(), name, sha256, origin=summary_path(name))


def test_an_older_commit_keeps_its_schema_and_its_rejects(first, second):
    before, after = load(first.dataset), read_manifest_at(str(second.dataset), 1)
    assert after == before
    assert verify(str(second.dataset), commit=1).faults == []
    old, new = before.rejected, load(second.dataset).rejected
    assert old.total - new.total == sum(s.records for s in load(second.dataset).splits.values()) - sum(
        s.records for s in before.splits.values()
    )
    assert not set(old.files) & set(new.files)
    assert newest_summary(second.dataset).replayed.by_reason == old.by_reason


def test_the_dataset_then_takes_records_with_the_new_schema_only(second, tmp_path):
    shutil.copytree(second.path, tmp_path / "third")
    third = Folder(tmp_path / "third")
    (third.path / "three.jsonl").write_text(lines(range(60, 70)))
    with pytest.raises(UserError, match=r"another schema than the records to add: steps\.x\.missing is"):
        third.prepare("three.jsonl", schema=OLD, append=True)
    with pytest.raises(UserError, match=r"is not a file of rejects that .* counts: .* was replayed already"):
        third.replay(rejects=[third.dataset / read_manifest_at(str(third.dataset), 1).rejected.files[0]])
    total = load(third.dataset).rejected.total
    # One of the ten new records is rejected. What fails again does not count.
    manifest = third.replay("three.jsonl", rejects=[third.dataset / "rejected"] * 2, max_rejected=0.1)
    assert manifest.commit == 3
    # The new raw file and the rejects are in one generation. What fails again is counted once.
    assert read_whole(third.dataset).rejected.total == total + 1
    # A generation that takes rejects back from one that is not merged with it still does.
    compact_two(third.dataset, load(third.dataset).generations[1:])
    assert read_whole(third.dataset).rejected.total == total + 1


def compact_two(dataset, generations):
    from pipeline.writing import choose_generations
    from pipeline.writing import compact as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose_generations, "_is_small", lambda summary: summary.generation in generations)
        assert module.compact(str(dataset)).generations == tuple(generations)


def test_if_all_are_rejected_again_nothing_changes(folder):
    before = snapshot(folder.dataset)
    message = (
        r"all \d+ replayed records were rejected again, the first one because of not_json: .*Nothing was published"
    )
    with pytest.raises(NothingNew, match=message):
        folder.replay(schema=OLD)
    assert snapshot(folder.dataset) == before


def test_the_limit_of_rejects_is_for_new_raw_files_only(folder):
    (folder.path / "three.jsonl").write_text(lines(range(63, 66)) + "{\n")
    with pytest.raises(UserError, match=r"1 of 4 records \(25.00%\) was rejected: 1 not_json"):
        folder.replay("three.jsonl", max_rejected=0.2)


def test_what_another_job_replays_meanwhile_is_not_taken_twice(folder, monkeypatch, capsys):
    begin, others = prepare_module.open_replay, [True]

    def open_replay_and_wait(*arguments):
        replay = begin(*arguments)
        if others.pop():
            others.append(False)
            folder.replay()
        return replay

    others.insert(0, False)
    monkeypatch.setattr(prepare_module, "open_replay", open_replay_and_wait)
    rejects = folder.dataset / load(folder.dataset).rejected.files[0]
    with pytest.raises(UserError, match="is not a file of rejects that"):
        folder.replay(rejects=[rejects])
    assert "another job replayed" in capsys.readouterr().err
    assert read_whole(folder.dataset).commit == 2


def test_a_compaction_beside_a_replay_keeps_its_schema(folder, monkeypatch):
    (folder.path / "three.jsonl").write_text(lines([72]))
    folder.prepare("three.jsonl", schema=OLD, append=True)
    from pipeline.writing import compact as module

    merge = module._merge

    def replay_and_merge(*arguments):
        folder.replay()
        return merge(*arguments)

    monkeypatch.setattr(module, "_merge", replay_and_merge)
    done = compact(str(folder.dataset))
    found = read_whole(folder.dataset)
    assert (found.commit, len(found.generations), len(done.generations)) == (4, 2, 2)
    # The generation with the wider schema is not the newest one.
    assert found.record_schema.max_length == 8
    assert found.generations[-1] == done.manifest.generations[-1]
    monkeypatch.undo()
    assert compact(str(folder.dataset)).manifest.record_schema == found.record_schema
    assert read_whole(folder.dataset).rejected == found.rejected


def test_what_cannot_be_replayed_is_refused_and_says_why(folder, capsys):
    before = snapshot(folder.dataset)
    rejects = str(folder.dataset / load(folder.dataset).rejected.files[0])
    with pytest.raises(UserError, match="has the seed 0"):
        folder.replay(seed=4)
    narrower = r"max_length is 5, but 6 in the dataset. With --replay, a schema may only accept more .*with --overwrite"
    with pytest.raises(UserError, match=narrower):
        folder.replay(schema=OLD.replace("max_length: 6", "max_length: 5"))
    with pytest.raises(UserError, match="use it with --append"):
        folder.prepare(schema=NEW, replay=(rejects,))
    with pytest.raises(UserError, match="nowhere: there is no dataset whose rejects could be replayed"):
        folder.replay(output="nowhere")
    assert snapshot(folder.dataset) == before
    status, _, err = call(capsys, "prepare", "--append", "--schema", "s", "--output", "o")
    assert (status, err) == (
        2,
        [
            "lengthwise prepare: expected RAW, the raw files, or --train, or --append with --replay, the rejects to "
            "try again"
        ],
    )


def test_without_rejects_there_is_nothing_to_replay(dataset, schema_file):
    options = PrepareOptions((), schema_file, dataset, append=True, replay=(f"{dataset}/rejected",))
    with pytest.raises(NothingNew, match="has no rejects to replay. Nothing was added"):
        prepare(options)
