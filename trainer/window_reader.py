"""Reads the batches of a plan in windows: each record is read, checked and copied to its row, once, just in time.

A window is cut into pieces, each some neighbouring records of a shard. A piece is read in one go, every frame in it is
checked, and every record is put where it belongs: into the array of the batch that the plan has for it. Pieces are read
as late as the batches allow, evenly, so that little more than one window is in memory and no batch waits for many.
All of it happens when a batch is asked for: a thread that reads ahead was tried and halved the speed, for it and the
batches fight for Python's lock; what is ahead is the reader's `prefetch`.
"""

import contextlib
import dataclasses
import functools
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.decode import NotAsWritten, copy_steps, locate, values_of
from pipeline.fields import Field, stored_fields
from trainer.dataset import Dataset, ShardIndex
from trainer.memory import BatchMemory
from trainer.parsing import DTYPES, assemble, fill_rows, label_lookup, pad_steps, parse_records
from trainer.target import Vocabularies
from trainer.windows import Batches, WindowPlan

Array = np.ndarray[Any, Any]

# Bytes of a piece: so many that what is done once for it is little beside what is done for its records.
_PIECE_BYTES = 4 * 2**20
# A window is loaded while this part of the batches before it passes: sooner takes memory, later makes them wait.
_LOADING = 8


def window_batches(
    dataset: Dataset,
    split: str,
    plan: WindowPlan,
    *,
    first_batch: int = 0,
    reader_index: int = 0,
    vocabularies: Vocabularies,
) -> tf.data.Dataset:
    """The batches of a plan of the whole split, as `numbered_batches` gives them, from `first_batch` on."""
    if not 0 <= first_batch <= plan.num_batches:
        raise ValueError(f"first_batch is {first_batch}, expected 0 to {plan.num_batches}, the batches of the epoch.")
    schema, lookup = dataset.schema, label_lookup(dataset.schema, vocabularies)
    source = _Source(dataset, split, plan, reader_index)
    position, spec = _Position(source), source.output_spec
    read_at = weakref.WeakMethod(position.read)

    def read_batch(number: Any) -> list[Array]:
        found = read_at()
        assert found is not None, "an iterator outlived its dataset"
        return found(number)

    def make(number: tf.Tensor) -> tuple[Any, tf.Tensor, tf.Tensor, tf.Tensor]:
        found = tf.numpy_function(read_batch, [number], [one.dtype for one in spec.values()])
        for value, one in zip(found, spec.values(), strict=True):
            value.set_shape(one.shape)
        values = dict(zip(spec, found, strict=True))
        rows, time, length, row = (values.pop(name) for name in _NUMBERS)
        if source.serialized:
            values = pad_steps(parse_records(values["examples"], length, schema), time, schema)
        batch = *assemble(values, length, schema, lookup), row
        return batch if plan.num_readers == 1 else fill_rows(batch, rows)

    numbers = tf.data.Dataset.range(first_batch, plan.num_batches)
    # TensorFlow never lets go of a function in Python; a dataset made of this one, and its iterators, hold it.
    numbers.position = position
    return numbers.map(make).apply(tf.data.experimental.assert_cardinality(plan.num_batches - first_batch))


# What comes with the values of a batch: rows with those that fill it up, steps it is padded to, and of each record its
# steps and its place in the split.
_NUMBERS = ("rows", "time", "length", "row")


class _Position:
    """Where an iteration stands.

    tf.data says which batch it wants, so a dataset may be iterated again; or twice at once, which is slow but right.
    """

    def __init__(self, source: "_Source") -> None:
        self._source = source
        self._next = -1
        self._batches: Iterator[list[Array]] = iter(())
        self._lock = threading.Lock()

    def read(self, number: Any) -> list[Array]:
        with self._lock:
            if number != self._next:
                self._batches = self._source.batches(int(number))
            self._next = -1  # begun anew after an error
            batch = next(self._batches)
            self._next = int(number) + 1
            if self._next == self._source.plan.num_batches:
                self._batches = iter(())  # the memory goes now, not with the dataset
            return batch


