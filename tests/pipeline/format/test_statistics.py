"""The statistics of the manifest are those of exact fractions of the raw values of the train split, rounded once."""

import collections
import json
import pathlib
from fractions import Fraction

import numpy as np
import pytest

from pipeline.format.manifest import FILE_NAME, Manifest


def exact_statistics(column):
    """Returns the (mean, variance) of numbers, computed as fractions and rounded once to float64."""
    values = [Fraction(value) for value in column]
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return mean.numerator / mean.denominator, variance.numerator / variance.denominator


def test_the_manifest_has_the_exact_statistics_of_the_train_split(dataset, records, read_records):
    manifest = Manifest.parse(pathlib.Path(dataset, FILE_NAME).read_bytes(), origin="manifest")
    assert list(manifest.statistics) == ["x"]
    in_train = {example["id"][0].decode() for example in read_records(dataset, "train")}
    raw = np.concatenate([np.array(record["x"]) for record in records if record["id"] in in_train])
    found = manifest.statistics["x"]
    assert found.count == len(raw)
    assert found.min == tuple(raw.min(axis=0))
    assert found.max == tuple(raw.max(axis=0))
    np.testing.assert_allclose(found.mean, raw.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.variance, raw.var(axis=0), rtol=1e-12)
    assert [*zip(found.mean, found.variance, strict=True)] == [exact_statistics(column) for column in raw.T.tolist()]


def test_the_counts_of_lengths_and_labels_are_exact(dataset, records, read_records):
    manifest = json.loads(pathlib.Path(dataset, FILE_NAME).read_text())
    by_id = {record["id"]: record for record in records}
    assert {name: split["records"] for name, split in manifest["splits"].items()} == {
        name: len(read_records(dataset, name)) for name in ("train", "validation", "test")
    }
    for name, split in manifest["splits"].items():
        here = [by_id[example["id"][0].decode()] for example in read_records(dataset, name)]
        lengths = collections.Counter(len(record["x"]) for record in here)
        assert split["length_counts"] == {str(length): lengths[length] for length in sorted(lengths)}
        labels = collections.Counter(record["y"] for record in here)
        assert split["label_counts"] == {label: labels[label] for label in ("a", "b", "no")}
        assert (split["labels"], split["truncated"]) == (len(here), 0)
        assert split["steps"] == sum(len(record["x"]) for record in here)
        assert split["steps"] == sum(shard["steps"] for shard in split["shards"])


def test_constant_features_and_regressions_have_statistics_and_steps_without_a_label_do_not_count(
    write_raw, run_prepare
):
    rows = [
        {"c": [0.1] * (n % 5 + 1), "y": n / 7, "s": (["a", None, "b"] * 2)[: n % 5 + 1], "part": "train"}
        for n in range(40)
    ]
    raw = write_raw(rows)
    steps = "splits: {from: part}\nsteps: {c: {dtype: float32}}\n"
    manifest = run_prepare(raw, schema=steps + "label: {name: y, kind: regression}", output="regression")
    assert manifest.statistics["c"].variance == (0.0,)
    assert manifest.statistics["c"].mean == manifest.statistics["c"].min == (float(np.float32(0.1)),)
    labels = np.array([row["y"] for row in rows], np.float32).astype(np.float64)
    assert manifest.statistics["y"].count == 40
    (mean,), (variance,) = manifest.statistics["y"].mean, manifest.statistics["y"].variance
    assert (mean, variance) == exact_statistics(labels.tolist())
    assert manifest.splits["train"].label_counts == {}
    assert (manifest.splits["test"].records, manifest.splits["test"].shards) == (0, ())

    manifest = run_prepare(
        raw, schema=steps + "label: {name: s, kind: step_class, classes: [a, b, z]}", output="step_class"
    )
    given_labels = collections.Counter(label for row in rows for label in row["s"])
    assert manifest.splits["train"].label_counts == {"a": given_labels["a"], "b": given_labels["b"], "z": 0}
    assert manifest.splits["train"].labels == given_labels["a"] + given_labels["b"]


