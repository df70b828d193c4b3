"""The statistics of the manifest equal NumPy's over the raw values of the train split, and its counts are exact."""

import collections
import dataclasses
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.format.manifest import FILE_NAME, Manifest
from pipeline.format.statistics import Moments, merge_moments


@given(
    st.lists(st.lists(st.none() | st.integers(-(10**6), 10**6), min_size=1, max_size=9), min_size=1, max_size=6),
    st.sampled_from([0, 1, 1e6, 1e12]),
)
def test_merged_moments_equal_numpys_over_all_values_that_are_not_missing(blocks, shift):
    # A column with missing values, the same column without them, and a column that has values where the first has none.
    parts = [np.array(block, np.float64)[:, None] / 1000 + shift for block in blocks]
    parts = [np.concatenate([p, np.nan_to_num(p), np.where(np.isnan(p), 7.5, np.nan)], axis=1) for p in parts]
    rows = np.concatenate(parts)
    total = merge_moments([None, *map(Moments.of, parts), None]).statistics()
    missing = np.isnan(rows).sum(axis=0)
    assert total.count == len(rows)
    assert total.missing == (tuple(missing) if missing.any() else ())
    for column in range(3):
        present = rows[~np.isnan(rows[:, column]), column]
        found = [getattr(total, key)[column] for key in ("mean", "variance", "min", "max")]
        if not len(present):
            assert found == [0, 0, 0, 0]
            continue
        assert found[2:] == [present.min(), present.max()]
        np.testing.assert_allclose(found[0], present.mean(), rtol=1e-12, atol=1e-9)
        # The shift uses up digits of float64, which limits the accuracy of every algorithm.
        np.testing.assert_allclose(found[1], present.var(), rtol=1e-9, atol=(1 + shift) * 1e-9)


@given(st.lists(st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=9), min_size=1, max_size=6))
def test_missing_values_in_one_column_change_no_bit_of_another(blocks):
    def beside(other):
        parts = [np.array(block, np.float64)[:, None] / 7 for block in blocks]
        return merge_moments(
            Moments.of(np.concatenate([p, np.full_like(p, other)], axis=1)) for p in parts
        ).statistics()

    with_all, with_none = beside(3), beside(np.nan)
    for key in ("mean", "variance", "min", "max"):
        assert getattr(with_all, key)[0] == getattr(with_none, key)[0]
        assert getattr(with_none, key)[1] == 0
    assert (with_all.missing, with_none.missing) == ((), (0, with_all.count))


def plain_moments(blocks):
    """Returns (mean, variance) by the algorithm of the first version, which had no missing values."""
    count, mean, squares = 0, 0, 0
    for rows in blocks:
        here = np.where(rows.min(axis=0) == rows.max(axis=0), rows.min(axis=0), rows.mean(axis=0))
        here_squares = np.square(rows - here).sum(axis=0)
        if not count:
            count, mean, squares = len(rows), here, here_squares
            continue
        total, delta = count + len(rows), here - mean
        squares = squares + here_squares + np.square(delta) * (count * len(rows) / total)
        mean = mean + delta * (len(rows) / total)
        count = total
    return mean.tolist(), (squares / count).tolist()


@given(st.integers(0, 2**32), st.integers(1, 9), st.lists(st.integers(1, 2000), min_size=1, max_size=5))
def test_without_missing_values_the_bits_are_those_of_the_first_version(seed, width, sizes):
    random = np.random.default_rng(seed)
    blocks = [random.normal(random.normal(0, 100), 1, (size, width)) for size in sizes]
    found = merge_moments(map(Moments.of, blocks)).statistics()
    assert (list(found.mean), list(found.variance)) == plain_moments(blocks)


def test_the_counts_of_a_very_large_dataset_do_not_overflow():
    part = Moments(2**40, np.array([2**40]), np.array([0.5]), np.array([2.0**40]), np.array([0.5]), np.array([0.5]))
    other = dataclasses.replace(part, mean=np.array([2.5]))
    assert merge_moments([part, other]).statistics().mean == (1.5,)
    assert merge_moments([part, other]).statistics().variance == (2.0,)


@pytest.mark.parametrize("constant", [0.1, -1e30, 1 / 3])
def test_a_constant_column_has_a_variance_of_exactly_zero(constant):
    column = np.full((1000, 1), constant)
    assert column[:7].mean() != constant or column[:99].mean() != constant  # rounding changes a plain mean
    for width in (7, 99):
        total = merge_moments(Moments.of(column[start : start + width]) for start in range(0, 1000, width)).statistics()
        assert total.variance == (0.0,)
        assert total.mean == (constant,)


def test_no_parts_have_no_moments():
    assert merge_moments([]) is None
    assert merge_moments([None]) is None


def test_the_manifest_has_numpys_statistics_of_the_train_split(dataset, records, read_records):
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
    np.testing.assert_allclose(manifest.statistics["y"].mean, labels.mean(), rtol=1e-12)
    np.testing.assert_allclose(manifest.statistics["y"].variance, labels.var(), rtol=1e-12)
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
    np.testing.assert_allclose(found.mean, np.nanmean(rows, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.variance, np.nanvar(rows, axis=0), rtol=1e-12)
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
