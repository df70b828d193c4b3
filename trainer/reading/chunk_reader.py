"""Reads the chunks of a stateful plan: of each record, the values of the next steps."""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pipeline.format.stored_fields import StoredField, stored_fields
from pipeline.schema.record import Array
from pipeline.schema.schema import NEXT_STEP
from trainer.batching.stateful import Chunks, StatefulPlan
from trainer.data.dataset import Dataset
from trainer.data.labels import make_label_lookup, split_label
from trainer.data.target import Vocabularies
from trainer.reading.long_record import LongRecord, Values


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
    """Reads the chunks of a split. Memory holds, for each lane, the part that is read of one record.

    Args:
        label_every_chunk: Whether the label of a record has a weight in each of its chunks: 1 ÷ their number.
    """

    def __init__(
        self, dataset: Dataset, split: str, *, vocabularies: Vocabularies, label_every_chunk: bool = False
    ) -> None:
        self._schema, self._label_every_chunk = dataset.schema, label_every_chunk
        self._fields = [field for field in stored_fields(self._schema) if field.name not in ("length", NEXT_STEP)]
        next_of = self._schema.label.next_of
        if next_of is not None:
            (field,) = (field for field in self._fields if field.name == next_of)
            self._fields.append(dataclasses.replace(field, name=NEXT_STEP, per_step=False))
        self._lookup = make_label_lookup(self._schema, vocabularies)
        self._shards = dataset.size_checked_indexes(split)
        self._first_record = np.cumsum([0, *(len(shard.lengths) for shard in self._shards)])

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
        records: dict[int, LongRecord] = {}
        times = plan.times()
        for number, chunks in enumerate(plan.chunks(first_batch, reader_index), first_batch):
            rows = chunks.record.tolist()
            records = {row: records.get(row) or self._open(row) for row in rows if row >= 0}
            places = zip(rows, chunks.first.tolist(), chunks.length.tolist(), strict=True)
            read = [records[row].read(first, length) if row >= 0 else None for row, first, length in places]
            num_chunks = -(-plan.lengths[chunks.record] // plan.chunk_steps)
            yield self._make_batch(chunks, read, int(times[number]), num_chunks)

    def _open(self, row: int) -> LongRecord:
        """Returns a record of the split, of which nothing is read yet."""
        number = int(np.searchsorted(self._first_record, row, side="right")) - 1
        return LongRecord(self._shards[number], row - int(self._first_record[number]), self._schema)

    def _make_batch(self, chunks: Chunks, read: list[Values | None], time: int, num_chunks: Array) -> ChunkBatch:
        """Returns the batch of an update.

        Args:
            read: The values of each row; None for a filler row.
            time: Number of steps to pad to.
            num_chunks: int64[rows], chunks of the record of each row.
        """
        schema = self._schema
        values = {field.name: tf.constant(_join(field, read, time)) for field in self._fields}
        length = tf.constant(chunks.length, tf.int32)
        features, label, weight = split_label(values, length, schema, self._lookup)
        is_real = chunks.record >= 0
        if schema.label.per_step:
            weight *= tf.cast(tf.sequence_mask(length, time) & is_real[:, None], tf.float32)
        else:
            share = is_real / num_chunks if self._label_every_chunk else chunks.ends
            weight *= tf.constant(share, tf.float32)
        return ChunkBatch(features, label, weight, tf.constant((chunks.first == 0) | ~is_real), chunks)


def _join(field: StoredField, read: list[Values | None], time: int) -> Array:
    """Returns the values of a field for all rows: [rows, time, *shape], or [rows, *shape] per record."""
    dtype: Any = object if field.dtype == "string" else field.dtype
    blank: Any = b"" if field.dtype == "string" else field.padding if field.per_step else 0
    joined = np.full((len(read), time, *field.shape) if field.per_step else (len(read), *field.shape), blank, dtype)
    for row, values in enumerate(read):
        if values is not None and field.per_step:
            joined[row, : len(values[field.name])] = values[field.name]
        elif values is not None:
            joined[row] = values[field.name][()]  # a value without axes, not an array of one
    return joined
