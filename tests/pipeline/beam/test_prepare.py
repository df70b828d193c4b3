"""`prepare` end to end gives the same bytes on every runner, loses no record and publishes no partial dataset."""

import base64
import gzip
import hashlib
import json
import math
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT
from prepare_jobs import listed_files, load, make_many_runs, snapshot

from pipeline.errors import UserError
from pipeline.format.index import read_index
from pipeline.format.manifest import FILE_NAME
from pipeline.format.sources import read_sources
from pipeline.format.summary import GenerationSummary, summary_path
from pipeline.raw.records import LIMITS, parse_record
from pipeline.raw.rejects import REASONS, Origin
from pipeline.schema.schema import Schema
from pipeline.shuffle.encoded_records import encode_for_shuffle, to_block
from pipeline.shuffle.hashing import choose_split
from pipeline.writing.paths import new_generation
from pipeline.writing.shards import ShardWriter

TINY = "id: id\nsteps: {x: {dtype: float32}}\nlabel: {name: y, kind: class, classes: [a, b]}\n"


def tiny(record_id, num_steps=3, **fields):
    return {"id": record_id, "x": [0.5] * num_steps, "y": "a"} | fields


def shard_bytes(folder):
    """Returns the bytes of the TFRecord files of a dataset, by name without the generation."""
    return {pathlib.Path(name).name: data for name, data in snapshot(folder).items() if name.endswith(".tfrecord")}


def ids(examples):
    return sorted(example["id"][0].decode() for example in examples)


def check_whole(folder):
    """Checks that a folder has exactly the files of its manifest, with their sizes, and returns the manifest."""
    manifest = load(folder)
    assert sorted(snapshot(folder)) == listed_files(folder)
    for split in manifest.splits.values():
        for shard in split.shards:
            assert os.path.getsize(pathlib.Path(folder, shard.path)) == shard.bytes
    return manifest


def test_a_dataset_has_the_values_of_every_record(dataset, records, read_records):
    by_id = {example["id"][0].decode(): example for example in read_records(dataset)}
    assert sorted(by_id) == sorted(record["id"] for record in records)
    for record in records:
        example = by_id[record["id"]]
        assert example["length"].tolist() == [len(record["x"])]
        assert example["x"].reshape(-1, 3).tolist() == record["x"]
        assert example["page"].tolist() == record["page"]
        assert example["word"] == [word.encode() for row in record["word"] for word in row]
        assert example["y"].tolist() == [["a", "b", "no"].index(record["y"])]


def test_the_index_has_the_offset_of_each_record(dataset, read_records):
    import pyarrow.parquet as pq

    from pipeline.format.tfrecord import walk

    manifest = check_whole(dataset)
    for split in manifest.splits.values():
        for shard in split.shards:
            index = pq.read_table(pathlib.Path(dataset, shard.index_path)).to_pydict()
            with open(pathlib.Path(dataset, shard.path), "rb") as file:
                found = list(walk(file, num_bytes=shard.bytes))
            assert index["offset"] == [record.offset for record in found]
            assert index["num_bytes"] == [len(record.data) for record in found]
            assert set(index["part"]) | set(index["num_parts"]) <= {0, 1}
            assert len(index["id"]) == shard.records
            assert sum(index["num_steps"]) == shard.steps


def read_indexes(folder):
    """Returns the rows of all indexes of a dataset, by id."""
    shards = [shard for split in load(folder).splits.values() for shard in split.shards]
    rows = [row for s in shards for row in read_index(pathlib.Path(folder, s.index_path).read_bytes(), s).to_pylist()]
    return {row["id"]: row for row in rows}


