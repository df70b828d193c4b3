"""`lengthwise verify` checks every kind of feature and label, nulls, vocabularies and the origins of records."""

import hashlib
import json
import pathlib
import random
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
from damage import at_row, change_record, edit, edit_manifest, walk_file
from plain_prepare import prepare

from pipeline.beam.prepare import PrepareOptions
from pipeline.errors import UserError
from pipeline.format.commit import commit_path
from pipeline.format.examples import decode_example
from pipeline.format.index import read_index, serialize_index
from pipeline.format.manifest import read_manifest
from pipeline.inspection.verify import verify

EVERY = """
id: id
group: who
steps:
  x: {dtype: float32, shape: [2], missing: {fill: mean}}
  strict: {dtype: float32}
  page: {dtype: int64, num_values: 5, missing: indicator}
  word: {dtype: string, vocabulary: 3, missing: fill}
context:
  age: {dtype: float32, missing: indicator}
  city: {dtype: string, vocabulary: 9}
  plan: {dtype: int64, num_values: 3}
label: {LABEL}
splits: {train: 0.6, test: 0.4}
"""
EVERY_LABEL = {
    "step_multilabel": ("{name: y, kind: step_multilabel, classes: [a, b]}", [["a"], None, ["a", "b"], []]),
    "multilabel": ("{name: y, kind: multilabel, classes: [a, b]}", ["b"]),
    "step_regression": ("{name: y, kind: step_regression}", [1, None, 2.5, -1]),
    "step_class": ("{name: y, kind: step_class, classes: [a, b]}", ["a", None, "b", "b"]),
    "next_word": ("{next_of: word}", None),
    "next_x": ("{next_of: x}", None),
}


def every_record(number, label):
    rng = random.Random(number)
    steps = range(4)

    def maybe(value):
        return None if rng.random() < 0.2 else value

    return {
        "id": f"r{number}",
        "who": number % 13,
        "x": [maybe([maybe(rng.random()), 1]) for _ in steps],
        "strict": [rng.random() for _ in steps],
        "page": [maybe(rng.randrange(5)) for _ in steps],
        "word": [maybe(rng.choice("aaaaaabbbccde")) for _ in steps],
        "age": maybe(40 + rng.random()),
        "city": rng.choice(["york", "ely"]),
        "plan": rng.randrange(3),
        "y": label,
    }


@pytest.fixture(scope="module")
def prepared_kinds(tmp_path_factory):
    """Returns a function that returns the dataset of a label kind with every kind of feature. Do not change it."""
    datasets = {}

    def of(kind):
        if kind not in datasets:
            folder = tmp_path_factory.mktemp(kind)
            schema, label = EVERY_LABEL[kind]
            records = [every_record(number, label) for number in range(60)]
            (folder / "raw.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
            (folder / "schema.yaml").write_text(EVERY.replace("{LABEL}", schema))
            paths = [str(folder / name) for name in ("raw.jsonl", "schema.yaml", "dataset")]
            prepare(PrepareOptions((paths[0],), *paths[1:], num_shards=2))
            datasets[kind] = folder / "dataset"
        return datasets[kind]

    return of


@pytest.fixture
def copy_dataset(prepared_kinds, tmp_path):
    """Returns a function that returns a copy of the dataset of a label kind, which a test may change."""
    return lambda kind: pathlib.Path(shutil.copytree(prepared_kinds(kind), tmp_path / kind))


def faults_of(dataset):
    return [(fault.file, fault.message) for fault in verify(str(dataset)).faults]


@pytest.mark.parametrize("kind", EVERY_LABEL)
def test_a_dataset_of_every_kind_has_no_fault(prepared_kinds, kind):
    report = verify(str(prepared_kinds(kind)))
    assert report.faults == []
    assert report.records == 60


def put(name, position, value):
    """Returns a function that changes one value of a record."""

    def change(example):
        values = example[name] if isinstance(example[name], list) else np.array(example[name])
        values[position] = value
        example[name] = values

    change.__name__ = f"{name}-{value!r}"
    return change


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("next_word", put("strict", 1, np.nan), "strict: nan, expected a finite number"),
        ("next_word", put("x", 1, np.inf), "x: inf, expected a finite number or NaN"),
        ("next_word", put("page", 1, -2), "page: -2, expected -1 to 4"),
        ("next_word", put("plan", 0, -1), "plan: -1, expected 0 to 2"),
        ("next_word", put("word", 1, b"\xfe"), "word: b'\\xfe', expected text in UTF-8"),
        ("next_word", put("city", 0, b"\xff"), "city: b'\\xff', expected text in UTF-8"),
        ("multilabel", put("y", 1, -1), "y: -1, expected 0 or 1"),
        ("step_multilabel", put("y", 1, -1), "y: -1 for some classes of a step, expected it for all or none"),
        ("step_regression", put("y", 0, np.inf), "y: inf, expected a finite number or NaN"),
        ("next_word", lambda example: example.update(more=[b"a"]), "has the features "),
        ("next_word", lambda example: example.pop("age"), "has the features "),
    ],
)
def test_a_value_that_the_schema_does_not_allow_is_found_at_its_record(copy_dataset, kind, change, message):
    dataset = copy_dataset(kind)
    shard = change_record(dataset, change)
    (fault,) = verify(str(dataset)).faults
    assert (fault.file, fault.offset) == (shard.path, 0)
    assert fault.message.startswith(message)


