"""`classes: auto`: the classes are collected from the train split when the dataset is made, and then fixed."""

import json

import pytest
from datasets import call
from prepare_jobs import contents, load, read_whole

from pipeline.errors import UserError
from pipeline.files import size
from pipeline.raw.find_files import RawFile
from pipeline.raw.json_lines import split_file
from pipeline.schema.auto_classes import fix_classes, parse_schema
from pipeline.schema.schema import Schema
from pipeline.writing import collect_classes as module
from pipeline.writing.collect_classes import FoundClasses, collect_classes, merge_classes

SCHEMA = """id: id
steps: {x: {dtype: float32}}
label: {name: y, kind: KIND, classes: auto}
splits: {from: split}
max_length: 3
over_length: truncate_tail
"""
LISTED = "['10', 2, a, b, true]"


def write(path, rows, *, first=0):
    records = [
        {"id": first + number, "split": split, "x": [1.5] * steps, "y": y}
        for number, (split, steps, y) in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


def schema_file(path, kind="class", classes="auto"):
    path.write_text(SCHEMA.replace("KIND", kind).replace("auto", classes))
    return path


@pytest.fixture
def job(tmp_path, capsys):
    """Runs `prepare` on raw.jsonl in the folder of the test. Returns (exit status, lines of stderr)."""

    def run(*arguments, classes="auto", raw="raw.jsonl", output="dataset"):
        schema = schema_file(tmp_path / "schema.yaml", classes=classes)
        inputs = [tmp_path / raw] if raw else []
        status, _, err = call(capsys, "prepare", *inputs, "--schema", schema, "--output", tmp_path / output, *arguments)
        return status, err

    return run


ROWS = [
    *[("train", 2, y) for y in ("b", "a", 2, True, "10", "true", 2, 10)],
    ("train", 0, "no steps"),
    ("test", 2, "a"),
    ("validation", 1, "elsewhere"),
]


def test_the_dataset_is_that_of_the_same_schema_with_the_classes_in_a_list(tmp_path, job, monkeypatch):
    write(tmp_path / "raw.jsonl", ROWS)
    monkeypatch.setattr("pipeline.writing.job.new_generation", lambda: "20260101T000000-00000000")
    status, err = job("--max_rejected", "0.5")
    assert status == 0
    assert "prepare: the train split has 5 classes of y." in err
    assert job("--max_rejected", "0.5", classes="['10', 2, a, b, 'true']", output="listed")[0] == 0
    found, listed = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("dataset", "listed"))
    rejects, theirs = ({**m.pop("rejected")} for m in (found, listed))
    assert found.pop("commit_sha256") and listed.pop("commit_sha256")  # a commit contains its time
    # The summary of a generation holds the digest of its rejects, and one message differs.
    assert found.pop("summaries").keys() == listed.pop("summaries").keys()
    assert (found, rejects) == (listed, theirs)
    shards = [
        {name: data for name, data in contents(tmp_path / name).items() if "rejected" not in name}
        for name in ("dataset", "listed")
    ]
    assert shards[0] == shards[1]
    assert [path.name for path in (tmp_path / "dataset" / "data").iterdir()] == ["20260101T000000-00000000"]
    read_whole(tmp_path / "dataset")
    rows = [json.loads(line) for line in (tmp_path / "dataset" / rejects["files"][0]).read_text().splitlines()]
    assert [row["reason"] for row in rows] == ["empty_sequence", "unknown_class"]
    assert rows[1]["message"] == (
        'y: "elsewhere": no accepted record of the train split has this class (classes: auto); expected one of '
        '["10", "2", "a", "b", "true"]'
    )


def test_the_classes_are_fixed_when_the_dataset_is_made(tmp_path, job):
    write(tmp_path / "raw.jsonl", ROWS[:-1])
    write(tmp_path / "more.jsonl", [("train", 1, "a"), ("train", 1, "new")], first=100)
    assert job("--append", "--max_rejected", "0.5")[0] == 0  # makes the dataset
    classes = load(tmp_path / "dataset").record_schema.label.classes
    assert job("--append", "--max_rejected", "0.5", "--keep_raw", raw="more.jsonl")[0] == 0
    manifest = read_whole(tmp_path / "dataset")
    assert manifest.record_schema.label.classes == classes == ("10", 2, "a", "b", "true")
    (path,) = [path for path in (tmp_path / "dataset" / "rejected").iterdir() if "new" in path.read_text()]
    assert json.loads(path.read_text())["message"] == (
        'y: "new": the classes (classes: auto) were fixed when the dataset was created; expected one of '
        '["10", "2", "a", "b", "true"]'
    )
    # A replay takes the classes of the dataset too, so the record is rejected again.
    status, err = job("--append", "--replay", path, raw="")
    assert (status, "were fixed when the dataset was created" in err[-1]) == (3, True)
    assert job("--overwrite", raw="more.jsonl")[0] == 0
    assert load(tmp_path / "dataset").record_schema.label.classes == ("a", "new")