def test_the_index_has_the_group_and_the_raw_file_of_each_record(write_raw, run_prepare, tmp_path):
    rows = {name: [tiny(f"{name}-{n}", who=n % 7) for n in range(30)] for name in ("one", "two")}
    files = {name: write_raw(rows[name], f"{name}.jsonl") for name in rows}
    run_prepare(*files.values(), schema=TINY + "group: who\n")
    found = {i: (row["group"], row["source"]) for i, row in read_indexes(tmp_path / "dataset").items()}
    assert found == {row["id"]: (str(row["who"]), files[name]) for name in rows for row in rows[name]}
    run_prepare(*files.values(), schema=TINY, overwrite=True)
    found = {i: (row["group"], row["source"]) for i, row in read_indexes(tmp_path / "dataset").items()}
    assert found == {row["id"]: (None, files[name]) for name in rows for row in rows[name]}


def test_a_job_with_many_runs_makes_the_same_dataset(write_raw, run_prepare, monkeypatch):
    raw = write_raw([tiny(n, who=n % 7) for n in range(200)] + [tiny(3)])
    options = {"schema": TINY, "num_shards": 2, "max_rejected": 0.1}
    whole = run_prepare(raw, output="whole", **options)
    make_many_runs(monkeypatch)
    many = run_prepare(raw, **options)
    assert (many.fingerprint, many.rejected.by_reason) == (whole.fingerprint, {"duplicate_id": 1})


def test_a_sequence_from_no_file_has_no_source_and_needs_its_group(tmp_path):
    schema = Schema.parse(TINY + "group: who\nsplits: {train: 1}\n")
    sequence = parse_record(tiny("a", who="g"), schema)
    writer = ShardWriter(schema, str(tmp_path), new_generation())
    encoded = encode_for_shuffle(sequence, Origin(None, 0, 0, 0, b"", None), schema, seed=0)
    (summary,) = writer.write(0, [to_block([encoded])], num_shards=1, reject=print)
    (row,) = read_index((tmp_path / summary.shard.index_path).read_bytes(), summary.shard).to_pylist()
    assert (row["group"], row["source"]) == ("g", None)
    sequence.group = None
    with pytest.raises(ValueError, match="Record 'a' has no group, but the schema has one: 'who'"):
        encode_for_shuffle(sequence, Origin(None, 0, 0, 0, b"", None), schema, seed=0)


@pytest.mark.parametrize(
    ("label", "values", "expected"),
    [
        ("kind: multilabel, classes: [a, b, true]", [["b", True], [], [True, "a"]], [["b", "true"], [], ["a", "true"]]),
        ("kind: class, classes: [a, b, 7]", ["b", 7, "a"], ["b", "7", "a"]),
        ("kind: distribution, classes: [a, b]", [[0.25, 0.75], [1, 0], [0, 1]], [[0.25, 0.75], [1.0, 0.0], [0.0, 1.0]]),
        ("kind: regression", [0.5, -3, 1e9], [0.5, -3.0, 1e9]),
        ("kind: step_class, classes: [a]", [["a"], [None], ["a"]], [None] * 3),
        ("kind: step_multilabel, classes: [a]", [[["a"]], [None], [[]]], [None] * 3),
        ("kind: step_regression", [[0.5], [None], [3]], [None] * 3),
    ],
)
def test_the_index_has_the_label_of_each_record(write_raw, run_prepare, tmp_path, label, values, expected):
    rows = [{"id": f"{n}", "x": [0], "y": value} for n, value in enumerate(values)]
    schema = f"id: id\nsteps: {{x: {{dtype: float32}}}}\nlabel: {{name: y, {label}}}\n"
    run_prepare(write_raw(rows), schema=schema)
    assert [read_indexes(tmp_path / "dataset")[f"{n}"]["label"] for n in range(3)] == expected


def test_a_null_is_rejected_with_a_hint_unless_the_schema_allows_it(write_raw, run_prepare, tmp_path):
    rows = [tiny("good"), tiny("bad", x=[1, None])]
    manifest = run_prepare(write_raw(rows), schema=TINY, max_rejected=1)
    (row,) = [json.loads(line) for line in (tmp_path / "dataset" / manifest.rejected.files[0]).read_text().splitlines()]
    assert (row["reason"], row["id"]) == ("wrong_type", "bad")
    assert row["message"] == (
        "x[1]: null, expected a number (set missing: fill or missing: indicator in the schema to allow nulls)"
    )
    schema = TINY.replace("{dtype: float32}", "{dtype: float32, missing: fill}")
    manifest = run_prepare(write_raw(rows), schema=schema, overwrite=True)
    assert (manifest.rejected.total, sum(split.missing["x"] for split in manifest.splits.values())) == (0, 1)


