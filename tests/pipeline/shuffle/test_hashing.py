"""Split, shard and order depend on the id alone, and are evenly distributed."""

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shuffle import hashing
from pipeline.shuffle.hashing import choose_shard, choose_split, order_key, range_of, shard_range
from pipeline.writing.paths import shard_paths

IDS = [f"record-{n}" for n in range(20_000)]
SHARES = {"train": 0.8, "validation": 0.15, "test": 0.05}


def test_the_hashes_are_those_of_the_released_format():
    # A change here moves every record of every dataset: raise FORMAT_VERSION.
    assert order_key("record-1", seed=0).hex() == "34a31cf3e6dbbf007eca901fda837a29"
    assert [choose_split(i, SHARES, seed=3) for i in IDS[:12]] == (
        "train train validation train train train validation train train train train train"
    ).split()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_splits_have_their_shares_within_three_sigma(seed):
    chosen = [choose_split(i, SHARES, seed=seed) for i in IDS]
    for name, share in SHARES.items():
        sigma = math.sqrt(share * (1 - share) / len(IDS))
        assert abs(chosen.count(name) / len(IDS) - share) < 3 * sigma


@pytest.mark.parametrize("num_shards", [1, 7, 16])
def test_the_shards_are_even_within_four_sigma_in_all_data_and_within_one_split(num_shards):
    validation = [i for i in IDS if choose_split(i, SHARES, seed=0) == "validation"]
    for ids in (IDS, validation):
        chosen = [choose_shard(order_key(i, seed=0), num_shards=num_shards) for i in ids]
        sigma = math.sqrt(len(ids) * (1 / num_shards) * (1 - 1 / num_shards))
        for number in range(num_shards):
            assert abs(chosen.count(number) - len(ids) / num_shards) <= 4 * sigma


def test_a_different_seed_gives_different_splits_and_a_different_order():
    assert [choose_split(i, SHARES, seed=0) for i in IDS] != [choose_split(i, SHARES, seed=1) for i in IDS]
    assert sorted(IDS, key=lambda i: order_key(i, seed=0)) != sorted(IDS, key=lambda i: order_key(i, seed=1))


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16), st.integers(1, 1000))
def test_shards_are_ranges_of_keys(one, other, num_shards):
    first, second = sorted([one, other])
    numbers = [choose_shard(key, num_shards=num_shards) for key in (first, second)]
    assert numbers == sorted(numbers)
    assert 0 <= numbers[0] <= numbers[1] < num_shards


@given(st.integers(1, 1000), st.data())
def test_the_range_of_a_shard_follows_from_the_number_in_its_name(num_shards, data):
    number = data.draw(st.integers(0, num_shards - 1))
    for split, window in (("train", None), ("train", 3600), ("a-0-of-9", None)):
        path, _ = shard_paths("20260101T000000-00000000", split, number, num_shards=num_shards, window=window)
        assert range_of(path) == shard_range(number, num_shards=num_shards)


@pytest.mark.parametrize("name", ["0", "train-5-of-5.tfrecord", "train-0-of-0.tfrecord", "a-0-of-2.tfrecord.x"])
def test_a_shard_with_another_name_may_have_any_key(name):
    assert range_of(f"data/a/{name}") == (0, 2**64)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers())
def test_every_text_gets_a_split_whose_share_is_not_zero(group, seed):
    assert choose_split(group, {"none": 0, "train": 1 / 3, "test": 2 / 3 - 1e-7, "late": 0}, seed=seed) in (
        "train",
        "test",
    )


def test_the_examples_in_docstrings_are_correct():
    assert doctest.testmod(hashing).failed == 0
