"""Turns serialized Examples of numbers into padded arrays, many records at a time and without TensorFlow.

An Example as `prepare` writes it is a header, then for each feature, sorted by name, a header and the array's own bytes
(pipeline/examples.py). So the headers of all records are read at once, one vectorised step for each feature, and a
batch is a copy of bytes to where they belong. tf.io.parse_example copies numbers three times: measured, 100 numbers a
step, 0.4 GB/s on two cores against 1.5 GB/s here on one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.format.examples import decode_varints, feature_header, feature_order
from pipeline.format.stored_fields import StoredField
from pipeline.schema.record import Array

# Wire tags: a length-delimited field 1, and what kind of list a feature is.
_FIELD_1, _FLOAT_LIST, _INT64_LIST = b"\x0a", b"\x12", b"\x1a"
# A length that is written in more bytes than that is beyond 2 GiB, where a protobuf message ends.
_VARINT_BYTES = 5
# Of each record so few are taken one by one, which is faster then than a slice for each record.
_FEW_BYTES = 16


class UnexpectedLayout(ValueError):
    """Bytes that are no Example as `prepare` writes it by the schema at hand."""


@dataclasses.dataclass(frozen=True)
class ValueRanges:
    """Where the numbers of each field lie in the data: int64[fields, records]."""

    start: Array
    stop: Array


def locate_values(data: bytes, begin: Array, end: Array, fields: Sequence[StoredField]) -> ValueRanges:
    """Finds the numbers of all records in `data` at once.

    Args:
        begin, end: int64[records], where each record's Example lies in `data`.

    Raises:
        UnexpectedLayout: a record is something else.
    """
    reader = _Headers(data, begin)
    reader.expect(_FIELD_1)
    reader.expect_end(reader.varint(), end)
    found = {}
    numbers = {field.name: field for field in fields}
    for name in feature_order((*numbers, "id")):
        reader.expect(_FIELD_1)
        stop = reader.varint() + reader.position
        if name in numbers:
            reader.expect(feature_header(name))
            reader.expect_end(reader.varint(), stop)
            reader.expect(_FLOAT_LIST if numbers[name].dtype == "float32" else _INT64_LIST)
            reader.expect_end(reader.varint(), stop)
            reader.expect(_FIELD_1)
            reader.expect_end(reader.varint(), stop)
            found[name] = reader.position, stop
        reader.position = stop
    if (reader.position != end).any():
        raise UnexpectedLayout("there is more in a record than its features")
    start, stop = zip(*(found[field.name] for field in fields), strict=True)
    return ValueRanges(np.stack(start), np.stack(stop))


def decode_record_values(field: StoredField, data: bytes, start: Array, stop: Array) -> Array:
    """The values of a field that a record has one of: dtype[records, *shape].

    Args:
        start, stop: int64[records], where they lie in `data`.

    Raises:
        UnexpectedLayout: a record holds more or fewer numbers than that.
    """
    return _numbers(field, data, start, stop, np.full(len(start), field.width)).reshape(-1, *field.shape)


def decode_columns(
    data: bytes, begin: Array, end: Array, fields: Sequence[StoredField]
) -> dict[str, tuple[Array, Array]]:
    """Of each field the numbers of all Examples, one after the other, float32 or int64; and int64[examples], how many.

    Args:
        begin, end: int64[examples], where each lies in `data`.

    Raises:
        UnexpectedLayout: one of them is something else.
    """
    located = locate_values(data, begin, end, fields)
    found = {}
    for field, start, stop in zip(fields, located.start, located.stop, strict=True):
        joined = _join(data, start, stop)
        found[field.name] = _decode(field, joined), _counts(field, joined, stop - start)
    return found


def copy_steps(
    field: StoredField,
    data: bytes,
    start: Array,
    stop: Array,
    length: Array,
    *,
    targets: Sequence[memoryview],
    place: Array,
) -> None:
    """Copies the steps of each record to where they belong.

    Args:
        start, stop: int64[records], where they lie in `data`.
        length: int[records], how many steps.
        targets: For each record the bytes of the array that it is copied into.
        place: int64[records], at which byte of it.

    Raises:
        UnexpectedLayout: a record holds more or fewer numbers than its length says.
    """
    source = memoryview(data)
    if field.dtype != "float32":
        counts = length.astype(np.int64) * field.width
        source = _numbers(field, data, start, stop, counts).view(np.uint8).data
        stop = 8 * np.cumsum(counts)
        start = stop - 8 * counts
    else:
        _check((stop - start == 4 * field.width * length.astype(np.int64)).all())
    ends = place + (stop - start)
    # Slices of bytes: a loop in Python, and yet faster than any vectorised copy of unequal rows.
    for target, at, to, begin, end in zip(
        targets, place.tolist(), ends.tolist(), start.tolist(), stop.tolist(), strict=True
    ):
        target[at:to] = source[begin:end]


def _numbers(field: StoredField, data: bytes, start: Array, stop: Array, counts: Array) -> Array:
    """The numbers of all records, one after the other, of which each must have so many."""
    joined = _join(data, start, stop)
    _check((_counts(field, joined, stop - start) == counts).all())
    return _decode(field, joined)


def _counts(field: StoredField, joined: bytes, num_bytes: Array) -> Array:
    """int64[records]: how many numbers end in the bytes of each record."""
    if field.dtype == "float32":
        _check((num_bytes % 4 == 0).all())
        return num_bytes // 4
    # Each number ends with a byte below 128.
    ends = np.concatenate([[0], np.cumsum(np.frombuffer(joined, np.uint8) < 128)])
    return np.diff(ends[np.concatenate([[0], np.cumsum(num_bytes)])])


def _decode(field: StoredField, joined: bytes) -> Array:
    return np.frombuffer(joined, "<f4") if field.dtype == "float32" else decode_varints(joined)


def _join(data: bytes, start: Array, stop: Array) -> bytes:
    sizes = stop - start
    if sizes.sum() > _FEW_BYTES * len(sizes):
        view = memoryview(data)
        return b"".join([view[a:b] for a, b in zip(start.tolist(), stop.tolist(), strict=True)])
    where = np.repeat(start - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
    return np.frombuffer(data, np.uint8)[where].tobytes()


def _check(fits: Any) -> None:
    if not fits:
        raise UnexpectedLayout("a feature of a record has another number of values than its steps")


class _Headers:
    """Reads the same few bytes of many records at once, each from its own position on."""

    def __init__(self, data: bytes, position: Array) -> None:
        self._data = np.frombuffer(data, np.uint8)
        self.position = position

    def expect(self, constant: bytes) -> None:
        """Passes bytes that must be these."""
        found = self._take(self.position[:, None] + np.arange(len(constant)))
        if (found != np.frombuffer(constant, np.uint8)).any():
            raise UnexpectedLayout("a record has other features than the schema")
        self.position = self.position + len(constant)

    def varint(self) -> Array:
        """Passes a length and gives it: seven bits a byte, lowest first; the last byte is below 128."""
        value = np.zeros_like(self.position)
        going_on = np.ones(len(value), bool)
        for size in range(_VARINT_BYTES):
            byte = np.where(going_on, self._take(np.where(going_on, self.position, 0)), 0).astype(np.int64)
            value |= (byte & 127) << (7 * size)
            self.position = self.position + going_on
            going_on = byte > 127
            if not going_on.any():
                return value
        raise UnexpectedLayout("a length takes too many bytes")

    def expect_end(self, length: Array, end: Array) -> None:
        if (self.position + length != end).any():
            raise UnexpectedLayout("a feature of a record does not end where it says")

    def _take(self, position: Array) -> Array:
        try:
            return self._data[position]
        except IndexError:
            raise UnexpectedLayout("a record is shorter than it says") from None
