"""Reads the values of some steps of a large Example, without the rest of it.

The place of a float follows from its step. Varints and strings have different sizes, so that the places where slices
begin are found once, in one pass over the bytes.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pipeline.format.examples import decode_strings, decode_varints
from pipeline.format.stored_fields import StoredField
from pipeline.schema.record import Array, Values

# Returns bytes of an Example: (position of the first one, their number). Fewer if the Example ends.
Read = Callable[[int, int], bytes]

_DELIMITED = 0x0A
_NUMBERS = {0x12: "float32", 0x1A: "int64", 0x0A: "string"}
# Bytes that are read at once: in a pass over a feature, and of the headers between two features.
_BLOCK_BYTES, _HEADER_BYTES = 2**20, 256


class ExampleSlices:
    """The values of an Example in slices of some steps.

    Memory holds one slice at a time, the values per record, and 8 bytes for each slice and feature.

    Args:
        read: Reads bytes of the Example.
        num_bytes: Size of the Example.
        fields: The fields to read. They must be in the Example.
        num_steps: Number of steps of the Example.
        slice_steps: Number of steps of all slices but the last one.

    Raises:
        ValueError: The bytes are not an Example in the form of `prepare`, or a field has more or fewer values than
            the steps need.
    """

    def __init__(
        self, read: Read, num_bytes: int, fields: Sequence[StoredField], *, num_steps: int, slice_steps: int
    ) -> None:
        self._read, self._num_steps, self._slice_steps = read, num_steps, slice_steps
        self._num_slices = -(-num_steps // slice_steps)
        places = {name: (dtype, begin, end) for name, dtype, begin, end in _locate(read, num_bytes)}
        self._of_record: dict[str, Values] = {}
        # For each field per step, its dtype and int64[slices + 1], where its slices begin and end.
        self._of_steps: dict[str, tuple[str, Array]] = {}
        for field in fields:
            dtype, begin, end = places.get(field.name, ("missing", 0, 0))
            if dtype != field.dtype:
                raise ValueError(f"{field.name}: found values of type {dtype}, expected {field.dtype}")
            if not field.per_step:
                self._of_record[field.name] = _decode(dtype, read(begin, end - begin))
                continue
            steps = np.minimum(np.arange(self._num_slices + 1) * slice_steps, num_steps)
            self._of_steps[field.name] = dtype, self._find(dtype, begin, end, steps * field.width)

    def _find(self, dtype: str, begin: int, end: int, values: Array) -> Array:
        """Returns where the values with these numbers begin in the Example; the last one is the number of all values.

        Args:
            begin, end: Where the values begin and end in the Example.
        """
        if dtype == "float32":
            if end - begin != 4 * values[-1]:
                raise ValueError(f"has {(end - begin) / 4:,} numbers, expected {values[-1]:,}")
            return begin + 4 * values
        found, count = np.full(len(values), end, np.int64), 0
        ends = _varint_ends if dtype == "int64" else _string_ends
        for block in ends(self._read, begin, end):
            # Value number k begins where value number k - 1 ends.
            inside = (values > count) & (values <= count + len(block))
            found[inside] = block[values[inside] - count - 1]
            count += len(block)
        if count != values[-1] or found[-1] != end:
            raise ValueError(f"has {count:,} values, expected {values[-1]:,}")
        found[values == 0] = begin
        return found

    def load(self, number: int) -> dict[str, Values]:
        """Returns the flat values of a slice, with those per record.

        Raises:
            ValueError: The bytes have changed.
        """
        values = dict(self._of_record)
        for name, (dtype, places) in self._of_steps.items():
            begin, end = places[number : number + 2].tolist()
            values[name] = _decode(dtype, self._read(begin, end - begin))
        return values


def _decode(dtype: str, data: bytes) -> Values:
    if dtype == "string":
        return decode_strings(data)
    return np.frombuffer(data, "<f4") if dtype == "float32" else decode_varints(data)


def _locate(read: Read, num_bytes: int) -> Iterator[tuple[str, str, int, int]]:
    """Yields the name and the dtype of each feature, and where its values begin and end."""
    cursor = _Cursor(read, 0)
    end = cursor.enter(_DELIMITED)
    if end != num_bytes:
        raise ValueError(f"the Example has {end:,} bytes, expected {num_bytes:,}")
    while cursor.position < end:
        stop = cursor.enter(_DELIMITED)
        after = cursor.enter(_DELIMITED)
        name = cursor.take(after - cursor.position).decode()
        cursor.enter(0x12)
        kind = cursor.take(1)[0]
        if kind not in _NUMBERS or cursor.size() + cursor.position != stop:
            raise ValueError(f"{name}: the feature is not a list of values of one type")
        if _NUMBERS[kind] != "string" and cursor.enter(_DELIMITED) != stop:
            raise ValueError(f"{name}: the numbers are not packed")
        yield name, _NUMBERS[kind], cursor.position, stop
        cursor.position = stop


class _Cursor:
    """Reads the headers of an Example one after the other.

    Attributes:
        position: Where the next byte is.
    """

    def __init__(self, read: Read, position: int) -> None:
        self._read, self.position = read, position
        self._begin, self._block = 0, b""

    def take(self, num_bytes: int) -> bytes:
        """Returns the next bytes."""
        start = self.position - self._begin
        if not 0 <= start <= start + num_bytes <= len(self._block):
            self._begin, self._block, start = self.position, self._read(self.position, max(num_bytes, _HEADER_BYTES)), 0
        data = self._block[start : start + num_bytes]
        if len(data) < num_bytes:
            raise ValueError("the Example ends early")
        self.position += num_bytes
        return data

    def size(self) -> int:
        """Returns the next varint."""
        value = 0
        for shift in range(0, 70, 7):
            septet = self.take(1)[0]
            value |= (septet & 127) << shift
            if septet < 128:
                return value
        raise ValueError("a size is longer than ten bytes")

    def enter(self, tag: int) -> int:
        """Reads a tag and a size, and returns where the message that begins here ends."""
        if self.take(1)[0] != tag:
            raise ValueError(f"unexpected field at byte {self.position - 1:,} of the Example")
        size = self.size()
        return self.position + size


def _varint_ends(read: Read, begin: int, end: int) -> Iterator[Array]:
    """Yields where each varint ends, block by block."""
    for start in range(begin, end, _BLOCK_BYTES):
        block = np.frombuffer(read(start, min(_BLOCK_BYTES, end - start)), np.uint8)
        yield np.flatnonzero(block < 128) + start + 1


def _string_ends(read: Read, begin: int, end: int) -> Iterator[Array]:
    """Yields where each string of a list ends, in blocks."""
    position, first, block = begin, begin, b""
    ends: list[int] = []
    while position < end:
        at = position - first
        # A tag, and a size of at most ten bytes.
        if len(block) - at < min(11, end - position):
            yield np.array(ends, np.int64)
            first, ends = position, []
            block, at = read(position, min(_BLOCK_BYTES, end - position)), 0
            if not block:
                raise ValueError("the Example ends early")
        if block[at] != _DELIMITED:
            raise ValueError(f"unexpected field at byte {position:,} of the Example")
        size, shift, at = 0, 0, at + 1
        while True:
            if at == len(block) or shift > 63:
                raise ValueError("a size is longer than ten bytes")
            septet = block[at]
            size |= (septet & 127) << shift
            shift, at = shift + 7, at + 1
            if septet < 128:
                break
        position = first + at + size
        ends.append(position)
    if position != end:
        raise ValueError("a string is longer than its feature")
    yield np.array(ends, np.int64)
