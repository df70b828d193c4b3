"""Reads a line of JSON with arrays in the place of lists of numbers: no number becomes a Python object.

simdjson flattens nested lists, so the width of every row is checked here. What is not plain numbers in the shape that
the schema says is left to the exact way of `records.py`, which finds the reason.
"""

import contextlib
import itertools
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orjson
import simdjson

from pipeline.schema.features import Feature
from pipeline.schema.record import Array

_BUFFER_TYPES: dict[str, tuple[Any, str]] = {"float32": ("d", "<f8"), "int64": ("i", "<i8")}

# A line that is read in pieces, and what a piece is.
_LARGE_BYTES, _PIECE_BYTES = 4 * 2**20, 2**20
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z)|[\[\]{}]', re.DOTALL)
_QUOTE, _OPENING = ord('"'), b"[{"

# A parser of each thread: what it gave out last must be gone before it reads on.
_local = threading.local()


def read_object(line: bytes | bytearray, steps: Mapping[str, Feature]) -> dict[str, Any] | None:
    """The record in a line as `orjson.loads` gives it, but for the step features of numbers.

    Args:
        steps: The step features by name. One of float32 comes as float64[num_steps, *shape] (float32 in a large
            record), one of int64 as int64[num_steps, *shape], where that is what the line has.

    Returns:
        None where the line is anything but an object whose keys are all different, or holds a number that simdjson
        does not read: only the exact way can say what it is.
    """
    return _read_object(line, steps) if len(line) <= _LARGE_BYTES else _read_large(line, steps)


def _read_object(line: bytes | bytearray, steps: Mapping[str, Feature]) -> dict[str, Any] | None:
    if line[:1] != b"{":  # also a byte order mark, which simdjson would skip
        return None
    try:
        document = _parse(line)
        names = list(document)
        if "\0" in "".join(names):  # simdjson's own look-up ends a name there
            return None
        record = {name: document[name] for name in names}
        if len(record) < len(document):  # of equal keys, simdjson finds the first and everyone else takes the last
            return None
        return _with_arrays(record, steps, brackets=line.count(b"["))
    except (ValueError, RuntimeError):
        return None


def _read_large(line: bytes | bytearray, steps: Mapping[str, Feature]) -> dict[str, Any] | None:
    """The same in little more memory than the line and its numbers: what a parser builds of a line is several lines.

    The lists of numbers are read in pieces, and the rest of the line with empty lists in their places. If the rest is
    JSON and each piece, between brackets, is too, then the whole is. Only whether it is rests on the parser.
    """
    rest, end, found = [], 0, {}
    for name, start, stop in _find_lists(line):
        feature = steps.get(name)
        if feature is None or feature.dtype not in _BUFFER_TYPES or stop - start <= _LARGE_BYTES // 4:
            continue
        array = _read_pieces(line, start, stop, feature)
        if array is None:
            return None
        found[name] = array
        rest.append(bytes(line[end : start + 1]))
        end = stop
    rest.append(bytes(line[end:]))
    record = _read_object(b"".join(rest), steps)
    # Of equal keys, or where a list has no key, the rest is no record either.
    return None if record is None else record | found


def _find_lists(line: bytes | bytearray) -> Iterator[tuple[str, int, int]]:
    """Key, first and last position of each list of a record, if the line is one."""
    depth, start, key = 0, 0, b""
    for token in _TOKENS.finditer(line):
        kind = line[token.start()]
        if kind == _QUOTE:
            key = token.group() if depth == 1 else key
        elif kind in _OPENING:
            depth += 1
            start = token.start() if depth == 2 else start
        else:
            depth -= 1
            if depth == 1 and line[start] == _OPENING[0]:
                with contextlib.suppress(ValueError):
                    yield orjson.loads(key), start, token.start()


def _read_pieces(line: bytes | bytearray, start: int, stop: int, feature: Feature) -> Array | None:
    """The numbers of a list between two brackets."""
    # A comma between two steps: after the bracket that closes a row, or any.
    comma = re.compile(rb"\s*".join([rb"\]"] * len(feature.shape) + [b","]))
    pieces, begin = [], start + 1
    while begin <= stop:
        match = comma.search(line, begin + _PIECE_BYTES, stop)
        end = match.end() - 1 if match else stop
        record = _read_object(b'{"":[%b]}' % bytes(line[begin:end]), {"": feature})
        array = None if record is None else record[""]
        if not isinstance(array, np.ndarray) or not len(array):
            return None
        if feature.dtype == "float32":
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
            if not np.isfinite(array).all():
                return None
        pieces.append(array)
        begin = end + 1
    joined = np.empty((sum(map(len, pieces)), *feature.shape), pieces[0].dtype)
    place = len(joined)
    while pieces:  # each goes when it is copied
        piece = pieces.pop()
        place -= len(piece)
        joined[place : place + len(piece)] = piece
    return joined


def _parse(line: bytes | bytearray) -> Any:
    try:
        return _local.parser.parse(line)
    except (AttributeError, RuntimeError):  # none yet; or someone, say a traceback, still holds on to the record before
        _local.parser = simdjson.Parser()
        return _local.parser.parse(line)


def _with_arrays(record: dict[str, Any], steps: Mapping[str, Feature], *, brackets: int) -> dict[str, Any]:
    """Replaces simdjson's views by arrays, or by Python's lists and dicts."""
    found = 0
    views = {}
    for name, value in record.items():
        if isinstance(value, simdjson.Object):
            record[name] = value.as_dict()
        elif isinstance(value, simdjson.Array):
            views[name] = value
            found += 1
            feature = steps.get(name)
            rows = None if feature is None else _count_rows(value, feature.shape)
            if rows is None:
                record[name] = value.as_list()
            else:
                found += rows
    # Every view has the bracket that opens it, and every row its own. If the line has no other, no row hides a list
    # among its numbers; else each number is looked at.
    flat = found == brackets
    for name, value in views.items():
        if record[name] is value:
            array = _to_array(value, steps[name], flat)
            record[name] = value.as_list() if array is None else array
    return record


def _count_rows(steps: Any, shape: tuple[int, ...]) -> int | None:
    """How many lists lie in the list of steps, if each has the length that the shape says; else None."""
    rows, level = 0, len(steps)
    try:
        for depth, dimension in enumerate(shape):
            lists = list(_flatten(steps, depth))
            # A word, or an object, may be as long as a row.
            if not (set(map(type, lists)) <= {simdjson.Array} and set(map(len, lists)) <= {dimension}):
                return None
            rows += level
            level *= dimension
    except TypeError:  # a number where a row should be
        return None
    return rows


def _flatten(steps: Any, depth: int) -> Any:
    for _ in range(depth):
        steps = itertools.chain.from_iterable(steps)
    return steps


def _to_array(steps: Any, feature: Feature, flat: bool) -> Array | None:
    """The numbers of a list whose rows have the right lengths, or None where there is something else."""
    if feature.dtype not in _BUFFER_TYPES:
        return None
    if not flat and not set(map(type, _flatten(steps, len(feature.shape)))) <= {int, float}:
        return None
    of_type, dtype = _BUFFER_TYPES[feature.dtype]
    try:
        numbers = np.frombuffer(steps.as_buffer(of_type=of_type), dtype)
    except (TypeError, ValueError):  # a null, a word, an integer of 64 bits without a sign
        return None
    return numbers.reshape(len(steps), *feature.shape)