def test_without_any_class_in_train_the_cause_is_shown(tmp_path, job):
    write(tmp_path / "raw.jsonl", [("test", 1, "a"), ("train", 0, "b")])
    status, err = job("--max_rejected", "1")
    assert status == 1
    assert err[-1].startswith(f"lengthwise prepare: {tmp_path}/dataset: no record of the train split has a class in ")
    assert "label y: 1 of 2 records was rejected, for example because of empty_sequence: x: no steps" in err[-1]
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "dataset" in path.parts] == []


def test_a_single_class_gives_a_warning(tmp_path, job):
    write(tmp_path / "raw.jsonl", [("train", 1, "a")] * 2)
    status, err = job()
    assert status == 0
    assert 'prepare: the train split has 1 class of the label y: ["a"].' in err
    assert "prepare: warning: label y: has one class only, so that there is nothing to learn." in err


@pytest.mark.parametrize(
    ("kind", "rows", "expected"),
    [
        (
            "class",
            [("train", 1, "a"), ("train", 5, 1), ("test", 1, "z"), ("train", 1, None), ("train", 1, 0.5)],
            [1, "a"],
        ),
        # Steps without a label, and steps that `max_length` cuts off.
        ("step_class", [("train", 4, ["b", None, 1, "cut"]), ("train", 1, ["x", "uneven"])], [1, "b"]),
        ("multilabel", [("train", 1, []), ("train", 1, ["b", "a", "a", True]), ("train", 1, "c")], ["a", "b", True]),
        ("step_multilabel", [("train", 4, [["b"], None, [1, "1"], ["cut"]]), ("train", 1, ["c"])], ["1", "b"]),
    ],
)
def test_the_classes_of_accepted_records_of_train_are_collected(tmp_path, kind, rows, expected):
    write(tmp_path / "raw.jsonl", rows)
    path = str(tmp_path / "raw.jsonl")
    chunks = [*split_file(RawFile(path, size(path)))]
    schema = parse_schema(SCHEMA.replace("KIND", kind))
    found = collect_classes(chunks, schema, seed=0)
    assert [json.dumps(name) for name in found.ordered()] == [json.dumps(name) for name in expected]  # True == 1
    assert found.records + found.rejected == len(rows)
    listed = Schema.parse(SCHEMA.replace("KIND", kind).replace("auto", json.dumps(expected)))
    fixed = fix_classes(schema, expected, hint="why")
    assert (fixed, fixed.fingerprint, fixed.canonical()) == (listed, listed.fingerprint, listed.canonical())


def test_parts_are_merged_in_any_order():
    parts = [FoundClasses({"1": 1, "b": "b"}, 2, 1, "y"), FoundClasses({"1": "1", "a": "a"}, 3, 1, "x"), FoundClasses()]
    for order in (parts, parts[::-1]):
        merged = merge_classes(order)
        assert (merged.ordered(), merged.records, merged.rejected, merged.example) == (["1", "a", "b"], 5, 2, "x")


@pytest.mark.parametrize(("limit", "value"), [("_MAX_CLASSES", 4), ("_MAX_CHARACTERS", 8)])
def test_too_many_classes_are_probably_ids(monkeypatch, limit, value):
    monkeypatch.setattr(module, limit, value)
    found = FoundClasses()
    with pytest.raises(UserError, match='more than 4 different values in the train split, for example "r4"; .*an id'):
        for number in range(9):
            found.add(f"r{number}")
    assert len(found.classes) == 4


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("{name: y, kind: distribution, classes: auto}", 'label.classes: "auto": a distribution does not name its'),
        ("{name: y, kind: regression, classes: auto}", "a regression has no classes"),
        ("{next_of: x, classes: auto}", "classes: not allowed with next_of"),
        ("{name: y, kind: class, classes: []}", "kind class needs classes: a list of the class names, or auto"),
    ],
)
def test_only_labels_with_named_classes_may_be_auto(label, message):
    with pytest.raises(UserError, match=message):
        parse_schema(f"steps: {{x: {{dtype: float32}}}}\nlabel: {label}")


def test_only_prepare_collects_the_classes():
    with pytest.raises(UserError, match='label.classes: "auto": only `lengthwise prepare` collects the classes; expec'):
        Schema.parse(SCHEMA.replace("KIND", "class"))
