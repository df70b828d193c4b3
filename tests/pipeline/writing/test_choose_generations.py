"""Compaction merges what is worth it: small generations, and of those with windows the ones with surplus shards."""

import types

import pytest

from pipeline.writing.choose_generations import choose_generations, count_needed, count_surplus, list_shards
from pipeline.writing.shards import SHARD_BYTES

SMALL, LARGE = 1000, SHARD_BYTES


def generation(*shards, has_windows=True, name=""):
    """A generation of shards (split, window, bytes), as far as the choice reads it."""
    splits = {split: types.SimpleNamespace(shards=[]) for split in ("train", "test")}
    for split, window, num_bytes in shards:
        splits[split].shards.append(types.SimpleNamespace(window=window, bytes=num_bytes))
    return types.SimpleNamespace(splits=splits, windows=has_windows or None, name=name)


def in_windows(*windows, num_bytes=SMALL):
    return generation(*((split, window, num_bytes) for window in windows for split in ("train", "test")))


def plain(num_bytes, count=1):
    return generation(*[("train", None, num_bytes)] * count, has_windows=False)


def chosen(summaries, **options):
    found = choose_generations(summaries, **options)
    return [number for number, summary in enumerate(summaries) if any(summary is each for each in found)]


def test_without_windows_small_generations_are_chosen():
    assert chosen([plain(SMALL), plain(LARGE), plain(LARGE // 2 - 1, count=9), plain(LARGE // 2)]) == [0, 2]
    assert chosen([]) == []


@pytest.mark.parametrize(
    ("min_share", "expected"), [(0, [0, 1, 2, 3]), (0.1, [0, 1, 2, 3]), (0.11, [1, 2, 3]), (1, [2, 3])]
)
def test_a_generation_is_left_alone_if_too_few_of_its_shards_can_be_merged(min_share, expected):
    # Of the first one, one of ten windows is in others too; of the second one, one of two; of the last ones, all.
    summaries = [in_windows(*range(10)), in_windows(9, 10), in_windows(9), in_windows(9), in_windows(20)]
    assert chosen(summaries, min_share=min_share) == expected


def test_what_is_left_alone_does_not_count_for_the_others():
    # Without the first generation, the second one has nothing in common with another one.
    summaries = [in_windows(*range(10)), in_windows(0, 1, 2, 3)]
    assert chosen(summaries, min_share=0.4) == [0, 1]
    assert chosen(summaries, min_share=0.5) == []
    assert chosen([in_windows(*range(10)), in_windows(20)]) == []


def test_a_window_with_more_shards_than_it_needs_is_chosen_alone():
    assert chosen([in_windows(0, 0)]) == [0]
    assert chosen([in_windows(0, 1)]) == []
    # The number of shards is that of the largest split.
    largest = [("train", 0, LARGE)] * 2 + [("test", 0, SMALL)]
    assert count_needed(list_shards([generation(*largest)])) == {0: 2}
    assert count_surplus(generation(*largest, ("test", 0, SMALL)).splits) == 0


def test_all_shards_without_a_window_are_a_surplus():
    shards = [("train", None, SMALL)] * 3 + [("train", 0, SMALL)] * 4 + [("test", 0, SMALL), ("test", 60, SMALL)]
    assert count_surplus(generation(*shards).splits) == 3 + 3
