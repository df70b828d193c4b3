"""Without an id in the schema, equal records are kept: each copy has an id of its own, in any order of the input."""

import collections
import functools
import itertools
import json
import pathlib
import re

import plain_prepare
import pytest
from damage import change_record
from datasets import call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prepare_jobs import load, read_whole

import pipeline.format.index
import pipeline.shuffle.merge_runs
import pipeline.shuffle.runs
from pipeline.beam.prepare import PrepareOptions
from pipeline.errors import TryAgain
from pipeline.format.examples import encode_record, replace_id
from pipeline.format.index import read_index
from pipeline.inspection.verify import verify
from pipeline.raw.records import parse_record
from pipeline.raw.rejects import Origin
from pipeline.schema.record import ParsedRecord
from pipeline.schema.schema import Schema
from pipeline.shuffle.copies import (
    copy_id,
    count_copies,
    first_of_each,
    last_of_each,
    split_copy_id,
)
from pipeline.shuffle.encoded_records import encode_for_shuffle, to_run_block
from pipeline.shuffle.hashing import choose_split, order_key
from pipeline.shuffle.record_runs import write_record_run
from pipeline.writing.compact import compact
from pipeline.writing.publish import Publisher
from pipeline.writing.shards import ShardWriter
from pipeline.writing.stages import merge_into_shards

