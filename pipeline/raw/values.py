"""Converts the values of a record, as JSON gives them, to arrays; an error names the place of a wrong value."""

import enum
import itertools
from typing import Any, NoReturn

import numpy as np

from pipeline.errors import counted, quote, show
from pipeline.raw.rejects import Reason, RecordError
from pipeline.schema.features import Feature
from pipeline.schema.labels import DISTRIBUTION_TOLERANCE, MULTILABEL, Label, class_name
from pipeline.schema.record import MISSING_INTEGER, MISSING_STRING, NO_LABEL, Array, Values

_NULL_HINT = " (set missing: fill or missing: indicator in the schema to allow nulls)"

_JSON_TYPES = frozenset((str, int, float, bool, type(None), list, dict))


class _Nulls(enum.Enum):
    """The meaning of a null: a missing value, or an error, whose message may name the key of the schema to set.

    With NAN_TOO, a NaN in place of a number or of a list of numbers is a null.
    """

    MISSING = enum.auto()
    NAN_TOO = enum.auto()
    ERROR = enum.auto()
    ERROR_WITH_HINT = enum.auto()

    @property
    def allowed(self) -> bool:
        """Whether a null is a missing value."""
        return self in (_Nulls.MISSING, _Nulls.NAN_TOO)


# What to set in the schema so that a NaN is a missing value.
_NAN_HINTS = {
    _Nulls.MISSING: " (set nan_is_missing: true in the schema to read NaN as null)",
    _Nulls.ERROR_WITH_HINT: " (set missing: fill or missing: indicator, and nan_is_missing: true, in the schema to "
    "read NaN as null)",
}


def to_python(value: Any) -> Any:
    """Returns a NumPy array or a tuple as a list, a NumPy scalar as a Python scalar, and any other value unchanged."""
    if type(value) in _JSON_TYPES:
        return value
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def as_list(value: Any, name: str) -> list[Any]:
    """Returns `value` as a list.

    Raises:
        RecordError: `value` is not a list, a tuple or an array.
    """
    value = to_python(value)
    if not isinstance(value, list):
        raise RecordError("wrong_type", f"{name}: {show(value)}, expected a list with one value per step")
    return value


def parse_steps(value: Any, name: str, feature: Feature, *, nan_is_missing: bool = False) -> Values:
    """Returns the values of one step feature.

    Args:
        nan_is_missing: Whether a NaN is a null in a float32 feature that allows nulls.

    Returns:
        float32 or int64[num_steps, *shape], or a list of num_steps × width strings as bytes.

    Raises:
        RecordError: A value does not fit. The message has its place in the record, the value and what was expected.
    """
    numbers = _convert_array(value, feature, nan_is_missing) if isinstance(value, np.ndarray) else None
    if numbers is not None:
        return numbers
    steps = as_list(value, name)
    values = _parse_values(steps, name, feature, nan_is_missing)
    return values if isinstance(values, list) else values.reshape(len(steps), *feature.shape)


def _convert_array(array: Array, feature: Feature, nan_is_missing: bool) -> Array | None:
    """Returns an array that fits the schema as it is stored. Returns None if the slow parser has to find the fault."""
    if array.ndim == 0 or array.shape[1:] != feature.shape:
        return None
    if feature.dtype == "float32" and array.dtype in (np.float64, np.float32):
        # An array that nothing can change, as one of a large record, is not copied.
        is_constant = array.base is None and not array.flags.writeable
        with np.errstate(over="ignore"):  # the result is not finite then
            numbers = array.astype(np.float32, copy=not is_constant)
        if np.isfinite(numbers).all():
            return numbers
        if not (nan_is_missing and feature.allows_nulls) or np.isinf(numbers).any():
            return None
        # A NaN has a sign and other bits, which must not be stored.
        return np.where(np.isnan(numbers), np.float32(np.nan), numbers)
    if feature.dtype == "int64" and array.dtype == np.int64:
        assert feature.num_values is not None
        fits = not array.size or (array.min() >= 0 and array.max() < feature.num_values)
        return array if fits else None
    return None


def parse_context(value: Any, name: str, feature: Feature, *, nan_is_missing: bool = False) -> Values:
    """Returns the value of one context feature.

    Args:
        nan_is_missing: As for `parse_steps`.

    Returns:
        float32 or int64[*shape], or a list of width strings as bytes.

    Raises:
        RecordError: As for `parse_steps`.
    """
    # Parsed as the values of a single step. The place in a message must not have the index of that step.
    try:
        values = _parse_values([to_python(value)], name, feature, nan_is_missing)
    except RecordError as error:
        raise RecordError(error.reason, error.message.replace(f"{name}[0]", name, 1)) from None
    return values if isinstance(values, list) else values.reshape(feature.shape)


