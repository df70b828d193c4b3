"""Encodes a record as a serialized tf.train.Example, and decodes it, without TensorFlow or protobuf objects.

The bytes equal TensorFlow's `SerializeToString(deterministic=True)`: features are sorted by name, numbers are packed. A
packed list of floats is a constant header and the bytes of the array, so this is ten times as fast as protobuf objects.

Wire format: https://protobuf.dev/programming-guides/encoding; messages: tensorflow/core/example/feature.proto.
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.schema.record import Array, ParsedRecord, Values, missing_values
from pipeline.schema.schema import NEXT_STEP, Schema

# Tags of length-delimited fields: the number of the field, shifted left by 3 bits, plus wire type 2.
_FIELD_1 = b"\x0a"
_FIELD_2 = b"\x12"
BYTES_LIST, FLOAT_LIST, INT64_LIST = b"\x0a", b"\x12", b"\x1a"

_SEVEN_BITS = np.arange(10, dtype=np.uint64) * np.uint64(7)
# An array of this size is not copied before it is joined with the rest of the Example.
_LARGE_BYTES = 2**20
# Numbers that are encoded, and bytes that are decoded, at the same time, which takes 80 bytes of memory for each.
_MAX_VARINTS, _MAX_SEPTETS = 2**16, 2**18


def encode_record(record: ParsedRecord, schema: Schema) -> bytes:
    """Returns a serialized tf.train.Example with the features, the label, `length` and `id` of a record.

    A step feature is a flat list of num_steps × width values.

    Raises:
        ValueError: The schema has a label, but the record has none.
    """
    features: dict[str, Values] = {
        **record.features,
        **record.context,
        "length": np.array([record.num_steps]),
        "id": [record.id.encode()],
    }
    if schema.label.name is not None:
        if record.label is None:
            raise ValueError(f"Record {record.id!r} has no label, but the schema has one: {schema.label.name}.")
        features[schema.label.name] = record.label
    if schema.stores_next_step:
        # No step follows. `pipeline.format.parts` replaces this value in all parts but the last.
        features[NEXT_STEP] = missing_values(schema.steps[str(schema.label.next_of)])
    return encode_example(features)


def encode_example(features: dict[str, Values]) -> bytes:
    """Returns a serialized tf.train.Example.

    Args:
        features: By name: float32 and integer arrays of any shape, which are flattened, and lists of bytes.

    Raises:
        TypeError: An array has another dtype.

    >>> encode_example({"a": np.array([1, 300])}).hex()
    '0a0e0a0c0a016112071a050a0301ac02'
    """
    parts: list[Any] = [b""]
    for name in feature_order(tuple(features)):
        parts += encode_feature(name, features[name])
    # All parts are joined only once, because a record may be large.
    parts[0] = encode_size(sum(map(len, parts)))
    return b"".join(parts)


def encode_feature(name: str, value: Values) -> tuple[Any, ...]:
    """Returns the entry of one feature in an Example as parts that must be joined."""
    if not isinstance(value, list):
        if value.size == 1 and value.dtype.kind in "iu":
            return (encode_integer(name, value.item()),)
        kind, numbers = _encode_numbers(value)
        return encode_header(name, kind, len(numbers)), numbers
    if len(value) == 1:
        return encode_header(name, BYTES_LIST, len(value[0])), value[0]
    strings = _delimited(BYTES_LIST, b"".join([_delimited(_FIELD_1, item) for item in value]))
    return (_delimited(_FIELD_1, _delimited(feature_header(name), strings)),)


def encode_size(num_bytes: int) -> bytes:
    """Returns the bytes of an Example before its entries, which have `num_bytes` bytes in all."""
    return _FIELD_1 + _varint(num_bytes)


def replace_id(example: bytes, record_id: str) -> bytes:
    """Returns a serialized Example of `encode_record` with another id.

    Raises:
        ValueError: The bytes are not an Example in this form, or it has no id.
    """
    message = memoryview(example)
    ((_, entries),) = _fields(message, {1})
    position = len(message) - len(entries)
    start = position
    for _, entry in _fields(entries, {1}):
        end = position + 1 + len(_varint(len(entry))) + len(entry)
        if entry[: len(_ID_NAME)] == _ID_NAME:
            new = record_id.encode()
            parts: list[Any] = [
                b"",
                message[start:position],
                encode_header("id", BYTES_LIST, len(new)),
                new,
                message[end:],
            ]
            parts[0] = _FIELD_1 + _varint(sum(map(len, parts)))
            return b"".join(parts)
        position = end
    raise ValueError("the Example has no id")


@functools.lru_cache(maxsize=1024)
def feature_order(names: tuple[str, ...]) -> list[str]:
    """Returns the names in the order that their features have in an Example."""
    return sorted(names, key=_sort_key)


def feature_header(name: str) -> bytes:
    """Returns the bytes between the size of a feature's entry and the size of its list: the name, and a tag."""
    return _encode_name(name) + _FIELD_2


