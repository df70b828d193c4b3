"""Schemas and records of every kind for property tests, and a simple, slow parser to compare with."""

import json
import math

import numpy as np
from hypothesis import strategies as st

from pipeline.schema.schema import Schema

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Includes names that are prefixes of others: protobuf sorts those in an order of its own.
NAMES = st.sampled_from(["x", "x2", "x20", "page", "page_type", "i", "idx", "lengths", "label-of"]) | st.text(
    st.characters(categories=["L", "N", "P"], exclude_characters="/"), min_size=1, max_size=12
).filter(lambda name: name not in ("length", "id", LABEL))
LABEL = "label-of-it"
VALUES = {"float32": FLOATS, "int64": st.integers(0, 2**31 - 2), "string": st.text(max_size=4)}
FILLS = {"float32": "mean", "int64": 3, "string": "fill"}
KINDS = ["class", "distribution", "multilabel", "regression", "step_class", "step_multilabel", "step_regression"]


@st.composite
def features(draw):
    dtype = draw(st.sampled_from(["float32", "int64", "string"]))
    feature = {"dtype": dtype, "shape": draw(st.lists(st.integers(1, 3), max_size=2))}
    if dtype == "int64":
        feature["num_values"] = 2**31 - 1
    if dtype == "string":
        feature[draw(st.sampled_from(["num_values", "vocabulary"]))] = 7
    missing = draw(st.sampled_from(["reject", {"fill": FILLS[dtype]}, "indicator"]))
    return feature | {"missing": missing}


def values_of(feature):
    """Draws the values of one step (or record), with nulls at any level if they are allowed."""
    value = VALUES[feature["dtype"]]
    allows_nulls = feature["missing"] != "reject"
    value = st.none() | value if allows_nulls else value
    for dimension in reversed(feature["shape"]):
        value = st.lists(value, min_size=dimension, max_size=dimension)
        value = st.none() | value if allows_nulls else value
    return value


def labels_of(kind, classes, num_steps):
    if kind.startswith("step_"):
        one = labels_of(kind.removeprefix("step_"), classes, num_steps)
        return st.lists(st.none() | one, min_size=num_steps, max_size=num_steps)
    return {
        "class": st.sampled_from(classes),
        "distribution": st.permutations([1.0] + [0.0] * (len(classes) - 1)),
        "multilabel": st.lists(st.sampled_from(classes), max_size=4),
        "regression": FLOATS,
    }[kind]


@st.composite
def schemas_and_records(draw):
    """Draws a schema, and a record that fits it."""
    num_steps = draw(st.integers(1, 6))
    record = {"id": draw(st.text(max_size=8) | st.integers(-(2**63), 2**63 - 1))}
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    num_context = draw(st.integers(0, len(names) - 1))
    document = {"id": "id", "steps": {}, "context": {}}
    for position, name in enumerate(names):
        feature = draw(features())
        document["context" if position < num_context else "steps"][name] = feature
        value = values_of(feature)
        if position < num_context:
            record[name] = draw(value)
            if record[name] is None and draw(st.booleans()):
                del record[name]  # a field that is left out is null
        else:
            record[name] = draw(st.lists(value, min_size=num_steps, max_size=num_steps))
    kind = draw(st.sampled_from(KINDS))
    classes = [f"c{number}" for number in range(draw(st.sampled_from([1, 3, 300])))]
    document["label"] = {"name": LABEL, "kind": kind} | ({} if "regression" in kind else {"classes": classes})
    record[LABEL] = draw(labels_of(kind, classes, num_steps))
    return Schema.parse(json.dumps(document, ensure_ascii=False)), record


def plain_values(value, feature, shape=None):
    """Returns all values of one step (or record) as a flat list of stored values."""
    shape = list(feature.shape) if shape is None else shape
    if shape:
        inner = [None] * shape[0] if value is None else value
        return [one for row in inner for one in plain_values(row, feature, shape[1:])]
    if feature.dtype == "float32":
        return [np.float32(math.nan if value is None else value)]
    if feature.dtype == "int64":
        return [-1 if value is None else value]
    return [b"\xff" if value is None else value.encode()]


def plain_label(label, kind, classes):
    """Returns all values of a label as a flat list of stored values."""
    if kind.startswith("step_"):
        one = kind.removeprefix("step_")
        no_label = {"class": [-1], "multilabel": [-1] * len(classes), "regression": [np.float32(math.nan)]}
        return [n for y in label for n in (no_label[one] if y is None else plain_label(y, one, classes))]
    return {
        "class": lambda: [classes.index(label)],
        "distribution": lambda: [np.float32(p) for p in label],
        "multilabel": lambda: [int(name in label) for name in classes],
        "regression": lambda: [np.float32(label)],
    }[kind]()


def plain_example(record, schema):
    """Returns everything that is stored of a record: flat lists by name."""
    (num_steps,) = {len(record[name]) for name in schema.steps}
    stored = {
        name: [one for value in record[name] for one in plain_values(value, feature)]
        for name, feature in schema.steps.items()
    }
    for name, feature in schema.context.items():
        stored[name] = plain_values(record.get(name), feature)
    if schema.label.name is not None:
        stored[schema.label.name] = plain_label(record[schema.label.name], schema.label.kind, schema.label.classes)
    return stored | {"length": [num_steps], "id": [str(record["id"]).encode()]}


def same_values(found, expected):
    """Whether an array or a list of strings equals a flat list bit by bit: -0.0 is not 0.0, and NaN equals NaN."""
    if isinstance(found, list):
        return found == expected
    dtype = np.float32 if found.dtype.kind == "f" else np.int64
    return found.dtype == dtype and found.tobytes() == np.array(expected, dtype).tobytes()
