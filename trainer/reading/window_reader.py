"""Reads the batches of a plan in windows: each record is read, checked and copied to its row, once, just in time.

A window is cut into pieces, each some neighbouring records of a shard. A piece is read in one go, every frame in it is
checked, and every record is put where it belongs: into the array of the batch that the plan has for it. Pieces are read
as late as the batches allow, evenly, so that little more than one window is in memory and no batch waits for many.
All of it happens when a batch is asked for: a thread that reads ahead was tried and halved the speed, for it and the
batches fight for Python's lock; what is ahead is the reader's `prefetch`.
"""

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.format.batch_decoding import UnexpectedLayout, copy_steps, decode_record_values, locate_values
from pipeline.format.stored_fields import StoredField, stored_fields
from pipeline.schema.record import Array
from trainer.batching.window import WindowPlan
from trainer.data.dataset import Dataset
from trainer.data.examples import DTYPES, parse_examples
from trainer.data.labels import make_label_lookup, split_label
from trainer.data.padding import add_filler_rows, pad_steps
from trainer.data.shard_index import ShardIndex
from trainer.data.target import Vocabularies
from trainer.reading.memory import BatchMemory

# Bytes of a piece: so many that what is done once for it is little beside what is done for its records.
_PIECE_BYTES = 4 * 2**20
# A window is loaded while this part of the batches before it passes: sooner takes memory, later makes them wait.
_LOADING = 8