@pytest.mark.parametrize(
    "beam",
    [
        None,
        pytest.param({"direct_running_mode": "multi_processing", "direct_num_workers": 2}, marks=pytest.mark.proof),
        pytest.param({"direct_running_mode": "multi_threading", "direct_num_workers": 2}, marks=pytest.mark.proof),
        {"direct_runner_bundle_repeat": 3},
        pytest.param({"runner": "BundleBasedDirectRunner"}, marks=pytest.mark.proof),
    ],
    ids=["plain", "multi_processing", "multi_threading", "bundle_repeat", "older_runner"],
)
def test_the_shards_are_the_same_bytes_on_every_runner(dataset, records, write_raw, run_prepare, tmp_path, beam):
    shuffled = list(records)
    random.Random(1).shuffle(shuffled)
    write_raw(shuffled[:50], "raw/one.jsonl")
    write_raw(shuffled[50:60], "raw/deep/two.ndjson")
    rest = pathlib.Path(write_raw(shuffled[60:], "rest"))
    (tmp_path / "raw/three.json.gz").write_bytes(gzip.compress(rest.read_bytes()))
    manifest = run_prepare(str(tmp_path / "raw"), num_shards=4, beam=beam)
    assert shard_bytes(tmp_path / "dataset") == shard_bytes(dataset)
    assert manifest.fingerprint == load(dataset).fingerprint
    assert manifest.splits.keys() == load(dataset).splits.keys()
    assert manifest.statistics == load(dataset).statistics
    check_whole(tmp_path / "dataset")


def test_another_seed_gives_another_dataset_of_the_same_records(
    dataset, raw_file, run_prepare, tmp_path, schema_text, read_records
):
    run_prepare(raw_file, schema=schema_text, num_shards=4, seed=1)
    assert load(tmp_path / "dataset").fingerprint != load(dataset).fingerprint
    assert ids(read_records(tmp_path / "dataset")) == ids(read_records(dataset))


def test_blank_lines_line_breaks_and_a_byte_order_mark_change_nothing(
    dataset, records, run_prepare, tmp_path, schema_text
):
    lines = [json.dumps(record).encode() for record in records]
    content = b"\xef\xbb\xbf" + b"\r\n\r\n \t\r\n".join(lines)
    (tmp_path / "raw.jsonl").write_bytes(content)
    manifest = run_prepare(str(tmp_path / "raw.jsonl"), schema=schema_text, num_shards=4)
    assert manifest.fingerprint == load(dataset).fingerprint
    assert manifest.rejected.total == 0


def test_adding_records_moves_no_old_record_to_another_split(
    dataset, records, write_raw, run_prepare, tmp_path, read_records
):
    added = [records[n] | {"id": f"new-{n}"} for n in range(20)]
    run_prepare(write_raw([*added, *records]), num_shards=4)
    new_ids = {record["id"] for record in added}
    seen = set()
    for split in ("train", "validation", "test"):
        now = set(ids(read_records(tmp_path / "dataset", split)))
        assert now - new_ids == set(ids(read_records(dataset, split)))
        seen |= now
    assert new_ids <= seen


