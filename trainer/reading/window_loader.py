"""Loads the batches of a window plan into NumPy arrays: each record is read, checked and copied to its row once.

A window is divided into pieces, each some adjacent records of a shard. A piece is read at once, the frames of its
records are checked, and each record is copied into the array of the batch that the plan assigns to it. Pieces are read
as late as the batches allow and evenly over time, so that memory holds little more than one window and no batch waits
for many pieces.

All of this happens when a batch is requested. A thread that reads ahead was tried: it halved the speed, because it
competes with the batches for Python's lock. The reader's `prefetch` reads ahead instead.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from pipeline.format.batch_decoding import UnexpectedLayout, copy_steps, decode_record_values, locate_values
from pipeline.format.stored_fields import StoredField, stored_fields
from pipeline.schema.record import Array
from trainer.batching.cut import Ints
from trainer.batching.window import WindowPlan
from trainer.data.dataset import Dataset
from trainer.data.examples import DTYPES
from trainer.data.shard_index import ShardIndex
from trainer.reading.buffer_pool import BufferPool

# Bytes of a piece: enough that the work for each piece is small compared with the work for its records.
_PIECE_BYTES = 4 * 2**20
# A window is loaded during the last 1 / 8 of the batches before it. To begin earlier takes more memory; to begin later
# makes these batches wait longer.
_LOADING_PARTS = 8

# What the loader yields before the values of a batch: number of rows, fillers included; steps to which the batch is
# padded; steps of each record; position of each record in the split. They have no names: a feature may have any name.
SIZES = (
    tf.TensorSpec([], tf.int32),
    tf.TensorSpec([], tf.int32),
    tf.TensorSpec([None], tf.int32),
    tf.TensorSpec([None], tf.int64),
)
EXAMPLES = "examples"

Piece = TypeVar("Piece")


def yields_examples(fields: Sequence[StoredField]) -> bool:
    """Returns whether the loader yields whole Examples, and not the values of each field.

    This is so if a field holds strings. They would become Python objects on the way from NumPy to TensorFlow, and
    tf.io.parse_example is faster.
    """
    return any(field.dtype == "string" for field in fields)


def value_specs(fields: Sequence[StoredField]) -> dict[str, tf.TensorSpec]:
    """Returns the name, shape and dtype of each array that the loader yields for a batch after SIZES, in their order.

    Whole Examples have the name EXAMPLES, which then is the only one.
    """
    if yields_examples(fields):
        return {EXAMPLES: tf.TensorSpec([None], tf.string)}
    return {
        field.name: tf.TensorSpec(
            [None, None, *field.shape] if field.per_step else [None, *field.shape], DTYPES[field.dtype]
        )
        for field in fields[:-1]
    }


class WindowLoader:
    """Loads the batches of one reader of a plan.

    Raises:
        UserError: A shard is missing, or has another size than the manifest says.
    """

    def __init__(self, dataset: Dataset, split: str, plan: WindowPlan, reader_index: int) -> None:
        self.plan, self.reader_index = plan, reader_index
        self.shards = dataset.size_checked_indexes(split)
        self.first_row = np.cumsum([0, *(len(shard.num_steps) for shard in self.shards)])
        self.fields = stored_fields(dataset.schema)  # the last one is the length
        self.yields_examples = yields_examples(self.fields)
        self.shapes = plan.batch_shapes(reader_index)

    def batches(self, first_batch: int) -> Iterator[list[Array]]:
        """Yields the arrays of every batch from `first_batch` on, SIZES and then `value_specs`."""
        windows = collections.deque(schedule_windows(self.plan.window, first_batch))
        pieces: collections.deque[tuple[int, _Piece]] = collections.deque()
        window_of: dict[int, _Window] = {}
        with contextlib.closing(BufferPool()) as pool:
            for number in range(first_batch, self.plan.num_batches):
                while windows and windows[0].begin <= number:
                    pieces.extend(self._open_window(windows.popleft(), first_batch, window_of, pool))
                while pieces and pieces[0][0] <= number:
                    pieces.popleft()[1].load()
                yield window_of.pop(number).take(number)

    def _open_window(
        self, scheduled: "ScheduledWindow", first_batch: int, window_of: dict[int, "_Window"], pool: BufferPool
    ) -> "list[tuple[int, _Piece]]":
        """Enters a window into `window_of` for each of its batches, and returns its pieces as (needed_by, piece)."""
        numbers = np.flatnonzero(self.plan.window[first_batch:] == scheduled.window) + first_batch
        window = _Window(self, numbers, pool)
        window_of |= dict.fromkeys(numbers.tolist(), window)
        return schedule_pieces(window.cut(), begin=scheduled.begin, needed_by=scheduled.needed_by)


class ScheduledWindow(NamedTuple):
    """When a window is loaded.

    Attributes:
        window: Number of the window.
        begin: Number of the batch before which loading begins.
        needed_by: Number of the first batch that needs the window.
    """

    window: int
    begin: int
    needed_by: int


def schedule_windows(window: Ints, first_batch: int) -> list[ScheduledWindow]:
    """Returns the windows of an epoch that begins with `first_batch`, in the order in which they are needed.

    Args:
        window: int64[batches], the window of each batch.

    >>> schedule_windows(np.array([0] * 16 + [1, 0, 1]), 0)
    [ScheduledWindow(window=0, begin=0, needed_by=0), ScheduledWindow(window=1, begin=14, needed_by=16)]
    """
    numbers, first = np.unique(window[first_batch:], return_index=True)
    order = np.argsort(first)
    scheduled, previous = [], first_batch
    for number, needed_by in zip(numbers[order].tolist(), (first[order] + first_batch).tolist(), strict=True):
        scheduled.append(ScheduledWindow(number, needed_by - -(-(needed_by - previous) // _LOADING_PARTS), needed_by))
        previous = needed_by
    return scheduled


def schedule_pieces(pieces: Sequence[Piece], *, begin: int, needed_by: int) -> list[tuple[int, Piece]]:
    """Returns (the number of the batch before which it is loaded, piece) for all pieces of a window.

    Pieces are loaded evenly from `begin` to `needed_by`, in their order.

    >>> schedule_pieces("abc", begin=10, needed_by=16)
    [(12, 'a'), (14, 'b'), (16, 'c')]
    """
    left = range(len(pieces) - 1, -1, -1)
    return [(needed_by - n * (needed_by - begin) // len(pieces), piece) for n, piece in zip(left, pieces, strict=True)]


class _Window:
    """The arrays of the batches of a window, which hold only padding until the pieces are loaded.

    The records of the window, batch after batch, are its slots.
    """

    def __init__(self, loader: WindowLoader, numbers: Array, pool: BufferPool) -> None:
        self.loader = loader
        rows = [loader.plan.rows(number, loader.reader_index) for number in numbers.tolist()]
        self.row = np.concatenate(rows)
        sizes = [len(part) for part in rows]
        self.end = np.cumsum(sizes)
        self.batch_of = np.repeat(np.arange(len(sizes)), sizes)
        self.place = np.arange(len(self.row)) - np.repeat(self.end - sizes, sizes)
        self.position = {number: index for index, number in enumerate(numbers.tolist())}
        self.time = loader.shapes.pad_length[numbers]
        self.length = loader.plan.lengths[self.row]
        self.examples = np.empty(len(self.row) if loader.yields_examples else 0, object)
        self.steps: dict[str, list[Any]] = {}
        self.bytes: dict[str, list[memoryview]] = {}
        self.values: dict[str, Array] = {}
        for field in [] if loader.yields_examples else loader.fields:
            if field.per_step:
                shapes = zip(sizes, self.time.tolist(), strict=True)
                self.steps[field.name] = batches = [pool.allocate(field, *shape) for shape in shapes]
                self.bytes[field.name] = [batch.reshape(-1).view(np.uint8).data for batch in batches]
            else:
                self.values[field.name] = np.empty((len(self.row), *field.shape), field.dtype)

    def cut(self) -> list["_Piece"]:
        """Returns the records of the window in pieces, in the order in which they lie in the shards."""
        slots = np.argsort(self.row)
        row, shards = self.row[slots], self.loader.shards
        shard = np.searchsorted(self.loader.first_row, row, side="right") - 1
        pieces = []
        for number in np.unique(shard).tolist():
            in_shard = shard == number
            records = row[in_shard] - self.loader.first_row[number]
            # Bytes between the records are not read, but a piece with many gaps takes many reads.
            part = shards[number].offset[records] // _PIECE_BYTES
            borders = np.flatnonzero(np.diff(part)) + 1
            for some, slot in zip(np.split(records, borders), np.split(slots[in_shard], borders), strict=True):
                pieces.append(_Piece(self, shards[number], some, slot))
        return pieces

    def take(self, number: int) -> list[Array]:
        """Returns the arrays of a batch and drops them from the window."""
        index = self.position[number]
        end = self.end[index]
        part = slice(self.end[index - 1] if index else 0, end)
        shape = self.loader.shapes
        found: list[Any] = [
            np.int32(shape.rows[number]),
            np.int32(shape.pad_length[number]),
            self.length[part],
            self.row[part],
        ]
        if self.loader.yields_examples:
            examples = self.examples[part].copy()
            self.examples[part] = None
            return [*found, examples]
        for field in self.loader.fields[:-1]:
            if field.per_step:
                found.append(self.steps[field.name][index])
                self.steps[field.name][index] = self.bytes[field.name][index] = None  # type: ignore[call-overload]
            else:
                found.append(self.values[field.name][part])
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Piece:
    """Some records of a shard.

    Attributes:
        window: The window that the records belong to.
        shard: The shard that they are read from.
        records: int64[records], positions in the shard.
        slots: int64[records], slots of the window.
    """

    window: _Window
    shard: ShardIndex
    records: Array
    slots: Array

    def load(self) -> None:
        """Reads the records, checks them and copies them to their rows."""
        data, begin, end = self.shard.read(self.records)
        window, loader = self.window, self.window.loader
        if loader.yields_examples:
            examples = window.examples
            for slot, first, last in zip(self.slots.tolist(), begin.tolist(), end.tolist(), strict=True):
                examples[slot] = data[first:last]
            return
        try:
            self._copy(data, begin, end, loader.fields)
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