SCHEMA = """\
steps: {x: {dtype: float32}}
label: {name: y, kind: class, classes: [a, b]}
splits: {train: 0.6, test: 0.4}
max_length: 3
"""
# Different records of which some have the same values in the fields of the schema.
POOL = [{"x": [n % 2] * (n % 2 + 1), "y": "a", "note": n // 2} for n in range(4)]


class Folder:
    """A folder with raw files, the schema and datasets."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        (path / "schema.yaml").write_text(SCHEMA)
        self._number = 0

    def write(self, records) -> str:
        self._number += 1
        text = "".join(f"{json.dumps(record)}\n" for record in records)
        (self.path / f"{self._number}.jsonl").write_text(text)
        return str(self.path / f"{self._number}.jsonl")

    def prepare(self, files, output="dataset", **options):
        raw, schema = tuple(files), str(self.path / "schema.yaml")
        return plain_prepare.prepare(PrepareOptions(raw, schema, str(self.path / output), **options))

    def files(self, output):
        """Returns the bytes of the shards and indexes of a dataset with one generation, by name."""
        (generation,) = load(self.path / output).generations
        inside = self.path / output / "data" / generation
        names = sorted(path.name for path in inside.iterdir())
        return {n: (inside / n).read_bytes() for n in names if n.endswith((".tfrecord", ".index.parquet"))}


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def expected_examples(records, schema, *, seed=0):
    """Returns the Examples of each split in order, the slow way: from a count of the equal records."""
    rows = []
    for text, count in collections.Counter(map(json.dumps, records)).items():
        first = parse_record(json.loads(text), schema).id
        for number in range(1, count + 1):
            copy = parse_record(json.loads(text), schema)
            copy.id = first if number == 1 else f"{first}-{number}"
            rows.append((order_key(first, seed=seed), number, first, encode_record(copy, schema)))
    by_split = collections.defaultdict(list)
    for _, _, first, example in sorted(rows):
        by_split[choose_split(first, schema.splits, seed=seed)].append(example)
    return by_split


@settings(max_examples=settings.default.max_examples // 16, suppress_health_check=list(HealthCheck))
@given(
    # A list of files of records for each commit.
    commits=st.lists(
        st.lists(st.lists(st.sampled_from([*POOL, *POOL[:1] * 9]), min_size=1, max_size=16), min_size=1, max_size=2),
        min_size=2,
        max_size=3,
    ),
    num_shards=st.integers(1, 2),
    data=st.data(),
)
def test_any_order_files_and_commits_give_the_same_bytes(tmp_path_factory, commits, num_shards, data):
    folder = Folder(tmp_path_factory.mktemp("equal"))
    records = [record for files in commits for file in files for record in file]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.format.index, "_ROW_GROUP_ROWS", 3)
        patch.setattr(pipeline.shuffle.merge_runs, "_MERGED_ROWS", data.draw(st.sampled_from([1, 100])))
        parts = [[folder.write(file) for file in files] for files in commits]
        for files in data.draw(st.permutations(parts)):
            folder.prepare(files, append=True, num_shards=data.draw(st.integers(1, 3)))
        appended = load(folder.path / "dataset")
        compact(str(folder.path / "dataset"), num_shards=num_shards)
        folder.prepare(itertools.chain(*parts), "whole", num_shards=num_shards)
        shuffled = folder.write(data.draw(st.permutations(records)))
        folder.prepare([shuffled], "shuffled", num_shards=num_shards)
    found, whole = read_whole(folder.path / "dataset"), load(folder.path / "whole")
    assert folder.files("dataset") == folder.files("whole")
    assert found.fingerprint == whole.fingerprint == load(folder.path / "shuffled").fingerprint
    copies = len(records) - len(set(map(json.dumps, records)))
    for manifest in (appended, found, whole):
        assert sum(split.records for split in manifest.splits.values()) == len(records)
        assert sum(split.copies for split in manifest.splits.values()) == copies
        assert not manifest.rejected.total
    schema = Schema.parse(SCHEMA)
    for name, examples in expected_examples(records, schema).items():
        shards = [(folder.path / "whole" / shard.path).read_bytes() for shard in whole.splits[name].shards]
        assert b"".join(shards) == b"".join(map(pipeline.format.tfrecord.frame, examples))


def test_an_example_without_id_is_an_error():
    with pytest.raises(ValueError, match="the Example has no id"):
        replace_id(bytes.fromhex("0a0e0a0c0a016112071a050a0301ac02"), "a")


HASH = "0123456789abcdef" * 2
IDS = st.lists(
    st.tuples(st.sampled_from([HASH, HASH[::-1], "a", "a-2", HASH[1:], f"{HASH}-0", f"{HASH}-"]), st.integers(1, 12))
)


@given(IDS)
def test_the_copies_of_one_record_are_found_in_a_column_of_ids(rows):
    ids = [copy_id(first, number) if len(first) == 32 else first for first, number in rows]
    column = pipeline.shuffle.copies.pa.chunked_array([ids[:3], ids[3:]], "string")
    groups = [list(group) for _, group in itertools.groupby(range(len(ids)), lambda n: split_copy_id(ids[n])[0])]
    assert first_of_each(column).tolist() == [group[0] for group in groups]
    assert last_of_each(column).tolist() == [group[-1] for group in groups]
    assert count_copies(column) == sum(len(first) == 32 and number > 1 for first, number in rows)


def test_records_that_differ_in_a_field_that_the_schema_lacks_are_no_copies(folder):
    manifest = folder.prepare([folder.write([{"x": [1], "y": "a", "note": note} for note in (1, 2, 2)])])
    assert sum(split.copies for split in manifest.splits.values()) == 1


def test_a_replay_continues_the_numbers(folder, run_prepare, tmp_path):
    long = {"x": [1, 2, 3, 4], "y": "a"}
    raw = folder.write([POOL[0], long, long, POOL[0]])
    run_prepare(raw, schema=SCHEMA, max_rejected=0.5, keep_raw=True, plain=True)
    wider = SCHEMA.replace("max_length: 3", "max_length: 4")
    replay = (str(tmp_path / "dataset" / "rejected"),)
    manifest = run_prepare(folder.write([long]), schema=wider, append=True, replay=replay)
    assert sum(split.records for split in manifest.splits.values()) == 5
    assert sum(split.copies for split in manifest.splits.values()) == 3
    read_whole(tmp_path / "dataset")
    whole = run_prepare(*map(str, sorted(tmp_path.glob("*.jsonl"))), schema=wider, output="whole", plain=True)
    compact(str(tmp_path / "dataset"), num_shards=1)
    assert load(tmp_path / "dataset").fingerprint == whole.fingerprint


def test_of_two_jobs_that_number_the_same_copies_the_second_one_is_repeated(folder, monkeypatch):
    folder.prepare([folder.write(POOL[:3])])
    mine, theirs = folder.write([POOL[0], POOL[0]]), folder.write(POOL[:2])
    publish, others = Publisher.publish, [theirs]

    def publish_later(publisher, *arguments):
        if others:
            folder.prepare([others.pop()], append=True)
        return publish(publisher, *arguments)

    monkeypatch.setattr(Publisher, "publish", publish_later)
    with pytest.raises(TryAgain, match='-2" meanwhile .* which then gives this copy another number'):
        folder.prepare([mine], append=True)
    manifest = folder.prepare([mine], append=True)
    assert sum(split.copies for split in manifest.splits.values()) == 4
    read_whole(folder.path / "dataset")
    # A compaction meanwhile adds no copy.
    monkeypatch.setattr(
        Publisher,
        "publish",
        lambda publisher, *arguments: (
            compact(str(folder.path / "dataset"), num_shards=1) and publish(publisher, *arguments)
        ),
    )
    manifest = folder.prepare([folder.write(POOL[:1])], append=True)
    assert sum(split.copies for split in manifest.splits.values()) == 5
    read_whole(folder.path / "dataset")


def test_records_of_a_program_with_ids_of_their_own_are_still_duplicates(folder):
    schema = Schema.parse("{steps: {x: {dtype: float32}}, label: {name: y, kind: regression}, splits: {train: 1}}")
    values = pipeline.shuffle.copies.np.zeros(1, "float32")
    ids = ["a", "a", HASH, f"{HASH}-7", "a-2"]
    rows = [ParsedRecord(name, 1, {"x": values}, values) for name in ids]
    origin = Origin(None, 0, 0, 0, b"", None)
    block = to_run_block([encode_for_shuffle(row, origin, schema, seed=0) for row in rows])
    run = write_record_run([block], str(folder.path))
    written = merge_into_shards(0, 1, [run], ShardWriter(schema, str(folder.path), "new"), folder=str(folder.path))
    (summary,) = written.shards
    index = read_index((folder.path / summary.shard.index_path).read_bytes(), summary.shard)
    assert sorted(index["id"].to_pylist()) == sorted({*ids[:3], f"{HASH}-2", "a-2"})
    assert len(written.reject_runs) == 1


def test_both_commands_say_how_many_records_are_copies(folder, capsys):
    raw, dataset = folder.write([*POOL[:3], *POOL[:2]]), str(folder.path / "dataset")
    status, out, _ = call(capsys, "prepare", raw, "--schema", folder.path / "schema.yaml", "--output", dataset)
    assert (status, "\n2 of 5 records are copies of another record\n" in out) == (0, True)
    assert "\n2 of 5 records are copies of another record\n" in call(capsys, "inspect", dataset)[1]
    summary = json.loads(call(capsys, "inspect", dataset, "--json")[1])
    assert summary["copies"] == sum(split["copies"] for split in summary["splits"].values()) == 2


def rename(record_id, example):
    example["id"] = [record_id.encode()]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (lambda first: first, "its id '{0}' follows the id '{0}', expected another id"),
        (lambda first: HASH, f"the index has the key .*, but the id '{HASH}' has the key"),
    ],
)
def test_verify_names_a_copy_with_a_wrong_id(folder, name, message):
    folder.prepare([folder.write([POOL[0], POOL[0]])])
    (split,) = [name for name, split in load(folder.path / "dataset").splits.items() if split.records]
    first = parse_record(POOL[0], Schema.parse(SCHEMA)).id
    change_record(folder.path / "dataset", functools.partial(rename, name(first)), split=split, row=1)
    faults = [fault.message for fault in verify(str(folder.path / "dataset")).faults]
    assert any(re.search(message.format(first), fault) for fault in faults), faults
