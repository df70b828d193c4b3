"""Parses one raw record into a sequence, or says with a reason why it cannot be used."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson

from pipeline.raw.json_arrays import read_object
from pipeline.raw.rejects import Reason, RecordError, show
from pipeline.raw.values import as_list, parse_context, parse_label, parse_steps, plain
from pipeline.schema.record import ParsedRecord, Values
from pipeline.schema.schema import FIELD_SPLITS, Schema, SplitFromField


class Limits(NamedTuple):
    """How large a record may be that is not `too_large`.

    Attributes:
        record_bytes: As it is written down. The file format ends at 2 GiB, TensorFlow's parser with a misleading word
            before that.
        record_steps: Nobody waits for an LSTM to read more.
    """

    record_bytes: int = 64 * 2**20
    record_steps: int = 10_000_000


LIMITS = Limits()


def parse_line(
    line: bytes | bytearray | str, schema: Schema, *, labelled: bool = True, limits: Limits = LIMITS
) -> ParsedRecord:
    """The sequence in one line of JSON Lines.

    Args:
        labelled, limits: As for `parse_record`.

    Raises:
        RecordError: says the reason, the place in the record, the value and what was expected.
    """
    if len(line) > limits.record_bytes:
        # A reader cuts the line off there, so its whole size is not known.
        raise RecordError("too_large", f"the record is larger than {limits.record_bytes:,} bytes, the most it may have")
    # An id that is a hash of the record needs it as it was written.
    record: Any = read_object(line, schema.array_steps) if schema.id is not None and not isinstance(line, str) else None
    try:
        record = orjson.loads(line) if record is None else record
    except orjson.JSONDecodeError as error:
        record = _parse_with_constants(line, error)
    return parse_record(record, schema, labelled=labelled, limits=limits)


def parse_record(record: Any, schema: Schema, *, labelled: bool = True, limits: Limits = LIMITS) -> ParsedRecord:
    """The sequence in one record: a mapping as JSON gives it; NumPy arrays and scalars serve as lists and numbers do.

    Args:
        labelled: False reads no label, group or split: what a record has that is only to be predicted.
        limits: Beyond them a record is `too_large`.

    Raises:
        RecordError: as for `parse_line`.
    """
    if not isinstance(record, Mapping):
        raise RecordError("not_a_record", f"expected an object with fields, not {show(record)}")
    record_id = _parse_id(record, schema)
    try:
        return _parse_fields(record, record_id, schema, labelled, limits)
    except RecordError as error:
        error.id = record_id
        raise


def _parse_fields(
    record: Mapping[str, Any], record_id: str, schema: Schema, labelled: bool, limits: Limits
) -> ParsedRecord:
    features = {name: parse_steps(_field(record, name), name, feature) for name, feature in schema.steps.items()}
    lengths = {
        name: len(values) // schema.steps[name].width if isinstance(values, list) else len(values)
        for name, values in features.items()
    }
    label_name = schema.label.name if labelled else None
    if label_name is not None and schema.label.per_step:
        lengths[label_name] = len(as_list(_field(record, label_name), label_name))
    num_steps = _common_length(lengths)
    if num_steps > limits.record_steps:
        raise RecordError("too_large", f"the record has {num_steps:,} steps, expected at most {limits.record_steps:,}")
    label = None if label_name is None else parse_label(_field(record, label_name), schema.label)
    sequence = ParsedRecord(record_id, num_steps, features, label)
    for name, feature in schema.context.items():
        # Who writes JSON often leaves nulls out.
        value = record.get(name) if feature.allows_nulls else _field(record, name)
        sequence.context[name] = parse_context(value, name, feature)
    if schema.label.next_of is not None and schema.label.kind == "step_multilabel":
        _check_bits(features[schema.label.next_of], schema.label.next_of)
    if schema.max_length is not None and num_steps > schema.max_length:
        _truncate(sequence, schema)
    if labelled and schema.group is not None:
        sequence.group = _parse_group(record, schema.group)
    if labelled and isinstance(schema.splits, SplitFromField):
        sequence.split = _parse_split(record, schema.splits.field)
    return sequence


def _check_bits(values: Values, name: str) -> None:
    """A multilabel of what comes next needs a feature of 0 and 1."""
    assert isinstance(values, np.ndarray)
    wrong = values[~((values == 0) | (values == 1) | np.isnan(values))]
    if len(wrong):
        raise RecordError("wrong_type", f"{name}: {show(float(wrong[0]))}, expected 0 or 1: it is learnt as multilabel")


def _parse_with_constants(line: bytes | bytearray | str, error: orjson.JSONDecodeError) -> Any:
    """The record in a line that only Python's own parser reads: NaN, Infinity, 1e999, or an integer of 400 digits.

    The place of such a number can be said then, and where nothing reads it, it does no harm.

    Python's `json.dumps` writes the first two by default, so they are the likeliest reason for a line to be no JSON.
    """
    seen: list[str] = []

    def constant(word: str) -> float:
        seen.append(word)
        return float(word.replace("Infinity", "inf"))

    def number(word: str) -> float:
        value = float(word)
        return value if math.isfinite(value) else constant(word)

    def integer(word: str) -> float:
        return int(word) if math.isfinite(float(word)) else constant(word)

    try:
        record = json.loads(line, parse_constant=constant, parse_float=number, parse_int=integer)
    except (ValueError, RecursionError):  # ValueError: also bytes that are no UTF-8
        seen.clear()
    if not seen:
        text = line if isinstance(line, str) else line.decode("utf-8", "backslashreplace")
        raise RecordError("not_json", f"{error.msg} (column {error.colno}): {show(text)}") from None
    return record


def _parse_id(record: Mapping[str, Any], schema: Schema) -> str:
    if schema.id is None:
        return hashlib.sha256(canonical_json(record)).hexdigest()[:32]
    if schema.id not in record:
        raise RecordError(
            "bad_id", f"{schema.id}: this field is missing; expected a string or an integer of up to 64 bits"
        )
    return _parse_key(record[schema.id], schema.id, "bad_id")


def canonical_json(record: Any) -> bytes:
    """One text for one record, however it was written down: keys sorted, no white space, arrays as lists.

    Raises:
        RecordError: `not_json`, nested so deep that no text can be made.
    """
    options = orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    try:
        return orjson.dumps(record, option=options, default=_jsonable)
    except TypeError as error:
        # Large integers and lone surrogates: only Python's own encoder writes them. How deep that one gets hangs on
        # the caller's stack, and so on the runner; orjson's limit is always the same.
        if "ecursion" in str(error):
            raise RecordError("not_json", "nested deeper than 254 levels") from None
    try:
        return json.dumps(_with_string_keys(record), sort_keys=True, default=_jsonable).encode()
    except (RecursionError, ValueError):  # ValueError: it holds itself
        raise RecordError("not_json", "nested too deep") from None


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    as_json = plain(value)
    # `repr` of an array would leave out all but its corners.
    return repr(value) if as_json is value else as_json


def _with_string_keys(value: Any) -> Any:
    """Keys that can be sorted: Python's encoder, unlike orjson, sorts before it makes strings of them."""
    if isinstance(value, Mapping):
        return {str(key): _with_string_keys(inner) for key, inner in value.items()}
    return [_with_string_keys(inner) for inner in value] if isinstance(value, list) else value