def positions(values, wanted):
    return [position for position, value in enumerate(values) if wanted(value)]


def remove_a_word(example):
    put("word", positions(example["word"], lambda word: word != b"\xff")[-1], b"\xff")(example)


def remove_a_number(example):
    put("x", positions(example["x"], np.isfinite)[0], np.nan)(example)


def change_the_class(example):
    put("y", 0, 1 - example["y"][0])(example)


@pytest.mark.parametrize(
    ("kind", "change", "messages"),
    [
        ("step_class", remove_a_word, ["splits.test.missing.word is "]),
        ("step_class", remove_a_number, ["splits.test.missing.x is "]),
        ("next_word", remove_a_word, ["splits.test.labels is ", "splits.test.missing.word is "]),
        ("step_class", put("page", 0, -1), ["splits.test.missing.page is "]),
        ("step_class", put("city", 0, b"bath"), ["splits.test.unknown.city is 0, but the shards hold 1"]),
        ("step_class", put("y", 0, -1), ["splits.test.labels is ", "splits.test.label_counts.a is "]),
        ("step_regression", put("y", 0, np.nan), ["splits.test.labels is "]),
        ("step_multilabel", change_the_class, ["splits.test.label_counts.a is "]),
    ],
)
def test_a_value_that_changes_the_counts_is_found(copy_dataset, kind, change, messages):
    dataset = copy_dataset(kind)
    shard = read_manifest(str(dataset)).splits["test"].shards[0]
    # A record whose value is not what the change sets.
    records = [decode_example(record.data) for record in walk_file(dataset / shard.path)]
    row = next(n for n, example in enumerate(records) if example["page"][0] >= 0 and example["word"][-1] != b"\xff")
    change_record(dataset, change, split="test", row=row)
    found = faults_of(dataset)
    # The commit has the counts of unknown strings.
    assert {file for file, _ in found} - {commit_path(1)} == {"manifest.json"}
    for expected in messages:
        assert any(message.startswith(expected) for _, message in found), found


def test_statistics_with_wrong_missing_counts_are_found(copy_dataset):
    dataset = copy_dataset("step_class")

    def change(values):
        missing = values["statistics"]["x"]["missing"]
        missing[0], missing[1] = missing[0] - 1, missing[1] + 1

    edit_manifest(dataset, change)
    assert faults_of(dataset) == [("manifest.json", "statistics.x does not match the records of train")]


def replace_vocabulary(dataset, name, data, *, size=None):
    """Replaces the file of a vocabulary, and its digest and size in the manifest."""
    path = read_manifest(str(dataset)).vocabularies[name].path
    (dataset / path).write_bytes(data)

    def change(values):
        vocabulary = values["vocabularies"][name]
        vocabulary["sha256"] = hashlib.sha256(data).hexdigest()
        vocabulary["size"] = data.count(b"\n") if size is None else size

    edit_manifest(dataset, change)
    return path


@pytest.mark.parametrize(
    ("data", "size", "message"),
    [
        (b"b\na\nc\n", None, r"line 1 is b'b', but the records of train give b'a'"),
        (b"a\nb\n", None, r"line 3 is None, but the records of train give b'c'"),
        (b"a\nb\nc", 2, "is not in the format of a vocabulary"),
        (b"a\nb\\\nc\n", None, "is not in the format of a vocabulary"),
        (b"a\nb\nc\n", 2, "has 3 strings, but the manifest says 2"),
    ],
)
def test_a_vocabulary_of_other_strings_is_found_though_its_digest_fits(copy_dataset, data, size, message):
    dataset = copy_dataset("next_word")
    original = (dataset / read_manifest(str(dataset)).vocabularies["word"].path).read_bytes()
    assert original == b"a\nb\nc\n"
    path = replace_vocabulary(dataset, "word", data, size=size)
    found = dict(faults_of(dataset))
    assert found[path].startswith(message)


def test_a_changed_or_missing_vocabulary_file_is_found(copy_dataset):
    dataset = copy_dataset("next_word")
    path = read_manifest(str(dataset)).vocabularies["word"].path
    (dataset / path).write_bytes(b"a\nb\nd\n")
    ((file, message),) = faults_of(dataset)
    assert file == path
    assert message.startswith("the SHA-256 of the file is ")
    (dataset / path).unlink()
    assert faults_of(dataset) == [(path, "is missing, but the manifest lists it")]
    (dataset / path).mkdir()
    assert faults_of(dataset) == [(path, "cannot be read: Is a directory")]


