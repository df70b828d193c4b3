"""Parses one raw record into a sequence, or says with a reason why it cannot be used."""

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, TypeAlias, get_args

import numpy as np
import orjson

from pipeline.schema import FIELD_SPLITS, Feature, Label, Schema, SplitFromField, class_name

Reason = Literal[
    "not_json",
    "not_a_record",
    "missing_field",
    "wrong_type",
    "wrong_shape",
    "not_finite",
    "unknown_class",
    "empty_sequence",
    "over_length",
    "uneven_lengths",
    "bad_id",
    "duplicate_id",
    "too_large",
]
REASONS: tuple[str, ...] = get_args(Reason)

# Bytes of one raw record. The file format ends at 2 GiB, TensorFlow's parser with a misleading word before that.
MAX_RECORD_BYTES = 64 * 2**20

# Class index of a step without a label: its weight is 0.
NO_LABEL = -1
# Probabilities are often rounded to a few digits before they are written.
_DISTRIBUTION_TOLERANCE = 1e-3

Values: TypeAlias = np.ndarray[Any, Any] | list[bytes]


class RecordError(Exception):
    """A record that cannot be used. `reason` is one of REASONS, `id` is known unless it is what is wrong."""

    def __init__(self, reason: Reason, message: str, record_id: str | None = None) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.message = message
        self.id = record_id


@dataclasses.dataclass(slots=True)
class Sequence:
    """One record that fits the schema.

    Attributes:
        id: Key of the record.
        num_steps: Time steps, at least 1.
        features: By name: float32[num_steps, *shape], int64[num_steps, *shape], or num_steps × width strings as bytes.
        label: class: int64[1]; step_class: int64[num_steps], NO_LABEL where there is none; distribution:
            float32[classes]; regression: float32[1].
        group: What decides the split when the schema has a group, else None.
        split: The split that the record names itself, else None.
        truncated: Steps beyond `max_length` were cut off.
    """

    id: str
    num_steps: int
    features: dict[str, Values]
    label: np.ndarray[Any, Any]
    group: str | None = None
    split: str | None = None
    truncated: bool = False


def parse_line(line: bytes | str, schema: Schema) -> Sequence:
    """The sequence in one line of JSON Lines.

    Raises:
        RecordError: says the reason, the place in the record, the value and what was expected.
    """
    if len(line) > MAX_RECORD_BYTES:
        # A reader cuts the line off there, so its whole size is not known.
        raise RecordError("too_large", f"the record is larger than {MAX_RECORD_BYTES:,} bytes, the most it may have")
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        record = _parse_with_constants(line, error)
    return parse_record(record, schema)


def parse_record(record: Any, schema: Schema) -> Sequence:
    """The sequence in one record: a mapping as JSON gives it; NumPy arrays and scalars serve as lists and numbers do.

    Raises:
        RecordError: as for `parse_line`.
    """
    if not isinstance(record, Mapping):
        raise RecordError("not_a_record", f"expected an object with fields, not {_show(record)}")
    record_id = _parse_id(record, schema)
    try:
        return _parse_fields(record, record_id, schema)
    except RecordError as error:
        error.id = record_id
        raise


def _parse_fields(record: Mapping[str, Any], record_id: str, schema: Schema) -> Sequence:
    features = {name: _parse_feature(record, name, feature) for name, feature in schema.steps.items()}
    lengths = {
        name: len(values) // schema.steps[name].width if isinstance(values, list) else len(values)
        for name, values in features.items()
    }
    if schema.label.per_step:
        lengths[schema.label.name] = len(_list(_field(record, schema.label.name), schema.label.name))
    num_steps = _common_length(lengths)
    label = _parse_label(_field(record, schema.label.name), schema.label)
    sequence = Sequence(record_id, num_steps, features, label)
    if schema.max_length is not None and num_steps > schema.max_length:
        _truncate(sequence, schema)
    if schema.group is not None:
        sequence.group = _parse_group(record, schema.group)
    if isinstance(schema.splits, SplitFromField):
        sequence.split = _parse_split(record, schema.splits.field)
    return sequence


def _parse_with_constants(line: bytes | str, error: orjson.JSONDecodeError) -> Any:
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
        raise RecordError("not_json", f"{error.msg} (column {error.colno}): {_show(text)}") from None
    return record


