"""A pool of memory for the arrays of batches: memory is used again as soon as nobody references its array."""

import collections
import math
import mmap
import weakref

import numpy as np

from pipeline.format.stored_fields import StoredField
from pipeline.schema.record import Array

# Larger buffers go back to the system: they are few, and the next batch rarely has the same size.
_MAX_KEPT_BYTES = 64 * 2**20
# Maps all pages at once if the system can. To map each page when it is first written takes several times as long.
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)


class BufferPool:
    """The memory of the batches of one epoch.

    malloc keeps freed memory for the thread that allocated it, and tf.data starts new threads in every epoch: measured,
    memory grew by 130 MB in each of three epochs. New pages from the system cost as much time as all other work on a
    batch.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[mmap.mmap]] = collections.defaultdict(list)
        self._open = True

    def allocate(self, field: StoredField, *shape: int) -> Array:
        """Returns an array that holds only padding: dtype[*shape, *field.shape].

        The array begins at a memory page, so TensorFlow uses it without a copy.
        """
        shape = (*shape, *field.shape)
        size = math.prod(shape) * np.dtype(field.dtype).itemsize
        if not size:
            return np.zeros(shape, field.dtype)
        array = self._allocate_bytes(size).view(field.dtype).reshape(shape)
        if field.padding:
            array.fill(field.padding)
        return array

    def close(self) -> None:
        """Returns the free memory to the system now, and the rest as soon as nobody references it."""
        self._open = False
        self._free.clear()

    def _release(self, memory: mmap.mmap) -> None:
        if self._open and len(memory) <= _MAX_KEPT_BYTES:
            self._free[len(memory)].append(memory)

    def _allocate_bytes(self, size: int) -> Array:
        # Batches have nearly the same size. Sizes are rounded up by a few percent, so that most buffers fit again.
        unit = 1 << max(size.bit_length() - 5, 12)
        capacity = -(-size // unit) * unit
        free = self._free[capacity]
        reused = bool(free)
        memory = free.pop() if reused else mmap.mmap(-1, capacity, flags=_FLAGS)
        array = np.frombuffer(memory, np.uint8, size)
        weakref.finalize(array, self._release, memory).atexit = False
        if reused:
            array.fill(0)
        return array