def decode_example(data: bytes) -> dict[str, Values]:
    """Returns the features of a serialized tf.train.Example by name.

    Values are flat: float32[values], int64[values] or a list of bytes.

    Raises:
        ValueError: The bytes are not an Example in the form that `encode_example` writes.
    """
    features: dict[str, Values] = {}
    try:
        ((_, message),) = _fields(memoryview(data), {1})
        for _, entry in _fields(message, {1}):
            (first, key), (second, value) = _fields(entry, {1, 2})
            if (first, second) != (1, 2):
                raise ValueError("an entry is not a name followed by values")
            ((kind, numbers),) = _fields(value, {1, 2, 3})
            features[bytes(key).decode()] = _decode_value(kind, numbers)
    except (ValueError, IndexError) as error:
        raise ValueError(f"not a tf.train.Example of this format: {error}") from None
    return features


# Cached, because most features of most records have a size that occurred before.
@functools.lru_cache(maxsize=1 << 16)
def encode_header(name: str, kind: bytes, num_bytes: int) -> bytes:
    """Returns the entry of a feature up to its packed numbers, or up to its only string, which end the entry.

    Args:
        kind: Tag of the list.
        num_bytes: Size of the packed numbers or of the string.
    """
    header = b""
    for tag in (_FIELD_1, kind, feature_header(name), _FIELD_1):
        header = tag + _varint(len(header) + num_bytes) + header
    return header


# Cached, because most lengths, classes and categories occurred before.
@functools.lru_cache(maxsize=1 << 16)
def encode_integer(name: str, value: int) -> bytes:
    """Returns the entry of a feature that is one integer."""
    number = _varint(value) if value >= 0 else encode_varints(np.array([value]))
    return encode_header(name, INT64_LIST, len(number)) + number


def _encode_numbers(value: Array) -> tuple[bytes, bytes | memoryview]:
    """Returns the tag of the list for an array of numbers, and the packed numbers."""
    if value.dtype.kind == "f" and value.dtype.itemsize == 4:
        # The wire format is little-endian.
        value = value.astype("<f4", copy=False)
        return FLOAT_LIST, value.tobytes() if value.nbytes < _LARGE_BYTES else np.ravel(value).view(np.uint8).data
    if value.dtype.kind not in "iu":
        raise TypeError(f"An Example cannot hold an array of dtype {value.dtype}, expected float32 or int64.")
    return INT64_LIST, encode_varints(value.ravel())


def _decode_value(kind: int, message: memoryview) -> Values:
    if kind == 1:
        return decode_strings(message)
    ((_, packed),) = _fields(message, {1})
    return np.frombuffer(packed, "<f4") if kind == 2 else decode_varints(packed)


def decode_strings(data: bytes | memoryview) -> list[bytes]:
    """Returns the strings of a list. Raises a ValueError if the bytes are not such a list."""
    try:
        return [bytes(item) for _, item in _fields(memoryview(data), {1})]
    except IndexError:
        raise ValueError("a string is cut off") from None


