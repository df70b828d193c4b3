"""Warnings about contents that a model cannot learn: classes, unknown strings, outliers, small differences."""

import json
import re

import datasets
import numpy as np

from pipeline.format.manifest import read_manifest
from pipeline.inspection import warnings
from pipeline.inspection.inspect import print_details, summarize
from pipeline.inspection.warnings import find_warnings
from pipeline.schema.windows import EventWindows

SCHEMA = """id: id
steps: {{word: {{dtype: string, vocabulary: {size}}}}}
label: {{name: y, kind: class, classes: [a, b, c]}}
splits: {{from: split}}
"""
RECORDS = [
    {"id": n, "word": [f"w{n % 3}"], "y": y, "split": split}
    for n, (y, split) in enumerate([("a", "train"), ("a", "train"), ("a", "train"), ("b", "test"), ("c", "validation")])
]


def test_a_class_that_the_train_split_lacks_and_a_complete_vocabulary_give_a_warning(capsys, tmp_path):
    manifest = read_manifest(datasets.make(tmp_path, RECORDS, SCHEMA.format(size=3), num_shards=1).path)
    labels, words = find_warnings(manifest)
    assert labels.startswith("label y: 2 classes are not in the train split, so that")
    assert labels.endswith('cannot learn to predict them: "b", "c"')
    assert words.startswith("feature word: its vocabulary has all 3 strings of the train split, so that a model cannot")
    assert summarize(manifest)["warnings"] == json.loads(json.dumps([labels, words]))
    print_details(manifest, "d")
    first, second = re.split(r"\n  (?! )", capsys.readouterr().out.split("\nWarnings: 2\n  ")[1])
    assert [" ".join(text.split()) for text in (first, second)] == [f"{labels}.", f"{words}."]


def test_a_dataset_that_can_be_learnt_gives_no_warning(capsys, tmp_path):
    records = [record | {"y": "abc"[n % 3], "split": "train"} for n, record in enumerate(RECORDS)]
    records[-1]["split"] = "validation"
    manifest = read_manifest(datasets.make(tmp_path, records, SCHEMA.format(size=2), num_shards=1).path)
    assert find_warnings(manifest) == []
    print_details(manifest, "d")
    assert "Warnings" not in capsys.readouterr().out


def test_a_train_split_without_a_label_and_an_empty_vocabulary_give_a_warning(tmp_path):
    """All strings that are once in the train split are the same to a model. Other splits do not count."""
    schema = SCHEMA.format(size="{min_count: 2}").replace("kind: class", "kind: step_class")
    records = [
        {
            "id": n,
            "word": [f"w{n if split == 'train' else 0}"],
            "y": [None if split == "train" else "a"],
            "split": split,
        }
        for n, split in enumerate(["train", "train", "validation", "test"])
    ]
    assert find_warnings(read_manifest(datasets.make(tmp_path, records, schema, num_shards=1).path)) == [
        "label y: no step of the train split has one, so that there is nothing to learn",
        "feature word: its vocabulary is empty, because the train split has no string at least 2 times, so that all "
        "strings are the same to a model; choose a smaller min_count",
    ]


def test_a_field_that_never_names_validation_gives_a_warning_with_the_way_out(tmp_path):
    records = [record | {"y": "abc"[n % 3], "split": "train"} for n, record in enumerate(RECORDS)]
    manifest = read_manifest(datasets.make(tmp_path, records, SCHEMA.format(size=2), num_shards=1).path)
    assert find_warnings(manifest) == [
        "no record is in the split validation, so that a run keeps its last checkpoint instead of the best one; "
        "to take a tenth of the train records, choose splits: {from: split, validation: 0.1} in the schema"
    ]


def test_values_that_a_model_reads_as_nearer_give_a_warning_with_the_largest_first(tmp_path):
    schema = (
        "steps: {x: {dtype: float32, shape: [4]}, z: {dtype: float32}}\nlabel: {name: y, kind: regression}\nid: id\n"
    )
    # Column 0 is a rare 1, which is no outlier; columns 1 and 2 have outliers; z has none.
    steps = [[int(n == 0), 500 if n == 1 else n % 3, -300 if n == 2 else n % 2, n] for n in range(400)]
    records = [{"id": "a", "x": steps, "z": list(range(400)), "y": 1000 * n} for n in range(1)]
    manifest = read_manifest(datasets.make(tmp_path, records, schema + "splits: {train: 1.0}\n", num_shards=1).path)
    x = np.array(steps, float)
    distances = np.abs(x - x.mean(0)).max(0) / x.std(0)
    assert distances[0] > 10
    (line,) = find_warnings(manifest)
    expected = ", ".join(f"x column {n} ({distances[n]:,.0f})" for n in sorted((1, 2), key=lambda n: -distances[n]))
    assert line.startswith(
        f"features with values more than 10 standard deviations from their mean: {expected}; a model"
    )


def test_small_differences_of_large_numbers_give_a_warning_with_column_range_and_spacing(tmp_path):
    schema = (
        "id: id\nsteps: {t: {dtype: float32, shape: [3]}, z: {dtype: float32}}\ncontext: {day: {dtype: float32}}\n"
        "label: {name: y, kind: regression}\nsplits: {train: 1.0}\n"
    )
    start = 1_700_000_000_123
    records = [
        {
            "id": n,
            "t": [[n, start + 60_000 * n, 300 + n / 10_000], [n + 1, start + 60_000 * n + 1, 300.0001]],
            "z": [n, 1e9 * n],
            "day": 20240101 + n,
            "y": -1_700_000_000 + n,
        }
        for n in range(10)
    ]
    manifest = read_manifest(datasets.make(tmp_path, records, schema, num_shards=1).path)
    assert find_warnings(manifest) == [
        "float32 loses small differences of the values in "
        "t column 1 (1,700,000,038,912 to 1,700,000,563,200, where float32 numbers are 131,072 apart), "
        "t column 2 (300 to 300.000885, where float32 numbers are 3.05e-05 apart), "
        "day (20,240,100 to 20,240,110, where float32 numbers are 2 apart), "
        "y (-1,700,000,000, where float32 numbers are 128 apart); if they matter, subtract an offset such as the start "
        "time in the raw data, or take the differences of successive values; if the numbers are categories, choose "
        "dtype: int64 with num_values"
    ]


def test_many_small_windows_give_a_warning(tmp_path, monkeypatch):
    records = [record | {"y": "abc"[n % 3], "split": "train", "at": n // 2 * 60} for n, record in enumerate(RECORDS)]
    records[-1]["split"] = "validation"
    windows = EventWindows(field="at", seconds=60)
    made = datasets.make(tmp_path, records, SCHEMA.format(size=2), num_shards=1, windows=windows)
    manifest = read_manifest(made.path)
    assert find_warnings(manifest) == []
    monkeypatch.setattr(warnings, "_MANY_WINDOWS", 3)
    (found,) = find_warnings(manifest)
    assert re.match(
        r"3 windows of 1m by the field 'at' have \d+ bytes each on average, and a shard for each split", found
    )
    monkeypatch.setattr(warnings, "_SMALL_WINDOW", 10)
    assert find_warnings(manifest) == []