def test_no_group_spans_two_splits_and_the_splits_have_their_shares(write_raw, run_prepare, tmp_path, read_records):
    raw = write_raw([tiny(n, who=f"person-{n % 400}") for n in range(1600)])
    schema = TINY + "splits: {train: 0.6, test: 0.4, group: who}\n"
    manifest = run_prepare(raw, schema=schema, num_shards=2)
    groups = {
        split: {int(i) % 400 for i in ids(read_records(tmp_path / "dataset", split))} for split in manifest.splits
    }
    assert groups["train"] & groups["test"] == set()
    assert groups["train"] | groups["test"] == set(range(400))
    sigma = math.sqrt(0.6 * 0.4 / 400)
    assert abs(len(groups["train"]) / 400 - 0.6) < 3 * sigma
    assert manifest.splits["train"].records == 4 * len(groups["train"])


def test_a_field_of_the_record_can_name_its_split(write_raw, run_prepare, tmp_path, read_records):
    names = ["train", "test", "train", "validation"]
    raw = write_raw([tiny(n, part=names[n % 4]) for n in range(40)])
    run_prepare(raw, schema=TINY + "splits: {from: part}\n")
    for split in ("train", "validation", "test"):
        expected = sorted(str(n) for n in range(40) if names[n % 4] == split)
        assert ids(read_records(tmp_path / "dataset", split)) == expected