class _Source:
    """The batches of one reader as arrays of what is stored, or of whole Examples where there are strings in them.

    Strings go through objects of Python on the way from NumPy to TensorFlow; tf.io.parse_example is faster for them.
    """

    def __init__(self, dataset: Dataset, split: str, plan: WindowPlan, reader_index: int) -> None:
        self.plan, self.reader_index = plan, reader_index
        self.shards = dataset.sized_shards(split)
        self.first_row = np.cumsum([0, *(len(shard.num_steps) for shard in self.shards)])
        self.fields = stored_fields(dataset.schema)  # of which the last is the length
        self.serialized = any(field.dtype == "string" for field in self.fields)

    @functools.cached_property
    def shapes(self) -> Batches:
        """What each batch is; not asked for where only the output's spec is."""
        return self.plan.batches(self.reader_index)

    @property
    def output_spec(self) -> dict[str, tf.TensorSpec]:
        ints = [tf.TensorSpec([], tf.int32)] * 2 + [tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.int64)]
        spec = dict(zip(_NUMBERS, ints, strict=True))
        if self.serialized:
            return spec | {"examples": tf.TensorSpec([None], tf.string)}
        return spec | {
            field.name: tf.TensorSpec(
                [None, None, *field.shape] if field.per_step else [None, *field.shape], DTYPES[field.dtype]
            )
            for field in self.fields[:-1]
        }

    def batches(self, first_batch: int) -> Iterator[list[Array]]:
        """Every batch from `first_batch` on, in the order of `output_spec`."""
        waiting: dict[int, _Window] = {}
        with contextlib.closing(BatchMemory()) as memory:
            pieces = self._pieces(first_batch, waiting, memory)
            due, piece = next(pieces, _NO_PIECE)
            for number in range(first_batch, self.plan.num_batches):
                while due <= number:
                    if piece is not None:
                        piece.load()
                    due, piece = next(pieces, _NO_PIECE)
                yield waiting.pop(number).take(number)

    def _pieces(
        self, first_batch: int, waiting: dict[int, "_Window"], memory: BatchMemory
    ) -> Iterator[tuple[int, "_Piece | None"]]:
        """The pieces, each with the batch before which it is to be loaded; whose window then waits to be taken."""
        windows, first = np.unique(self.plan.window[first_batch:], return_index=True)
        order = np.argsort(first)
        before = first_batch
        for window, needed in zip(windows[order].tolist(), (first[order] + first_batch).tolist(), strict=True):
            numbers = np.flatnonzero(self.plan.window[first_batch:] == window) + first_batch
            time = -(-(needed - before) // _LOADING)
            yield needed - time, None
            loading = _Window(self, numbers, memory)
            waiting |= dict.fromkeys(numbers.tolist(), loading)
            pieces = loading.cut()
            for left, piece in zip(range(len(pieces) - 1, -1, -1), pieces, strict=True):
                yield needed - left * time // len(pieces), piece
            before = needed


_NO_PIECE: tuple[Any, Any] = (np.inf, None)


class _Window:
    """The arrays of the batches of a window, padding only at first; slots are its records, batch after batch."""

    def __init__(self, source: _Source, numbers: Array, memory: BatchMemory) -> None:
        self.source = source
        rows = [source.plan.rows(number, source.reader_index) for number in numbers.tolist()]
        self.row = np.concatenate(rows)
        sizes = [len(part) for part in rows]
        self.end = np.cumsum(sizes)
        self.batch_of = np.repeat(np.arange(len(sizes)), sizes)
        self.place = np.arange(len(self.row)) - np.repeat(self.end - sizes, sizes)
        self.position = {number: index for index, number in enumerate(numbers.tolist())}
        self.time = source.shapes.pad_length[numbers]
        self.length = source.plan.lengths[self.row]
        self.examples = np.empty(len(self.row) if source.serialized else 0, object)
        self.steps: dict[str, list[Any]] = {}
        self.bytes: dict[str, list[memoryview]] = {}
        self.values: dict[str, Array] = {}
        for field in [] if source.serialized else source.fields:
            if field.per_step:
                shapes = zip(sizes, self.time.tolist(), strict=True)
                self.steps[field.name] = batches = [memory.batch(field, *shape) for shape in shapes]
                self.bytes[field.name] = [batch.reshape(-1).view(np.uint8).data for batch in batches]
            else:
                self.values[field.name] = np.empty((len(self.row), *field.shape), field.dtype)

    def cut(self) -> list["_Piece"]:
        """The records in the order in which they lie in the shards, in pieces."""
        slots = np.argsort(self.row)
        row, shards = self.row[slots], self.source.shards
        shard = np.searchsorted(self.source.first_row, row, side="right") - 1
        pieces = []
        for number in np.unique(shard).tolist():
            mine = shard == number
            records = row[mine] - self.source.first_row[number]
            # What lies between its records is not read, but a piece that spans much is many reads.
            part = shards[number].offset[records] // _PIECE_BYTES
            borders = np.flatnonzero(np.diff(part)) + 1
            for which, slot in zip(np.split(records, borders), np.split(slots[mine], borders), strict=True):
                pieces.append(_Piece(self, shards[number], which, slot))
        return pieces

    def take(self, number: int) -> list[Array]:
        """A batch, which is gone from here then."""
        index = self.position[number]
        end = self.end[index]
        part = slice(self.end[index - 1] if index else 0, end)
        shape = self.source.shapes
        found: list[Any] = [
            np.int32(shape.rows[number]),
            np.int32(shape.pad_length[number]),
            self.length[part],
            self.row[part],
        ]
        if self.source.serialized:
            examples = self.examples[part].copy()
            self.examples[part] = None
            return [*found, examples]
        for field in self.source.fields[:-1]:
            if field.per_step:
                found.append(self.steps[field.name][index])
                self.steps[field.name][index] = self.bytes[field.name][index] = None  # type: ignore[call-overload]
            else:
                found.append(self.values[field.name][part])
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Piece:
    """Some records of a shard, and the slots of their window that they go to: int64[records] each."""

    window: _Window
    shard: ShardIndex
    records: Array
    slots: Array

    def load(self) -> None:
        data, begin, end = self.shard.read(self.records)
        window, source = self.window, self.window.source
        if source.serialized:
            examples = window.examples
            for slot, first, last in zip(self.slots.tolist(), begin.tolist(), end.tolist(), strict=True):
                examples[slot] = data[first:last]
            return
        try:
            self._copy(data, begin, end, source.fields)
        except NotAsWritten as error:
            raise self.shard.damaged(f"{error}") from None

    def _copy(self, data: bytes, begin: Array, end: Array, fields: list[Field]) -> None:
        window = self.window
        length = window.length[self.slots]
        batch, place = window.batch_of[self.slots], window.place[self.slots]
        located = locate(data, begin, end, fields)
        for field, start, stop in zip(fields, located.start, located.stop, strict=True):
            if not field.per_step:
                window.values[field.name][self.slots] = values_of(field, data, start, stop)
                continue
            targets = [window.bytes[field.name][index] for index in batch.tolist()]
            row_bytes = np.dtype(field.dtype).itemsize * field.width * window.time[batch]
            copy_steps(field, data, start, stop, length, targets=targets, place=place * row_bytes)
        if (window.values["length"][self.slots] != length).any():
            raise NotAsWritten("a record has another length than its index says")
