"""With `over_length: parts`, long records are stored as consecutive Examples, and are counted as records and parts."""

import collections
import hashlib
import json

import numpy as np
import pyarrow as pa
import pytest
from damage import edit, edit_manifest
from prepare_jobs import load

from pipeline.errors import UserError
from pipeline.format.examples import decode_example, encode_example
from pipeline.format.index import read_index, serialize_index
from pipeline.format.tfrecord import FRAME_BYTES, frame, walk
from pipeline.inspection.inspect import summarize
from pipeline.inspection.verify import verify
from pipeline.schema.compatibility import find_difference
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows
from pipeline.writing.compact import compact
from pipeline.writing.published_ids import find_common_ids, list_published, read_keys

SCHEMA = """\
id: id
steps:
  x: {dtype: float32, shape: [2], missing: {fill: mean}}
  word: {dtype: string, vocabulary: 5}
context: {age: {dtype: float32, missing: indicator}}
label: {name: y, kind: class, classes: [a, b]}
"""
PARTS = "max_length: 4\nover_length: parts\n"
NEXT = SCHEMA.replace("{name: y, kind: class, classes: [a, b]}", "{next_of: word}")
MINUTE = 60


def record(number):
    random = np.random.default_rng(number)
    num_steps = [1, 3, 4, 5, 8, 11, 13][number % 7]
    x = random.normal(size=(num_steps, 2)).astype(np.float32).tolist()
    x[0][1] = None if number % 5 == 0 else 1.0
    return {
        "id": f"r{number}",
        "x": x,
        "word": random.choice(["on", "off", "rare"], num_steps).tolist(),
        "age": None if number % 4 == 0 else number,
        "y": "ab"[number % 2],
        "at": MINUTE * (number % 3),
    }


RECORDS = [record(number) for number in range(40)]


def length_of(record):
    return len(record["x"])


def read_shard(dataset, shard):
    """Returns the Examples of a shard and the rows of its index, read in the plain way."""
    with open(dataset / shard.path, "rb") as file:
        examples = [decode_example(each.data) for each in walk(file, num_bytes=shard.bytes)]
    return examples, read_index((dataset / shard.index_path).read_bytes(), shard).to_pylist()