def test_the_command_lists_rejects_of_every_reason_with_file_offset_and_line(tmp_path):
    schema = tmp_path / "schema.yaml"
    schema.write_text(TINY.replace("{x:", "{z: {dtype: float32}, x:") + "max_length: 3\nsplits: {train: 1}\n")
    good = b'{"id": "good", "x": [1], "z": [1], "y": "a"}'
    bad = [
        ("not_json", None, b'{"id": "1"'),
        ("not_json", None, b'{"id": "\xff"}'),
        # This record spans several chunks of the file, so all records below it are in a later chunk.
        ("too_large", None, b'{"id": "2", "x": [' + b"0," * (LIMITS.record_bytes // 2) + b"0]}"),
        ("not_a_record", None, b"[]"),
        ("duplicate_key", None, b'{"id": "3", "x": [1], "z": [1], "y": "b", "y": "a"}'),
        ("missing_field", "3", b'{"id": "3", "x": [1], "y": "a"}'),
        ("wrong_type", "4", b'{"id": "4", "x": [null], "z": [1], "y": "a"}'),
        ("wrong_shape", "5", b'{"id": "5", "x": [[1]], "z": [1], "y": "a"}'),
        ("not_finite", "6", b'{"id": "6", "x": [NaN], "z": [1], "y": "a"}'),
        ("not_finite", "7", b'{"id": "7", "x": [-Infinity], "z": [1], "y": "a"}'),
        ("not_finite", "8", b'{"id": "8", "x": [1e999], "z": [1], "y": "a"}'),
        ("not_finite", "9", b'{"id": "9", "x": [1e39], "z": [1], "y": "a"}'),
        ("unknown_class", "10", b'{"id": "10", "x": [1], "z": [1], "y": "c"}'),
        ("empty_sequence", "11", b'{"id": "11", "x": [], "z": [], "y": "a"}'),
        ("over_length", "12", b'{"id": "12", "x": [1, 2, 3, 4], "z": [1, 2, 3, 4], "y": "a"}'),
        ("uneven_lengths", "13", b'{"id": "13", "x": [1], "z": [1, 2], "y": "a"}'),
        ("bad_id", None, b'{"x": [1], "z": [1], "y": "a"}'),
        ("bad_id", None, b'{"id": null, "x": [1], "z": [1], "y": "a"}'),
        ("duplicate_id", "good", good),
    ]
    assert {reason for reason, _, _ in bad} == set(REASONS)
    raw = tmp_path / "raw.jsonl"
    expected, offset = [], len(good) + 2
    with open(raw, "wb") as file:
        file.write(good + b"\r\n")
        for number, (reason, record_id, line) in enumerate(bad):
            file.write(b"\n" + line + b"\r\n")  # a blank line before each
            expected.append((reason, record_id, offset + 1, 3 + 2 * number))
            offset += 1 + len(line) + 2
    done = subprocess.run(
        [sys.executable, "-m", "lengthwise", "prepare", "raw.jsonl", "--schema", "schema.yaml", "--output", "out"]
        + ["--max_rejected", "1", "--num_shards", "1"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    manifest = check_whole(tmp_path / "out")
    (name,) = manifest.rejected.files
    rows = [json.loads(row) for row in (tmp_path / "out" / name).read_text().splitlines()]
    assert [(row["reason"], row["id"], row["byte_offset"], row["line"]) for row in rows] == expected
    assert {row["file"] for row in rows} == {str(raw)}
    assert not any("raw" in row for row in rows)
    assert [row["sha256"] for row in rows if row["reason"] != "too_large"] == [
        hashlib.sha256(line).hexdigest() for reason, _, line in bad if reason != "too_large"
    ]
    assert manifest.rejected.by_reason == {
        reason: sum(reason == other for other, _, _ in bad) for reason in sorted(REASONS)
    }
    # records + rejected = input records
    assert manifest.splits["train"].records + manifest.rejected.total == 1 + len(bad)


def test_keep_raw_keeps_the_original_line(write_raw, run_prepare, tmp_path):
    bad = [b'{"id": "1" ', "ü[".encode(), b'{"id": "\xff"}']
    manifest = run_prepare(write_raw([tiny(1), *bad]), schema=TINY, max_rejected=1, keep_raw=True)
    rows = (tmp_path / "dataset" / manifest.rejected.files[0]).read_text().splitlines()
    kept = [json.loads(row) for row in rows]
    assert [row.get("raw") for row in kept] == ['{"id": "1" ', "ü[", None]
    assert base64.b64decode(kept[2]["raw_base64"]) == bad[2]
    assert [row["sha256"] for row in kept] == [hashlib.sha256(line).hexdigest() for line in bad]


def test_too_many_rejects_publish_nothing_but_are_all_written(write_raw, run_prepare, tmp_path):
    def raw(bad):
        return write_raw([tiny(n) for n in range(1000 - bad)] + ["{"] * bad, f"{bad}.jsonl")

    old = run_prepare(raw(9), schema=TINY)
    assert old.rejected.by_reason == {"not_json": 9}
    before = snapshot(tmp_path / "dataset")
    with pytest.raises(
        UserError, match=r"^11 of 1,000 records \(1\.10%\) were rejected: 11 not_json; at most 1\.00%"
    ) as e:
        run_prepare(raw(11), schema=TINY, overwrite=True)
    after = snapshot(tmp_path / "dataset")
    assert {name: after.pop(name) for name in before} == before
    (rejects,) = after
    assert f"The rejects are in {tmp_path}/dataset/{rejects};" in str(e.value)
    assert after[rejects].count(b"\n") == 11
    new = run_prepare(raw(10), schema=TINY, overwrite=True, retain=0)
    assert new.rejected.total == 10
    check_whole(tmp_path / "dataset")


def test_exactly_the_allowed_share_of_rejects_passes(write_raw, run_prepare):
    # In floating point, 0.29 * 100 is less than 29.
    assert run_prepare(write_raw([tiny(n) for n in range(71)] + ["{"] * 29), schema=TINY, max_rejected=0.29)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["", " "],
            "The input contains no records: its files are empty, or all lines are blank. Nothing was published.",
        ),
        ([], "The input contains no records"),
        (["{"], r"The only record was rejected: 1 not_json\. The first one is line 1 of .*\. Nothing was published\."),
    ],
)
def test_an_input_without_a_usable_record_is_an_error(write_raw, run_prepare, tmp_path, rows, message):
    with pytest.raises(UserError, match=f"^{message}"):
        run_prepare(write_raw(rows), schema=TINY, max_rejected=1)
    assert not any(name.startswith(("data", FILE_NAME)) for name in snapshot(tmp_path / "dataset"))


def test_of_duplicates_in_all_splits_the_smallest_digest_is_kept(write_raw, run_prepare, tmp_path, read_records):
    schema_text = TINY + "group: who\nsplits: {train: 0.5, test: 0.5}\n"
    schema = Schema.parse(schema_text)
    rows = [tiny(n % 50, num_steps=n % 7 + 1, who=n) for n in range(200)]
    rows += [tiny(n % 50, num_steps=n % 7 + 1, who=1000 + n) for n in range(200)]  # the same content, another group
    assert len({choose_split(str(row["who"]), {"train": 0.5, "test": 0.5}, seed=0) for row in rows}) == 2

    def rank(row):
        encoded = encode_for_shuffle(parse_record(row, schema), Origin(None, 0, 0, 0, b"", None), schema, seed=0)
        return encoded.digest, encoded.split

    expected = {}
    for row in rows:
        expected[row["id"]] = min(expected.get(row["id"], (b"\xff" * 32, "", 0)), (*rank(row), len(row["x"])))
    fingerprints = set()
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        manifest = run_prepare(
            write_raw(rows[:150], "a"), write_raw(rows[150:], "b"), schema=schema_text, output=f"{seed}", max_rejected=1
        )
        assert manifest.rejected.by_reason == {"duplicate_id": 350}
        found = {
            int(example["id"][0]): (split, int(example["length"][0]))
            for split in manifest.splits
            for example in read_records(tmp_path / f"{seed}", split)
        }
        assert found == {record_id: (split, length) for record_id, (_, split, length) in expected.items()}
        fingerprints.add(manifest.fingerprint)
    assert len(fingerprints) == 1


def test_a_duplicate_names_the_record_that_is_kept(write_raw, run_prepare, tmp_path):
    raw = write_raw([tiny(1), tiny("1"), tiny(2)])
    manifest = run_prepare(raw, schema=TINY, max_rejected=1)
    assert manifest.rejected.by_reason == {"duplicate_id": 1}
    row = json.loads((tmp_path / "dataset" / manifest.rejected.files[0]).read_text())
    assert (row["line"], row["id"]) == (2, "1")
    assert row["message"] == f"the id '1' is also the id of the record at byte 0 of {raw}, which is kept"


def test_without_overwrite_an_existing_dataset_is_an_error_and_unchanged(raw_file, run_prepare, tmp_path):
    run_prepare(raw_file)
    before = snapshot(tmp_path / "dataset")
    with pytest.raises(
        UserError, match="a dataset is there already. Choose another --output, add to it with --append, or"
    ):
        run_prepare(raw_file)
    assert snapshot(tmp_path / "dataset") == before


def test_another_number_of_shards_replaces_the_old_shards(raw_file, run_prepare, tmp_path, read_records, records):
    for num_shards in (8, 4, 16):
        run_prepare(raw_file, num_shards=num_shards, overwrite=True, retain=0)
        manifest = check_whole(tmp_path / "dataset")
        shards = [shard for split in manifest.splits.values() for shard in split.shards]
        assert len(manifest.splits["train"].shards) == num_shards
        assert all(f"-of-{num_shards:05d}" in shard.path for shard in shards)
        # A shard without a record has no file: some object stores refuse an empty one.
        assert all(shard.records and (tmp_path / "dataset" / shard.path).stat().st_size for shard in shards)
        assert len(list(tmp_path.glob("dataset/data/*/*.tfrecord"))) == len(shards)
        assert ids(read_records(tmp_path / "dataset")) == sorted(record["id"] for record in records)


def test_foreign_files_in_the_output_folder_are_kept(write_raw, run_prepare, tmp_path):
    raw = write_raw([tiny(n) for n in range(20)], "project/data/raw.jsonl")
    foreign = ["data/2026/notes.tfrecord", "rejected/old.jsonl", "manifest.json.bak", "README.md"]
    for name in foreign:
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"foreign")
    for _ in range(2):
        run_prepare(raw, schema=TINY, output="project", overwrite=True, retain=0)
    assert sorted(snapshot(tmp_path / "project")) == sorted(
        [*listed_files(tmp_path / "project"), "data/raw.jsonl", *foreign]
    )


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format_version": 99}', b"\xff"])
def test_an_invalid_manifest_can_be_overwritten(write_raw, run_prepare, tmp_path, content):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / FILE_NAME).write_bytes(content)
    raw = write_raw([tiny(n) for n in range(20)])
    with pytest.raises(UserError, match="a dataset is there already"):
        run_prepare(raw, schema=TINY)
    run_prepare(raw, schema=TINY, overwrite=True, retain=0)
    check_whole(tmp_path / "dataset")


