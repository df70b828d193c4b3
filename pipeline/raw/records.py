"""Parses one raw record against the schema, or rejects it with a reason."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson

from pipeline.errors import counted, quote, show
from pipeline.raw.content_id import content_id, large_content_id
from pipeline.raw.json_arrays import LargeList, cut_list, find_large_lists, is_large, read_object
from pipeline.raw.json_values import load_json
from pipeline.raw.rejects import Reason, RecordError
from pipeline.raw.values import as_list, parse_context, parse_label, parse_steps, to_python
from pipeline.schema.record import Array, ParsedRecord, Values
from pipeline.schema.schema import FIELD_SPLITS, Schema, SplitFromField
from pipeline.schema.windows import EventTimeError, EventWindows, parse_event_time


class Limits(NamedTuple):
    """The largest record that is not rejected as `too_large`.

    Attributes:
        record_bytes: Maximum size of the raw record in bytes. TFRecord files allow 2 GiB per record; TensorFlow's
            parser fails below that, with a misleading error.
        record_steps: Maximum number of steps. Training an LSTM on a longer record is not practical.
    """

    record_bytes: int = 64 * 2**20
    record_steps: int = 10_000_000


LIMITS = Limits()


def parse_line(
    line: bytes | bytearray | str,
    schema: Schema,
    *,
    labelled: bool = True,
    limits: Limits = LIMITS,
    windows: EventWindows | None = None,
) -> ParsedRecord:
    """Parses one line of JSON Lines.

    Args:
        labelled, limits, windows: As for `parse_record`.

    Raises:
        RecordError: The line is not a record that fits the schema. The error has the reason, the place in the record,
            the value and what was expected.
    """
    if len(line) > limits.record_bytes:
        # The reader truncates such a line, so its full size is unknown.
        raise RecordError("too_large", f"the record is larger than {limits.record_bytes:,} bytes, the maximum")
    record: Any = None
    record_id = label = None
    if isinstance(line, str):
        pass
    elif is_large(line):
        record, record_id, label = _read_large(line, schema, labelled, windows)
    elif schema.id is not None:  # else the id is a hash of the values as Python parses them, not as arrays
        record = read_object(line, schema.array_steps)
    if record is None:
        record, label = load_json(line), None
    return _parse(record, record_id, label, schema, labelled, limits, windows)


def _read_large(
    line: bytes | bytearray, schema: Schema, labelled: bool, windows: EventWindows | None
) -> tuple[dict[str, Any] | None, str | None, Array | None]:
    """Returns the record of a large line, its id if that is a hash of it, and its label if that is read in pieces.

    The record is None if the slow parser has to decide.
    """
    steps, label = schema.array_steps, None
    is_label = labelled and not (windows is not None and windows.field in schema.large_labels)
    lists = find_large_lists(line, steps, schema.large_labels if is_label else None)
    if schema.id is None and not lists:
        return None, None, None
    record = read_object(line, steps, lists)
    for large in lists:
        if large.name not in steps and record is not None:
            label = _read_label(line, large, schema)
            record = None if label is None else record
    record_id = large_content_id(line, lists) if schema.id is None and record is not None else None
    return record, record_id, label


def _read_label(line: bytes | bytearray, large: LargeList, schema: Schema) -> Array | None:
    """Returns the label per step of a large record; None if the slow parser has to find the fault."""
    parts = []
    try:
        for piece in cut_list(line, large):
            values = orjson.loads(b"[%b]" % piece)
            if not values:  # two commas without a value in between, or no step
                return None
            parts.append(parse_label(values, schema.label, nan_is_missing=bool(schema.nan_is_missing)))
    except (orjson.JSONDecodeError, RecordError):
        return None
    return np.concatenate(parts)


def parse_record(
    record: Any,
    schema: Schema,
    *,
    labelled: bool = True,
    limits: Limits = LIMITS,
    windows: EventWindows | None = None,
) -> ParsedRecord:
    """Parses one record, a mapping as JSON gives it. NumPy arrays and scalars may replace lists and numbers.

    Args:
        labelled: If False, the label, the group and the split are not read, as for a record to predict.
        limits: A record above these limits is rejected as `too_large`.
        windows: Says which field is the event time. None reads none.

    Raises:
        RecordError: As for `parse_line`.
    """
    return _parse(record, None, None, schema, labelled, limits, windows)


def _parse(
    record: Any,
    record_id: str | None,
    label: Array | None,
    schema: Schema,
    labelled: bool,
    limits: Limits,
    windows: EventWindows | None,
) -> ParsedRecord:
    if not isinstance(record, Mapping):
        raise RecordError("not_a_record", f"expected an object with fields, not {show(record)}")
    record_id = parse_id(record, schema) if record_id is None else record_id
    try:
        parsed = _parse_fields(record, record_id, label, schema, labelled, limits)
        if windows is not None:
            parsed.event_time = parse_time(record, windows)
        return parsed
    except RecordError as error:
        error.id = record_id
        raise


def _parse_fields(
    record: Mapping[str, Any],
    record_id: str,
    label: Array | None,
    schema: Schema,
    labelled: bool,
    limits: Limits,
) -> ParsedRecord:
    fields = schema.raw_fields
    nan_is_missing = bool(schema.nan_is_missing)
    features = {
        name: parse_steps(_field(record, fields[name]), fields[name], feature, nan_is_missing=nan_is_missing)
        for name, feature in schema.steps.items()
    }
    lengths = {
        fields[name]: len(values) // schema.steps[name].width if isinstance(values, list) else len(values)
        for name, values in features.items()
    }
    label_field = schema.label.field if labelled and schema.label.name is not None else None
    if label_field is not None and schema.label.per_step:
        lengths[label_field] = len(as_list(_field(record, label_field), label_field) if label is None else label)
    num_steps = _common_length(lengths)
    if num_steps > limits.record_steps:
        raise RecordError(
            "too_large", f"the record has {counted(num_steps, 'step')}, expected at most {limits.record_steps:,}"
        )
    parsed = parse_other_fields(record, record_id, num_steps, label, schema, labelled=labelled)
    parsed.features = features
    if schema.label.next_of is not None and schema.label.kind == "step_multilabel":
        _check_zeros_and_ones(features[schema.label.next_of], fields[schema.label.next_of])
    if schema.max_length is not None and num_steps > schema.max_length and not schema.stores_parts:
        _truncate(parsed, schema)
    return parsed


def parse_other_fields(
    record: Mapping[str, Any],
    record_id: str,
    num_steps: int,
    label: Array | None,
    schema: Schema,
    *,
    labelled: bool = True,
) -> ParsedRecord:
    """Returns a record with all of its values except those of the step features.

    Args:
        label: The label, if it was read already.
        labelled: As for `parse_record`.

    Raises:
        RecordError: A value does not fit the schema.
    """
    fields, nan_is_missing = schema.raw_fields, bool(schema.nan_is_missing)
    if labelled and schema.label.name is not None and label is None:
        label = parse_label(_field(record, schema.label.field), schema.label, nan_is_missing=nan_is_missing)
    parsed = ParsedRecord(record_id, num_steps, {}, label)
    for name, feature in schema.context.items():
        # Programs that write JSON often leave out fields that are null.
        field = fields[name]
        value = record.get(field) if feature.allows_nulls else _field(record, field)
        parsed.context[name] = parse_context(value, field, feature, nan_is_missing=nan_is_missing)
    if labelled and schema.group is not None:
        parsed.group = _parse_group(record, schema.group)
    if labelled and isinstance(schema.splits, SplitFromField):
        parsed.split = _parse_split(record, schema.splits.field)
    return parsed


def _check_zeros_and_ones(values: Values, name: str) -> None:
    """Checks that a feature whose next value is learnt as multilabel has only the values 0, 1 and NaN for null."""
    assert isinstance(values, np.ndarray)
    wrong = values[~((values == 0) | (values == 1) | np.isnan(values))]
    if len(wrong):
        raise RecordError("wrong_type", f"{name}: {show(float(wrong[0]))}, expected 0 or 1 for a multilabel next_of")


def parse_id(record: Mapping[str, Any], schema: Schema) -> str:
    """Returns the id of a record, or raises a RecordError."""
    if schema.id is None:
        return content_id(record)
    if schema.id not in record:
        raise RecordError(
            "bad_id", f"{schema.id}: this field is missing; expected a string or an integer of up to 64 bits"
        )
    return _parse_key(record[schema.id], schema.id, "bad_id")


def _parse_key(value: Any, name: str, reason: Reason) -> str:
    value = to_python(value)
    if isinstance(value, str):
        try:
            value.isascii() or value.encode()
        except UnicodeEncodeError:
            raise RecordError(reason, f"{name}: {quote(value)} is not valid Unicode") from None
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise RecordError(reason, f"{name}: {show(value)}, expected a string or an integer of up to 64 bits")


def _parse_group(record: Mapping[str, Any], name: str) -> str:
    return _parse_key(_field(record, name), name, "wrong_type")


def _parse_split(record: Mapping[str, Any], name: str) -> str:
    value = to_python(_field(record, name))
    if value not in FIELD_SPLITS:
        reason: Reason = "unknown_class" if isinstance(value, str) else "wrong_type"
        raise RecordError(reason, f"{name}: {show(value)}, expected one of {', '.join(FIELD_SPLITS)}")
    return str(value)


def parse_time(record: Mapping[str, Any], windows: EventWindows) -> int:
    """Returns the event time of a record in microseconds since 1970, or raises a RecordError."""
    value = to_python(_field(record, windows.field))
    try:
        return parse_event_time(value, windows)
    except EventTimeError as error:
        reason: Reason = "wrong_type" if error.is_finite else "not_finite"
        raise RecordError(reason, f"{windows.field}: {show(value)}, {error}") from None


def _field(record: Mapping[str, Any], name: str) -> Any:
    try:
        return record[name]
    except KeyError:
        raise RecordError(
            "missing_field", f"{name}: this field is missing; the record has {show(list(record))}"
        ) from None


def _common_length(lengths: dict[str, int]) -> int:
    """Returns the number of steps, which all features have in common."""
    num_steps, *others = set(lengths.values())
    if others:
        listed = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise RecordError("uneven_lengths", f"{listed} steps; expected the same number in every feature")
    if num_steps == 0:
        raise RecordError("empty_sequence", f"{', '.join(lengths)}: no steps; expected at least one")
    return num_steps


def _truncate(record: ParsedRecord, schema: Schema) -> None:
    """Drops the steps beyond `max_length`, or raises a RecordError if the schema rejects such records."""
    limit = schema.max_length
    assert limit is not None
    if schema.over_length == "reject":
        raise RecordError(
            "over_length", f"the record has {counted(record.num_steps, 'step')}, expected at most {limit}"
        )

    def cut(values: Any, width: int) -> Any:
        return values[: limit * width] if schema.over_length == "truncate_tail" else values[-limit * width :]

    for name, values in record.features.items():
        # Strings are flat; numbers have one row per step.
        record.features[name] = cut(values, schema.steps[name].width if isinstance(values, list) else 1)
    if schema.label.per_step and record.label is not None:
        record.label = cut(record.label, 1)
    record.num_steps = limit
    record.truncated = True
