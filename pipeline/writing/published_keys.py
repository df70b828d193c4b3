"""Keeps the keys of published ids in memory, so that a stream opens few indexes of earlier commits in a round.

An entry is 8 bytes: the first 48 bits of a key, and the number of the shard that holds the id. Two of a billion new ids
that are not published share these bits with one of 500,000 published ids. That costs a look into an index, since every
id that is found is compared with the stored ids.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.schema.record import Array
from pipeline.writing.published_ids import PublishedShard, read_keys
from pipeline.writing.sorted_entries import ENTRY_BYTES, SortedEntries

# Default of --dedup_memory, in bytes: 33 million ids.
DEFAULT_DEDUP_MEMORY = 256 * 2**20
_MAX_SHARDS = 2**16


class _Name(NamedTuple):
    """An index file, which never changes."""

    path: str
    sha256: str


class PublishedKeys:
    """The keys of the ids in the shards of a dataset, as far as they fit into memory.

    Of shards that do not fit together, those with the fewest records are kept: to open an index takes longer than to
    read some thousand keys. The others are searched on disk by `find_published`.

    Args:
        max_bytes: Largest memory of the entries, in bytes. 0 keeps no keys.
    """

    def __init__(self, max_bytes: int = DEFAULT_DEDUP_MEMORY) -> None:
        self._max_entries = max_bytes // ENTRY_BYTES
        self._numbers: dict[_Name, int] = {}
        self._free = list(range(_MAX_SHARDS - 1, -1, -1))
        self._entries = SortedEntries()

    def narrow(self, shards: Sequence[PublishedShard], keys: Array) -> tuple[PublishedShard, ...]:
        """Returns those of some shards that may hold an id with one of the keys, in the same order.

        Args:
            shards: All shards of the dataset whose ids are compared. The keys of other shards are forgotten.
            keys: uint64[keys], the key numbers of new records, ascending.

        Raises:
            UserError: An index is missing or damaged, or has no keys.
        """
        self._update(shards)
        may_hold = np.zeros(_MAX_SHARDS, bool)
        may_hold[self._entries.find(keys) & SortedEntries.VALUE_BITS] = True
        numbers = [self._numbers.get(_name(shard)) for shard in shards]
        return tuple(shard for shard, number in zip(shards, numbers, strict=True) if number is None or may_hold[number])

    @property
    def num_bytes(self) -> int:
        """Bytes of the entries in memory."""
        return self._entries.num_bytes

    def _update(self, shards: Sequence[PublishedShard]) -> None:
        """Forgets and reads keys, so that those of the right shards are in memory."""
        chosen = {_name(shard): shard for shard in self._choose(shards)}
        gone = [name for name in self._numbers if name not in chosen]
        if gone:
            numbers = [self._numbers.pop(name) for name in gone]
            self._free += numbers
            is_kept = np.ones(_MAX_SHARDS, bool)
            is_kept[numbers] = False
            self._entries.keep(lambda values: is_kept[values])
        for name, shard in chosen.items():
            if name not in self._numbers:
                keys = read_keys(shard)
                number = self._numbers[name] = self._free.pop()
                self._entries.add(keys & SortedEntries.KEY_BITS | np.uint64(number))

    def _choose(self, shards: Sequence[PublishedShard]) -> Iterable[PublishedShard]:
        """Returns the shards whose keys are kept in memory."""
        if len(shards) <= _MAX_SHARDS and sum(shard.rows for shard in shards) <= self._max_entries:
            return shards
        ordered = sorted(shards, key=lambda shard: (shard.rows, shard.index_path))
        ends = np.cumsum([shard.rows for shard in ordered])
        return ordered[: min(_MAX_SHARDS, int(np.searchsorted(ends, self._max_entries, side="right")))]


def _name(shard: PublishedShard) -> _Name:
    return _Name(shard.index_path, shard.index_sha256)
