"""Datasets of the released formats, kept in tests/golden/: old datasets must stay readable.

`dataset` and `every_kind` have format version 1, `version_2` has format version 2. If one of these tests fails, the
format changed: raise FORMAT_VERSION in pipeline/format/manifest.py. Then make new golden datasets beside the old ones,
from paths that are the same on every machine. Those of version 2 were made with:

    mkdir -p /tmp/golden/every_kind && cp tests/golden/*.* /tmp/golden/
    lengthwise prepare /tmp/golden/raw.jsonl --schema /tmp/golden/schema.yaml --num_shards 2 \
        --output tests/golden/version_2/dataset
    cp tests/golden/every_kind/*.* /tmp/golden/every_kind/ && cd /tmp/golden/every_kind
    head -n 5 raw.jsonl > first.jsonl && tail -n +6 raw.jsonl > second.jsonl && echo "{" >> second.jsonl
    for part in first second; do
        lengthwise prepare $part.jsonl --schema next_word.yaml --append --max_rejected 0.5 --num_shards 1 \
            --output tests/golden/version_2/next_word
    done
    mkdir -p /tmp/golden/windows && cp tests/golden/windows/* tests/golden/schema.yaml /tmp/golden/windows/
    for part in first second; do
        lengthwise prepare /tmp/golden/windows/$part.jsonl --schema /tmp/golden/windows/schema.yaml --append \
            --num_shards 1 --window 1d --event_time at --output tests/golden/version_2/windows
    done
    mkdir -p /tmp/golden/parts && cp tests/golden/every_kind/raw.jsonl tests/golden/parts/schema.yaml /tmp/golden/parts/
    lengthwise prepare /tmp/golden/parts/raw.jsonl --schema /tmp/golden/parts/schema.yaml --num_shards 1 \
        --output tests/golden/version_2/parts
"""

import dataclasses
import json
import pathlib
import shutil
from typing import get_args

import numpy as np
import pytest
from datasets import some
from strategies import plain_example, same_values

from pipeline.beam.prepare import PrepareOptions, prepare
from pipeline.format.examples import decode_example
from pipeline.format.history import read_manifest_at
from pipeline.format.index import read_index
from pipeline.format.manifest import FORMAT_VERSION, fingerprint, read_manifest
from pipeline.format.sources import read_sources
from pipeline.format.summary import GenerationSummary, summary_path
from pipeline.format.tfrecord import walk
from pipeline.inspection.verify import verify
from pipeline.schema.labels import LabelKind
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows

GOLDEN = pathlib.Path(__file__).parent / "golden"
CLASSES = ["left", "right", "3"]
MAX_LENGTH = 6


def read_dataset(folder=GOLDEN / "dataset"):
    """Reads every record in the order of the files: {id: (split, decoded Example)}."""
    records = {}
    for name, split in read_manifest(str(folder)).splits.items():
        for shard in split.shards:
            with open(folder / shard.path, "rb") as file:
                for record in walk(file, num_bytes=shard.bytes):
                    example = decode_example(record.data)
                    records[example["id"][0].decode()] = (name, example)
    return records


def read_raw(folder=GOLDEN):
    return [json.loads(line) for line in (folder / "raw.jsonl").read_bytes().splitlines()]


@pytest.mark.parametrize(("folder", "version"), [("dataset", 1), ("version_2/dataset", 2)])
def test_the_golden_dataset_passes_verify(folder, version):
    report = verify(str(GOLDEN / folder))
    assert report.faults == []
    assert (report.records, report.shards) == (16, 6)
    assert read_manifest(str(GOLDEN / folder)).format_version == version
    assert FORMAT_VERSION == 2


def test_the_golden_dataset_of_two_commits_is_read_and_appended_to(tmp_path):
    golden = GOLDEN / "version_2" / "next_word"
    assert verify(str(golden)).faults == []
    manifest = read_manifest(str(golden))
    assert (manifest.commit, manifest.rejected.by_reason) == (2, {"not_json": 1})
    old = read_manifest(str(EVERY / "next_word"))
    assert manifest.statistics.keys() == old.statistics.keys()
    assert manifest.splits["train"].model_dump(exclude={"shards"}) == old.splits["train"].model_dump(exclude={"shards"})
    first = read_manifest_at(str(golden), 1)
    assert sum(split.records for split in first.splits.values()) == 5
    # Every byte of a new dataset but those of times and random names is that of the golden one.
    shutil.copytree(golden, tmp_path / "copy")
    (tmp_path / "raw.jsonl").write_text(json.dumps(read_raw(EVERY)[0] | {"id": "new"}) + "\n")
    options = PrepareOptions((str(tmp_path / "raw.jsonl"),), str(EVERY / "next_word.yaml"), str(tmp_path / "copy"))
    assert prepare(dataclasses.replace(options, append=True)).commit == 3
    assert verify(str(tmp_path / "copy")).faults == []