class WindowReader:
    """One reader of a split, whose one dataset yields at each iteration the batches of the plan that it follows then.

    TensorFlow never lets go of a function in Python that a dataset calls: with a dataset for each epoch, memory grew by
    some 20 KB an epoch, and each was traced anew, which takes 0.1 s.

    Args:
        num_readers: Of the plans to come; with several, batches get rows that fill them up.
        with_rows: Whether a batch has its fourth element, `row`.

    Attributes:
        dataset: Batches as `trainer.reading.batches.numbered_batches` gives them.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        reader_index: int = 0,
        num_readers: int = 1,
        vocabularies: Vocabularies,
        with_rows: bool = True,
    ) -> None:
        schema, lookup = dataset.schema, make_label_lookup(dataset.schema, vocabularies)
        self._opened, self._split, self._reader_index = dataset, split, reader_index
        fields = stored_fields(schema)
        spec = _output_spec(fields)
        self._position = position = _Position()
        where = weakref.ref(position)

        def at() -> _Position:
            found = where()
            assert found is not None, "an iterator outlived its dataset"
            return found

        def numbers(_: tf.Tensor) -> tf.data.Dataset:
            bounds = tf.numpy_function(lambda: at().bounds(), [], tf.int64)
            begin, end = tf.unstack(tf.ensure_shape(bounds, [2]))
            return tf.data.Dataset.range(begin, end)

        def make(number: tf.Tensor) -> tuple[Any, ...]:
            found = tf.numpy_function(lambda number: at().read(number), [number], [one.dtype for one in spec.values()])
            for value, one in zip(found, spec.values(), strict=True):
                value.set_shape(one.shape)
            values = dict(zip(spec, found, strict=True))
            rows, time, length, row = (values.pop(name) for name in _NUMBERS)
            if _has_strings(fields):
                values = pad_steps(parse_examples(values["examples"], length, schema), time, schema)
            batch = *split_label(values, length, schema, lookup), row
            batch = batch if num_readers == 1 else add_filler_rows(batch, rows)
            return batch if with_rows else batch[:3]

        plain = tf.autograph.experimental.do_not_convert
        begin = tf.data.Dataset.from_tensors(0)
        # TensorFlow keeps the functions for good; a dataset made of this one, and its iterators, keep what they read.
        begin.position = position
        self.dataset = begin.flat_map(plain(numbers)).map(plain(make))

    def follow(self, plan: WindowPlan, *, first_batch: int = 0) -> None:
        """Has the iterations that begin from now on yield the batches of this plan of the whole split, from
        `first_batch` on.

        Raises:
            UserError: a file is missing, or not the one that the manifest lists.
            ValueError: there is no such batch.
        """
        plan.check_first_batch(first_batch)
        self._position.set(_Source(self._opened, self._split, plan, self._reader_index), first_batch)


def window_batches(
    dataset: Dataset, split: str, plan: WindowPlan, *, first_batch: int = 0, **options: Any
) -> tf.data.Dataset:
    """The batches of one plan; `options` are those of `WindowReader`."""
    reader = WindowReader(dataset, split, num_readers=plan.num_readers, **options)
    reader.follow(plan, first_batch=first_batch)
    return reader.dataset.apply(tf.data.experimental.assert_cardinality(plan.num_batches - first_batch))


# What comes with the values of a batch: rows with those that fill it up, steps it is padded to, and of each record its
# steps and its place in the split.
_NUMBERS = ("rows", "time", "length", "row")


def _has_strings(fields: Sequence[StoredField]) -> bool:
    """Whether records are read as whole Examples: strings go through objects of Python on the way from NumPy to
    TensorFlow, and tf.io.parse_example is faster for them."""
    return any(field.dtype == "string" for field in fields)


def _output_spec(fields: Sequence[StoredField]) -> dict[str, tf.TensorSpec]:
    ints = [tf.TensorSpec([], tf.int32)] * 2 + [tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.int64)]
    spec = dict(zip(_NUMBERS, ints, strict=True))
    if _has_strings(fields):
        return spec | {"examples": tf.TensorSpec([None], tf.string)}
    return spec | {
        field.name: tf.TensorSpec(
            [None, None, *field.shape] if field.per_step else [None, *field.shape], DTYPES[field.dtype]
        )
        for field in fields[:-1]
    }


class _Position:
    """Where an iteration stands.

    tf.data says which batch it wants, so a dataset may be iterated again; or twice at once, which is slow but right.
    """

    def __init__(self) -> None:
        self._source: _Source | None = None
        self._first = 0
        self._next = -1
        self._batches: Iterator[list[Array]] = iter(())
        self._lock = threading.Lock()

    def set(self, source: "_Source", first_batch: int) -> None:
        with self._lock:
            self._source, self._first, self._next, self._batches = source, first_batch, -1, iter(())

    def bounds(self) -> Array:
        with self._lock:
            assert self._source is not None, "there is no plan to follow yet"
            return np.array([self._first, self._source.plan.num_batches], np.int64)

    def read(self, number: Any) -> list[Array]:
        with self._lock:
            assert self._source is not None
            if number != self._next:
                self._batches = self._source.batches(int(number))
            self._next = -1  # begun anew after an error
            batch = next(self._batches)
            self._next = int(number) + 1
            if self._next == self._source.plan.num_batches:
                self._batches = iter(())  # the memory goes now, not with the dataset
            return batch


class _Source:
    """The batches of one reader as arrays of what is stored, or of whole Examples where there are strings in them."""

    def __init__(self, dataset: Dataset, split: str, plan: WindowPlan, reader_index: int) -> None:
        self.plan, self.reader_index = plan, reader_index
        self.shards = dataset.size_checked_indexes(split)
        self.first_row = np.cumsum([0, *(len(shard.num_steps) for shard in self.shards)])
        self.fields = stored_fields(dataset.schema)  # of which the last is the length
        self.serialized = _has_strings(self.fields)
        self.shapes = plan.batch_shapes(reader_index)

    def batches(self, first_batch: int) -> Iterator[list[Array]]:
        """Every batch from `first_batch` on, in the order of `_output_spec`."""
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
        except UnexpectedLayout as error:
            raise self.shard.damage_error(f"{error}") from None

    def _copy(self, data: bytes, begin: Array, end: Array, fields: list[StoredField]) -> None:
        window = self.window
        length = window.length[self.slots]
        batch, place = window.batch_of[self.slots], window.place[self.slots]
        located = locate_values(data, begin, end, fields)
        for field, start, stop in zip(fields, located.start, located.stop, strict=True):
            if not field.per_step:
                window.values[field.name][self.slots] = decode_record_values(field, data, start, stop)
                continue
            targets = [window.bytes[field.name][index] for index in batch.tolist()]
            row_bytes = np.dtype(field.dtype).itemsize * field.width * window.time[batch]
            copy_steps(field, data, start, stop, length, targets=targets, place=place * row_bytes)
        if (window.values["length"][self.slots] != length).any():
            raise UnexpectedLayout("a record has another length than its index says")
