"""Chooses which generations compaction merges, and into how many shards."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pipeline.format.models import Shard, Split
from pipeline.format.summary import GenerationSummary
from pipeline.writing.shards import SHARD_BYTES


class OfSplit(NamedTuple):
    """A shard, and the name of its split."""

    split: str
    shard: Shard


def list_shards(summaries: Iterable[GenerationSummary]) -> list[OfSplit]:
    """Returns the shards of generations."""
    return [each for summary in summaries for each in _list_shards(summary.splits)]


def _list_shards(splits: Mapping[str, Split]) -> list[OfSplit]:
    return [OfSplit(name, shard) for name, split in splits.items() for shard in split.shards]


def count_needed(shards: Iterable[OfSplit]) -> dict[int | None, int]:
    """Returns, for each window, the number of shards with which those of the largest split have about SHARD_BYTES.

    The shards without a window, under None, are counted as those of one.
    """
    sizes = collections.Counter[tuple[str, int | None]]()
    for split, shard in shards:
        sizes[split, shard.window] += shard.bytes
    needed: dict[int | None, int] = {}
    for (_, window), num_bytes in sizes.items():
        needed[window] = max(1, round(num_bytes / SHARD_BYTES), needed.get(window, 1))
    return needed


def count_surplus(splits: Mapping[str, Split]) -> int:
    """Returns how many shards a dataset has beyond those that each of its windows needs, and all without a window."""
    shards = _list_shards(splits)
    needed = count_needed(shards)
    counts = collections.Counter((split, shard.window) for split, shard in shards)
    return sum(count if key[1] is None else max(0, count - needed[key[1]]) for key, count in counts.items())


def choose_generations(summaries: Sequence[GenerationSummary], *, min_share: float = 0) -> list[GenerationSummary]:
    """Returns the generations to merge: those that are small, and with windows only those that have a surplus.

    Args:
        min_share: With windows, the least share of the shards of a generation whose split and window has more shards
            than it needs. An endless stream has ever more windows, and the shards of old ones are small if the windows
            are. They are merged already, and must not be merged again whenever the newest window has several shards.
    """
    found = [summary for summary in summaries if _is_small(summary)]
    while True:
        shards = list_shards(found)
        needed = count_needed(shards)
        counts = collections.Counter((split, shard.window) for split, shard in shards)
        surplus = {key for key, count in counts.items() if count > needed[key[1]]}
        kept = [summary for summary in found if not summary.windows or _has_surplus(summary, surplus, min_share)]
        if len(kept) == len(found):
            return found
        found = kept


def _is_small(summary: GenerationSummary) -> bool:
    shards = _list_shards(summary.splits)
    return sum(each.shard.bytes for each in shards) < len(shards) * SHARD_BYTES / 2


def _has_surplus(summary: GenerationSummary, surplus: Iterable[tuple[str, int | None]], min_share: float) -> bool:
    """Whether enough shards of a generation are of a split and window with more shards than it needs."""
    shards = _list_shards(summary.splits)
    count = sum((split, shard.window) in surplus for split, shard in shards)
    return count > 0 and count >= min_share * len(shards)
