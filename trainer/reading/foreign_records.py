"""Checks the records of TFRecord files that other programs wrote, by the rules of `prepare`."""

import functools
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from pipeline.errors import UserError, counted, show
from pipeline.schema.features import Feature
from pipeline.schema.labels import DISTRIBUTION_TOLERANCE, MULTILABEL, ONE_CLASS, REGRESSION, Label
from pipeline.schema.record import MISSING_STRING, NO_LABEL, Array
from pipeline.schema.schema import Schema

_KINDS = {"float32": "float_list", "int64": "int64_list", "string": "bytes_list"}


class WrongRecord(Exception):
    """Raised for a record that does not fit the schema. The message has the place, the value and what was expected."""


def parse_record(data: bytes) -> tf.train.SequenceExample:
    """Returns a serialized Example or SequenceExample. The fields of an Example are its context.

    Raises:
        WrongRecord: It is neither of them.
    """
    try:
        return tf.train.SequenceExample.FromString(data)
    except DecodeError:
        raise WrongRecord("is neither an Example nor a SequenceExample") from None


def has_lists(record: tf.train.SequenceExample) -> bool:
    """Whether a record is a SequenceExample, and not an Example."""
    return bool(record.feature_lists.feature_list)


def has_names(record: tf.train.SequenceExample, schema: Schema) -> bool:
    """Whether the label of a record that was checked holds names of classes, and not numbers."""
    label = schema.label
    if label.name is None:
        return False
    lists = record.feature_lists.feature_list
    stored = (
        lists[label.field].feature[0] if label.per_step and has_lists(record) else record.context.feature[label.field]
    )
    return bool(stored.HasField("bytes_list"))