def encode_varints(values: Array) -> bytes:
    """Returns the base-128 varints of int64[values]: seven bits in each byte, lowest first.

    A negative number takes ten bytes.
    """
    unsigned = values.astype(np.int64, copy=False).view(np.uint64)
    if len(unsigned) > _MAX_VARINTS:
        parts = range(0, len(unsigned), _MAX_VARINTS)
        return b"".join([encode_varints(values[start : start + _MAX_VARINTS]) for start in parts])
    if not len(unsigned) or unsigned.max() < 128:
        return unsigned.astype(np.uint8).tobytes()
    groups = unsigned[:, None] >> _SEVEN_BITS
    used = groups > 0
    used[:, 0] = True
    septets = (groups & np.uint64(127)).astype(np.uint8)
    septets[:, :-1] |= used[:, 1:].astype(np.uint8) << 7  # more bytes follow
    return septets[used].tobytes()


def decode_varints(data: bytes | memoryview) -> Array:
    """Returns int64[values] from base-128 varints.

    Raises:
        ValueError: The last number is cut off, or a number is longer than ten bytes.
    """
    septets = np.frombuffer(data, np.uint8)
    if not len(septets):
        return np.zeros(0, np.int64)
    if len(septets) > _MAX_SEPTETS:
        return np.concatenate([decode_varints(part.data) for part in _cut_varints(septets)])
    if septets.max() < 128:  # one byte a number: labels, lengths, small categories
        return septets.astype(np.int64)
    ends = np.flatnonzero(septets < 128)
    if not len(ends) or ends[-1] != len(septets) - 1:
        raise ValueError("a number is cut off")
    starts = np.concatenate([[0], ends[:-1] + 1])
    positions = np.arange(len(septets)) - np.repeat(starts, ends - starts + 1)
    if positions.max() > 9:
        raise ValueError("a number is longer than ten bytes")
    shifted = (septets & 127).astype(np.uint64) << (positions * 7).astype(np.uint64)
    return np.bitwise_or.reduceat(shifted, starts).view(np.int64)


def _cut_varints(septets: Array) -> Iterator[Array]:
    """Yields whole varints in blocks of at most _MAX_SEPTETS bytes."""
    start = 0
    while start < len(septets):
        stop = min(start + _MAX_SEPTETS, len(septets))
        if stop < len(septets):
            ends = np.flatnonzero(septets[start:stop] < 128)
            if not len(ends):
                raise ValueError("a number is longer than ten bytes")
            stop = start + int(ends[-1]) + 1
        yield septets[start:stop]
        start = stop


@functools.cache
def _sort_key(name: str) -> tuple[int, ...]:
    """Returns the sort key of a name in protobuf's order: by bytes, but "x2", which begins with "x", comes before "x".

    >>> sorted(["x", "x2", "w"], key=_sort_key)
    ['w', 'x2', 'x']
    """
    return (*name.encode(), 256)


@functools.cache
def _encode_name(name: str) -> bytes:
    return _delimited(_FIELD_1, name.encode())


def _delimited(tag: bytes, data: bytes) -> bytes:
    return tag + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    if value < 128:
        return bytes((value,))
    septets = []
    while value > 127:
        septets.append(value & 127 | 128)
        value >>= 7
    return bytes([*septets, value])


# The entry of the id begins with its name.
_ID_NAME = _encode_name("id")


def _fields(message: memoryview, allowed: set[int]) -> list[tuple[int, memoryview]]:
    """Returns (field number, content) of the length-delimited fields of a message.

    Raises:
        ValueError: The message has a field whose number is not in `allowed`, or a wrong size.
        IndexError: The message ends inside the header of a field.
    """
    fields, position = [], 0
    while position < len(message):
        tag = message[position]
        if tag & 7 != 2 or tag >> 3 not in allowed:
            raise ValueError(f"unexpected field tag {tag}")
        size, shift, position = 0, 0, position + 1
        while True:
            septet = message[position]
            size |= (septet & 127) << shift
            shift += 7
            position += 1
            if septet < 128:
                break
            if shift > 63:
                raise ValueError("a size is longer than ten bytes")
        if size > len(message) - position:
            raise ValueError(f"a field has a size of {size} bytes, but {len(message) - position} are left")
        fields.append((tag >> 3, message[position : position + size]))
        position += size
    return fields
