"""A stream rejects an id that any commit has, whether its keys are in memory or are searched on disk."""

import random

import datasets
import pytest
from prepare_jobs import load, read_whole
from streams import Place, lines

from pipeline.format import index
from pipeline.inspection import verify_records
from pipeline.schema.windows import EventWindows
from pipeline.shuffle import encoded_records
from pipeline.shuffle.hashing import order_key
from pipeline.writing import merge_shards, published_ids, published_keys
from pipeline.writing.compact import compact
from pipeline.writing.published_keys import PublishedKeys


def colliding_key(record_id, *, seed):
    """Returns one of 40 order keys, so that many ids share one; pairs of keys differ in their last bits only."""
    number = int(record_id.removeprefix("id-")) % 40
    key = order_key(str(number // 2), seed=seed)
    return key[:6] + bytes([0, number % 2]) + key[8:]


@pytest.mark.parametrize("dedup_memory", datasets.some([0, 200, 400, 10**6], [200, 10**6]))
def test_each_id_of_a_stream_is_kept_once(tmp_path, monkeypatch, read_records, dedup_memory):
    monkeypatch.setattr(index, "_ROW_GROUP_ROWS", 5)
    for module in (encoded_records, merge_shards, verify_records):
        monkeypatch.setattr(module, "order_key", colliding_key)
    place, chance = Place(tmp_path), random.Random(dedup_memory)
    added, kept, left_out = [], [], 0
    narrow = PublishedKeys.narrow

    def watch(self, shards, keys):
        nonlocal left_out
        found = narrow(self, shards, keys)
        left_out += len(shards) - len(found)
        kept.append((self.num_bytes, 8 * sum(shard.rows for shard in shards)))
        return found

    monkeypatch.setattr(PublishedKeys, "narrow", watch)

    def write(numbers):
        added.extend(numbers)
        place.append("a.jsonl", lines(numbers))

    def step():
        write([chance.randrange(250) for _ in range(chance.randrange(1, 25))])
        if chance.random() < 0.2:
            compact(str(place.dataset))

    write([0])
    place.follow(*[step] * 9, dedup_memory=dedup_memory)
    place.follow(step, step, dedup_memory=dedup_memory)
    numbers = [int(bytes(example["id"][0]).decode().removeprefix("id-")) for example in read_records(place.dataset)]
    assert sorted(numbers) == sorted(set(added))
    assert read_whole(place.dataset).rejected.by_reason == {"duplicate_id": len(added) - len(set(added))}
    assert max(in_memory for in_memory, _ in kept) <= dedup_memory
    # With the two bounds between, some shards are in memory and some are searched.
    some = any(0 < in_memory <= dedup_memory < everything for in_memory, everything in kept)
    assert some == (dedup_memory in (200, 400))
    assert (left_out > 0) == (dedup_memory > 0)


def test_only_indexes_that_hold_a_duplicate_are_opened(tmp_path, monkeypatch):
    place, opened = Place(tmp_path), []
    place.append("a.jsonl", lines([0]))
    read_common = published_ids._read_common

    def watch(shard, *arguments):
        opened.append(shard.generation)
        return read_common(shard, *arguments)

    monkeypatch.setattr(published_ids, "_read_common", watch)
    monkeypatch.setattr(
        published_keys, "read_keys", lambda shard: reads.append(shard) or published_ids.read_keys(shard)
    )
    reads = []
    new = lambda n: lambda: place.append("a.jsonl", lines(n))  # noqa: E731
    place.follow(*[new(range(10 * n, 10 * n + 10)) for n in range(1, 8)], new([35]))
    assert opened == [load(place.dataset).generations[3]]
    # Each index is read once for its keys: that of a split without a record does not exist.
    assert len({shard.index_path for shard in reads}) == len(reads)
    assert load(place.dataset).rejected.by_reason == {"duplicate_id": 1}


def test_ids_of_older_windows_are_not_searched(tmp_path, read_records, monkeypatch):
    """Against a set of ids for each window, of which the newest two are looked up."""
    place, chance = Place(tmp_path), random.Random(0)
    expected, by_window, without_window, opened = [], {}, {1000}, set()
    read_keys = published_keys.read_keys
    monkeypatch.setattr(published_keys, "read_keys", lambda shard: opened.add(shard.window) or read_keys(shard))
    place.append("a.jsonl", lines([1000], at=0))
    place.once()
    expected.append(1000)

    def step(hour):
        numbers = [*{chance.choice([1000, chance.randrange(60)]) for _ in range(12)}]
        hours = {number: max(0, hour - chance.choice([0, 0, 1, 3])) for number in numbers}
        newest = sorted(by_window)[-2:]
        known = without_window.union(*(by_window[window] for window in newest))
        for number in numbers:
            place.append("a.jsonl", lines([number], at=3600 * hours[number] + 5))
            if number not in known:
                expected.append(number)
                by_window.setdefault(hours[number], set()).add(number)

    steps = [lambda hour=hour: step(hour) for hour in range(9)]
    place.follow(*steps, windows=EventWindows(field="at", seconds=3600), dedup_windows=2)
    numbers = [int(bytes(example["id"][0]).decode().removeprefix("id-")) for example in read_records(place.dataset)]
    assert sorted(numbers) == sorted(expected)
    assert len(set(numbers)) < len(numbers)
    read_whole(place.dataset)
    compact(str(place.dataset))
    read_whole(place.dataset)
