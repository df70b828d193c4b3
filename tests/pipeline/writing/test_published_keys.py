"""Of all published shards, those are searched that may hold one of the new keys: never fewer, and hardly more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shuffle.hashing import END_NUMBER
from pipeline.writing import published_keys, sorted_entries
from pipeline.writing.published_ids import PublishedShard
from pipeline.writing.published_keys import PublishedKeys

# Few keys, of which some share the bits that are kept, and the smallest and the largest of all.
KEYS = st.sampled_from([0, 1, 2**16 - 1, 2**16, 5 * 2**16 + 7, 5 * 2**16 + 8, 2**63, 2**64 - 2**16, 2**64 - 1]) | (
    st.integers(0, 40).map(lambda n: n * 2**58 + n % 3)
)


def make_shards(contents):
    return [
        PublishedShard("g", "train", path, "0" * 64, len(keys), 0, 0, END_NUMBER) for path, keys in contents.items()
    ]


@given(data=st.data(), max_bytes=st.sampled_from([0, 8, 100, 300, 10_000]))
def test_no_shard_with_a_new_key_is_left_out(data, max_bytes):
    """Shards come and go, as they do with commits and compactions."""
    kept, contents, number = PublishedKeys(max_bytes), {}, 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_entries, "_MAX_SORTED", data.draw(st.sampled_from([1, 10, 1000]), "most sorted together"))
        patch.setattr(published_keys, "read_keys", lambda shard: np.array(contents[shard.index_path], np.uint64))
        for _ in range(data.draw(st.integers(1, 8), "rounds")):
            for path in [path for path in contents if data.draw(st.sampled_from([0, 0, 0, 1]), "goes")]:
                del contents[path]
            for _ in range(data.draw(st.integers(0, 3), "come")):
                contents[f"{number}"] = sorted(data.draw(st.lists(KEYS, min_size=1, max_size=12)))
                number += 1
            shards, new = make_shards(contents), data.draw(st.sets(KEYS), "new")
            found = kept.narrow(shards, np.array(sorted(new), np.uint64))
            names = [shard.index_path for shard in found]
            same = {path for path, keys in contents.items() if {key >> 16 for key in keys} & {key >> 16 for key in new}}
            assert {path for path, keys in contents.items() if new & set(keys)} <= set(names)
            assert names == [path for path in contents if path in names]
            assert kept.num_bytes <= max_bytes
            if 8 * sum(map(len, contents.values())) <= max_bytes:
                assert set(names) == same


def test_the_keys_of_small_shards_are_kept_if_not_all_fit(monkeypatch):
    contents = {"a": [1 << 20] * 6, "b": [2 << 20], "c": [3 << 20] * 2, "d": [4 << 20] * 5}
    read = []

    def read_keys(shard):
        read.append(shard.index_path)
        return np.array(contents[shard.index_path], np.uint64)

    monkeypatch.setattr(published_keys, "read_keys", read_keys)
    kept = PublishedKeys(8 * 8)
    new = np.array([3 << 20], np.uint64)
    assert [shard.index_path for shard in kept.narrow(make_shards(contents), new)] == ["a", "c"]
    assert sorted(read) == ["b", "c", "d"]
    # Another one takes the place of the largest.
    contents["e"] = [5 << 20] * 3
    assert [shard.index_path for shard in kept.narrow(make_shards(contents), new)] == ["a", "c", "d"]
    assert [shard.index_path for shard in kept.narrow(make_shards(contents), new)] == ["a", "c", "d"]
    assert sorted(read) == ["b", "c", "d", "e"]


def test_a_shard_of_the_same_name_with_another_index_is_read_again(monkeypatch):
    contents = {"a": [1 << 20]}
    monkeypatch.setattr(published_keys, "read_keys", lambda shard: np.array(contents[shard.index_path], np.uint64))
    kept, (shard,) = PublishedKeys(100), make_shards(contents)
    assert kept.narrow([shard], np.array([2 << 20], np.uint64)) == ()
    contents["a"] = [2 << 20]
    other = shard._replace(index_sha256="1" * 64)
    assert kept.narrow([other], np.array([2 << 20], np.uint64)) == (other,)
