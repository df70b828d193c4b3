"""Chooses split, shard and order of a record from hashes of its id (the split from its group, if there is one).

So the same input and seed give the same files on every runner, however often a bundle is retried, and a record never
changes its split when other records are added.
"""

import hashlib
import re
from collections.abc import Mapping

from pipeline.format.models import TRAIN

# One more than the largest `key_number`.
END_NUMBER = 2**64


def order_key(record_id: str, *, seed: int) -> bytes:
    """Returns the 16 bytes that a dataset is sorted by. They are uniformly distributed, so the order is a shuffle."""
    return _digest("order", seed, record_id)[:16]


def choose_shard(key: bytes, *, num_shards: int) -> int:
    """Returns the number of the shard of an order key, from 0 to num_shards - 1.

    Shards are ranges of keys, so the records of all shards, one shard after the other, are in the order of their keys.

    >>> [choose_shard(bytes([first]) + bytes(15), num_shards=4) for first in (0, 63, 64, 255)]
    [0, 0, 1, 3]
    """
    return key_number(key) * num_shards // END_NUMBER


def key_number(key: bytes) -> int:
    """Returns the first 8 bytes of an order key as a number. A shard is a range of these numbers."""
    return int.from_bytes(key[:8], "big")


def shard_range(number: int, *, num_shards: int) -> tuple[int, int]:
    """Returns (first, end) of shard `number`, which holds the keys whose `key_number` is in [first, end).

    >>> shard_range(3, num_shards=4) == (3 * 2**62, 2**64)
    True
    """
    first, end = (-(-(n * END_NUMBER) // num_shards) for n in (number, number + 1))
    return first, end


# The end of the name of a shard: its number, and the number of shards. Shards of several windows have the same numbers.
_NUMBER = re.compile(r"-(\d{1,9})-of-(\d{1,9})\.tfrecord\Z", re.ASCII)


def range_of(path: str) -> tuple[int, int]:
    """Returns the `shard_range` of a shard by its path. For a name that is not that of a shard, any key is possible.

    >>> range_of("data/a/train-00001-of-00002.tfrecord") == (2**63, 2**64)
    True
    """
    found = _NUMBER.search(path)
    number, num_shards = (0, 1) if found is None else map(int, found.groups())
    return shard_range(number, num_shards=num_shards) if number < num_shards else (0, END_NUMBER)


def choose_split(group: str, shares: Mapping[str, float], *, seed: int) -> str:
    """Returns the split of a record.

    Args:
        group: Group of the record, or its id if the schema has no group.
        shares: Share of each split, from 0 to 1.
    """
    if len(shares) == 1:  # needs no hash
        return next(iter(shares))
    position = int.from_bytes(_digest("split", seed, group)[:8], "big") / 2**64
    edge = 0.0
    for name, share in shares.items():
        edge += share
        if position < edge:
            return name
    # The sum of the shares may be less than 1 by a rounding error.
    return next(name for name, share in reversed(list(shares.items())) if share > 0)


def choose_moved(group: str, moved: Mapping[str, float], *, seed: int) -> str:
    """Returns the split of a record whose field says train: train, or a split that takes a share of train.

    Args:
        group: Group of the record, or its id if the schema has no group.
        moved: Share of the train records that each of the other splits takes, less than 1 together.
    """
    if not moved:  # needs no hash
        return TRAIN
    return choose_split(group, {**moved, TRAIN: 1 - sum(moved.values())}, seed=seed)


def _digest(purpose: str, seed: int, text: str) -> bytes:
    # The purpose is part of the hash: otherwise the first shard would be the first split.
    return hashlib.sha256(f"lengthwise/{purpose}/{seed}/{text}".encode()).digest()