def _parse_id(record: Mapping[str, Any], schema: Schema) -> str:
    if schema.id is None:
        return hashlib.sha256(canonical(record)).hexdigest()[:32]
    if schema.id not in record:
        raise RecordError("bad_id", f"{schema.id}: this field is missing; expected a string or an integer")
    return _parse_key(record[schema.id], schema.id, "bad_id")


def canonical(record: Any) -> bytes:
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
    plain = _plain(value)
    # `repr` of an array would leave out all but its corners.
    return repr(value) if plain is value else plain


def _with_string_keys(value: Any) -> Any:
    """Keys that can be sorted: Python's encoder, unlike orjson, sorts before it makes strings of them."""
    if isinstance(value, Mapping):
        return {str(key): _with_string_keys(inner) for key, inner in value.items()}
    return [_with_string_keys(inner) for inner in value] if isinstance(value, list) else value


def _parse_key(value: Any, name: str, reason: Reason) -> str:
    value = _plain(value)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RecordError(reason, f"{name}: {value!r} is no valid Unicode") from None
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise RecordError(reason, f"{name}: {_show(value)}, expected a string or an integer")


def _parse_group(record: Mapping[str, Any], name: str) -> str:
    return _parse_key(_field(record, name), name, "wrong_type")


def _parse_split(record: Mapping[str, Any], name: str) -> str:
    value = _plain(_field(record, name))
    if value not in FIELD_SPLITS:
        reason: Reason = "unknown_class" if isinstance(value, str) else "wrong_type"
        raise RecordError(reason, f"{name}: {_show(value)}, expected one of {', '.join(FIELD_SPLITS)}")
    return str(value)


def _field(record: Mapping[str, Any], name: str) -> Any:
    try:
        return record[name]
    except KeyError:
        raise RecordError(
            "missing_field", f"{name}: this field is missing; the record has {_show(list(record))}"
        ) from None


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _list(value: Any, name: str) -> list[Any]:
    value = _plain(value)
    if not isinstance(value, list):
        raise RecordError("wrong_type", f"{name}: {_show(value)}, expected a list with one value a step")
    return value


def _parse_feature(record: Mapping[str, Any], name: str, feature: Feature) -> Values:
    steps = _list(_field(record, name), name)
    values = _flatten(steps, name, feature.shape)
    if feature.dtype == "string":
        return _parse_strings(values, name, feature.shape)
    numbers = (_parse_floats if feature.dtype == "float32" else _parse_integers)(values, name, feature)
    return numbers.reshape(len(steps), *feature.shape)


def _flatten(level: list[Any], name: str, shape: tuple[int, ...]) -> list[Any]:
    """All values of nested lists, row by row, after a check that every row is a list as wide as the schema says.

    Each pass runs in C over a whole level; the place of a fault is looked for only when there is one.
    """
    for depth, dimension in enumerate(shape):
        level = _of_types(level, {list}, name, shape[:depth], f"a list of {dimension} values")
        if not set(map(len, level)) <= {dimension}:
            position = next(i for i, row in enumerate(level) if len(row) != dimension)
            _fail(
                "wrong_shape",
                name,
                shape[:depth],
                position,
                level[position],
                f"{dimension} values, not {len(level[position])}",
            )
        level = list(itertools.chain.from_iterable(level))
    return level


def _parse_floats(values: list[Any], name: str, feature: Feature) -> np.ndarray[Any, Any]:
    values = _of_types(values, {float, int}, name, feature.shape, "a number")
    try:
        with np.errstate(over="ignore"):  # found below, and said better
            numbers = np.array(values, np.float32)
    except OverflowError:  # an integer beyond the range of a double
        numbers = np.array([float(v) if abs(v) < 1e300 else np.inf for v in values], np.float32)
    finite = np.isfinite(numbers)
    if not finite.all():
        position = int(np.argmin(finite))
        _fail("not_finite", name, feature.shape, position, values[position], "a finite number in the range of float32")
    return numbers


def _parse_integers(values: list[Any], name: str, feature: Feature) -> np.ndarray[Any, Any]:
    values = _of_types(values, {int}, name, feature.shape, "an integer")
    assert feature.num_values is not None
    if values and (min(values) < 0 or max(values) >= feature.num_values):
        position = next(i for i, v in enumerate(values) if not 0 <= v < feature.num_values)
        _fail("unknown_class", name, feature.shape, position, values[position], f"0 to {feature.num_values - 1}")
    return np.array(values, np.int64)


def _parse_strings(values: list[Any], name: str, shape: tuple[int, ...]) -> list[bytes]:
    values = _of_types(values, {str}, name, shape, "a string")
    try:
        return [value.encode() for value in values]
    except UnicodeEncodeError as error:
        raise RecordError("wrong_type", f"{name}: {error.object!r} is no valid Unicode") from None


