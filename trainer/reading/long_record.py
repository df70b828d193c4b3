"""Reads a record some steps at a time, whether it is stored as one Example or in parts."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from pipeline.format.example_slices import ExampleSlices
from pipeline.format.examples import decode_example
from pipeline.format.stored_fields import StoredField, stored_fields
from pipeline.schema.record import Array, missing_values
from pipeline.schema.schema import NEXT_STEP, Schema
from trainer.data.shard_index import ShardIndex

# An Example of more bytes is read in slices of about so many bytes.
_LARGE_BYTES, _SLICE_BYTES = 2**20, 2**18
# The stored values of some steps of a record by field: [steps, *shape] per step, or [*shape] per record.
Values = dict[str, Array]


class _Piece(NamedTuple):
    """Steps of a record that are read at once: a part, or a slice of a large one.

    Attributes:
        position: Position of the Example in the shard.
        number: Number of the slice in the Example.
        num_steps: Number of steps.
    """

    position: int
    number: int
    num_steps: int


def _cut(shard: ShardIndex, position: int) -> Iterator[_Piece]:
    """Yields the pieces of an Example."""
    num_steps, size = int(shard.num_steps[position]), _slice_steps(shard, position)
    for number, first in enumerate(range(0, num_steps, size)):
        yield _Piece(position, number, min(size, num_steps - first))


def _slice_steps(shard: ShardIndex, position: int) -> int:
    """Returns the number of steps of the slices of an Example: all steps, unless it is large."""
    num_steps, num_bytes = int(shard.num_steps[position]), int(shard.num_bytes[position])
    return num_steps if num_bytes <= _LARGE_BYTES else max(1, num_steps * _SLICE_BYTES // num_bytes)


class LongRecord:
    """A record of a shard. Memory holds only those pieces of it that the last steps were read from.

    Args:
        record: Position of the record among the records of the shard.
    """

    def __init__(self, shard: ShardIndex, record: int, schema: Schema) -> None:
        self._shard, self._schema = shard, schema
        # The pieces that are read at once: the Example, the number of the piece in it, and its steps.
        self._pieces = [piece for position in shard.examples_of(record) for piece in _cut(shard, position)]
        # The step after the last one of each piece.
        self._ends = np.cumsum([piece.num_steps for piece in self._pieces], dtype=np.int64)
        self._slices: tuple[int, ExampleSlices] | None = None
        self._fields = [field for field in stored_fields(schema) if field.name not in ("length", NEXT_STEP)]
        self._loaded: dict[int, Values] = {}

    def read(self, first: int, length: int) -> Values:
        """Returns the values of all fields from step `first` on, for `length` steps that the record must have.

        With `next_of`, NEXT_STEP is the value after these steps: [*shape]. It is missing at the end of the record.

        Raises:
            UserError: A piece cannot be read, or is not the one that was written.
        """
        stop, next_of = first + length, self._schema.label.next_of
        has_next = next_of is not None and stop < self._ends[-1]
        begin, end = np.searchsorted(self._ends, [first, stop if has_next else stop - 1], side="right").tolist()
        self._loaded = {number: self._loaded.get(number) or self._load(number) for number in range(begin, end + 1)}
        start = int(self._ends[begin - 1]) if begin else 0
        values: Values = {}
        for field in self._fields:
            pieces = [piece[field.name] for piece in self._loaded.values()]
            if not field.per_step:
                values[field.name] = pieces[0]
                continue
            joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
            values[field.name] = joined[first - start : stop - start]
            if field.name == next_of and has_next:
                values[NEXT_STEP] = joined[stop - start : stop - start + 1].reshape(field.shape)
            elif field.name == next_of:
                values[NEXT_STEP] = _shaped(missing_values(self._schema.steps[next_of]), field.dtype, field.shape)
        return values

    def _load(self, number: int) -> Values:
        position, place, steps = self._pieces[number]
        shard = self._shard
        try:
            if shard.num_bytes[position] <= _LARGE_BYTES:
                data, begin, end = shard.read(np.array([position]))
                values = decode_example(data[begin[0] : end[0]])
            else:
                if self._slices is None or self._slices[0] != position:
                    self._slices = position, self._open(position)
                values = self._slices[1].load(place)
            return {field.name: _shaped_field(values[field.name], field, steps) for field in self._fields}
        except (ValueError, KeyError) as error:
            raise shard.damage_error(f"record {position}: {error}") from None

    def _open(self, position: int) -> ExampleSlices:
        shard = self._shard
        sizes = {"num_steps": int(shard.num_steps[position]), "slice_steps": _slice_steps(shard, position)}
        return ExampleSlices(shard.open_example(position), int(shard.num_bytes[position]), self._fields, **sizes)


def _shaped_field(values: Any, field: StoredField, steps: int) -> Array:
    """Returns the flat values of an Example in the shape of a field."""
    return _shaped(values, field.dtype, (steps, *field.shape) if field.per_step else field.shape)


def _shaped(values: Any, dtype: str, shape: tuple[int, ...]) -> Array:
    if dtype == "string":
        flat = np.empty(len(values), object)
        flat[:] = values
        values = flat
    return np.asarray(values).reshape(shape)
