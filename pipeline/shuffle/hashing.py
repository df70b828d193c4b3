"""Where a record goes: its split, its shard and its place in the shard follow from hashes of its id alone.

So the same input and seed give the same files on any runner, however often a bundle is retried, and a record never
changes its split when others are added.
"""

import hashlib
from collections.abc import Mapping


def order_key(record_id: str, *, seed: int) -> bytes:
    """16 bytes by which the records of a dataset are sorted; uniform, so the order is a shuffle."""
    return _digest("order", seed, record_id)[:16]


def choose_shard(key: bytes, *, num_shards: int) -> int:
    """The shard 0 … num_shards - 1 of an order key: shards are ranges of keys, so their sequence is in hash order too.

    >>> [choose_shard(bytes([first]) + bytes(15), num_shards=4) for first in (0, 63, 64, 255)]
    [0, 0, 1, 3]
    """
    return key_number(key) * num_shards >> 64


def key_number(key: bytes) -> int:
    """The first 8 bytes of an order key as a number: shards are ranges of these."""
    return int.from_bytes(key[:8], "big")


def shard_range(number: int, *, num_shards: int) -> tuple[int, int]:
    """The keys of a shard: those whose `key_number` is in [first, end).

    >>> shard_range(3, num_shards=4) == (3 * 2**62, 2**64)
    True
    """
    first, end = (-(-(n << 64) // num_shards) for n in (number, number + 1))
    return first, end


def choose_split(group: str, shares: Mapping[str, float], *, seed: int) -> str:
    """The split of a record by the hash of its group (or of its id, where there is no group)."""
    position = int.from_bytes(_digest("split", seed, group)[:8], "big") / 2**64
    edge = 0.0
    for name, share in shares.items():
        edge += share
        if position < edge:
            return name
    # The shares may add up to a rounding error less than 1.
    return next(name for name, share in reversed(list(shares.items())) if share > 0)


def _digest(purpose: str, seed: int, text: str) -> bytes:
    # The purpose salts the hash: else the first shard would be the first split.
    return hashlib.sha256(f"lengthwise/{purpose}/{seed}/{text}".encode()).digest()
