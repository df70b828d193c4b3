"""Turns the values of a record, as JSON gives them, into arrays, or says which value does not fit and where."""

import itertools
from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias

import numpy as np

from pipeline.reasons import Reason, RecordError, show
from pipeline.schema import Feature, Label, class_name

# Class index of a step without a label: its weight is 0.
NO_LABEL = -1
# Probabilities are often rounded to a few digits before they are written.
_DISTRIBUTION_TOLERANCE = 1e-3
# What a number of a label is read as.
_NUMBER = Feature(dtype="float32")

Values: TypeAlias = np.ndarray[Any, Any] | list[bytes]


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def as_list(value: Any, name: str) -> list[Any]:
    value = plain(value)
    if not isinstance(value, list):
        raise RecordError("wrong_type", f"{name}: {show(value)}, expected a list with one value a step")
    return value


def parse_feature(value: Any, name: str, feature: Feature) -> Values:
    """float32 or int64[num_steps, *shape], or num_steps × width strings, of one step feature.

    Raises:
        RecordError: says the place in the record, the value and what was expected.
    """
    steps = as_list(value, name)
    values = _flatten(steps, name, feature.shape)
    if feature.dtype == "string":
        return _parse_strings(values, name, feature.shape)
    numbers = (_parse_floats if feature.dtype == "float32" else _parse_integers)(values, name, feature)
    return numbers.reshape(len(steps), *feature.shape)


def parse_label(value: Any, label: Label) -> np.ndarray[Any, Any]:
    """A label as `Sequence.label` holds it.

    Raises:
        RecordError: as for `parse_feature`.
    """
    value = plain(value)
    if label.kind == "class":
        return np.array([_parse_class(value, label.name, label.class_index)], np.int64)
    if label.kind == "step_class":
        index = label.class_index
        return np.array(
            [NO_LABEL if c is None else _parse_class(c, f"{label.name}[{i}]", index) for i, c in enumerate(value)],
            np.int64,
        )
    if label.kind == "regression":
        if type(value) not in (float, int):
            raise RecordError("wrong_type", f"{label.name}: {show(value)}, expected a number")
        return _parse_floats([value], label.name, _NUMBER)
    return _parse_distribution(as_list(value, label.name), label)


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
    values = [plain(value) for value in values]
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
    raise RecordError(reason, f"{place}: {show(value)}, expected {expected}")


def _parse_distribution(value: list[Any], label: Label) -> np.ndarray[Any, Any]:
    if len(value) != len(label.classes):
        raise RecordError(
            "wrong_shape",
            f"{label.name}: {len(value)} values, expected {len(label.classes)}: a probability for each class",
        )
    probabilities = _parse_floats(value, label.name, _NUMBER)
    total = float(probabilities.sum(dtype=np.float64))
    if probabilities.min() < 0 or abs(total - 1) > _DISTRIBUTION_TOLERANCE:
        raise RecordError(
            "wrong_type",
            f"{label.name}: {show(value)}, expected probabilities of at least 0 that add up to 1, not {total:g}",
        )
    return probabilities


def _parse_class(value: Any, place: str, index: Mapping[str, int]) -> int:
    value = plain(value)
    if not isinstance(value, str | int):
        raise RecordError("wrong_type", f"{place}: {show(value)}, expected the name of a class")
    try:
        return index[class_name(value)]
    except KeyError:
        raise RecordError("unknown_class", f"{place}: {show(value)}, expected one of {show(list(index))}") from None
