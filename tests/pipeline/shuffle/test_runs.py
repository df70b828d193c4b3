"""Runs and their merge: the merge gives all records in one sorted list, whichever run a record was in."""

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.shuffle.encoded_records
import pipeline.shuffle.merge_runs
import pipeline.shuffle.reduce_runs
import pipeline.shuffle.runs
from pipeline.format.tfrecord import frame
from pipeline.raw.rejects import Origin
from pipeline.shuffle.encoded_records import RECORDS, EncodedRecord, from_rows, from_run_block, sort_key, to_run_block
from pipeline.shuffle.hashing import choose_shard, key_number, order_key, shard_range
from pipeline.shuffle.merge_runs import merge_runs, read_key_numbers
from pipeline.shuffle.record_runs import write_record_run
from pipeline.shuffle.reduce_runs import reduce_runs


def merge(runs, first, end):
    """Returns the merged records, with their Examples."""
    return [
        row._replace(example=example)
        for block in map(from_run_block, merge_runs(runs, first, end, RECORDS))
        for row, example in zip(from_rows(block.rows), block.payloads, strict=True)
    ]


ORIGINS = st.builds(
    Origin,
    path=st.none() | st.text("ab/\0é", max_size=3),
    chunk=st.integers(0, 2**40),
    byte_offset=st.integers(0, 3),
    number=st.integers(0, 9),
    sha256=st.binary(max_size=2),
    raw=st.none() | st.binary(max_size=4),
)


@st.composite
def encoded_records(draw):
    key = draw(st.text("abcdefgh", min_size=1, max_size=2))
    return EncodedRecord(
        key=order_key(key, seed=0),
        digest=draw(st.sampled_from([b"\0" * 32, b"\xff" * 32])),
        origin=draw(ORIGINS),
        id=key,
        group=draw(st.none() | st.text(max_size=2)),
        split=draw(st.sampled_from(["train", "test"])),
        num_steps=draw(st.integers(1, 9)),
        num_labels=draw(st.integers(0, 9)),
        truncated=draw(st.booleans()),
        example=draw(st.binary(max_size=9)),
    )


# With 1 record, more than 4 records in a part are merged record by record. With 1 byte, every record is read alone, and
# so is its kept raw line.
@pytest.mark.parametrize(("merged_records", "merged_bytes"), [(1, 30), (5, 1)])
@settings(max_examples=settings.default.max_examples // 8)
@given(parts=st.lists(st.lists(encoded_records(), max_size=12), max_size=7), num_shards=st.integers(1, 5))
def test_merged_runs_are_the_records_in_one_sorted_list(
    tmp_path_factory, merged_records, merged_bytes, parts, num_shards
):
    folder = str(tmp_path_factory.mktemp("runs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.shuffle.runs, "ROWS_PER_BLOCK", 3)
        patch.setattr(pipeline.shuffle.merge_runs, "ROWS_PER_BLOCK", 3)
        patch.setattr(pipeline.shuffle.merge_runs, "_MERGED_ROWS", merged_records)
        patch.setattr(pipeline.shuffle.merge_runs, "_MERGED_BYTES", merged_bytes)
        patch.setattr(pipeline.shuffle.encoded_records, "_LARGE_BYTES", 3)
        patch.setattr(pipeline.shuffle.merge_runs, "MAX_RUNS", 2)
        patch.setattr(pipeline.shuffle.reduce_runs, "MAX_RUNS", 2)
        written = [write_record_run([to_run_block(part)], folder) for part in parts]
        runs = reduce_runs(written, folder, RECORDS)
        assert len(runs) <= 2
        merged = [merge(runs, *shard_range(n, num_shards=num_shards)) for n in range(num_shards)]
        ranges = [shard_range(n, num_shards=num_shards) for n in range(num_shards)]
        numbers = [read_key_numbers(runs, *keys, RECORDS).tolist() for keys in ranges]
    everything = sorted((record for part in parts for record in part), key=sort_key)
    # Records with equal sort keys may come in any order.
    assert [sort_key(record) for found in merged for record in found] == [sort_key(record) for record in everything]
    assert collections.Counter(record for found in merged for record in found) == collections.Counter(everything)
    for number, found in enumerate(merged):
        assert {choose_shard(record.key, num_shards=num_shards) for record in found} <= {number}
        assert numbers[number] == sorted({key_number(record.key) for record in found})
    sizes = collections.Counter()
    for run in runs:
        sizes.update(run.totals)
    for split in ("train", "test"):
        assert sizes[split, None] == sum(len(frame(record.example)) for record in everything if record.split == split)


def test_kept_raw_lines_are_not_in_the_rows_of_a_run(tmp_path):
    records = [
        EncodedRecord(
            order_key(str(n), seed=0),
            bytes(32),
            Origin("/a", 0, n, n, b"", raw),
            str(n),
            None,
            "train",
            1,
            1,
            False,
            b"ab",
        )
        for n, raw in enumerate([None, b"", b"line" * 10**5, None, b"xyz"] * 60)
    ]
    run = write_record_run([to_run_block(records)], str(tmp_path))
    assert (tmp_path / f"{run.path}.rows").stat().st_size < 10**5 < 24 * 10**6 < run.num_bytes
    assert run.totals == {("train", None): sum(len(frame(record.example)) for record in records)}
    blocks = list(merge_runs([run], 0, 2**64, RECORDS))
    assert all(block.rows.nbytes < 10**5 for block in blocks)
    assert max(sum(map(len, block.payloads)) for block in blocks) < 5 * 2**20
    assert sorted(merge([run], 0, 2**64), key=lambda record: int(record.id)) == records


def test_a_run_that_cannot_be_written_leaves_no_partial_file(tmp_path):
    record = EncodedRecord(
        bytes(16), bytes(32), Origin(None, 0, 0, 0, b"", None), "a", None, "train", 1, 1, False, b"abc"
    )
    with pytest.raises(OverflowError):
        write_record_run([to_run_block([record._replace(num_steps=2**80)])], str(tmp_path))
    assert not list(tmp_path.glob("*.rows"))
    with pytest.raises(FileExistsError):
        run = write_record_run([to_run_block([record])], str(tmp_path))
        with pipeline.shuffle.runs.create(f"{run.path}.rows"):
            pass
    assert merge([run], 0, 2**64) == [record]