def test_a_record_whose_group_belongs_to_another_split_is_found(copy_dataset):
    dataset = copy_dataset("step_class")
    shard = read_manifest(str(dataset)).splits["test"].shards[1]
    index = read_index((dataset / shard.index_path).read_bytes(), shard)
    other = read_manifest(str(dataset)).splits["train"].shards[0]
    train = read_index((dataset / other.index_path).read_bytes(), other)
    rows = index.to_pylist()
    for group, message in (
        (train["group"][0].as_py(), r"its group '\d+' belongs to the split train, not to test"),
        (None, "the index has the group None, but the schema has the group 'who'"),
    ):
        rows[2]["group"] = group
        data = serialize_index(pa.Table.from_pylist(rows, index.schema))
        (dataset / shard.index_path).write_bytes(data)

        def change(values, data=data):
            values["splits"]["test"]["shards"][1]["index_sha256"] = hashlib.sha256(data).hexdigest()

        edit_manifest(dataset, change)
        (fault,) = verify(str(dataset)).faults
        assert (fault.file, fault.offset) == (shard.path, at_row(dataset, shard, 2))
        assert re.fullmatch(message, fault.message)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "next_word",
            edit("vocabularies", to={}),
            "vocabularies has the features [], but the schema says ['city', 'w",
        ),
        (
            "next_word",
            edit("splits", "test", "missing", "z", to=0),
            "splits.test.missing has the features ['age', 'pag",
        ),
        (
            "next_word",
            edit("splits", "test", "unknown", "a\nb", to=0),
            "splits.test.unknown has the features ['a\\nb', ",
        ),
        (
            "next_word",
            edit("vocabularies", "word", "size", to=4),
            "vocabularies.word.size is 4, but other counts allow 0 t",
        ),
        ("next_word", edit("vocabularies", "word", "path", to="../x"), "vocabularies.word.path: '../x': "),
        (
            "next_word",
            edit("vocabularies", "word", "path", to="/etc/passwd"),
            "vocabularies.word.path: '/etc/passwd': ",
        ),
        (
            "next_word",
            edit("splits", "test", "missing", to={}),
            "splits.test.missing has the features [], but the sch",
        ),
        (
            "next_word",
            edit("splits", "test", "unknown", to={"word": 0}),
            "splits.test.unknown has the features ['word'",
        ),
        (
            "next_word",
            edit("splits", "test", "missing", "age", to=1000),
            "splits.test.missing.age is 1,000, but other co",
        ),
        (
            "next_word",
            edit("splits", "test", "missing", "x", to=1000),
            "splits.test.missing.x is 1,000, but other counts ",
        ),
        (
            "next_word",
            edit("splits", "test", "unknown", "word", to=1000),
            "splits.test.unknown.word is 1,000, but other c",
        ),
        ("next_word", edit("splits", "train", "missing", "x", by=1), "statistics.x.missing is "),
        ("next_word", edit("statistics", "x", "missing", to=[]), "statistics.x.missing is 0, but the counts of train"),
        (
            "next_word",
            edit("statistics", "x", "mean", to=[0.0]),
            "statistics.x.mean is 1, but the columns of the schema",
        ),
        ("next_word", edit("statistics", "age", "count", by=1), "statistics.age.count is "),
        ("next_word", edit("splits", "test", "labels", to=0), "splits.test.labels is 0, but other counts allow "),
        (
            "next_word",
            edit("splits", "test", "labels", to=1000),
            "splits.test.labels is 1,000, but other counts allow ",
        ),
        ("next_x", edit("splits", "train", "labels", to=0), "splits.train.labels is 0, but other counts allow "),
        (
            "step_regression",
            edit("splits", "test", "labels", to=1000),
            "splits.test.labels is 1,000, but other counts ",
        ),
        ("step_regression", edit("splits", "train", "labels", by=-1), "statistics.y.missing is "),
        ("multilabel", edit("splits", "test", "labels", by=-1), "splits.test.labels is "),
        (
            "multilabel",
            edit("splits", "test", "label_counts", "b", to=1000),
            "splits.test.label_counts.b is 1,000, but ot",
        ),
        (
            "step_multilabel",
            edit("splits", "test", "labels", to=1000),
            "splits.test.labels is 1,000, but other counts ",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_or_its_schema_is_an_error(copy_dataset, kind, change, message):
    dataset = copy_dataset(kind)
    edit_manifest(dataset, change)
    with pytest.raises(UserError) as caught:
        verify(str(dataset))
    assert str(caught.value).startswith(f"{dataset}/manifest.json: {message}")
    assert str(caught.value).endswith("Was this file edited?")
