"""Lends memory to the arrays of batches, and lends it again once nobody holds the array any more."""

import collections
import math
import mmap
import weakref

import numpy as np

from pipeline.format.stored_fields import StoredField
from pipeline.schema.record import Array

# Larger ones go back to the system: there are few of them, and the next batch is seldom as large.
_MAX_KEPT_BYTES = 64 * 2**20
# All pages at once, where the system can: one by one, as they are written to, takes several times as long.
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)


class BatchMemory:
    """The memory of the batches of one epoch.

    malloc keeps what was freed for the thread that took it, and tf.data has new threads every epoch: measured, 130 MB
    more after each of three. Fresh pages from the system cost as much time as everything else that is done for a batch.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[mmap.mmap]] = collections.defaultdict(list)
        self._open = True

    def batch(self, field: StoredField, *shape: int) -> Array:
        """Padding only, dtype[*shape, *field.shape]. TensorFlow takes it over without a copy: it begins at a page."""
        shape = (*shape, *field.shape)
        size = math.prod(shape) * np.dtype(field.dtype).itemsize
        if not size:
            return np.zeros(shape, field.dtype)
        array = self._lend(size).view(field.dtype).reshape(shape)
        if field.padding:
            array.fill(field.padding)
        return array

    def close(self) -> None:
        """Gives the system what is not lent, and from now on what comes back."""
        self._open = False
        self._free.clear()

    def _take_back(self, memory: mmap.mmap) -> None:
        if self._open and len(memory) <= _MAX_KEPT_BYTES:
            self._free[len(memory)].append(memory)

    def _lend(self, size: int) -> Array:
        # Batches have nearly one size, so that rounded up by a few hundredths, most fit where another was.
        unit = 1 << max(size.bit_length() - 5, 12)
        room = -(-size // unit) * unit
        free = self._free[room]
        known = bool(free)
        memory = free.pop() if known else mmap.mmap(-1, room, flags=_FLAGS)
        array = np.frombuffer(memory, np.uint8, size)
        weakref.finalize(array, self._take_back, memory).atexit = False
        if known:
            array.fill(0)
        return array