def check_parts(dataset, records):
    """Checks that the parts of each record follow one another, and make up the record."""
    manifest, seen = load(dataset), {}
    by_id = {record["id"]: record for record in records}
    for split in manifest.splits.values():
        lengths = collections.Counter()
        for shard in split.shards:
            examples, rows = read_shard(dataset, shard)
            assert (len(examples), len(rows)) == (shard.examples, shard.examples)
            place = 0
            while place < len(rows):
                raw = by_id[rows[place]["id"]]
                num_parts = -(-length_of(raw) // 4)
                parts, of_parts = examples[place : place + num_parts], rows[place : place + num_parts]
                assert [(row["part"], row["num_parts"], row["id"]) for row in of_parts] == [
                    (part, num_parts, raw["id"]) for part in range(num_parts)
                ]
                assert [row["num_steps"] for row in of_parts] == [int(part["length"][0]) for part in parts]
                assert [bytes(part["id"][0]).decode() for part in parts] == [raw["id"]] * num_parts
                words = [bytes(word).decode() for part in parts for word in part["word"]]
                x = np.concatenate([part["x"] for part in parts]).reshape(-1, 2)
                np.testing.assert_array_equal(x, np.array(raw["x"], np.float32))
                assert words == raw["word"]
                seen[raw["id"]] = seen.get(raw["id"], 0) + 1
                lengths[length_of(raw)] += 1
                place += num_parts
        assert split.length_counts == dict(sorted(lengths.items()))
        assert split.records == sum(shard.records for shard in split.shards) == sum(lengths.values())
        assert split.parts == sum(shard.examples for shard in split.shards)
        assert split.steps == sum(length * count for length, count in lengths.items())
    assert seen == dict.fromkeys(by_id, 1)
    assert not verify(str(dataset)).faults
    return manifest


@pytest.mark.parametrize("schema", [SCHEMA, NEXT], ids=["class", "next_word"])
def test_records_and_parts_are_counted_each_exactly(run_prepare, write_raw, tmp_path, schema):
    raw = write_raw(RECORDS)
    run_prepare(raw, schema=schema + PARTS, num_shards=2, plain=True)
    manifest = check_parts(tmp_path / "dataset", RECORDS)
    whole = run_prepare(raw, schema=schema, output="whole", num_shards=2, plain=True)
    # All but the parts are as in a dataset of whole records, to the last bit.
    assert manifest.statistics == whole.statistics
    for name, split in whole.splits.items():
        assert manifest.splits[name].model_dump(exclude={"shards", "parts"}) == split.model_dump(
            exclude={"shards", "parts"}
        )
    summary, report = summarize(manifest), verify(str(tmp_path / "dataset")).to_dict()
    parts = sum(-(-length_of(record) // 4) for record in RECORDS)
    assert (summary["records"], summary["parts"]) == (report["records"], report["parts"]) == (len(RECORDS), parts)
    assert sum(split["parts"] for split in summary["splits"].values()) == parts


def test_the_command_prints_records_and_parts(run_prepare, write_raw, tmp_path, capsys):
    from pipeline.main import inspect, verify

    run_prepare(write_raw(RECORDS), schema=SCHEMA + PARTS, plain=True)
    inspect([str(tmp_path / "dataset")])
    assert "stored as 77 parts of at most 4 steps: " in capsys.readouterr().out
    verify([str(tmp_path / "dataset")])
    assert "no fault in 40 records, 77 parts, 246 steps" in capsys.readouterr().out


def test_duplicates_are_found_by_record(run_prepare, write_raw, tmp_path):
    first = write_raw(RECORDS[:30] + RECORDS[:5], "first.jsonl")
    second = write_raw(RECORDS[20:], "second.jsonl")
    run_prepare(first, schema=SCHEMA + PARTS, num_shards=2, max_rejected=0.5, plain=True)
    run_prepare(second, schema=SCHEMA + PARTS, append=True, num_shards=3, max_rejected=0.5)
    manifest = check_parts(tmp_path / "dataset", RECORDS)
    assert manifest.rejected.by_reason == {"duplicate_id": 15}
    listed = [
        json.loads(line)
        for path in manifest.rejected.files
        for line in (tmp_path / "dataset" / path).read_text().splitlines()
    ]
    assert sorted(row["id"] for row in listed) == sorted(f"r{n}" for n in [*range(5), *range(20, 30)])


@pytest.mark.parametrize("with_windows", [False, True])
@pytest.mark.parametrize("with_id", [True, False])
def test_a_compacted_dataset_is_the_one_that_one_job_writes(run_prepare, write_raw, tmp_path, with_id, with_windows):
    """Also if equal records are numbered, which are in several generations."""
    schema = (SCHEMA if with_id else SCHEMA.removeprefix("id: id\n")) + PARTS
    records = [{key: value for key, value in each.items() if with_id or key != "id"} for each in RECORDS]
    raw = [write_raw(records[k::3] if with_id else records[: 15 * k + 9], f"{k}.jsonl") for k in range(3)]
    options = {"windows": EventWindows(field="at", seconds=MINUTE)} if with_windows else {}
    for number, path in enumerate(raw):
        run_prepare(path, schema=schema, append=True, num_shards=number + 1, plain=True, **options)
    compact(str(tmp_path / "dataset"), num_shards=2)
    whole = run_prepare(*raw, schema=schema, output="whole", num_shards=2, plain=True, **options)
    found = load(tmp_path / "dataset")
    for name, split in whole.splits.items():
        same = {"parts", "records", "steps", "sha256", "index_sha256", "window"}
        shards = found.splits[name].shards
        assert [shard.model_dump(include=same) for shard in shards] == [
            shard.model_dump(include=same) for shard in split.shards
        ]
        assert found.splits[name].model_dump(exclude={"shards"}) == split.model_dump(exclude={"shards"})
    assert not verify(str(tmp_path / "dataset")).faults


def test_rejected_long_records_may_be_replayed_as_parts(run_prepare, write_raw, tmp_path):
    raw, dataset = write_raw(RECORDS), tmp_path / "dataset"
    run_prepare(raw, schema=SCHEMA + "max_length: 4\n", max_rejected=1.0, keep_raw=True, plain=True)
    rejected = load(dataset).rejected
    assert rejected.by_reason == {"over_length": sum(length_of(record) > 4 for record in RECORDS)}
    run_prepare(schema=SCHEMA + PARTS, append=True, replay=[str(dataset / path) for path in rejected.files])
    assert sum(split.parts for split in load(dataset).splits.values()) == 77
    check_parts(dataset, RECORDS)
    compact(str(dataset), num_shards=1)
    check_parts(dataset, RECORDS)
    # An Example with the label of its last step has one more field.
    assert "over_length" in str(
        find_difference(Schema.parse(NEXT + PARTS), Schema.parse(NEXT + "max_length: 4\n"), may_widen=True)
    )


def rewrite(dataset, change):
    """Calls `change` with the Examples and the rows of the index of the largest shard, and signs the files again."""
    manifest = load(dataset)
    split = manifest.splits["train"]
    shard = max(split.shards, key=lambda shard: shard.records)
    examples, rows = read_shard(dataset, shard)
    change(examples, rows)
    data = [encode_example(example) for example in examples]
    framed = b"".join(map(frame, data))
    (dataset / shard.path).write_bytes(framed)
    if len(data) == len(rows):
        ends = np.cumsum([len(each) + FRAME_BYTES for each in data])
        for row, each, end in zip(rows, data, ends.tolist(), strict=True):
            row["num_bytes"], row["offset"] = len(each), end - len(each) - FRAME_BYTES
    schema = read_index((dataset / shard.index_path).read_bytes(), shard).schema
    index = serialize_index(pa.Table.from_pylist(rows, schema))
    (dataset / shard.index_path).write_bytes(index)
    place = ("splits", "train", "shards", split.shards.index(shard))
    edit_manifest(dataset, edit(*place, "sha256", to=hashlib.sha256(framed).hexdigest()))
    edit_manifest(dataset, edit(*place, "bytes", to=len(framed)))
    edit_manifest(dataset, edit(*place, "index_sha256", to=hashlib.sha256(index).hexdigest()))
    return shard


def long_record(rows):
    """Returns the position of the first part of a record in three parts or more."""
    return next(place for place, row in enumerate(rows) if row["num_parts"] > 2 and row["part"] == 0)


def swap_parts(examples, rows):
    place = long_record(rows)
    last = place + rows[place]["num_parts"] - 1
    examples[last], examples[last - 1] = examples[last - 1], examples[last]
    for name in ("num_steps",):
        rows[last][name], rows[last - 1][name] = rows[last - 1][name], rows[last][name]


def change_label(examples, rows):
    place = long_record(rows) + 1
    examples[place]["y"] = 1 - np.asarray(examples[place]["y"])
    rows[place]["label"] = "ba"["ab".index(rows[place]["label"])]


def change_context(examples, rows):
    examples[long_record(rows) + 1]["age"] = np.array([7.5], np.float32)


def change_next_step(examples, rows):
    examples[long_record(rows)]["next_step"] = [b"other"]


def end_early(examples, rows):
    place = long_record(rows)
    examples[place + rows[place]["num_parts"] - 1]["next_step"] = [b"other"]


def change_source(examples, rows):
    rows[long_record(rows) + 1]["source"] = None


def change_part(examples, rows):
    rows[long_record(rows) + 1]["part"] = 2


def change_num_parts(examples, rows):
    place = long_record(rows)
    for row in rows[place : place + rows[place]["num_parts"]]:
        row["num_parts"] += 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_parts, "in every part but the last"),
        (change_label, "y: part 1 has another value than part 0 of the same record"),
        (change_context, "age: part 1 has another value than part 0 of the same record"),
        (change_next_step, "word: the first step is not the next_step of the part before it"),
        (end_early, "ends with a next_step, so that a part of it is missing"),
        (change_source, "the index has the source None, but"),
        (change_part, "the record's part is 1, but the index says 2"),
        (change_num_parts, "the record before it has "),
    ],
)
def test_verify_finds_a_wrong_part(run_prepare, write_raw, tmp_path, change, message):
    schema = NEXT if change in (change_next_step, end_early) else SCHEMA
    run_prepare(write_raw(RECORDS), schema=schema + PARTS, num_shards=2, plain=True)
    shard = rewrite(tmp_path / "dataset", change)
    faults = [fault for fault in verify(str(tmp_path / "dataset")).faults if fault.file == shard.path]
    assert [message in fault.message for fault in faults] == [True], faults


def test_verify_finds_wrong_counts_of_parts(run_prepare, write_raw, tmp_path):
    run_prepare(write_raw(RECORDS), schema=SCHEMA + PARTS, plain=True)
    edit_manifest(tmp_path / "dataset", edit("splits", "train", "parts", by=1))
    with pytest.raises(UserError, match="splits.train.parts is .*, but its length_counts say "):
        verify(str(tmp_path / "dataset"))


def test_an_id_that_two_datasets_hold_is_found_once(run_prepare, write_raw, tmp_path):
    """A record in parts has several rows in an index, with the same key and id."""
    published = []
    for name, records in (("first", RECORDS[:25]), ("second", RECORDS[15:])):
        manifest = run_prepare(write_raw(records), schema=SCHEMA + PARTS, output=name, num_shards=2, plain=True)
        published.append(list_published(str(tmp_path / name), manifest.splits))
    common = [record_id for record_id, *_ in find_common_ids(*published)]
    assert sorted(common) == sorted(record["id"] for record in RECORDS[15:25])
    keys = np.concatenate([read_keys(shard) for shard in published[0]])
    assert len(np.unique(keys)) == len(keys) == 25
