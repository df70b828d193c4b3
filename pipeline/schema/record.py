"""One record as arrays: the output of parsing and the input of encoding."""

import dataclasses
from typing import Any, TypeAlias

import numpy as np

from pipeline.schema.features import Feature
from pipeline.schema.labels import MULTILABEL, ONE_CLASS, Label
from pipeline.schema.schema import NEXT_STEP, Schema

Array: TypeAlias = np.ndarray[Any, Any]


# Class index of a step without a label, which has weight 0. For a regression, the label of such a step is NaN.
NO_LABEL = -1

# Stored values for a null, in features that allow nulls. For float32, it is NaN. No record can have these values:
# categories are not negative, and the byte is not valid in UTF-8.
MISSING_INTEGER = -1
MISSING_STRING = b"\xff"

Values: TypeAlias = Array | list[bytes]


@dataclasses.dataclass(slots=True)
class ParsedRecord:
    """One record that fits the schema.

    Attributes:
        id: Id of the record.
        num_steps: Number of steps, at least 1.
        features: Step features by name: float32[num_steps, *shape], int64[num_steps, *shape], or a list of
            num_steps × width strings as bytes. A missing value is NaN, MISSING_INTEGER or MISSING_STRING.
        label: class: int64[1]; distribution: float32[classes]; multilabel: int64[classes] of 0 and 1; regression:
            float32[1]; step_class: int64[num_steps]; step_multilabel: int64[num_steps, classes]; step_regression:
            float32[num_steps]. A step without a label is NO_LABEL or NaN. None if the label is the next value of a
            step feature, or was not read. While the classes are not known, a tuple of classes for each step or record.
        context: Context features by name: float32[*shape], int64[*shape], or a list of width strings as bytes.
        group: Value of the schema's `group` field, which decides the split; None without such a field.
        split: Split that the record names, or for which its raw file was given; None if the schema has shares.
        truncated: Whether steps beyond `max_length` were dropped.
        event_time: Microseconds since 1970 in UTC; None if the dataset has no windows.
    """

    id: str
    num_steps: int
    features: dict[str, Values]
    label: Array | None
    context: dict[str, Values] = dataclasses.field(default_factory=dict)
    group: str | None = None
    split: str | None = None
    truncated: bool = False
    event_time: int | None = None


def num_labels(record: ParsedRecord, schema: Schema) -> int:
    """Returns the number of labelled steps, or 1 if there is one label per record."""
    label = record.label
    if schema.label.next_of is not None:
        missing = is_missing(record.features[schema.label.next_of]).reshape(record.num_steps, -1)
        following = record.features.get(NEXT_STEP)  # of a part
        in_next_part = following is not None and not is_missing(following).any()
        return int((~missing[1:].any(axis=1)).sum()) + in_next_part
    if not schema.label.per_step:
        return 1
    assert label is not None
    rows = label.reshape(record.num_steps, -1)[:, 0]
    return int((np.isfinite(rows) if rows.dtype.kind == "f" else rows != NO_LABEL).sum())


def missing_values(feature: Feature) -> Values:
    """Returns the stored values of one step (or record) that is missing: dtype[width], or a list of width strings."""
    if feature.dtype == "string":
        return [MISSING_STRING] * feature.width
    if feature.dtype == "float32":
        return np.full(feature.width, np.nan, np.float32)
    return np.full(feature.width, MISSING_INTEGER, np.int64)


def is_missing(values: Values) -> Array:
    """Returns a bool array of the shape of `values`: True for each missing value."""
    if isinstance(values, list):
        return np.array([value == MISSING_STRING for value in values], bool)
    return np.isnan(values) if values.dtype.kind == "f" else values == MISSING_INTEGER


def named_classes(values: Array, label: Label) -> Array:
    """Returns the indices of the classes that a stored label names, as int64[labels], one for each step or record.

    >>> label = Label(name="y", kind="step_multilabel", classes=("a", "b"))
    >>> named_classes(np.array([0, 1, -1, -1, 1, 1]), label).tolist()
    [1, 0, 1]
    """
    if label.kind in MULTILABEL:
        return np.nonzero(values.reshape(-1, len(label.classes)) == 1)[1]
    return values[values != NO_LABEL] if label.kind in ONE_CLASS else np.zeros(0, np.int64)
