"""Parses a line of JSON with lists of numbers as arrays, without a Python object for each number.

simdjson flattens nested lists, so this module checks the length of every row. A feature that is not an array of plain
numbers in the shape of the schema stays a list. `records.py` then parses it value by value, and finds the reason.
"""

import contextlib
import itertools
import math
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson
import simdjson

from pipeline.schema.features import Feature
from pipeline.schema.record import Array

BUFFER_TYPES: dict[str, tuple[Any, str]] = {"float32": ("d", "<f8"), "int64": ("i", "<i8")}

# A line above the first size is read in pieces of about the second size, in bytes.
_LARGE_BYTES, _PIECE_BYTES = 4 * 2**20, 2**17
# With more names than this, the time that simdjson's lookups take would be most of the time of the line.
MANY_NAMES = 256
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z)|[\[\]{}]', re.DOTALL)
_COLON = re.compile(rb"\s*:")
_QUOTE, _OPENING = ord('"'), b"[{"

# One parser per thread. A parser must not read a line while an object of its previous line is alive.
_local = threading.local()


class LargeList(NamedTuple):
    """A list in a line that is read in pieces.

    Attributes:
        name: Its field.
        start, stop: The positions of its brackets.
        depth: How many lists are around a value of one of its steps.
    """

    name: str
    start: int
    stop: int
    depth: int


def read_object(
    line: bytes | bytearray, steps: Mapping[str, Feature], lists: Sequence[LargeList] | None = None
) -> dict[str, Any] | None:
    """Parses a line as `orjson.loads` does, except that step features of numbers become arrays.

    Args:
        steps: The step features by name.
        lists: What `find_large_lists` found, if it was called.

    Returns:
        The record by field. A step feature that fits the schema is float64[num_steps, *shape] for the dtype float32
        (float32 in a large record), and int64[num_steps, *shape] for the dtype int64. None if the line is not an
        object with unique keys, or has a number that simdjson does not read: the slow parser has to decide then.
    """
    if lists is None and is_large(line):
        lists = find_large_lists(line, steps)
    return _read_large(line, steps, lists) if lists else _read_object(line, steps)


def is_large(line: bytes | bytearray) -> bool:
    """Returns whether a line is so large that its long lists are read in pieces."""
    return len(line) > _LARGE_BYTES


def _read_object(line: bytes | bytearray, steps: Mapping[str, Feature]) -> dict[str, Any] | None:
    if line[:1] != b"{":  # includes a byte order mark, which simdjson would skip
        return None
    try:
        document = parse_document(line)
        names = list(document)
        if "\0" in "".join(names):  # simdjson's lookup ends a name at a null character
            return None
        # Each lookup searches all names. `items` does not, but converts lists to Python objects, too.
        many = len(names) > MANY_NAMES
        record = dict(document.items()) if many else {name: document[name] for name in names}
        if len(record) < len(document):  # of duplicate keys, simdjson returns the first, other parsers the last
            return None
        return _with_arrays(record, steps, brackets=line.count(b"["))
    except (ValueError, RuntimeError):
        return None


def _read_large(
    line: bytes | bytearray, steps: Mapping[str, Feature], lists: Sequence[LargeList]
) -> dict[str, Any] | None:
    """Does the same as `_read_object` in little more memory than the line and its numbers take.

    A parser needs several times the memory of the line. So this function parses each large list of numbers in pieces,
    and the rest of the line with empty lists in their places. If the rest is valid JSON, and each piece is valid JSON
    between brackets, then the whole line is valid JSON.
    """
    found = {}
    for large in lists:
        if large.name in steps:
            array = _read_pieces(line, large, steps[large.name])
            if array is None:
                return None
            found[large.name] = array
    record = _read_object(empty_lists(line, lists), steps)
    # If keys are duplicates, or a list has no key, then the rest is not a record either.
    return None if record is None else record | found


def find_large_lists(
    line: bytes | bytearray, steps: Mapping[str, Feature], others: Mapping[str, int] | None = None
) -> list[LargeList]:
    """Returns the lists that are read in pieces; none if the line is not large.

    Args:
        steps: The step features by field. Those of numbers are read in pieces.
        others: The depth of the lists of further fields. `read_object` reads an empty list in the place of each.
    """
    if not is_large(line):
        return []
    depths = {name: len(feature.shape) for name, feature in steps.items() if feature.dtype in BUFFER_TYPES}
    depths |= others or {}
    return [
        LargeList(name, start, stop, depths[name])
        for name, start, stop in _find_lists(line)
        if name in depths and stop - start > _LARGE_BYTES // 4
    ]


def empty_lists(line: bytes | bytearray, lists: Iterable[LargeList]) -> bytes:
    """Returns a line with empty lists in place of those of `find_large_lists`."""
    parts, end = [], 0
    for large in lists:
        parts.append(bytes(line[end : large.start + 1]))
        end = large.stop
    return b"".join([*parts, bytes(line[end:])])


def cut_list(line: bytes | bytearray, large: LargeList) -> Iterator[bytes]:
    """Yields the steps of a list in pieces of about _PIECE_BYTES, without the commas in between."""
    # The comma between two steps follows the brackets that close a row; without rows it is any comma.
    comma = re.compile(rb"\s*".join([rb"\]"] * large.depth + [b","]))
    begin = large.start + 1
    while begin <= large.stop:
        match = comma.search(line, begin + _PIECE_BYTES, large.stop)
        end = match.end() - 1 if match else large.stop
        yield bytes(line[begin:end])
        begin = end + 1


