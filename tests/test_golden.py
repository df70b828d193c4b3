"""A dataset of the released format, kept in tests/golden/: old datasets must stay readable.

If one of these tests fails, the format changed: raise FORMAT_VERSION in pipeline/manifest.py. Then make the golden
dataset anew, from a path that is the same on every machine:

    mkdir -p /tmp/golden && cp tests/golden/raw.jsonl tests/golden/schema.yaml /tmp/golden/
    lengthwise prepare /tmp/golden/raw.jsonl --schema /tmp/golden/schema.yaml --output tests/golden/dataset \
        --num_shards 2 --overwrite
"""

import json
import pathlib

import numpy as np
import pytest

from pipeline.examples import decode_example
from pipeline.inspect import load
from pipeline.manifest import FORMAT_VERSION
from pipeline.prepare import PrepareOptions, prepare
from pipeline.tfrecord import walk
from pipeline.verify import verify

GOLDEN = pathlib.Path(__file__).parent / "golden"
CLASSES = ["left", "right", "3"]
MAX_LENGTH = 6


def read_dataset():
    """{id: (split, decoded Example)} of every record, in the order of the files."""
    records = {}
    for name, split in load(str(GOLDEN / "dataset")).splits.items():
        for shard in split.shards:
            with open(GOLDEN / "dataset" / shard.path, "rb") as file:
                for record in walk(file, num_bytes=shard.bytes):
                    example = decode_example(record.data)
                    records[example["id"][0].decode()] = (name, example)
    return records


def read_raw():
    return [json.loads(line) for line in (GOLDEN / "raw.jsonl").read_bytes().splitlines()]


def test_the_golden_dataset_is_of_this_format_version_and_still_verifies():
    report = verify(str(GOLDEN / "dataset"))
    assert report.faults == []
    assert (report.records, report.shards) == (16, 6)
    assert load(str(GOLDEN / "dataset")).format_version == FORMAT_VERSION


@pytest.mark.parametrize("raw", read_raw(), ids=lambda raw: repr(raw["id"]))
def test_a_golden_record_holds_the_values_of_the_raw_file(raw):
    _, example = read_dataset()[str(raw["id"])]
    assert sorted(example) == ["id", "length", "page", "word", "x", "y"]
    # Bytes, so that -0.0 is not 0.0.
    assert example["x"].tobytes() == np.array(raw["x"][:MAX_LENGTH], "<f4").tobytes()
    assert example["page"].tolist() == raw["page"][:MAX_LENGTH]
    assert [word.decode() for word in example["word"]] == raw["word"][:MAX_LENGTH]
    assert example["length"].tolist() == [min(len(raw["x"]), MAX_LENGTH)]
    assert example["y"].tolist() == [CLASSES.index(str(raw["y"]))]


def test_every_raw_record_stands_where_it_stood():
    splits = {"train": [], "validation": [], "test": []}
    for record_id, (split, _) in read_dataset().items():
        splits[split].append(record_id)
    assert splits == {
        "train": ["2", "", "十三", "quatre–5", "14", "1", "acht 8"],
        "validation": ["six/6", "zwölf", "neuf"],
        "test": ["fifteen", "../seven", "zero", "eleven", "ten", "drei"],
    }
    assert sorted(sum(splits.values(), [])) == sorted(str(raw["id"]) for raw in read_raw())


def test_preparing_the_raw_file_again_gives_the_same_shards_and_fingerprint(tmp_path):
    golden = load(str(GOLDEN / "dataset"))
    again = prepare(
        PrepareOptions(
            raw=(str(GOLDEN / "raw.jsonl"),),
            schema=str(GOLDEN / "schema.yaml"),
            output=str(tmp_path / "dataset"),
            num_shards=2,
        )
    )
    assert again.fingerprint == golden.fingerprint
    # Sums may be rounded otherwise on another CPU.
    np.testing.assert_allclose(again.statistics["x"].mean, golden.statistics["x"].mean, rtol=1e-12)
    np.testing.assert_allclose(again.statistics["x"].variance, golden.statistics["x"].variance, rtol=1e-12)
    for name, split in golden.splits.items():
        new = again.splits[name]
        assert new.length_counts == split.length_counts
        assert new.label_counts == split.label_counts
        assert new.truncated == split.truncated
        for old_shard, new_shard in zip(split.shards, new.shards, strict=True):
            old_bytes = (GOLDEN / "dataset" / old_shard.path).read_bytes()
            assert (tmp_path / "dataset" / new_shard.path).read_bytes() == old_bytes
    # The raw file's digest, not its place.
    assert [source.sha256 for source in again.sources] == [source.sha256 for source in golden.sources]
    assert [source.path for source in golden.sources] == ["/tmp/golden/raw.jsonl"]
