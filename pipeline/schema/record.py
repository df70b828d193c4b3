"""One record as arrays: what parsing makes of it, and what is encoded."""

import dataclasses
from typing import Any, TypeAlias

import numpy as np

from pipeline.schema.labels import MULTILABEL, ONE_CLASS, Label
from pipeline.schema.schema import Schema

Array: TypeAlias = np.ndarray[Any, Any]


# Class index of a step without a label: its weight is 0. A number is NaN there.
NO_LABEL = -1

# What stands for a null, where a feature may miss values; a number is NaN there. No category is below 0, and no text in
# UTF-8 has this byte, so neither can be taken for a value of a record.
MISSING_INTEGER = -1

MISSING_STRING = b"\xff"

Values: TypeAlias = Array | list[bytes]


@dataclasses.dataclass(slots=True)
class ParsedRecord:
    """One record that fits the schema.

    Attributes:
        id: Key of the record.
        num_steps: Time steps, at least 1.
        features: Of the steps, by name: float32[num_steps, *shape], int64[num_steps, *shape], or num_steps × width
            strings as bytes. Where a value is missing: NaN, MISSING_INTEGER, MISSING_STRING.
        label: class: int64[1]; distribution: float32[classes]; multilabel: int64[classes] of 0 and 1; regression:
            float32[1]; step_class: int64[num_steps]; step_multilabel: int64[num_steps, classes]; step_regression:
            float32[num_steps]. A step without a label: NO_LABEL, or NaN. None where the label is the next value of a
            step feature, or was not read.
        context: By name: float32[*shape], int64[*shape], or width strings.
        group: What decides the split when the schema has a group, else None.
        split: The split that the record names itself, else None.
        truncated: Steps beyond `max_length` were cut off.
    """

    id: str
    num_steps: int
    features: dict[str, Values]
    label: Array | None
    context: dict[str, Values] = dataclasses.field(default_factory=dict)
    group: str | None = None
    split: str | None = None
    truncated: bool = False


def num_labels(sequence: ParsedRecord, schema: Schema) -> int:
    """How often a sequence says what is to be learnt: its labelled steps; 1 where there is one label a record."""
    label = sequence.label
    if schema.label.next_of is not None:
        missing = is_missing(sequence.features[schema.label.next_of]).reshape(sequence.num_steps, -1)
        return int((~missing[1:].any(axis=1)).sum())
    if not schema.label.per_step:
        return 1
    assert label is not None
    rows = label.reshape(sequence.num_steps, -1)[:, 0]
    return int((np.isfinite(rows) if rows.dtype.kind == "f" else rows != NO_LABEL).sum())


def is_missing(values: Values) -> Array:
    """bool of the shape of `values`: which of them stand for a null."""
    if isinstance(values, list):
        return np.array([value == MISSING_STRING for value in values], bool)
    return np.isnan(values) if values.dtype.kind == "f" else values == MISSING_INTEGER


def named_classes(values: Array, label: Label) -> Array:
    """int64: the position of every class that a stored label names, once for each step (or record) that it names.

    >>> label = Label(name="y", kind="step_multilabel", classes=("a", "b"))
    >>> named_classes(np.array([0, 1, -1, -1, 1, 1]), label).tolist()
    [1, 0, 1]
    """
    if label.kind in MULTILABEL:
        return np.nonzero(values.reshape(-1, len(label.classes)) == 1)[1]
    return values[values != NO_LABEL] if label.kind in ONE_CLASS else np.zeros(0, np.int64)