EVERY = """
id: id
steps:
  x: {dtype: float32, shape: [2], missing: {fill: mean}}
  never: {dtype: float32, missing: indicator}
  page: {dtype: int64, num_values: 5, missing: indicator}
  word: {dtype: string, vocabulary: 3, shape: [2], missing: fill}
context:
  age: {dtype: float32, missing: indicator}
  size: {dtype: float32, shape: [3]}
  city: {dtype: string, vocabulary: 2, missing: {fill: york}}
label: {name: y, kind: step_regression}
splits: {from: split}
"""
SPLITS = ("train", "validation", "test")


def every_record(number):
    random = np.random.default_rng(number)

    def maybe(value, share=0.3):
        return None if random.random() < share else value

    length = int(random.integers(1, 9))
    return {
        "id": f"r{number}",
        "split": SPLITS[number % 3],
        "x": [maybe([maybe(float(np.float32(value))) for value in random.normal(5, 2, 2)]) for _ in range(length)],
        "never": [None] * length,
        "page": [maybe(int(page)) for page in random.integers(0, 5, length)],
        "word": [maybe([maybe(str(word)) for word in random.choice(list("aabbbcde\n"), 2)]) for _ in range(length)],
        "age": maybe(float(np.float32(random.normal(40, 9)))),
        "size": random.normal(size=3).astype(np.float32).tolist(),
        "city": maybe(str(random.choice(["york", "bath", "ely", "wells"]))),
        "y": [maybe(float(np.float32(random.normal()))) for _ in range(length)],
    }


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """Returns (manifest, raw records) of a dataset with missing values in its features, and with nine duplicates."""
    from pipeline.beam.prepare import PrepareOptions, prepare

    folder = tmp_path_factory.mktemp("every")
    records = [every_record(number) for number in range(150)]
    (folder / "raw.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*records, *records[:9]]))
    (folder / "schema.yaml").write_text(EVERY)
    manifest = prepare(
        PrepareOptions(
            (str(folder / "raw.jsonl"),),
            str(folder / "schema.yaml"),
            str(folder / "dataset"),
            num_shards=3,
            max_rejected=0.1,
        )
    )
    assert manifest.rejected.by_reason == {"duplicate_id": 9}
    return manifest, records


def rows_of(records, name, width):
    """Returns float64[rows, width] of a context or step feature, with NaN for null."""
    values = [step for r in records for step in (r[name] if isinstance(r[name], list) else [r[name]])]
    values = [r["size"] for r in records] if name == "size" else values
    rows = [[None] * width if value is None else value if isinstance(value, list) else [value] for value in values]
    return np.array(rows, np.float64)


@pytest.mark.parametrize(("name", "width"), [("x", 2), ("never", 1), ("age", 1), ("size", 3), ("y", 1)])
def test_statistics_ignore_missing_values(every, name, width):
    manifest, records = every
    rows = rows_of([r for r in records if r["split"] == "train"], name, width)
    found = manifest.statistics[name]
    missing = np.isnan(rows).sum(axis=0)
    assert found.count == len(rows)
    assert found.missing == (tuple(missing) if missing.any() else ())
    if name == "never":
        assert (found.mean, found.variance, found.min, found.max) == ((0,), (0,), (0,), (0,))
        return
    assert missing.any() == (name != "size")
    for number, column in enumerate(rows.astype(np.float32).T.tolist()):
        present = [value for value in column if value == value]
        assert (found.mean[number], found.variance[number]) == exact_statistics(present)
    assert found.min == tuple(np.nanmin(rows, axis=0))
    assert found.max == tuple(np.nanmax(rows, axis=0))


def flat(value):
    """Returns all strings and nulls of a nested value. A null in place of a row of two words counts as two nulls."""
    return [one for inner in value for one in ([None, None] if inner is None else inner)]


def strings_of(records, name):
    return [record["city"] for record in records] if name == "city" else flat(w for r in records for w in r["word"])


def test_missing_values_are_counted_in_every_split(every):
    manifest, records = every
    for split in SPLITS:
        here = [record for record in records if record["split"] == split]
        found = manifest.splits[split]
        assert found.missing == {
            "x": int(np.isnan(rows_of(here, "x", 2)).sum()),
            "never": sum(len(record["never"]) for record in here),
            "page": sum(page is None for record in here for page in record["page"]),
            "word": strings_of(here, "word").count(None),
            "age": sum(record["age"] is None for record in here),
            "city": strings_of(here, "city").count(None),
        }
        assert found.labels == sum(y is not None for record in here for y in record["y"])
        assert found.label_counts == {}


def test_unknown_strings_are_counted_in_every_split_by_the_vocabulary_of_train(every):
    manifest, records = every
    for name, size in (("word", 3), ("city", 2)):
        train = strings_of([record for record in records if record["split"] == "train"], name)
        counts = collections.Counter(string for string in train if string is not None)
        known = sorted(counts, key=lambda string: (-counts[string], string.encode()))[:size]
        assert manifest.vocabularies[name].size == size < len(counts)
        for split in SPLITS:
            here = strings_of([record for record in records if record["split"] == split], name)
            unknown = [string for string in here if string is not None and string not in known]
            assert manifest.splits[split].unknown[name] == len(unknown) > 0


@pytest.mark.parametrize("kind", ["multilabel", "step_multilabel"])
def test_label_counts_are_the_records_or_steps_that_name_the_class(write_raw, run_prepare, kind):
    random = np.random.default_rng(3)
    records = []
    for number in range(60):
        labels = [[c for c in "abc" if random.random() < 0.4] for _ in range(int(random.integers(1, 5)))]
        labels = [None if kind == "step_multilabel" and random.random() < 0.2 else label for label in labels]
        y = labels if kind == "step_multilabel" else labels[0]
        records.append({"n": [0] * len(labels), "y": y, "part": SPLITS[number % 2]})
    schema = "id: id\nsplits: {from: part}\nsteps: {n: {dtype: float32}}\n"
    schema += f"label: {{name: y, kind: {kind}, classes: [a, b, c, z]}}"
    manifest = run_prepare(write_raw([record | {"id": n} for n, record in enumerate(records)]), schema=schema)
    for split in SPLITS[:2]:
        labels = [record["y"] for record in records if record["part"] == split]
        if kind == "step_multilabel":
            labels = [label for record in labels for label in record if label is not None]
        counts = collections.Counter(name for label in labels for name in label)
        assert manifest.splits[split].label_counts == {name: counts[name] for name in "abcz"}
        assert manifest.splits[split].labels == len(labels)
    assert (manifest.splits["test"].label_counts, manifest.splits["test"].labels) == ({}, 0)


@pytest.mark.parametrize(
    ("feature", "more", "value"),
    [
        ("dtype: string, vocabulary: 2, missing: fill", "", str),
        ("dtype: int64, num_values: 100, missing: indicator", "", int),
        ("dtype: float32, shape: [2], missing: fill", "", lambda n: [n, n]),
        ("dtype: float32, shape: [2], missing: fill", ", kind: multilabel", lambda n: [n % 2, 1]),
    ],
)
def test_the_labels_of_what_comes_next_are_the_steps_that_another_one_follows(
    write_raw, run_prepare, feature, more, value
):
    lengths, missing = [1, 2, 5, 9], [3, 4, 8]
    records = [
        {"id": length, "f": [None if step in missing else value(step) for step in range(length)]} for length in lengths
    ]
    schema = f"id: id\nsplits: {{train: 1}}\nsteps: {{f: {{{feature}}}}}\nlabel: {{next_of: f{more}}}"
    train = run_prepare(write_raw(records), schema=schema).splits["train"]
    assert train.labels == sum(step not in missing for length in lengths for step in range(1, length))
    assert train.label_counts == {}