class RecordCheck:
    """Checks records one after the other. The first one decides what all of them are.

    Args:
        schema: The schema of the records.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._in_lists: bool | None = None
        self._named: bool | None = None

    def __call__(self, data: bytes) -> None:
        """Checks a serialized record.

        Raises:
            WrongRecord: It does not fit the schema, or is not like the records before it.
        """
        record, schema = parse_record(data), self._schema
        in_lists = has_lists(record)
        if self._in_lists is None:
            self._in_lists = in_lists
        if in_lists != self._in_lists:
            found, expected = (
                ("an Example", "a SequenceExample") if self._in_lists else ("a SequenceExample", "an Example")
            )
            raise WrongRecord(f"is {found}, expected {expected}, as the first record is")
        self._check_names(record, in_lists)
        lengths, fields = {}, schema.raw_fields
        for feature_name, feature in schema.steps.items():
            name = fields[feature_name]
            read = functools.partial(_values, dtype=feature.dtype)
            values = _step_values(record, name, feature.width, in_lists, read)
            _check_feature(values, name, feature)
            if feature_name == schema.label.next_of and schema.label.kind == "step_multilabel":
                _refuse(~((values == 0) | (values == 1) | np.isnan(values)), values, name, "0 or 1")
            lengths[name] = len(values) // feature.width
        for feature_name, feature in schema.context.items():
            name = fields[feature_name]
            if name in record.context.feature or not feature.allows_nulls:
                values = _values(record.context.feature[name], feature.dtype, name)
                if len(values) != feature.width:
                    raise WrongRecord(f"{name}: {counted(len(values), 'value')}, expected {feature.width}")
                _check_feature(values, name, feature)
        self._check_label(record, in_lists, lengths)
        num_steps, *others = set(lengths.values())
        if others:
            listed = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise WrongRecord(f"{listed} steps; expected the same number in every feature")
        if num_steps == 0:
            raise WrongRecord(f"{', '.join(lengths)}: no steps; expected at least one")

    def _check_names(self, record: tf.train.SequenceExample, in_lists: bool) -> None:
        schema, label = self._schema, self._schema.label
        context, lists = set(record.context.feature), set(record.feature_lists.feature_list)
        fields, labels = schema.raw_fields, [] if label.name is None else [label.field]
        per_step = [*(fields[name] for name in schema.steps), *(labels if label.per_step else [])]
        needed = [name for name, feature in schema.context.items() if not feature.allows_nulls]
        expected = [*(fields[name] for name in (*schema.steps, *needed)), *labels]
        missing = [name for name in expected if name not in context | lists]
        if missing:
            raise WrongRecord(f"has no {', '.join(missing)}; it has {', '.join(sorted(context | lists))}")
        for name in expected if in_lists else ():
            place, other = ("feature lists", "context") if name in per_step else ("context", "feature lists")
            if name not in (lists if name in per_step else context):
                raise WrongRecord(f"{name}: is in the {other}, expected in the {place}")

    def _check_label(self, record: tf.train.SequenceExample, in_lists: bool, lengths: dict[str, int]) -> None:
        label = self._schema.label
        if label.name is None:
            return
        width = len(label.classes) if label.kind in ("distribution", *MULTILABEL) else 1
        read = functools.partial(_label_values, label=label)
        if label.per_step:
            values = _step_values(record, label.field, width, in_lists, read)
            lengths[label.field] = len(values) // width
        else:
            values = read(record.context.feature[label.field], name=label.field)
        named = isinstance(values, list)
        if self._named is None:
            self._named = named
        if named != self._named:
            found, expected = ("names", "numbers") if named else ("numbers", "names")
            raise WrongRecord(f"{label.field}: holds {found}, expected {expected}, as in the first record")
        if not label.per_step and not (named and label.kind == "multilabel") and len(values) != width:
            raise WrongRecord(f"{label.field}: {counted(len(values), 'value')}, expected {width}")
        _check_label_values(values, label)


def _values(stored: tf.train.Feature, dtype: str, name: str = "") -> Any:
    """Returns the values of a feature as an array, or strings as a list."""
    kind = stored.WhichOneof("kind")
    if kind not in (None, _KINDS[dtype]):
        raise WrongRecord(f"{name + ': ' if name else ''}is stored as {kind}, expected {_KINDS[dtype]} ({dtype})")
    values = getattr(stored, _KINDS[dtype]).value
    return list(values) if dtype == "string" else np.array(values, dtype)


def _label_values(stored: tf.train.Feature, label: Label, name: str = "") -> Any:
    if stored.HasField("bytes_list") and label.kind in (*ONE_CLASS, "multilabel"):
        return list(stored.bytes_list.value)
    if stored.HasField("bytes_list"):
        raise WrongRecord(f"the label {label.field} holds names, expected numbers for a {label.kind}")
    return _values(stored, "float32" if label.kind in ("distribution", *REGRESSION) else "int64", name)


def _step_values(record: tf.train.SequenceExample, name: str, width: int, in_lists: bool, read: Any) -> Any:
    """Returns the values of all steps, flat."""
    try:
        if not in_lists:
            values = read(record.context.feature[name])
            if len(values) % width:
                raise WrongRecord(f"{counted(len(values), 'value')}, expected a multiple of {width}, for each step")
            return values
        parts = [read(step) for step in record.feature_lists.feature_list[name].feature]
    except WrongRecord as error:
        raise WrongRecord(f"{name}: {error}") from None
    for number, part in enumerate(parts):
        if len(part) != width:
            raise WrongRecord(f"{name}[{number}]: {counted(len(part), 'value')}, expected {width}")
    if any(isinstance(part, list) for part in parts):
        return [value for part in parts for value in part]
    return np.concatenate(parts) if parts else np.zeros(0)


def _refuse(wrong: Array, values: Any, name: str, expected: str) -> None:
    """Raises a WrongRecord for the first value that is wrong: bool[values]."""
    if wrong.any():
        position = int(np.argmax(wrong))
        value = values[position]
        shown = repr(value) if isinstance(value, bytes) else show(value.item())
        raise WrongRecord(f"{name}: {shown} (value {position}), expected {expected}")


def _check_feature(values: Any, name: str, feature: Feature) -> None:
    if feature.dtype == "float32":
        wrong = np.isinf(values) if feature.allows_nulls else ~np.isfinite(values)
        _refuse(wrong, values, name, "a finite number")
    elif feature.dtype == "int64":
        lowest, end = (-1 if feature.allows_nulls else 0), feature.num_values or 0
        _refuse((values < lowest) | (values >= end), values, name, f"0 to {end - 1}")
    else:
        wrong = [not (_is_unicode(value) or (feature.allows_nulls and value == MISSING_STRING)) for value in values]
        _refuse(np.array(wrong, bool), values, name, "a string in UTF-8")


def _is_unicode(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _check_label_values(values: Any, label: Label) -> None:
    name, per_step = label.field, label.per_step
    if isinstance(values, list):
        known = {class_name.encode() for class_name in label.class_index} | ({b""} if per_step else set())
        _refuse(np.array([value not in known for value in values], bool), values, name, "a class of the schema")
    elif label.kind in REGRESSION:
        _refuse(np.isinf(values) if per_step else ~np.isfinite(values), values, name, "a finite number")
    elif label.kind == "distribution":
        _refuse(~(np.isfinite(values) & (values >= 0)), values, name, "a probability")
        total = float(values.sum(dtype=np.float64))
        if abs(total - 1) > DISTRIBUTION_TOLERANCE:
            raise WrongRecord(f"{name}: expected probabilities that add up to 1, not {total:g}")
    else:
        end = 2 if label.kind in MULTILABEL else len(label.classes)
        lowest = NO_LABEL if per_step else 0
        _refuse((values < lowest) | (values >= end), values, name, f"a class of the schema: 0 to {end - 1}")


def wrong_record(path: str, number: int, error: WrongRecord) -> UserError:
    """Returns the error for a record of a file; `number` counts from 0."""
    which = "the first record" if number == 0 else f"record {number + 1:,}"
    return UserError(f"{path}: {which}: {error}.")