def _find_lists(line: bytes | bytearray) -> Iterator[tuple[str, int, int]]:
    """Yields (key, position of "[", position of "]") for each top-level list, if the line is a valid object."""
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


def _read_pieces(line: bytes | bytearray, large: LargeList, feature: Feature) -> Array | None:
    """Returns the numbers of a list; None if it is not an array that fits the feature.

    The array is read-only, so that nothing needs a copy of it.
    """
    dtype = np.float32 if feature.dtype == "float32" else np.int64
    joined = np.empty((_count_steps(line, large, feature.shape), *feature.shape), dtype)
    place = 0
    for piece in cut_list(line, large):
        record = _read_object(b'{"":[%b]}' % piece, {"": feature})
        array = None if record is None else record[""]
        if not isinstance(array, np.ndarray) or not 0 < len(array) <= len(joined) - place:
            return None
        part = joined[place : place + len(array)]
        with np.errstate(over="ignore"):
            part[:] = array
        if feature.dtype == "float32" and not np.isfinite(part).all():
            return None
        place += len(array)
    joined.flags.writeable = False
    return joined if place == len(joined) else None


def _count_steps(line: bytes | bytearray, large: LargeList, shape: tuple[int, ...]) -> int:
    """Returns the number of steps of a list of numbers."""
    if not shape:
        return line.count(b",", large.start, large.stop) + 1
    return line.count(b"[", large.start + 1, large.stop) // sum(math.prod(shape[:depth]) for depth in range(len(shape)))


def count_keys(line: bytes | bytearray) -> int:
    """Returns how many keys the object has that a line holds; each duplicate counts.

    Args:
        line: Valid JSON.
    """
    try:
        return len(parse_document(line))
    except (TypeError, ValueError, RuntimeError):  # what simdjson does not read
        return len(list_keys(line))


def list_keys(line: bytes | bytearray) -> list[str]:
    """Returns the keys of the object that a line holds, in their order and with duplicates. See `count_keys`."""
    keys, depth = [], 0
    for token in _TOKENS.finditer(line):
        kind = line[token.start()]
        if kind == _QUOTE:
            if depth == 1 and _COLON.match(line, token.end()):
                keys.append(orjson.loads(token.group()))
        else:
            depth += 1 if kind in _OPENING else -1
    return keys


def parse_document(line: bytes | bytearray) -> Any:
    """Returns simdjson's view of a line, which must be dropped before the next line is parsed.

    Raises:
        ValueError: The line is not JSON, or has a number that simdjson does not read.
        RuntimeError: As ValueError.
    """
    try:
        return _local.parser.parse(line)
    except (AttributeError, RuntimeError):
        # The thread has no parser yet, or an object of the previous line is still alive, for example in a traceback.
        _local.parser = simdjson.Parser()
        return _local.parser.parse(line)


def _with_arrays(record: dict[str, Any], steps: Mapping[str, Feature], *, brackets: int) -> dict[str, Any]:
    """Replaces simdjson's views in `record` by arrays, lists and dicts. `brackets` is the number of "[" in the line."""
    found = 0
    views = {}
    for name, value in record.items():
        if isinstance(value, simdjson.Object):
            record[name] = value.as_dict()
        elif isinstance(value, simdjson.Array):
            views[name] = value
            found += 1
            feature = steps.get(name)
            rows = None if feature is None else count_rows(value, feature.shape)
            if rows is None:
                record[name] = value.as_list()
            else:
                found += rows
    # Each view and each row has one opening bracket. If the line has no other brackets, no row has a list among its
    # numbers. Else each number has to be checked.
    flat = found == brackets
    for name, value in views.items():
        if record[name] is value:
            array = _to_array(value, steps[name], flat)
            record[name] = value.as_list() if array is None else array
    return record


def count_rows(steps: Any, shape: tuple[int, ...]) -> int | None:
    """Returns the number of lists within the list of steps; None if one of them does not have the length of `shape`."""
    rows, level = 0, len(steps)
    try:
        for depth, dimension in enumerate(shape):
            lists = list(flatten(steps, depth))
            # A string or an object may have the same length as a row.
            if not (set(map(type, lists)) <= {simdjson.Array} and set(map(len, lists)) <= {dimension}):
                return None
            rows += level
            level *= dimension
    except TypeError:  # a number instead of a row
        return None
    return rows


def flatten(steps: Any, depth: int) -> Any:
    """Returns an iterator over the values that are `depth` lists deep in the list of steps."""
    for _ in range(depth):
        steps = itertools.chain.from_iterable(steps)
    return steps


def _to_array(steps: Any, feature: Feature, flat: bool) -> Array | None:
    """Returns the numbers of a list whose rows have the right lengths; None if a value is not such a number."""
    if feature.dtype not in BUFFER_TYPES:
        return None
    if not flat and not set(map(type, flatten(steps, len(feature.shape)))) <= {int, float}:
        return None
    of_type, dtype = BUFFER_TYPES[feature.dtype]
    try:
        numbers = np.frombuffer(steps.as_buffer(of_type=of_type), dtype)
    except (TypeError, ValueError):  # a null, a string, or an integer that needs 64 bits without a sign
        return None
    return numbers.reshape(len(steps), *feature.shape)
