"""Reads a record some steps at a time, whether it is stored as one Example or in parts."""

from typing import Any

import numpy as np

from pipeline.format.examples import decode_example
from pipeline.format.stored_fields import StoredField, stored_fields
from pipeline.schema.record import Array, missing_values
from pipeline.schema.schema import NEXT_STEP, Schema
from trainer.data.shard_index import ShardIndex

# The stored values of some steps of a record by field: [steps, *shape] per step, or [*shape] per record.
Values = dict[str, Array]


class LongRecord:
    """A record of a shard. Memory holds only those parts of it that the last steps were read from.

    Args:
        record: Position of the record among the records of the shard.
    """

    def __init__(self, shard: ShardIndex, record: int, schema: Schema) -> None:
        self._shard, self._schema = shard, schema
        self._examples = shard.examples_of(record)
        # The step after the last one of each part.
        self._ends = np.cumsum(shard.num_steps[self._examples.start : self._examples.stop], dtype=np.int64)
        self._fields = [field for field in stored_fields(schema) if field.name != "length"]
        self._parts: dict[int, Values] = {}

    def read(self, first: int, length: int) -> Values:
        """Returns the values of all fields from step `first` on, for `length` steps that the record must have.

        With `next_of`, NEXT_STEP is the value after these steps: [*shape]. It is missing at the end of the record.

        Raises:
            UserError: A part cannot be read, or is not the one that was written.
        """
        stop = first + length
        begin, end = np.searchsorted(self._ends, [first, stop - 1], side="right").tolist()
        self._parts = {part: self._parts.get(part) or self._load(part) for part in range(begin, end + 1)}
        start = int(self._ends[begin - 1]) if begin else 0
        values: Values = {}
        for field in self._fields:
            parts = [part[field.name] for part in self._parts.values()]
            if field.per_step:
                joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
                values[field.name] = joined[first - start : stop - start]
            else:
                values[field.name] = parts[-1]
        next_of = self._schema.label.next_of
        if next_of is not None:
            feature, shape = self._schema.steps[next_of], tuple(self._schema.steps[next_of].shape)
            place = stop - (int(self._ends[end - 1]) if end else 0)
            if stop < self._ends[end]:
                values[NEXT_STEP] = self._parts[end][next_of][place : place + 1].reshape(shape)
            elif NEXT_STEP not in values:
                values[NEXT_STEP] = _shaped(missing_values(feature), feature.dtype, shape)
        return values

    def _load(self, part: int) -> Values:
        position = self._examples[part]
        data, begin, end = self._shard.read(np.array([position]))
        try:
            values = decode_example(data[begin[0] : end[0]])
            steps = int(self._shard.num_steps[position])
            return {field.name: _shaped_field(values[field.name], field, steps) for field in self._fields}
        except (ValueError, KeyError) as error:
            raise self._shard.damage_error(f"record {position}: {error}") from None


def _shaped_field(values: Any, field: StoredField, steps: int) -> Array:
    """Returns the flat values of an Example in the shape of a field."""
    return _shaped(values, field.dtype, (steps, *field.shape) if field.per_step else field.shape)


def _shaped(values: Any, dtype: str, shape: tuple[int, ...]) -> Array:
    if dtype == "string":
        flat = np.empty(len(values), object)
        flat[:] = values
        values = flat
    return np.asarray(values).reshape(shape)
