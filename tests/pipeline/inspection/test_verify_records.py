"""A decoded record that does not match the schema is an error that names the feature and the values."""

import numpy as np
import pytest

from pipeline.inspection.verify_records import check_example
from pipeline.schema.schema import Schema

STEPS = "{x: {dtype: float32, shape: [2]}, page: {dtype: int64, num_values: 9}, word: {dtype: string, num_values: 5}}"
LABELS = {
    "class": ("{name: y, kind: class, classes: [a, b]}", np.array([1])),
    "step_class": ("{name: y, kind: step_class, classes: [a, b]}", np.array([0, -1, 1])),
    "distribution": ("{name: y, kind: distribution, classes: [a, b]}", np.array([0.25, 0.75], np.float32)),
    "regression": ("{name: y, kind: regression}", np.array([3.5], np.float32)),
    "multilabel": ("{name: y, kind: multilabel, classes: [a, b]}", np.array([0, 1])),
    "step_multilabel": ("{name: y, kind: step_multilabel, classes: [a, b]}", np.array([1, 1, -1, -1, 0, 0])),
    "step_regression": ("{name: y, kind: step_regression}", np.array([0.5, np.nan, 2], np.float32)),
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
def test_the_check_returns_the_number_of_steps(kind):
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
        ({"id": [b"\xe4"]}, r"id: b'\\xe4', expected text in UTF-8"),
        ({"x": np.array([0, 1, 2, np.inf, 4, 5], np.float32)}, "x: inf, expected a finite number$"),
        ({"word": [b"a", b"\xff", b"c"]}, r"word: b'\\xff', expected text in UTF-8"),
        # The two bytes of one character.
        ({"word": [b"a", b"\xc3", b"\xa9"]}, r"word: b'\\xc3', expected text in UTF-8"),
        ({"y": np.array([2])}, "y: 2, expected 0 to 1"),
        ({"y": np.array([-1])}, "y: -1, expected 0 to 1"),
        ({"z": [b"more"]}, "has the features .*'z'.*, expected "),
    ],
)
def test_a_value_that_does_not_match_the_schema_is_named(change, message):
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
        ("regression", np.array([np.nan], np.float32), "y: nan, expected a finite number$"),
        ("step_regression", np.array([1, 2], np.float32), "y: 2 values of float32, expected 3 of float32"),
        ("step_regression", np.array([1, -np.inf, 3], np.float32), "y: -inf, expected a finite number or NaN"),
        ("multilabel", np.array([0]), "y: 1 values of int64, expected 2 of int64"),
        ("multilabel", np.array([0, 2]), "y: 2, expected 0 or 1"),
        ("multilabel", np.array([-1, -1]), "y: -1, expected 0 or 1"),
        ("multilabel", np.array([0, 1], np.float32), "y: 2 values of float32, expected 2 of int64"),
        ("step_multilabel", np.array([0, 1, 1]), "y: 3 values of int64, expected 6 of int64"),
        ("step_multilabel", np.array([1, 1, -2, -2, 0, 0]), "y: -2, expected 0 or 1, or -1 in a step without label"),
        (
            "step_multilabel",
            np.array([1, 1, -1, 0, 0, 0]),
            "y: -1 for some classes of a step, expected it for all or n",
        ),
    ],
)
def test_a_label_that_does_not_match_its_kind_is_named(kind, label, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check_example(example_of(kind) | {"y": label}, schema_of(kind))


def test_a_missing_feature_is_named():
    example = example_of("class")
    del example["page"]
    with pytest.raises(ValueError, match="has the features .*, expected .*'page'"):
        check_example(example, schema_of("class"))


EVERY = Schema.parse(
    """
steps:
  x: {dtype: float32, shape: [2], missing: fill}
  bits: {dtype: float32, shape: [2], missing: indicator}
  page: {dtype: int64, num_values: 9, missing: indicator}
  word: {dtype: string, vocabulary: 5, missing: fill}
context:
  age: {dtype: float32, missing: indicator}
  size: {dtype: float32, shape: [3]}
  city: {dtype: string, vocabulary: 3}
  plan: {dtype: int64, num_values: 3, shape: [2]}
label: {next_of: bits, kind: multilabel}
"""
)
WHOLE = {
    "x": np.array([0, np.nan, np.nan, np.nan], np.float32),
    "bits": np.array([0, 1, np.nan, 1], np.float32),
    "page": np.array([8, -1]),
    "word": [b"\xff", "é".encode()],
    "age": np.array([np.nan], np.float32),
    "size": np.array([1, 2, 3], np.float32),
    "city": [b"york"],
    "plan": np.array([0, 2]),
    "length": np.array([2]),
    "id": [b"r1"],
}


def test_nulls_context_and_a_next_of_label_match_the_schema():
    assert check_example(WHOLE, EVERY) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.array([0, np.inf, 1, np.nan], np.float32)}, "x: inf, expected a finite number or NaN"),
        ({"bits": np.array([0, 1, 0.5, np.nan], np.float32)}, "bits: 0.5, expected 0 or 1 for a multilabel next_of"),
        ({"page": np.array([8, -2])}, "page: -2, expected -1 to 8"),
        ({"word": [b"\xff", b"\xff\xff"]}, r"word: b'\\xff\\xff', expected text in UTF-8"),
        ({"age": np.array([1, 2], np.float32)}, "age: 2 values of float32, expected 1 of float32"),
        ({"size": np.array([1, np.nan, 3], np.float32)}, "size: nan, expected a finite number$"),
        ({"size": np.array([1, 2], np.float32)}, "size: 2 values of float32, expected 3 of float32"),
        ({"city": [b"\xff"]}, r"city: b'\\xff', expected text in UTF-8"),
        ({"city": [b"york", b"bath"]}, "city: 2 values of string, expected 1 of string"),
        ({"plan": np.array([0, -1])}, "plan: -1, expected 0 to 2"),
        ({"y": np.array([0])}, "has the features .*'y'"),
    ],
)
def test_a_wrong_value_beside_nulls_is_named(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check_example(WHOLE | change, EVERY)