def test_the_golden_dataset_with_windows_is_read_and_made_again(tmp_path):
    golden, windows = GOLDEN / "version_2" / "windows", EventWindows(field="at", seconds=86400)
    report = verify(str(golden))
    assert (report.faults, report.records, report.shards) == ([], 9, 7)
    found = {}
    for split in read_manifest(str(golden)).splits.values():
        for shard in split.shards:
            rows = read_index((golden / shard.index_path).read_bytes(), shard)
            times = zip(rows["id"].to_pylist(), rows["event_time"].to_pylist(), strict=True)
            found |= {record_id: (shard.window, time) for record_id, time in times}
    day, second = 86400, 10**6
    assert found == {
        "zero": (0, 0),
        "1": (0, day * second - 1),
        "2": (day, day * second),
        "drei": (day, day * second + 250_000),
        "quatre–5": (day, day * second),
        "": (day, 2 * day * second - second),
        "six/6": (-day, -second),
        "../seven": (0, 3600 * second + 500_000),
        "acht 8": (day, 90_000 * second),
    }
    for part in ("first", "second"):
        raw, schema = (GOLDEN / name for name in (f"windows/{part}.jsonl", "schema.yaml"))
        options = {"num_shards": 1, "append": True, "windows": windows}
        made = prepare(PrepareOptions((str(raw),), str(schema), str(tmp_path), **options))
    # The names of the shards, and the bytes of all that does not depend on the version of pyarrow.
    assert made.fingerprint == read_manifest(str(golden)).fingerprint
    names = [
        [pathlib.Path(shard.path).name for split in manifest.splits.values() for shard in split.shards]
        for manifest in (made, read_manifest(str(golden)))
    ]
    assert names[0] == names[1]


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


def test_every_raw_record_keeps_its_split_and_position():
    splits = {"train": [], "validation": [], "test": []}
    for record_id, (split, _) in read_dataset().items():
        splits[split].append(record_id)
    assert splits == {
        "train": ["2", "", "十三", "quatre–5", "14", "1", "acht 8"],
        "validation": ["six/6", "zwölf", "neuf"],
        "test": ["fifteen", "../seven", "zero", "eleven", "ten", "drei"],
    }
    assert sorted(sum(splits.values(), [])) == sorted(str(raw["id"]) for raw in read_raw())


def prepare_again(schema, output, *, num_shards):
    return prepare(
        PrepareOptions(
            raw=(str(schema.parent / "raw.jsonl"),), schema=str(schema), output=str(output), num_shards=num_shards
        )
    )


def check_same(new, new_folder, golden, golden_folder):
    """Asserts that a new dataset equals the golden one: bytes, counts and statistics."""
    shards = {name: [shard.sha256 for shard in split.shards] for name, split in new.splits.items()}
    assert fingerprint(new.record_schema, seed=new.seed, shards=shards, format_version=1) == golden.fingerprint
    assert new.statistics.keys() == golden.statistics.keys()
    for name, statistics in golden.statistics.items():
        found = new.statistics[name]
        assert (found.count, found.missing) == (statistics.count, statistics.missing)
        assert (found.min, found.max) == (statistics.min, statistics.max)
        # Another CPU may round sums differently.
        np.testing.assert_allclose(found.mean, statistics.mean, rtol=1e-12)
        np.testing.assert_allclose(found.variance, statistics.variance, rtol=1e-12)
    for name, split in golden.splits.items():
        assert new.splits[name].model_dump(exclude={"shards"}) == split.model_dump(exclude={"shards"})
        for old_shard, new_shard in zip(split.shards, new.splits[name].shards, strict=True):
            assert (new_folder / new_shard.path).read_bytes() == (golden_folder / old_shard.path).read_bytes()
    assert new.vocabularies.keys() == golden.vocabularies.keys()
    for name, vocabulary in golden.vocabularies.items():
        assert (new_folder / new.vocabularies[name].path).read_bytes() == (golden_folder / vocabulary.path).read_bytes()
    # The digest of the raw file, not its path.
    (generation,) = new.generations
    summary = GenerationSummary.parse((new_folder / summary_path(generation)).read_bytes(), origin="summary")
    found = [
        digest.hex()
        for block in read_sources(str(new_folder), summary.sources)
        for digest in block["sha256"].to_pylist()
    ]
    assert found == [source.sha256 for source in golden.sources]


def test_preparing_the_raw_file_again_gives_the_same_shards_and_fingerprint(tmp_path):
    golden = read_manifest(str(GOLDEN / "dataset"))
    again = prepare_again(GOLDEN / "schema.yaml", tmp_path / "dataset", num_shards=2)
    check_same(again, tmp_path / "dataset", golden, GOLDEN / "dataset")
    assert [source.path for source in golden.sources] == ["/tmp/golden/raw.jsonl"]
    # The format is final: these are the bytes of the first golden dataset.
    assert golden.fingerprint == "54e8b4086770b72cf1bbb169bedea0bf5b9f5bd6b10793ebf6165ad8de1897e7"


