"""New records with the id of a published record are found in the sorted indexes, few of which are read."""

import collections
import contextlib
import hashlib
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT

import pipeline.shuffle.encoded_records
import pipeline.writing.stages
from pipeline.errors import UserError
from pipeline.format import index
from pipeline.format.index import build_index, serialize_index
from pipeline.format.models import Shard, Split
from pipeline.raw.rejects import Origin
from pipeline.schema.labels import Label
from pipeline.schema.record import ParsedRecord
from pipeline.schema.schema import Schema
from pipeline.shuffle.encoded_records import encode_for_shuffle, to_run_block
from pipeline.shuffle.hashing import key_number, order_key, shard_range
from pipeline.shuffle.record_runs import write_record_run
from pipeline.writing import published_ids
from pipeline.writing.published_ids import find_common_ids, find_published, list_published
from pipeline.writing.shards import ShardWriter
from pipeline.writing.stages import merge_into_shards

SCHEMA = Schema.parse(
    "{id: id, steps: {x: {dtype: float32}}, label: {name: y, kind: step_class, classes: [a]}, splits: {from: split}}"
)
SPLITS = ("train", "test")


def colliding_key(record_id, *, seed):
    """Returns one of nine order keys, so that many ids share one."""
    return order_key(str(len(record_id) * 3 + ord(record_id[-1]) % 3), seed=seed)


def number_of(record_id, key=colliding_key):
    return key_number(key(record_id, seed=0))


def write_index(folder, path, ids, keys):
    """Writes the index of a shard with these records, and returns its entry of a manifest."""
    nothing = [None] * len(ids)
    sizes = np.full(len(ids), 84)
    data = serialize_index(
        build_index(
            Label(name="y", kind="step_class", classes=["a"]),
            num_bytes=sizes,
            num_steps=sizes,
            ids=ids,
            labels=nothing,
            groups=nothing,
            sources=nothing,
            keys=keys,
        )
    )
    index_path = path.replace(".tfrecord", ".index.parquet")
    (folder / index_path).parent.mkdir(parents=True, exist_ok=True)
    (folder / index_path).write_bytes(data)
    return Shard(
        path=path,
        records=len(ids),
        steps=0,
        bytes=100 * len(ids),
        sha256="0" * 64,
        index_path=index_path,
        index_sha256=hashlib.sha256(data).hexdigest(),
    )


def split_of(shards):
    records = sum(shard.records for shard in shards)
    counts = {"records": records, "steps": 0, "labels": 0, "truncated": 0, "length_counts": {}, "label_counts": {}}
    return Split(shards=tuple(shards), **counts)


def publish(folder, generations, key=colliding_key):
    """Writes the indexes of generations {name: (number of shards, {id: split})} and returns their shards."""
    shards = collections.defaultdict(list)
    for name, (num_shards, places) in generations.items():
        for split in SPLITS:
            numbers = sorted((number_of(i, key), i) for i in places if places[i] == split)
            for shard in range(num_shards):
                first, end = shard_range(shard, num_shards=num_shards)
                rows = [(number, i) for number, i in numbers if first <= number < end]
                path = f"data/{name}/{split}-{shard:05d}-of-{num_shards:05d}.tfrecord"
                shards[split].append(write_index(folder, path, [i for _, i in rows], [number for number, _ in rows]))
    return list_published(str(folder), {split: split_of(shards[split]) for split in shards})


def places_of(generations):
    """Returns {id: (generation, split)}, the slow way."""
    return {i: (name, split) for name, (_, places) in generations.items() for i, split in places.items()}


IDS = st.text("abcdef", min_size=1, max_size=3)


@st.composite
def some_generations(draw, names=("one", "two", "three")):
    """Draws {generation: (number of shards, {id: split})}. No id is in two generations."""
    places = draw(st.dictionaries(IDS, st.tuples(st.sampled_from(names), st.sampled_from(SPLITS)), max_size=40))
    return {
        name: (draw(st.integers(1, 3)), {i: split for i, (owner, split) in places.items() if owner == name})
        for name in names
    }


@pytest.fixture(scope="module", autouse=True)
def small_row_groups():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_ROW_GROUP_ROWS", 3)
        yield patch


