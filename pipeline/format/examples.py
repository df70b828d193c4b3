"""Turns a sequence into the bytes of a tf.train.Example, and back, without TensorFlow or protobuf objects.

The bytes equal TensorFlow's `SerializeToString(deterministic=True)`: features sorted by name, numbers packed. A packed
float list is a constant header and the array's own bytes, which is why this is an order of magnitude faster.

Wire format: https://protobuf.dev/programming-guides/encoding; messages: tensorflow/core/example/feature.proto.
"""

import functools
from typing import Any, TypeAlias

import numpy as np

from pipeline.schema.record import Array, ParsedRecord
from pipeline.schema.schema import Schema

# Tags of length-delimited fields: the field's number, shifted, with wire type 2.
_FIELD_1 = b"\x0a"
_FIELD_2 = b"\x12"
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = b"\x0a", b"\x12", b"\x1a"

_SEVEN_BITS = np.arange(10, dtype=np.uint64) * np.uint64(7)
# An array that is not copied before it is joined with the rest; numbers that are encoded at once.
_LARGE_BYTES, _VARINTS = 2**20, 2**16

Value: TypeAlias = Array | list[bytes]


def encode_record(sequence: ParsedRecord, schema: Schema) -> bytes:
    """A serialized tf.train.Example: step features as flat lists of num_steps × width, context, label, length, id."""
    features: dict[str, Value] = {
        **sequence.features,
        **sequence.context,
        "length": np.array([sequence.num_steps]),
        "id": [sequence.id.encode()],
    }
    if schema.label.name is not None:
        if sequence.label is None:
            raise ValueError(f"Record {sequence.id!r} has no label, but the schema has one: {schema.label.name}.")
        features[schema.label.name] = sequence.label
    return encode_example(features)


def encode_example(features: dict[str, Value]) -> bytes:
    """A serialized tf.train.Example of float32 arrays, int64 arrays and lists of bytes, each flattened.

    >>> encode_example({"a": np.array([1, 300])}).hex()
    '0a0e0a0c0a016112071a050a0301ac02'
    """
    parts: list[Any] = [b""]
    for name in feature_order(tuple(features)):
        value = features[name]
        if not isinstance(value, list):
            if value.size == 1 and value.dtype.kind in "iu":
                parts.append(_one_integer(name, value.item()))
            else:
                kind, numbers = _encode_numbers(value)
                parts += (_before(name, kind, len(numbers)), numbers)
        elif len(value) == 1:
            parts += (_before(name, _BYTES_LIST, len(value[0])), value[0])
        else:
            strings = _delimited(_BYTES_LIST, b"".join([_delimited(_FIELD_1, item) for item in value]))
            parts.append(_delimited(_FIELD_1, _delimited(feature_header(name), strings)))
    # Joined once: a record may be large.
    parts[0] = _FIELD_1 + _varint(sum(map(len, parts)))
    return b"".join(parts)


@functools.lru_cache(maxsize=1024)
def feature_order(names: tuple[str, ...]) -> list[str]:
    """Names as their features come in an Example."""
    return sorted(names, key=_sort_key)


def feature_header(name: str) -> bytes:
    """What stands between the size of a feature's entry and the size of its values."""
    return _key(name) + _FIELD_2


def decode_example(data: bytes) -> dict[str, Value]:
    """The features of a serialized tf.train.Example, flat: float32 arrays, int64 arrays, lists of bytes.

    Raises:
        ValueError: these bytes are no Example as `encode_example` writes it.
    """
    features: dict[str, Value] = {}
    try:
        ((_, message),) = _fields(memoryview(data), {1})
        for _, entry in _fields(message, {1}):
            (first, key), (second, value) = _fields(entry, {1, 2})
            if (first, second) != (1, 2):
                raise ValueError("an entry is not a name and its values")
            ((kind, numbers),) = _fields(value, {1, 2, 3})
            features[bytes(key).decode()] = _decode_value(kind, numbers)
    except (ValueError, IndexError) as error:
        raise ValueError(f"not a tf.train.Example of this format: {error}") from None
    return features


# Most features of most records have a size that another one had before.
@functools.lru_cache(maxsize=1 << 16)
def _before(name: str, kind: bytes, num_bytes: int) -> bytes:
    """All of a feature's entry but its packed numbers, or its only string, which come last."""
    header = b""
    for tag in (_FIELD_1, kind, feature_header(name), _FIELD_1):
        header = tag + _varint(len(header) + num_bytes) + header
    return header


# Lengths, classes and categories: most of them were there before too.
@functools.lru_cache(maxsize=1 << 16)
def _one_integer(name: str, value: int) -> bytes:
    number = _varint(value) if value >= 0 else encode_varints(np.array([value]))
    return _before(name, _INT64_LIST, len(number)) + number


def _encode_numbers(value: Array) -> tuple[bytes, bytes | memoryview]:
    """The tag of the list that they are, and their bytes."""
    if value.dtype.kind == "f" and value.dtype.itemsize == 4:
        # Fixed32 is little-endian on the wire.
        value = value.astype("<f4", copy=False)
        return _FLOAT_LIST, value.tobytes() if value.nbytes < _LARGE_BYTES else np.ravel(value).view(np.uint8).data
    if value.dtype.kind not in "iu":
        raise TypeError(f"An array of dtype {value.dtype} has no place in an Example, expected float32 or int64.")
    return _INT64_LIST, encode_varints(value.ravel())


def _decode_value(kind: int, message: memoryview) -> Value:
    if kind == 1:
        return [bytes(item) for _, item in _fields(message, {1})]
    ((_, packed),) = _fields(message, {1})
    return np.frombuffer(packed, "<f4") if kind == 2 else decode_varints(packed)


def encode_varints(values: Array) -> bytes:
    """int64 numbers as base-128 varints, seven bits a byte, lowest first; a negative number takes ten bytes."""
    unsigned = values.astype(np.int64, copy=False).view(np.uint64)
    if len(unsigned) > _VARINTS:  # eighty bytes a number, while it is made
        parts = range(0, len(unsigned), _VARINTS)
        return b"".join([encode_varints(values[start : start + _VARINTS]) for start in parts])
    if not len(unsigned) or unsigned.max() < 128:
        return unsigned.astype(np.uint8).tobytes()
    groups = unsigned[:, None] >> _SEVEN_BITS
    used = groups > 0
    used[:, 0] = True
    septets = (groups & np.uint64(127)).astype(np.uint8)
    septets[:, :-1] |= used[:, 1:].astype(np.uint8) << 7  # more bytes follow
    return septets[used].tobytes()


def decode_varints(data: bytes | memoryview) -> Array:
    """int64 numbers from base-128 varints.

    Raises:
        ValueError: the last number is cut off, or one is longer than ten bytes.
    """
    septets = np.frombuffer(data, np.uint8)
    if not len(septets):
        return np.zeros(0, np.int64)
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


@functools.cache
def _sort_key(name: str) -> tuple[int, ...]:
    """The order in which protobuf's own deterministic writer puts names: bytewise, but a name after its extensions.

    >>> sorted(["x", "x2", "w"], key=_sort_key)
    ['w', 'x2', 'x']
    """
    return (*name.encode(), 256)


@functools.cache
def _key(name: str) -> bytes:
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


def _fields(message: memoryview, allowed: set[int]) -> list[tuple[int, memoryview]]:
    """(field number, content) of the length-delimited fields of a message."""
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
            raise ValueError(f"a field claims {size} bytes where {len(message) - position} are left")
        fields.append((tag >> 3, message[position : position + size]))
        position += size
    return fields
