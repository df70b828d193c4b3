"""Keeps many numbers of 8 bytes sorted in memory, to which others are added now and then."""

from collections.abc import Callable

import numpy as np

from pipeline.schema.record import Array

ENTRY_BYTES = 8
# Entries that are sorted together at most. More are kept in several arrays, so that no copy of all of them is made.
_MAX_SORTED = 2**22


class SortedEntries:
    """A set of uint64 entries. The last 16 bits of an entry are its value, and the others are its key."""

    VALUE_BITS = np.uint64(2**16 - 1)
    KEY_BITS = ~VALUE_BITS

    def __init__(self) -> None:
        # uint64[entries], each ascending. Each array has more than twice the entries of the next, or is large.
        self._arrays: list[Array] = []

    @property
    def num_bytes(self) -> int:
        """Bytes of the entries in memory."""
        return sum(entries.nbytes for entries in self._arrays)

    def add(self, entries: Array) -> None:
        """Adds uint64[entries], and merges arrays of about the same size."""
        self._arrays.append(np.unique(entries))
        while len(self._arrays) > 1:
            first, second = self._arrays[-2:]
            if len(first) > 2 * len(second) or len(first) + len(second) > _MAX_SORTED:
                break
            merged = np.concatenate([first, second])
            merged.sort(kind="stable")  # merges what is sorted already
            self._arrays[-2:] = [merged]

    def keep(self, choose: Callable[[Array], Array]) -> None:
        """Keeps the entries for whose values uint64[entries] a function returns True in bool[entries]."""
        for place, entries in enumerate(self._arrays):
            self._arrays[place] = entries[choose(entries & self.VALUE_BITS)]
        self._arrays.sort(key=len, reverse=True)

    def find(self, keys: Array) -> Array:
        """Returns uint64[found], the entries that have one of uint64[keys], whose last 16 bits do not count."""
        wanted = np.unique(keys & self.KEY_BITS)
        found = [np.zeros(0, np.uint64)]
        for entries in self._arrays:
            starts = np.searchsorted(entries, wanted)
            places = np.flatnonzero(starts < len(entries))
            places = places[entries[starts[places]] <= wanted[places] | self.VALUE_BITS]
            ends = np.searchsorted(entries, wanted[places] | self.VALUE_BITS, side="right")
            found.append(entries[_ranges(starts[places], ends)])
        return np.concatenate(found)


def _ranges(starts: Array, ends: Array) -> Array:
    """Returns int64[places], all places from a start to its end, which is excluded.

    >>> _ranges(np.array([3, 7]), np.array([5, 8])).tolist()
    [3, 4, 7]
    """
    sizes = ends - starts
    return np.repeat(ends - np.cumsum(sizes), sizes) + np.arange(sizes.sum())