def test_a_file_at_the_path_of_the_output_folder_is_an_error(raw_file, run_prepare, tmp_path):
    (tmp_path / "dataset").write_text("in the way")
    with pytest.raises(UserError, match=f"^{tmp_path}/dataset: a file is in the way, expected a folder or nothing"):
        run_prepare(raw_file)


@pytest.mark.parametrize("place", ["data", "rejected", FILE_NAME])
def test_a_file_that_cannot_be_written_leaves_no_partial_dataset(write_raw, run_prepare, tmp_path, place):
    # Permissions do not stop root, so a file takes the place of a folder, or a folder the place of a file.
    output = tmp_path / "dataset"
    output.mkdir()
    if place == FILE_NAME:
        (output / place).mkdir()
    else:
        (output / place).write_bytes(b"")
    before = snapshot(output)
    raw = write_raw([tiny(n) for n in range(200)] + ["{"])
    message = r"A file could not be read or written: \[Errno \d+\] \w.*Nothing was published"
    if place == FILE_NAME:
        message = "a folder is in the way, expected a file or nothing"
    with pytest.raises(UserError, match=message):
        run_prepare(raw, schema=TINY, overwrite=True)
    left = snapshot(output)
    assert not any(name.startswith("data/") or name.endswith(".tmp") for name in left)
    assert before.items() <= left.items()