EVERY = GOLDEN / "every_kind"
KINDS = sorted(path.stem for path in EVERY.glob("*.yaml"))


def test_there_is_a_golden_dataset_of_every_kind_of_label():
    schemas = [Schema.read(str(EVERY / f"{kind}.yaml")) for kind in KINDS]
    assert {schema.label.kind for schema in schemas if schema.label.name} == set(get_args(LabelKind))
    following = [(schema.label.next_of, schema.label.kind) for schema in schemas if schema.label.next_of]
    assert sorted(following) == [
        ("bits", "step_multilabel"),
        ("page", "step_class"),
        ("word", "step_class"),
        ("x", "step_regression"),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_golden_dataset_of_every_kind_of_feature_passes_verify(kind):
    report = verify(str(EVERY / kind))
    assert report.faults == []
    assert (report.records, report.shards) == (8, 2)
    assert read_manifest(str(EVERY / kind)).format_version == 1


@pytest.mark.parametrize("kind", KINDS)
def test_golden_records_of_every_kind_hold_the_values_of_the_raw_file(kind):
    schema = Schema.read(str(EVERY / f"{kind}.yaml"))
    assert read_manifest(str(EVERY / kind)).record_schema == schema
    found = read_dataset(EVERY / kind)
    assert sorted(found) == sorted(str(raw["id"]) for raw in read_raw(EVERY))
    for raw in read_raw(EVERY):
        expected = plain_example(raw, schema)
        _, example = found[str(raw["id"])]
        assert example.keys() == expected.keys()
        assert all(same_values(example[name], values) for name, values in expected.items())


@pytest.mark.parametrize("kind", some(KINDS, ["step_class", "regression", "next_word", "next_bits"]))
def test_preparing_the_raw_file_of_every_kind_again_gives_the_same_dataset(tmp_path, kind):
    again = prepare_again(EVERY / f"{kind}.yaml", tmp_path / kind, num_shards=1)
    check_same(again, tmp_path / kind, read_manifest(str(EVERY / kind)), EVERY / kind)


def test_the_golden_dataset_in_parts_is_read_and_made_again(tmp_path):
    golden = GOLDEN / "version_2" / "parts"
    report = verify(str(golden))
    assert (report.faults, report.records, report.parts) == ([], 8, 13)
    manifest = read_manifest(str(golden))
    options = {"schema": str(GOLDEN / "parts" / "schema.yaml"), "output": str(tmp_path / "parts"), "num_shards": 1}
    again = prepare(PrepareOptions(raw=(str(EVERY / "raw.jsonl"),), **options))
    assert again.fingerprint == manifest.fingerprint
    assert again.splits.keys() == manifest.splits.keys()
    for name, split in manifest.splits.items():
        assert again.splits[name].model_dump(exclude={"shards"}) == split.model_dump(exclude={"shards"})
    words = {str(raw["id"]): raw["word"] for raw in read_raw(EVERY)}
    for split in manifest.splits.values():
        for shard in split.shards:
            rows = read_index((golden / shard.index_path).read_bytes(), shard).to_pylist()
            with open(golden / shard.path, "rb") as file:
                examples = [decode_example(record.data) for record in walk(file, num_bytes=shard.bytes)]
            for row, example in zip(rows, examples, strict=True):
                whole = [b"\xff" if word is None else word.encode() for word in words[row["id"]]]
                first = 2 * row["part"]
                assert row["num_parts"] == -(-len(whole) // 2)
                assert example["word"] == whole[first : first + 2]
                assert example["next_step"] == (whole[first + 2 : first + 3] or [b"\xff"])


def test_the_golden_dataset_has_vocabularies_groups_missing_and_unknown_values():
    golden = read_manifest(str(EVERY / "next_word"))
    terms = {name: (EVERY / "next_word" / v.path).read_bytes() for name, v in golden.vocabularies.items()}
    assert terms == {"word": b"the\nback\\\\slash\na\\nb\n", "Ört": b"york\nBath\nYork\n"}
    assert golden.splits["train"].missing == {"x": 10, "page": 4, "word": 1, "age": 3, "plan": 2}
    assert golden.splits["train"].unknown["word"] > 0
    persons = {str(raw["id"]): raw["who"] for raw in read_raw(EVERY)}
    rows = [
        row | {"split": name}
        for name, split in golden.splits.items()
        for shard in split.shards
        for row in read_index((EVERY / "next_word" / shard.index_path).read_bytes(), shard).to_pylist()
    ]
    assert {row["id"]: row["group"] for row in rows} == persons
    assert {row["source"] for row in rows} == {"/tmp/golden/every_kind/raw.jsonl"}
    splits = [{row["group"] for row in rows if row["split"] == name} for name in ("train", "test")]
    assert splits == [{"ann", "cem", "dee"}, {"bob"}]