def _parse_values(steps: list[Any], name: str, feature: Feature, nan_is_missing: bool) -> Values:
    """Returns the values of all steps, flat."""
    nulls = _Nulls.MISSING if feature.allows_nulls else _Nulls.ERROR_WITH_HINT
    if nan_is_missing and feature.allows_nulls and feature.dtype == "float32":
        nulls = _Nulls.NAN_TOO
    values = _flatten(steps, name, feature.shape, nulls)
    if feature.dtype == "string":
        return _parse_strings(values, name, feature, nulls)
    if feature.dtype == "float32":
        return _parse_floats(values, name, feature.shape, nulls)
    assert feature.num_values is not None
    return _parse_integers(values, name, feature.shape, nulls, end=feature.num_values)


def parse_label(value: Any, label: Label, *, nan_is_missing: bool = False) -> Array:
    """Returns a label as `ParsedRecord.label` describes it.

    Args:
        nan_is_missing: Whether a NaN is a null, so a step without a label, in a step_regression.

    Raises:
        RecordError: As for `parse_steps`.
    """
    value = to_python(value)
    name = label.field
    if label.is_open:
        return _parse_open_label(value, label)
    if label.kind == "class":
        return np.array([_parse_class(value, name, label)], np.int64)
    if label.kind == "step_class":
        return np.array(
            [NO_LABEL if c is None else _parse_class(c, f"{name}[{i}]", label) for i, c in enumerate(value)],
            np.int64,
        )
    if label.kind == "multilabel":
        return _parse_classes(value, name, label)
    if label.kind == "step_multilabel":
        return np.stack([_parse_classes(classes, f"{name}[{i}]", label) for i, classes in enumerate(value)])
    if label.kind == "step_regression":
        return _parse_floats(_nan_to_none(value) if nan_is_missing else value, name, (), _Nulls.MISSING)
    if label.kind == "regression":
        if type(value) not in (float, int):
            raise RecordError("wrong_type", f"{name}: {show(value)}, expected a number")
        return _parse_floats([value], name, (), _Nulls.ERROR)
    return _parse_distribution(as_list(value, name), label)


def _flatten(level: list[Any], name: str, shape: tuple[int, ...], nulls: _Nulls) -> list[Any]:
    """Returns the values of nested lists in row-major order, and checks that every row has the length of the schema.

    Each pass runs in C over a whole level. The place of a fault is searched only if there is a fault. Where nulls are
    allowed, a null instead of a row is a row of nulls.
    """
    for depth, dimension in enumerate(shape):
        if nulls is _Nulls.NAN_TOO:
            level = _nan_to_none(level)
        if nulls.allowed and any(row is None for row in level):  # not `in`: a row may be an array
            level = [[None] * dimension if row is None else row for row in level]
        level = _check_types(level, {list}, name, shape[:depth], f"a list of {dimension} values", nulls)
        if not set(map(len, level)) <= {dimension}:
            position = next(i for i, row in enumerate(level) if len(row) != dimension)
            _fail(
                "wrong_shape",
                name,
                shape[:depth],
                position,
                level[position],
                f"{counted(dimension, 'value')}, not {len(level[position])}",
            )
        level = list(itertools.chain.from_iterable(level))
    return _nan_to_none(level) if nulls is _Nulls.NAN_TOO else level


def _nan_to_none(values: list[Any]) -> list[Any]:
    return [None if isinstance(value, float | np.floating) and value != value else value for value in values]


def _parse_floats(values: list[Any], name: str, shape: tuple[int, ...], nulls: _Nulls) -> Array:
    values = _check_types(values, {float, int}, name, shape, "a number", nulls)
    missing = np.array([value is None for value in values]) if nulls.allowed and None in values else None
    if missing is not None:
        values = [0.0 if value is None else value for value in values]
    try:
        with np.errstate(over="ignore"):  # reported below, with the place
            numbers = np.array(values, np.float32)
    except OverflowError:  # an integer outside the range of float64
        numbers = np.array([float(v) if abs(v) < 1e300 else np.inf for v in values], np.float32)
    finite = np.isfinite(numbers)
    if not finite.all():
        position = int(np.argmin(finite))
        hint = _NAN_HINTS.get(nulls, "") if np.isnan(numbers[position]) else ""
        expected = f"a finite number in the range of float32{hint}"
        _fail("not_finite", name, shape, position, values[position], expected)
    if missing is not None:
        numbers[missing] = np.nan
    return numbers


def _parse_integers(values: list[Any], name: str, shape: tuple[int, ...], nulls: _Nulls, *, end: int) -> Array:
    values = _check_types(values, {int}, name, shape, "an integer", nulls)
    present = [value for value in values if value is not None] if nulls.allowed else values
    if present and (min(present) < 0 or max(present) >= end):
        position = next(i for i, v in enumerate(values) if v is not None and not 0 <= v < end)
        _fail("unknown_class", name, shape, position, values[position], f"0 to {end - 1}")
    if len(present) < len(values):
        values = [MISSING_INTEGER if value is None else value for value in values]
    return np.array(values, np.int64)