def test_a_truncated_gzip_file_is_an_error_of_one_line_and_publishes_nothing(
    raw_file, run_prepare, write_raw, tmp_path
):
    run_prepare(raw_file)
    before = snapshot(tmp_path / "dataset")
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(pathlib.Path(raw_file).read_bytes())[:-20])
    with pytest.raises(UserError, match=rf"^{path}: not a complete gzip file: [^\n]*$"):
        run_prepare(raw_file, str(path), overwrite=True)
    assert snapshot(tmp_path / "dataset") == before


def test_files_that_a_folder_leaves_out_are_named_on_stderr_and_in_the_summary(raw_file, run_prepare, tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    shutil.copy(raw_file, tmp_path / "raw/a.JSONL")
    (tmp_path / "raw/part-00000").write_bytes(b"{}")
    manifest = run_prepare(str(tmp_path / "raw"))
    assert f'prepare: 1 file left out: "{tmp_path}/raw/part-00000". Of a folder, only ' in capsys.readouterr().err
    summary = json.loads((tmp_path / f"dataset/data/{manifest.generations[0]}/summary.json").read_text())
    assert summary["left_out"] == {"files": 1, "paths": [f"{tmp_path}/raw/part-00000"]}


@pytest.mark.parametrize("runner", ["FooRunner", "foo.Bar", "DataflowRunner"])
def test_a_runner_that_cannot_start_is_a_user_error(raw_file, run_prepare, tmp_path, runner):
    with pytest.raises(UserError, match=rf"^--runner {runner}: [^\n]+$"):
        run_prepare(raw_file, beam={"runner": runner})
    assert not (tmp_path / "dataset").exists()


def test_hostile_ids_and_groups_write_no_file_outside_the_dataset(write_raw, run_prepare, tmp_path, read_records):
    hostile = [
        "../../x",
        "/etc/passwd-of-mine",
        str(tmp_path / "absolute"),
        "nul\0byte",
        "long" * 1024,
        "control\x1b[31m\r\n\x07",
        "line\u2028separator",
        "..",
        "",
        "*?[a]",
        "gs://bucket/x",
    ]
    rows = [tiny(name, who=name) for name in hostile] + [tiny(name, who=name, num_steps=2) for name in hostile]
    raw = write_raw(rows)
    before = snapshot(tmp_path)
    manifest = run_prepare(raw, schema=TINY + "group: who\nsplits: {train: 1}\n", max_rejected=0.5, keep_raw=True)
    made = {name for name in snapshot(tmp_path) if name not in before} - {"schema.yaml"}
    assert made == {f"dataset/{name}" for name in listed_files(tmp_path / "dataset")}
    assert ids(read_records(tmp_path / "dataset")) == sorted(hostile)
    for line in (tmp_path / "dataset" / manifest.rejected.files[0]).read_bytes().splitlines():
        assert json.loads(line)["reason"] == "duplicate_id"


def test_a_generation_lists_its_sources_with_size_and_digest(dataset, raw_file, run_prepare, tmp_path):
    def sources(folder):
        (generation,) = load(folder).generations
        summary = GenerationSummary.parse(pathlib.Path(folder, summary_path(generation)).read_bytes(), origin="summary")
        return [row for block in read_sources(str(folder), summary.sources) for row in block.to_pylist()]

    (source,) = sources(dataset)
    assert (source["path"], source["bytes"]) == (raw_file, os.path.getsize(raw_file))
    assert load(dataset).inputs.model_dump() == {"files": 1, "bytes": source["bytes"]}
    run_prepare(raw_file)
    assert sources(tmp_path / "dataset") == [source]


def start(folder):
    """Starts `lengthwise prepare --overwrite` on folder/new.jsonl in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "lengthwise", "prepare", "new.jsonl", "--schema", "schema.yaml", "--output", "dataset"]
        + ["--overwrite", "--num_shards", "24"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.proof
def test_a_run_that_is_killed_leaves_the_old_dataset_or_the_new_one(write_raw, run_prepare, tmp_path, read_records):
    random_numbers = np.random.default_rng(0)
    rows = [tiny(n, num_steps=int(random_numbers.integers(1, 9))) for n in range(400)]
    old = run_prepare(write_raw(rows[:200]), schema=TINY, num_shards=24)
    new = run_prepare(write_raw(rows, "new.jsonl"), schema=TINY, num_shards=24, output="reference")
    dataset = tmp_path / "dataset"

    def new_files():
        listed = pathlib.Path(dataset, "data")
        return [p for p in listed.rglob("*.tfrecord") if not any(g in p.parts for g in load(dataset).generations)]

    def at_once():
        return True

    def first_shards():
        return len(new_files()) > 0

    def most_shards():
        return len(new_files()) > 50

    def published():
        return load(dataset).generations != generations

    def all_listed_files_exist():
        """Returns False if a listed file is missing, unless the manifest was replaced meanwhile."""
        manifest = load(dataset)
        missing = [name for name in listed_files(dataset) if not (dataset / name).exists()]
        return not missing or load(dataset).generations != manifest.generations

    for moment in (at_once, first_shards, most_shards, published):
        killed = False
        for _ in range(20):  # on a busy machine, a run may end before its signal
            generations = load(dataset).generations
            process = start(tmp_path)
            while not moment() and process.poll() is None:
                assert all_listed_files_exist()
            process.send_signal(signal.SIGKILL)
            killed = process.wait() == -signal.SIGKILL
            manifest = load(dataset)
            assert manifest.fingerprint in (old.fingerprint, new.fingerprint)
            assert len(read_records(dataset)) == (400 if manifest.fingerprint == new.fingerprint else 200)
            for name in listed_files(dataset):
                assert (dataset / name).is_file()
            if killed:
                break
        assert killed, moment.__name__
    assert manifest.fingerprint == new.fingerprint

    # A kill during the last step would leave this file.
    (dataset / f"{FILE_NAME}.{'0' * 32}.tmp").write_bytes(b"{")
    process = start(tmp_path)
    assert process.wait(600) == 0
    assert check_whole(dataset).fingerprint == new.fingerprint
