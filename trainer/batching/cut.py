"""Cuts records that are sorted by length into batches, within a budget of padded steps and a number of records."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from pipeline.schema.record import Array

Ints = np.ndarray[Any, np.dtype[np.int64]]
Number = TypeVar("Number", int, Array)

# Padded steps per batch. On a CPU, larger batches are hardly faster. A small dataset gets a smaller budget.
DEFAULT_BATCH_STEPS = 6400
# An epoch of fewer updates learns little from a small dataset.
MIN_BATCHES = 20


@dataclasses.dataclass(frozen=True)
class BatchLimits:
    """The limits of a batch. At least one of `batch_steps` and `batch_size` is set; if both are, both hold.

    Attributes:
        batch_steps: Budget of padded steps (rows × padded length) of one reader. A record that is longer than the
            budget makes a batch of one record.
        batch_size: Maximum number of records of one reader.
        pad_to_multiple: Batches are padded to a multiple of this number of steps.
        num_readers: Number of readers that share each batch.
    """

    batch_steps: int | None = None
    batch_size: int | None = None
    pad_to_multiple: int = 1
    num_readers: int = 1

    def rows(self, length: int) -> int:
        """Returns the number of records of `length` steps in a full batch of one reader, at least 1."""
        padded = round_up(length, self.pad_to_multiple)
        by_steps = max(1, self.batch_steps // padded) if self.batch_steps is not None else None
        return min(limit for limit in (by_steps, self.batch_size) if limit is not None)


def cut_sorted(lengths: Array, limits: BatchLimits, *, first_share: float = 1.0) -> Ints:
    """Returns the position of the first record of each batch: int64[batches].

    Each batch is full, except the first one and the last two: if the records that are left fill more than one batch but
    less than one and a half, the last two batches have the same size. So no batch is very small.

    Args:
        lengths: int[records], steps of each record, from the longest to the shortest. A record may be slightly longer
            than the one before it.
        first_share: From 0 to 1. The first batch has half of a full batch at 0 and a full batch at 1, which moves all
            later cuts.

    >>> cut_sorted(np.array([9, 8, 5, 5, 5, 4]), BatchLimits(batch_steps=18)).tolist()
    [0, 2, 4]
    """
    starts, start, total = [], 0, len(lengths)
    readers = limits.num_readers
    while start < total:
        starts.append(start)
        size = readers * limits.rows(int(lengths[start]))
        # A later record of the batch may be longer than its first.
        size = readers * limits.rows(int(lengths[start : start + size].max()))
        left = total - start
        if start == 0:
            size = _multiple_of(readers, size * (0.5 + first_share / 2))
        elif size < left < 1.5 * size:
            size = _multiple_of(readers, left / 2)
        start += size
    return np.array(starts, np.int64)


def cut_batches(lengths: Sequence[int], *, batch_steps: int, chunk_steps: int | None = None) -> list[Ints]:
    """Returns batches of records of similar length: for each batch, the positions of its records in `lengths`.

    Batches come from the longest records to the shortest, each int64[rows], with rows × longest ≤ batch_steps. A record
    that is longer than the budget makes a batch of one record. With `chunk_steps`, records are read in chunks of this
    number of steps, and only the longest chunk counts.

    >>> [batch.tolist() for batch in cut_batches([7, 2, 30, 3], batch_steps=12)]
    [[2], [0], [3, 1]]
    """
    if not len(lengths):
        return []
    steps = np.asarray(lengths, np.int64)
    order = np.argsort(-steps, kind="stable")
    steps = steps[order] if chunk_steps is None else np.minimum(steps[order], chunk_steps)
    return np.split(order, cut_sorted(steps, BatchLimits(batch_steps))[1:])


def round_up(length: Number, multiple: int) -> Number:
    """Returns the smallest multiple of `multiple` that is at least `length`."""
    return -(-length // multiple) * multiple


def check_limits(**limits: int | None) -> None:
    """Raises a ValueError if a limit is below 1."""
    for name, value in limits.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1.")


def _multiple_of(num_readers: int, size: float) -> int:
    """Returns the integer part of `size`, rounded up to a positive multiple of `num_readers`."""
    return max(1, -(-int(size) // num_readers)) * num_readers