def _parse_strings(values: list[Any], name: str, feature: Feature, nulls: _Nulls) -> list[bytes]:
    values = _check_types(values, {str}, name, feature.shape, "a string", nulls)
    if feature.lowercase:
        values = [None if value is None else value.lower() for value in values]
    try:
        return [MISSING_STRING if value is None else value.encode() for value in values]
    except UnicodeEncodeError as error:
        raise RecordError("wrong_type", f"{name}: {quote(error.object)} is not valid Unicode") from None


def _check_types(
    values: list[Any], types: set[type], name: str, shape: tuple[int, ...], expected: str, nulls: _Nulls
) -> list[Any]:
    """Returns the values, with NumPy values as Python values. Raises unless all are of `types`, or allowed nulls."""
    if nulls.allowed:
        types = types | {type(None)}
    if set(map(type, values)) <= types:
        return values
    values = [to_python(value) for value in values]
    position = next((i for i, value in enumerate(values) if type(value) not in types), None)
    if position is None:
        return values
    found = values[position]
    # A list instead of a number, or a number instead of a list, is a wrong shape. Everything else is a wrong type.
    misplaced = isinstance(found, int | float) and not isinstance(found, bool) if list in types else type(found) is list
    reason: Reason = "wrong_shape" if misplaced else "wrong_type"
    hint = _NULL_HINT if found is None and nulls is _Nulls.ERROR_WITH_HINT else ""
    _fail(reason, name, shape, position, found, expected + hint)


def _fail(reason: Reason, name: str, shape: tuple[int, ...], position: int, value: Any, expected: str) -> NoReturn:
    """Raises a RecordError for the value at `position` of the flat values."""
    width = int(np.prod(shape, dtype=np.int64))
    step, inner = divmod(position, width)
    place = (
        f"{name}[{step}]" + "".join(f"[{i}]" for i in np.unravel_index(inner, shape))
        if shape
        else f"{name}[{position}]"
    )
    raise RecordError(reason, f"{place}: {show(value)}, expected {expected}")


def _parse_distribution(value: list[Any], label: Label) -> Array:
    if len(value) != len(label.classes):
        raise RecordError(
            "wrong_shape",
            f"{label.field}: {counted(len(value), 'value')}, expected {len(label.classes)}: a probability for each "
            "class",
        )
    probabilities = _parse_floats(value, label.field, (), _Nulls.ERROR)
    total = float(probabilities.sum(dtype=np.float64))
    if probabilities.min() < 0 or abs(total - 1) > DISTRIBUTION_TOLERANCE:
        raise RecordError(
            "wrong_type",
            f"{label.field}: {show(value)}, expected probabilities of at least 0 that add up to 1, not {total:g}",
        )
    return probabilities


def _parse_classes(value: Any, place: str, label: Label) -> Array:
    """Returns int64[classes] of 0 and 1 for a list of class names, and of NO_LABEL for a step whose label is null."""
    if value is None and label.per_step:
        return np.full(len(label.classes), NO_LABEL, np.int64)
    present = np.zeros(len(label.classes), np.int64)
    for name in _check_list(value, place):
        present[_parse_class(name, place, label)] = 1
    return present


def _check_list(value: Any, place: str) -> list[Any]:
    value = to_python(value)
    if not isinstance(value, list):
        raise RecordError("wrong_type", f"{place}: {show(value)}, expected a list of class names")
    return value


def _parse_class(value: Any, place: str, label: Label) -> int:
    value = _check_class(value, place)
    try:
        return label.class_index[value if type(value) is str else class_name(value)]
    except KeyError:
        hint = f": {label.unknown_class_hint};" if label.unknown_class_hint else ","
        known = show(list(label.class_index))
        raise RecordError("unknown_class", f"{place}: {show(value)}{hint} expected one of {known}") from None


def _check_class(value: Any, place: str) -> bool | int | str:
    value = to_python(value)
    if not isinstance(value, (str, int)):  # noqa: UP038 - `str | int` creates a type object for every record
        raise RecordError("wrong_type", f"{place}: {show(value)}, expected the name of a class")
    return value


def _parse_open_label(value: Any, label: Label) -> Array:
    """Returns the classes that a label names, before they are known: object[1], or object[num_steps] if it is per step.

    Each value is a tuple of classes. It is empty for a step without a label.
    """
    values = value if label.per_step else [value]
    places = [f"{label.field}[{i}]" if label.per_step else label.field for i in range(len(values))]
    named: Array = np.empty(len(values), object)
    for i, (inner, place) in enumerate(zip(values, places, strict=True)):
        if inner is None and label.per_step:
            named[i] = ()
        elif label.kind in MULTILABEL:
            named[i] = tuple(_check_class(name, place) for name in _check_list(inner, place))
        else:
            named[i] = (_check_class(inner, place),)
    return named