@settings(max_examples=settings.default.max_examples // 2)
@given(generations=some_generations(), new=st.lists(IDS, max_size=30))
def test_the_published_ids_are_those_in_a_set_of_all_ids(tmp_path_factory, generations, new):
    shards = publish(tmp_path_factory.mktemp("published"), generations)
    new = sorted(new, key=number_of)
    keys = np.array([number_of(i) for i in new], np.uint64)
    published = find_published(shards, np.unique(keys))
    found = published.find(keys, pa.chunked_array([new], pa.string()))
    everything = places_of(generations)
    assert {place: (shard.generation, shard.split) for place, shard in found.items()} == {
        place: everything[i] for place, i in enumerate(new) if i in everything
    }
    # What is in memory: the ids with a key of a new record, whatever else is published.
    assert sorted(published.ids.to_pylist()) == sorted(i for i in everything if number_of(i) in set(keys.tolist()))


@settings(max_examples=settings.default.max_examples // 2)
@given(one=some_generations(("a", "b")), other=some_generations(("c", "d")))
def test_the_common_ids_are_those_in_both_sets(tmp_path_factory, one, other):
    folder = tmp_path_factory.mktemp("published")
    found = list(find_common_ids(publish(folder, one), publish(folder, other)))
    ours, theirs = places_of(one), places_of(other)
    assert sorted((i, a.generation, a.split, b.generation, b.split) for i, a, b in found) == sorted(
        (i, *ours[i], *theirs[i]) for i in ours.keys() & theirs.keys()
    )


def encode(record_id, number):
    record = ParsedRecord(record_id, 1, {"x": np.full((1, 1), number, np.float32)}, np.zeros(1, np.int64))
    record.split = SPLITS[number % 2]
    return encode_for_shuffle(record, Origin("raw", 0, number, 0, b"", None), SCHEMA, seed=0)


@settings(max_examples=settings.default.max_examples // 4)
@given(
    generations=some_generations(),
    parts=st.lists(st.lists(IDS, min_size=1, max_size=12), min_size=1, max_size=3),
    num_shards=st.integers(1, 3),
)
def test_every_new_record_with_a_published_id_is_rejected(tmp_path_factory, generations, parts, num_shards):
    folder = tmp_path_factory.mktemp("published")
    published = publish(folder, generations)
    writer = ShardWriter(SCHEMA, str(folder), "new", published)
    rejects = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.shuffle.encoded_records, "order_key", colliding_key)
        patch.setattr(pipeline.writing.stages.RejectBuffer, "add", lambda self, reject: rejects.append(reject) or [])
        runs, number = [], 0
        for part in parts:
            runs.append(
                write_record_run([to_run_block([encode(i, number + k) for k, i in enumerate(part)])], str(folder))
            )
            number += len(part)
        written = [
            shard.shard
            for n in range(num_shards)
            for shard in merge_into_shards(n, num_shards, runs, writer, folder=str(folder)).shards
        ]
    kept = [
        i
        for shard in written
        for i in index.read_index((folder / shard.index_path).read_bytes(), shard)["id"].to_pylist()
    ]
    everything = places_of(generations)
    new = [i for part in parts for i in part]
    assert sorted(kept) == sorted(set(new) - everything.keys())
    assert sorted([*kept, *(reject.id for reject in rejects)]) == sorted(new)
    assert {reject.origin.byte_offset for reject in rejects} <= set(range(len(new)))
    for reject in rejects:
        assert reject.reason == "duplicate_id"
        if reject.id in everything:
            generation, split = everything[reject.id]
            assert reject.message == (
                f"the id {reject.id!r} is also the id of a record that an earlier commit published (generation "
                f"{generation}, split {split}), which is kept"
            )
        else:
            assert "is also the id of the record at byte" in reject.message


class CountingFile:
    """Counts the bytes that are read of a file."""

    def __init__(self, file, counts, path):
        self._file, self._counts, self._path = file, counts, path

    def read(self, *arguments):
        data = self._file.read(*arguments)
        self._counts[self._path] += len(data)
        return data

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.fixture
def opened(monkeypatch):
    """The bytes that were read of each index, by path, besides those that were read to compute its digest."""
    counts, now, most = collections.Counter(), [], []
    original = published_ids.open_read

    @contextlib.contextmanager
    def open_read(path):
        now.append(path)
        most.append(len(now))
        with original(path) as file:
            yield CountingFile(file, counts, path)
        now.remove(path)

    monkeypatch.setattr(published_ids, "_check_digest", lambda path, sha256: None)
    monkeypatch.setattr(published_ids, "open_read", open_read)
    yield counts
    assert max(most, default=0) <= 1


def random_rows(count):
    """Returns random ids and ascending keys, which compress as little as those of records."""
    random = np.random.default_rng(0)
    return [f"{n:016x}" for n in random.integers(0, 2**64, count, np.uint64).tolist()], np.sort(
        random.integers(0, 2**64, count, np.uint64)
    )


def test_only_overlapping_indexes_are_opened_and_few_of_their_bytes_are_read(tmp_path, monkeypatch, opened):
    monkeypatch.setattr(index, "_ROW_GROUP_ROWS", 4096)
    ids, keys = random_rows(160_000)
    edges = np.searchsorted(keys, np.arange(5, dtype=np.float64) * 2**62).tolist()
    shards = [
        write_index(tmp_path, f"data/a/train-{n}-of-4.tfrecord", ids[start:end], keys[start:end])
        for n, (start, end) in enumerate(itertools.pairwise(edges))
    ]
    published = list_published(str(tmp_path), {"train": split_of(shards)})
    size = os.path.getsize(published[1].index_path)

    # A new key between two others of the shard: the keys of one row group are read.
    place = edges[1] + 10_000
    assert len(find_published(published, keys[place : place + 1] + np.uint64(1))) == 0
    assert list(opened) == [published[1].index_path]
    only_keys = opened.pop(published[1].index_path)
    assert only_keys < size / 6
    # A published key: the ids of this row group are read too.
    found = find_published(published, keys[place : place + 1])
    assert found.ids.to_pylist() == [ids[place]]
    assert found.shards == [published[1]]
    assert list(opened) == [published[1].index_path]
    assert only_keys < opened.pop(published[1].index_path) < size / 4
    # A new key between the last key of a shard and the end of its range: only what describes the file is read.
    assert len(find_published(published, keys[edges[1] - 1 : edges[1]] + np.uint64(1))) == 0
    assert list(opened) == [published[0].index_path]
    assert opened.pop(published[0].index_path) < only_keys
    assert len(find_published(published, keys[:0])) == len(opened) == 0


MILLION = """
import json, sys, time
import numpy as np
import pyarrow as pa
from pipeline.writing.published_ids import PublishedShard, find_published

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

shards = [PublishedShard(*shard) for shard in json.loads(sys.argv[1])]
keys = np.sort(np.random.default_rng(0).integers(0, 2**64, 1_000_000, np.uint64))
find_published(shards, keys[:10])
before, start = peak(), time.process_time()
found = find_published(shards, keys[::100])
print(json.dumps([len(found), peak() - before, time.process_time() - start]))
"""


def test_a_million_published_ids_take_little_memory_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "_ROW_GROUP_ROWS", 65_536)
    keys = np.sort(np.random.default_rng(0).integers(0, 2**64, 1_000_000, np.uint64))
    entry = write_index(tmp_path, "data/a/t.tfrecord", [f"record {n}" for n in range(len(keys))], keys)
    shards = list_published(str(tmp_path), {"train": split_of([entry])})
    done = subprocess.run([sys.executable, "-c", MILLION, json.dumps(shards)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, growth, seconds = json.loads(done.stdout)
    assert found == 10_000
    # All keys are 8 MB, all ids 14 MB, and as Python strings 60 MB. Processor time, of the usual 0.3 s.
    assert growth < 25e6
    assert seconds < 5


# Each function damages the index of a shard of three records, and returns the shard and the message.


def missing(path, shard):
    path.unlink()
    return shard, "No such file or directory"


def other_bytes(path, shard):
    path.write_bytes(path.read_bytes()[:-1] + b"2")
    return shard, "the SHA-256 of the file is "


def other_records(path, shard):
    return shard._replace(rows=4), "has 3 rows, but the manifest says 4 records"


def rewrite(path, shard, table):
    path.write_bytes(serialize_index(table))
    return shard._replace(index_sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def read(path, shard):
    entry = Shard(
        path="a", records=3, steps=0, bytes=9, sha256="0" * 64, index_path="b", index_sha256=shard.index_sha256
    )
    return index.read_index(path.read_bytes(), entry)


def no_keys(path, shard):
    return rewrite(path, shard, read(path, shard).drop_columns(["key"])), "has no column key, since its dataset has"


def unsorted_keys(path, shard):
    return rewrite(path, shard, read(path, shard).take([0, 2, 1])), "has keys that are not in ascending order"


def null_key(path, shard):
    table = read(path, shard)
    keys = pa.array([table["key"][0].as_py(), None, None], pa.uint64())
    return rewrite(path, shard, table.set_column(9, "key", keys)), "has a row without a key"


def not_parquet(path, shard):
    path.write_bytes(b"PAR1" * 9)
    return shard._replace(index_sha256=hashlib.sha256(b"PAR1" * 9).hexdigest()), "Parquet"


DAMAGE = [missing, other_bytes, other_records, no_keys, unsorted_keys, null_key, not_parquet]


@pytest.mark.parametrize("change", DAMAGE, ids=lambda change: change.__name__)
def test_an_index_that_cannot_be_compared_is_named(tmp_path, change):
    (shard,) = publish(tmp_path, {"one": (1, {"a": "train", "b": "train", "c": "train"})}, order_key)
    keys = np.sort([number_of(i, order_key) for i in "abc"]).astype(np.uint64)
    shard, message = change(tmp_path / shard.index_path, shard)
    with pytest.raises(UserError, match="`lengthwise verify` lists all errors") as caught:
        find_published([shard], keys[:1])
    assert str(caught.value).startswith(f"{shard.index_path}: ")
    assert message in str(caught.value)
