"""Reads the chunks of a stateful plan: of each record, the values of the next steps."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pipeline.format.examples import decode_example
from pipeline.format.stored_fields import StoredField, stored_fields
from pipeline.schema.record import Array
from trainer.batching.stateful import Chunks, StatefulPlan
from trainer.data.dataset import Dataset
from trainer.data.labels import label_and_weight, make_label_lookup
from trainer.data.target import Vocabularies

# The stored values of a record by field: [steps, *shape], or [*shape] per record.
_Record = dict[str, Array]


class ChunkBatch(NamedTuple):
    """The chunks of one reader in an update; `time` is the number of steps of the longest one.

    Attributes:
        features: Each step feature [rows, time, *shape], each context feature [rows, *shape], and `length` int32[rows].
        label: The label of each row, also of one whose record does not end, or of each step [rows, time, …].
        weight: float32[rows] or float32[rows, time]. The label of a record has the weight 1 where the record ends.
        fresh: bool[rows], whether the record begins, so that the state before the chunk is zeros.
        chunks: Where each row is in its record.
    """

    features: dict[str, tf.Tensor]
    label: tf.Tensor
    weight: tf.Tensor
    fresh: tf.Tensor
    chunks: Chunks


class ChunkReader:
    """Reads the chunks of a split. Memory holds one record for each lane.

    Args:
        label_every_chunk: Whether the label of a record has a weight in each of its chunks: 1 ÷ their number.
    """

    def __init__(
        self, dataset: Dataset, split: str, *, vocabularies: Vocabularies, label_every_chunk: bool = False
    ) -> None:
        self._schema, self._label_every_chunk = dataset.schema, label_every_chunk
        self._fields = [field for field in stored_fields(self._schema) if field.name != "length"]
        self._lookup = make_label_lookup(self._schema, vocabularies)
        self._shards = dataset.size_checked_indexes(split)
        self._first_row = np.cumsum([0, *(len(shard.num_steps) for shard in self._shards)])

    def batches(self, plan: StatefulPlan, *, first_batch: int = 0, reader_index: int = 0) -> Iterator[ChunkBatch]:
        """Yields the chunks of a plan from `first_batch` on. The next ones are read while the caller works.

        Raises:
            UserError: A record cannot be read, or is not the one that was written.
        """
        batches = self._read(plan, first_batch, reader_index)
        with ThreadPoolExecutor(1) as executor:
            ahead: Future[ChunkBatch | None] = executor.submit(next, batches, None)
            while (batch := ahead.result()) is not None:
                ahead = executor.submit(next, batches, None)
                yield batch

    def _read(self, plan: StatefulPlan, first_batch: int, reader_index: int) -> Iterator[ChunkBatch]:
        records: dict[int, _Record] = {}
        times = plan.times()
        for number, chunks in enumerate(plan.chunks(first_batch, reader_index), first_batch):
            rows = chunks.record.tolist()
            records = {row: records[row] if row in records else self._load(row) for row in rows if row >= 0}
            num_chunks = -(-plan.lengths[chunks.record] // plan.chunk_steps)
            yield self._make_batch(chunks, [records.get(row) for row in rows], int(times[number]), num_chunks)

    def _load(self, row: int) -> _Record:
        """Reads a record of the split."""
        number = int(np.searchsorted(self._first_row, row, side="right")) - 1
        shard, place = self._shards[number], row - int(self._first_row[number])
        data, begin, end = shard.read(np.array([place]))
        try:
            values = decode_example(data[begin[0] : end[0]])
            steps = int(shard.num_steps[place])
            return {field.name: _shaped(values[field.name], field, steps) for field in self._fields}
        except (ValueError, KeyError) as error:
            raise shard.damage_error(f"record {place}: {error}") from None

    def _make_batch(self, chunks: Chunks, records: list[_Record | None], time: int, num_chunks: Array) -> ChunkBatch:
        schema, next_of = self._schema, self._schema.label.next_of
        values = {field.name: self._join(field, chunks, records, time) for field in self._fields}
        length = tf.constant(chunks.length, tf.int32)
        features = {name: tf.constant(values[name]) for name in schema.features} | {"length": length}
        if next_of is None:
            label, weight = label_and_weight(
                tf.constant(values[str(schema.label.name)]), features, schema, self._lookup
            )
        else:
            # The last label of a chunk is the first step of the next one.
            (field,) = (field for field in self._fields if field.name == next_of)
            further = self._join(field, chunks, records, time + 1, extra=1)
            known = tf.constant(chunks.length + (~chunks.ends & (chunks.record >= 0)), tf.int32)
            some = {next_of: tf.constant(further), "length": known}
            label, weight = (value[:, :time] for value in label_and_weight(None, some, schema, self._lookup))
        is_real = chunks.record >= 0
        if schema.label.per_step:
            weight *= tf.cast(tf.sequence_mask(length, time) & is_real[:, None], tf.float32)
        else:
            share = is_real / num_chunks if self._label_every_chunk else chunks.ends
            weight *= tf.constant(share, tf.float32)
        return ChunkBatch(features, label, weight, tf.constant((chunks.first == 0) | ~is_real), chunks)

    def _join(
        self, field: StoredField, chunks: Chunks, records: list[_Record | None], time: int, extra: int = 0
    ) -> Array:
        """Returns the values of a field for all rows; for a step field, those of the chunks and `extra` more steps."""
        dtype: Any = object if field.dtype == "string" else field.dtype
        blank: Any = b"" if field.dtype == "string" else field.padding if field.per_step else 0
        joined = np.full(
            (len(records), time, *field.shape) if field.per_step else (len(records), *field.shape), blank, dtype
        )
        for row, (record, first, length) in enumerate(
            zip(records, chunks.first.tolist(), chunks.length.tolist(), strict=True)
        ):
            if record is None:
                continue
            if field.per_step:
                part = record[field.name][first : first + length + extra]
                joined[row, : len(part)] = part
            else:
                joined[row] = record[field.name][()]  # a value without axes, not an array of one
        return joined


def _shaped(values: Any, field: StoredField, steps: int) -> Array:
    """Returns the flat values of an Example in the shape of a field."""
    if field.dtype == "string":
        flat = np.empty(len(values), object)
        flat[:] = values
    else:
        flat = np.asarray(values)
    return flat.reshape((steps, *field.shape) if field.per_step else field.shape)
