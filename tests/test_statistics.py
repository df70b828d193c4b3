"""The manifest's statistics are those of NumPy over the raw values of the train split; its counts are exact."""

import collections
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.manifest import FILE_NAME, Manifest
from pipeline.statistics import Moments, merge


@given(
    st.lists(st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=9), min_size=1, max_size=6),
    st.sampled_from([0, 1, 1e6, 1e12]),
)
def test_merged_moments_are_numpys_over_all_rows(blocks, shift):
    parts = [np.array(block, np.float64)[:, None] / 1000 + shift for block in blocks]
    rows = np.concatenate(parts)
    total = merge([None, *map(Moments.of, parts), None])
    assert total.count == len(rows)
    assert (total.minimum, total.maximum) == (rows.min(), rows.max())
    np.testing.assert_allclose(total.mean, rows.mean(axis=0), rtol=1e-12, atol=1e-9)
    # What the shift leaves of float64's digits bounds how well any algorithm can do.
    np.testing.assert_allclose(total.variance, rows.var(axis=0), rtol=1e-9, atol=(1 + shift) * 1e-9)


@pytest.mark.parametrize("constant", [0.1, -1e30, 1 / 3])
def test_a_constant_column_has_a_variance_of_exactly_zero(constant):
    column = np.full((1000, 1), constant)
    assert column[:7].mean() != constant or column[:99].mean() != constant  # what rounding does to a plain mean
    for width in (7, 99):
        total = merge(Moments.of(column[start : start + width]) for start in range(0, 1000, width))
        assert total.variance.tolist() == [0.0]
        assert total.mean.tolist() == [constant]


def test_nothing_has_no_moments():
    assert merge([]) is None
    assert merge([None]) is None


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


def test_a_constant_feature_and_a_regression_have_statistics_and_steps_without_label_do_not_count(
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