def _of_types(values: list[Any], types: set[type], name: str, shape: tuple[int, ...], expected: str) -> list[Any]:
    """`values`, all of which are of `types`; NumPy's arrays and scalars among them become Python's."""
    if set(map(type, values)) <= types:
        return values
    values = [_plain(value) for value in values]
    position = next((i for i, value in enumerate(values) if type(value) not in types), None)
    if position is None:
        return values
    found = values[position]
    # A list where a number was due, or a number where a list was, is a matter of shape; everything else one of type.
    misplaced = isinstance(found, int | float) and not isinstance(found, bool) if list in types else type(found) is list
    _fail("wrong_shape" if misplaced else "wrong_type", name, shape, position, found, expected)


def _fail(reason: Reason, name: str, shape: tuple[int, ...], position: int, value: Any, expected: str) -> NoReturn:
    width = int(np.prod(shape, dtype=np.int64))
    step, inner = divmod(position, width)
    place = (
        f"{name}[{step}]" + "".join(f"[{i}]" for i in np.unravel_index(inner, shape))
        if shape
        else f"{name}[{position}]"
    )
    raise RecordError(reason, f"{place}: {_show(value)}, expected {expected}")


def _common_length(lengths: dict[str, int]) -> int:
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise RecordError("uneven_lengths", f"{listed} steps; expected the same number in every feature")
    num_steps = next(iter(lengths.values()))
    if num_steps == 0:
        raise RecordError("empty_sequence", f"{', '.join(lengths)}: no step; expected at least one")
    return num_steps


def _parse_label(value: Any, label: Label) -> np.ndarray[Any, Any]:
    value = _plain(value)
    if label.kind == "class":
        return np.array([_parse_class(value, label.name, label.class_index)], np.int64)
    if label.kind == "step_class":
        index = label.class_index
        return np.array(
            [NO_LABEL if c is None else _parse_class(c, f"{label.name}[{i}]", index) for i, c in enumerate(value)],
            np.int64,
        )
    number = Feature(dtype="float32")
    if label.kind == "regression":
        if type(value) not in (float, int):
            raise RecordError("wrong_type", f"{label.name}: {_show(value)}, expected a number")
        return _parse_floats([value], label.name, number)
    return _parse_distribution(_list(value, label.name), label, number)


def _parse_distribution(value: list[Any], label: Label, number: Feature) -> np.ndarray[Any, Any]:
    if len(value) != len(label.classes):
        raise RecordError(
            "wrong_shape",
            f"{label.name}: {len(value)} values, expected {len(label.classes)}: a probability for each class",
        )
    probabilities = _parse_floats(value, label.name, number)
    total = float(probabilities.sum(dtype=np.float64))
    if probabilities.min() < 0 or abs(total - 1) > _DISTRIBUTION_TOLERANCE:
        raise RecordError(
            "wrong_type",
            f"{label.name}: {_show(value)}, expected probabilities of at least 0 that add up to 1, not {total:g}",
        )
    return probabilities


def _parse_class(value: Any, place: str, index: Mapping[str, int]) -> int:
    value = _plain(value)
    if not isinstance(value, str | int):
        raise RecordError("wrong_type", f"{place}: {_show(value)}, expected the name of a class")
    try:
        return index[class_name(value)]
    except KeyError:
        raise RecordError("unknown_class", f"{place}: {_show(value)}, expected one of {_show(list(index))}") from None


def _truncate(sequence: Sequence, schema: Schema) -> None:
    limit = schema.max_length
    assert limit is not None
    if schema.over_length == "reject":
        raise RecordError("over_length", f"the record has {sequence.num_steps} steps, expected at most {limit}")

    def cut(values: Any, width: int) -> Any:
        return values[: limit * width] if schema.over_length == "truncate_tail" else values[-limit * width :]

    for name, values in sequence.features.items():
        # Strings lie flat, numbers have a row for each step.
        sequence.features[name] = cut(values, schema.steps[name].width if isinstance(values, list) else 1)
    if schema.label.per_step:
        sequence.label = cut(sequence.label, 1)
    sequence.num_steps = limit
    sequence.truncated = True


def _show(value: Any) -> str:
    """A value as it may stand in a message: cut short, without control characters."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__} that cannot be shown"
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text if len(text) <= 60 else text[:57] + "..."
