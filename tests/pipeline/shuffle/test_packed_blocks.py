"""Packed blocks: unpacked, merged or spooled, they hold the same records in the same order."""

import os
import tempfile

import numpy as np
import pytest

import pipeline.shuffle.merge_runs
import pipeline.shuffle.packed_blocks
import pipeline.shuffle.reduce_runs
from pipeline.raw.rejects import Origin
from pipeline.shuffle.encoded_records import RECORDS, EncodedRecord, from_rows, from_run_block, sort_key, to_run_block
from pipeline.shuffle.hashing import choose_shard, key_number, order_key
from pipeline.shuffle.packed_blocks import PackedBlock, cut_by_shard, pack_block, pack_in_pieces
from pipeline.shuffle.sorted_rows import sort_blocks
from pipeline.shuffle.spooled_blocks import SpooledBlocks


def records_of(number, *, seed=0, raw=True):
    """Returns records, of which several have the same id, and some a raw line."""
    random = np.random.default_rng(seed)
    found = []
    for place in range(number):
        name = f"id-{int(random.integers(0, number))}"
        line = random.bytes(int(random.integers(0, 90))) if raw and place % 3 else None
        origin = Origin(f"file-{place % 2}", 0, place, place, random.bytes(32), line)
        example = random.bytes(int(random.integers(1, 900)))
        key, digest = order_key(name, seed=0), random.bytes(32)
        found.append(EncodedRecord(key, digest, origin, name, None, "train", place, 1, False, example))
    return found


def sorted_block(records):
    return sort_blocks([to_run_block(records)], RECORDS)


def read(blocks):
    """Returns the records of sorted blocks, with their Examples."""
    return [
        record._replace(example=example)
        for block in map(from_run_block, blocks)
        for record, example in zip(from_rows(block.rows), block.payloads, strict=True)
    ]


def test_an_unpacked_block_has_the_rows_and_payloads_that_were_packed():
    records = records_of(50)
    packed = pack_block(sorted_block(records))
    block = PackedBlock(packed).unpack()
    assert block.rows.schema == RECORDS.columns
    assert pack_block(block._replace(payloads=[(payload[:3], payload[3:]) for payload in block.payloads])) == packed
    assert read([block]) == sorted(records, key=sort_key)


def test_pieces_are_bounded_and_hold_all_rows(monkeypatch):
    monkeypatch.setattr(pipeline.shuffle.packed_blocks, "PACKED_BYTES", 2000)
    records = records_of(60, raw=False)
    records.append(records[0]._replace(id="large", example=b"x" * 5000))
    blocks = [PackedBlock(data).unpack() for data in pack_in_pieces(sorted_block(records))]
    sizes = [sum(map(len, block.payloads)) for block in blocks]
    assert len(blocks) > 10 and all(
        size <= 2000 or len(block.payloads) == 1 for size, block in zip(sizes, blocks, strict=True)
    )
    assert read(blocks) == sorted(records, key=sort_key)
    assert list(pack_in_pieces(sorted_block(records)._replace(rows=RECORDS.columns.empty_table(), payloads=[]))) == []


@pytest.mark.parametrize("num_shards", [1, 3, 100])
def test_a_block_is_cut_at_the_shards_of_its_keys(num_shards):
    records = records_of(200)
    found = {number: read([block]) for number, block in cut_by_shard(sorted_block(records), num_shards=num_shards)}
    expected = {}
    for record in sorted(records, key=sort_key):
        expected.setdefault(choose_shard(record.key, num_shards=num_shards), []).append(record)
    assert found == expected and list(found) == sorted(found)


# With the smallest bound, each block is a run of its own, and more runs are merged than may be open.
@pytest.mark.parametrize(("max_bytes", "spools"), [(2**30, False), (2**20, True), (1, True)])
def test_blocks_that_are_spooled_are_merged_like_those_in_memory(max_bytes, spools, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(pipeline.shuffle.merge_runs, "MAX_RUNS", 4)
    monkeypatch.setattr(pipeline.shuffle.reduce_runs, "MAX_RUNS", 4)
    parts = [records_of(400, seed=seed) for seed in range(12)]
    records = [record for part in parts for record in part]
    with SpooledBlocks(RECORDS, max_bytes=max_bytes) as spooled:
        for part in parts:
            spooled.add(pack_block(sorted_block(part)))
        spooled.finish()
        assert bool(os.listdir(tmp_path)) == spools
        assert read(spooled.merge()) == sorted(records, key=sort_key)
        assert spooled.key_numbers().tolist() == sorted({key_number(record.key) for record in records})
    assert os.listdir(tmp_path) == []


def test_no_blocks_are_no_rows():
    with SpooledBlocks(RECORDS) as spooled:
        spooled.finish()
        assert list(spooled.merge()) == [] and spooled.key_numbers().tolist() == []