def _parse_key(value: Any, name: str, reason: Reason) -> str:
    value = plain(value)
    if isinstance(value, str):
        try:
            value.isascii() or value.encode()
        except UnicodeEncodeError:
            raise RecordError(reason, f"{name}: {value!r} is no valid Unicode") from None
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise RecordError(reason, f"{name}: {show(value)}, expected a string or an integer of up to 64 bits")


def _parse_group(record: Mapping[str, Any], name: str) -> str:
    return _parse_key(_field(record, name), name, "wrong_type")


def _parse_split(record: Mapping[str, Any], name: str) -> str:
    value = plain(_field(record, name))
    if value not in FIELD_SPLITS:
        reason: Reason = "unknown_class" if isinstance(value, str) else "wrong_type"
        raise RecordError(reason, f"{name}: {show(value)}, expected one of {', '.join(FIELD_SPLITS)}")
    return str(value)


def _field(record: Mapping[str, Any], name: str) -> Any:
    try:
        return record[name]
    except KeyError:
        raise RecordError(
            "missing_field", f"{name}: this field is missing; the record has {show(list(record))}"
        ) from None


def _common_length(lengths: dict[str, int]) -> int:
    num_steps, *others = set(lengths.values())
    if others:
        listed = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise RecordError("uneven_lengths", f"{listed} steps; expected the same number in every feature")
    if num_steps == 0:
        raise RecordError("empty_sequence", f"{', '.join(lengths)}: no step; expected at least one")
    return num_steps


def _truncate(sequence: ParsedRecord, schema: Schema) -> None:
    limit = schema.max_length
    assert limit is not None
    if schema.over_length == "reject":
        raise RecordError("over_length", f"the record has {sequence.num_steps} steps, expected at most {limit}")

    def cut(values: Any, width: int) -> Any:
        return values[: limit * width] if schema.over_length == "truncate_tail" else values[-limit * width :]

    for name, values in sequence.features.items():
        # Strings lie flat, numbers have a row for each step.
        sequence.features[name] = cut(values, schema.steps[name].width if isinstance(values, list) else 1)
    if schema.label.per_step and sequence.label is not None:
        sequence.label = cut(sequence.label, 1)
    sequence.num_steps = limit
    sequence.truncated = True
