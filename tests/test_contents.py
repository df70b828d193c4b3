"""A decoded record holds what the schema says, or it is said what is wrong."""

import numpy as np
import pytest

from pipeline.contents import check_example
from pipeline.schema import Schema

STEPS = "{x: {dtype: float32, shape: [2]}, page: {dtype: int64, num_values: 9}, word: {dtype: string, num_values: 5}}"
LABELS = {
    "class": ("{name: y, kind: class, classes: [a, b]}", np.array([1])),
    "step_class": ("{name: y, kind: step_class, classes: [a, b]}", np.array([0, -1, 1])),
    "distribution": ("{name: y, kind: distribution, classes: [a, b]}", np.array([0.25, 0.75], np.float32)),
    "regression": ("{name: y, kind: regression}", np.array([3.5], np.float32)),
}


def schema_of(kind):
    return Schema.parse(f"{{id: id, steps: {STEPS}, label: {LABELS[kind][0]}}}")


def example_of(kind):
    return {
        "x": np.arange(6, dtype=np.float32),
        "page": np.array([0, 8, 3]),
        "word": [b"a", b"", b"c"],
        "y": LABELS[kind][1],
        "length": np.array([3]),
        "id": [b"r1"],
    }


@pytest.mark.parametrize("kind", LABELS)
def test_a_record_that_fits_has_its_number_of_steps(kind):
    assert check_example(example_of(kind), schema_of(kind)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.arange(5, dtype=np.float32)}, "x: 5 values of float32, expected 6 of float32"),
        ({"x": np.arange(6)}, "x: 6 values of int64, expected 6 of float32"),
        ({"x": np.array([0, 1, 2, np.nan, 4, 5], np.float32)}, "x: nan, expected a finite number"),
        ({"page": np.array([0, 9, 3])}, "page: 9, expected 0 to 8"),
        ({"page": np.array([0, -1, 3])}, "page: -1, expected 0 to 8"),
        ({"word": [b"a"]}, "word: 1 values of string, expected 3 of string"),
        ({"length": np.array([4])}, "x: 6 values of float32, expected 8 of float32"),
        ({"length": np.array([0])}, "length: 0, expected at least 1"),
        ({"length": np.array([3, 3])}, "length: 2 values of int64, expected 1 of int64"),
        ({"id": []}, "id: 0 values of string, expected 1 of string"),
        ({"y": np.array([2])}, "y: 2, expected 0 to 1"),
        ({"y": np.array([-1])}, "y: -1, expected 0 to 1"),
        ({"z": [b"more"]}, "has the features .*'z'.*, expected "),
    ],
)
def test_a_record_that_does_not_fit_says_why(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check_example(example_of("class") | change, schema_of("class"))


@pytest.mark.parametrize(
    ("kind", "label", "message"),
    [
        ("step_class", np.array([0, 1]), "y: 2 values of int64, expected 3 of int64"),
        ("step_class", np.array([0, -2, 1]), "y: -2, expected -1 to 1"),
        ("distribution", np.array([1], np.float32), "y: 1 values of float32, expected 2 of float32"),
        ("regression", np.array([1]), "y: 1 values of int64, expected 1 of float32"),
        ("regression", np.array([np.inf], np.float32), "y: inf, expected a finite number"),
    ],
)
def test_a_label_that_does_not_fit_its_kind_says_why(kind, label, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check_example(example_of(kind) | {"y": label}, schema_of(kind))


def test_a_missing_feature_is_named():
    example = example_of("class")
    del example["page"]
    with pytest.raises(ValueError, match="has the features .*, expected .*'page'"):
        check_example(example, schema_of("class"))
