"""`lengthwise verify` finds every change to the bytes of a dataset and names the file and the offset."""

import hashlib
import json
import pathlib
import random
import shutil
import struct
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import at_row, edit, edit_manifest, frames_of, walk_file
from paths import ROOT
from plain_prepare import prepare
from prepare_jobs import without_progress

import lengthwise
from pipeline.beam.prepare import PrepareOptions
from pipeline.format.examples import decode_example, encode_example
from pipeline.format.index import read_index, serialize_index
from pipeline.format.manifest import read_manifest
from pipeline.format.tfrecord import frame, masked_crc
from pipeline.inspection.verify import Fault, verify
from pipeline.inspection.verify_rejects import verify_rejects
from pipeline.inspection.verify_report import Report, print_report
from pipeline.raw.rejects import Origin
from pipeline.schema.record import ParsedRecord
from pipeline.schema.schema import Schema
from pipeline.shuffle.encoded_records import encode_for_shuffle, to_block
from pipeline.writing.base import Base
from pipeline.writing.paths import new_generation
from pipeline.writing.publish import Publisher
from pipeline.writing.shards import ShardWriter
from pipeline.writing.write_sources import list_sources

SCHEMA = """
id: id
steps:
  x: {dtype: float32, shape: [2]}
  page: {dtype: int64, num_values: 300}
  word: {dtype: string, num_values: 10}
label: {name: y, kind: class, classes: [a, b, c]}
splits: {train: 0.7, validation: 0.3, test: 0.0}
max_length: 20
over_length: truncate_tail
"""
CLAIMED_LENGTHS = [2**30, 2**33, 2**40, 2**62, 2**63, 2**64 - 1]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A dataset of 120 records and 3 rejects with two shards per split. Do not change it."""
    folder = tmp_path_factory.mktemp("verify")
    rng = random.Random(5)
    with open(folder / "raw.jsonl", "w") as file:
        for number in range(120):
            steps = range(rng.randint(1, 22))
            record = {
                "id": f"r{number}",
                "x": [[rng.gauss(0, 1), rng.gauss(9, 2)] for _ in steps],
                "page": [rng.randrange(300) for _ in steps],
                "word": [rng.choice(["on", "off"]) for _ in steps],
                "y": rng.choice("abc"),
            }
            file.write(json.dumps(record) + "\n")
        file.write('no json\n{"id": "r1"}\n{"id": null}\n')
    (folder / "schema.yaml").write_text(SCHEMA)
    prepare(
        PrepareOptions(
            raw=(str(folder / "raw.jsonl"),),
            schema=str(folder / "schema.yaml"),
            output=str(folder / "dataset"),
            num_shards=2,
            max_rejected=0.5,
        )
    )
    return folder / "dataset"


@pytest.fixture
def dataset(prepared, tmp_path):
    """A copy of the dataset that a test may change."""
    return pathlib.Path(shutil.copytree(prepared, tmp_path / "dataset"))


# Memory is measured in a process of its own, which traces from its first line to a hard exit. tracemalloc.stop(), which
# a normal exit calls too, can crash a process with threads that allocate memory, and pyarrow and TensorFlow have such
# threads (https://github.com/python/cpython/issues/128679, Python 3.11 to 3.13).
MEASURE = """
import tracemalloc
tracemalloc.start()
import json, os, sys
from pipeline.inspection.verify import verify
for line in sys.stdin:
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    report = verify(line.rstrip())
    peak = tracemalloc.get_traced_memory()[1] - before
    print(json.dumps({"peak": peak, "faults": len(report.faults), "bytes": report.bytes}), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def peak_of(prepared):
    """Returns a function that verifies a dataset and returns its peak memory, number of faults and verified bytes."""
    with subprocess.Popen(
        [sys.executable, "-c", MEASURE], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def measure(path):
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        measure(prepared)  # the first run also allocates what is imported and kept for all later runs
        yield measure
        process.stdin.close()


def first_shard(dataset):
    return read_manifest(str(dataset)).splits["train"].shards[0]


def run(capsys, dataset):
    """Runs the command and returns (exit status, stdout, lines of stderr without progress)."""
    capsys.readouterr()
    status = lengthwise.main(["verify", str(dataset)])
    out, err = capsys.readouterr()
    return status, out, without_progress(err.splitlines(), "verify")


# Each function damages a shard at the record from `start` to `end`, and returns the bytes and the expected offset of
# the fault.


def cut_at_record(data, start, end):
    return data[:start], start


def cut_inside_header(data, start, end):
    return data[: start + 5], start


def cut_after_header(data, start, end):
    return data[: start + 12], start


def cut_inside_data(data, start, end):
    return data[: (start + end) // 2], start


def cut_inside_data_crc(data, start, end):
    return data[: end - 2], start


def flip(data, position, bit=3):
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


def flip_bit_in_data(data, start, end):
    return flip(data, (start + end) // 2), start


def flip_bit_in_length(data, start, end):
    return flip(data, start), start


def flip_high_bit_in_length(data, start, end):
    return flip(data, start + 7, bit=7), start


def flip_bit_in_length_crc(data, start, end):
    return flip(data, start + 9), start


def flip_bit_in_data_crc(data, start, end):
    return flip(data, end - 1), start


def zeros_in_place_of_record(data, start, end):
    return data[:start] + bytes(end - start) + data[end:], start


def remove_record(data, start, end):
    return data[:start] + data[end:], start


def duplicate_record(data, start, end):
    return data[:end] + data[start:end] + data[end:], end


def swap_with_neighbour(data, start, end):
    if end == len(data):
        end = start
        start = next(first for first, last in frames_of(data) if last == end)
    after = next(last for first, last in frames_of(data) if first == end)
    return data[:start] + data[end:after] + data[start:end] + data[after:], start


CORRUPTIONS = [
    cut_at_record,
    cut_inside_header,
    cut_after_header,
    cut_inside_data,
    cut_inside_data_crc,
    flip_bit_in_data,
    flip_bit_in_length,
    flip_high_bit_in_length,
    flip_bit_in_length_crc,
    flip_bit_in_data_crc,
    zeros_in_place_of_record,
    remove_record,
    duplicate_record,
    swap_with_neighbour,
]
POSITIONS = {"first": 0, "middle": 0.5, "last": 1}


def at(data, position):
    frames = frames_of(data)
    return frames[round(POSITIONS[position] * (len(frames) - 1))]


def assert_found(capsys, dataset, shard, offset):
    """Checks that the only fault is in this file at this offset, and that the command prints it and a total."""
    report = verify(str(dataset))
    assert [(fault.file, fault.offset) for fault in report.faults] == [(shard.path, offset)]
    status, out, err = run(capsys, dataset)
    assert (status, out) == (1, "")
    place = f"{dataset}/{shard.path}" + ("" if offset is None else f", offset {offset}")
    fault, total = err
    assert fault == f"{place}: {report.faults[0].message}"
    assert total.startswith(f"lengthwise verify: {dataset}: 1 fault (")


def test_an_unchanged_dataset_has_no_fault(capsys, prepared):
    report = verify(str(prepared))
    manifest = read_manifest(str(prepared))
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    assert report.to_dict() == {
        "faults": [],
        "records": 120,
        "steps": sum(split.steps for split in manifest.splits.values()),
        "shards": 4,
        "bytes": sum((prepared / shard.path).stat().st_size for shard in shards),
        "notes": [],
    }
    status, out, err = run(capsys, prepared)
    assert (status, err) == (0, [])
    assert out.startswith(f"{prepared}: no fault in 120 records, ")


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("corrupt", CORRUPTIONS)
def test_a_corrupt_shard_is_found_with_its_offset(capsys, dataset, corrupt, position):
    shard = first_shard(dataset)
    data = (dataset / shard.path).read_bytes()
    corrupted, offset = corrupt(data, *at(data, position))
    assert corrupted != data
    (dataset / shard.path).write_bytes(corrupted)
    assert_found(capsys, dataset, shard, offset)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("length", CLAIMED_LENGTHS)
def test_a_false_length_costs_no_memory(capsys, dataset, peak_of, length, position):
    shard = first_shard(dataset)
    data = (dataset / shard.path).read_bytes()
    start, _ = at(data, position)
    header = struct.pack("<Q", length)
    crafted = data[:start] + header + struct.pack("<I", masked_crc(header)) + data[start + 12 :]
    (dataset / shard.path).write_bytes(crafted)
    assert peak_of(dataset)["peak"] < 4e6
    assert_found(capsys, dataset, shard, start)


def test_a_false_length_within_the_file_costs_no_memory(capsys, dataset, peak_of):
    shard = first_shard(dataset)
    header = struct.pack("<Q", 2**30)
    with open(dataset / shard.path, "r+b") as file:
        file.write(header + struct.pack("<I", masked_crc(header)))
        file.truncate(2**31)  # a sparse file, which takes no disk space
    assert peak_of(dataset)["peak"] < 4e6
    assert_found(capsys, dataset, shard, 0)


@pytest.mark.parametrize("tail", [b"\0", b"\n", bytes(16), b"\x7f" * 13, bytes(range(256)) * 3, frame(b"")])
def test_bytes_after_the_last_record_are_found_where_they_begin(capsys, dataset, tail):
    shard = first_shard(dataset)
    with open(dataset / shard.path, "ab") as file:
        file.write(tail)
    assert_found(capsys, dataset, shard, shard.bytes)


def test_an_empty_file_is_found(capsys, dataset):
    shard = first_shard(dataset)
    (dataset / shard.path).write_bytes(b"")
    assert_found(capsys, dataset, shard, 0)


def test_a_missing_file_is_found(capsys, dataset):
    shard = first_shard(dataset)
    (dataset / shard.path).unlink()
    assert_found(capsys, dataset, shard, None)


def test_a_folder_in_place_of_a_shard_is_found(capsys, dataset):
    shard = first_shard(dataset)
    (dataset / shard.path).unlink()
    (dataset / shard.path).mkdir()
    assert_found(capsys, dataset, shard, None)


def test_an_intact_shard_in_place_of_another_is_found(capsys, dataset):
    shard, other = read_manifest(str(dataset)).splits["train"].shards
    shutil.copy(dataset / other.path, dataset / shard.path)
    assert_found(capsys, dataset, shard, 0)


def test_changed_values_with_a_valid_record_checksum_are_found(capsys, dataset):
    shard = first_shard(dataset)
    records = [record.data for record in walk_file(dataset / shard.path)]
    example = decode_example(records[3])
    example["x"] = np.asarray(example["x"])[::-1].copy()
    records[3] = encode_example(example)
    (dataset / shard.path).write_bytes(b"".join(map(frame, records)))
    assert_found(capsys, dataset, shard, None)
    assert "SHA-256" in verify(str(dataset)).faults[0].message


def test_one_fault_does_not_hide_another(dataset):
    first, second = read_manifest(str(dataset)).splits["train"].shards
    third, fourth = read_manifest(str(dataset)).splits["validation"].shards
    (dataset / first.path).write_bytes(flip((dataset / first.path).read_bytes(), 20))
    (dataset / second.path).unlink()
    (dataset / third.index_path).unlink()
    (dataset / fourth.path).write_bytes((dataset / fourth.path).read_bytes() + b"tail")
    report = verify(str(dataset))
    assert [(fault.file, fault.offset) for fault in report.faults] == [
        (first.path, 0),
        (second.path, None),
        (third.index_path, None),
        (fourth.path, fourth.bytes),
    ]
    assert (report.records, report.shards, report.bytes) == (0, 0, 0)


def test_a_fault_in_a_shard_is_found_without_its_index(dataset):
    shard = first_shard(dataset)
    data = (dataset / shard.path).read_bytes()
    start, end = at(data, "middle")
    (dataset / shard.index_path).write_bytes(b"PAR1")
    (dataset / shard.path).write_bytes(flip_bit_in_data(data, start, end)[0])
    report = verify(str(dataset))
    assert [(fault.file, fault.offset) for fault in report.faults] == [(shard.index_path, None), (shard.path, start)]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("offset", 7),
        ("num_bytes", 7),
        ("num_steps", 7000),
        ("id", "r7000"),
        ("label", "d"),
        ("part", 1),
        ("group", "g"),
        ("source", "/elsewhere.jsonl"),
        ("key", 7),
    ],
)
def test_an_index_that_contradicts_its_shard_is_found_at_the_record(capsys, dataset, column, value):
    shard = first_shard(dataset)
    index = read_index((dataset / shard.index_path).read_bytes(), shard)
    rows = index.to_pylist()
    rows[4][column] = value
    offset = at_row(dataset, shard, 4)
    replace_index(dataset, pa.Table.from_pylist(rows, index.schema))
    assert_found(capsys, dataset, shard, offset)


def replace_index(dataset, index):
    """Replaces the index of the first shard, and its digest in the manifest."""
    data = serialize_index(index)
    (dataset / first_shard(dataset).index_path).write_bytes(data)

    def change(values):
        values["splits"]["train"]["shards"][0]["index_sha256"] = hashlib.sha256(data).hexdigest()

    edit_manifest(dataset, change)


def test_an_index_with_equal_rows_but_other_bytes_is_found(dataset):
    path = dataset / first_shard(dataset).index_path
    pq.write_table(read_index(path.read_bytes(), first_shard(dataset)), path, compression="none")
    (fault,) = verify(str(dataset)).faults
    assert (fault.file, fault.offset) == (first_shard(dataset).index_path, None)
    assert fault.message.startswith("the SHA-256 of the file is ")


def test_an_index_with_other_columns_or_rows_is_found(dataset):
    index = read_index((dataset / first_shard(dataset).index_path).read_bytes(), first_shard(dataset))
    changed = {
        "has columns of other types than an index: [": index.drop_columns(["key"]),
        "has no column num_steps": index.drop_columns(["num_steps"]),
        "has columns of other types": index.set_column(5, "part", index["part"].cast(pa.string())),
        "rows, but the manifest says": index.slice(1),
    }
    for message, table in changed.items():
        replace_index(dataset, table)
        (fault,) = verify(str(dataset)).faults
        assert fault.file == first_shard(dataset).index_path
        assert message in fault.message


def test_records_in_another_order_than_their_keys_are_found(dataset):
    shard = first_shard(dataset)
    records = [record.data for record in walk_file(dataset / shard.path)]
    index = read_index((dataset / shard.index_path).read_bytes(), shard)
    order = [0, 2, 1, *range(3, len(records))]
    data = b"".join(frame(records[row]) for row in order)
    (dataset / shard.path).write_bytes(data)
    rows = index.take(order)
    sizes = rows["num_bytes"].to_numpy() + 16
    replace_index(dataset, rows.set_column(0, "offset", pa.array(np.cumsum(sizes) - sizes)))
    edit_manifest(dataset, edit(*SHARD, "sha256", to=hashlib.sha256(data).hexdigest()))
    (fault,) = verify(str(dataset)).faults
    assert (fault.file, fault.offset) == (shard.path, at_row(dataset, shard, 2))
    assert "is less than the key of the record before" in fault.message


def test_a_shard_in_the_place_of_another_holds_keys_of_another_range(dataset):
    def swap(values):
        shards = values["splits"]["train"]["shards"]
        for key in ("path", "index_path"):
            one, other = (dataset / shard[key] for shard in shards)
            first = one.read_bytes()
            one.write_bytes(other.read_bytes())
            other.write_bytes(first)
            shards[0][key], shards[1][key] = shards[1][key], shards[0][key]
        shards.reverse()

    edit_manifest(dataset, swap)
    faults = [fault for fault in verify(str(dataset)).faults if fault.file != "manifest.json"]
    assert [fault.offset for fault in faults] == [0, 0]
    assert f"is not in the range of this shard, 0 to {2**63 - 1}" in faults[0].message
    assert f"is not in the range of this shard, {2**63} to {2**64 - 1}" in faults[1].message


SHARD = ("splits", "train", "shards", 0)


@pytest.mark.parametrize(
    "change",
    [
        edit(*SHARD, "path", to="../x"),
        edit(*SHARD, "path", to="/etc/passwd"),
        edit(*SHARD, "index_path", to="data/../../x"),
        edit("rejected", "files", 0, to="../x"),
        edit(*SHARD, "records", by=1),
        edit(*SHARD, "records", to=-1),
        edit(*SHARD, "steps", by=-1),
        edit("splits", "train", "records", by=1),
        edit("splits", "train", "steps", by=1),
        edit("splits", "train", "labels", by=1),
        edit("splits", "train", "length_counts", "5", by=1),
        edit("splits", "train", "label_counts", "a", by=1),
        edit("statistics", "x", "count", by=1),
        edit("rejected", "total", by=1),
        edit("rejected", "by_reason", "not_json", by=1),
        edit("format_version", to=1),
    ],
    ids=lambda change: change.__name__,
)
def test_an_edited_manifest_is_an_error_of_one_line(capsys, dataset, change):
    edit_manifest(dataset, change)
    status, out, err = run(capsys, dataset)
    assert (status, out) == (1, "")
    (line,) = err
    assert line.startswith(f"lengthwise verify: {dataset}/manifest.json: ")


def test_a_manifest_of_other_shards_is_an_error(capsys, dataset):
    path = dataset / "manifest.json"
    path.write_text(path.read_text().replace(first_shard(dataset).sha256, "0" * 64))
    status, _, err = run(capsys, dataset)
    assert status == 1
    assert "the fingerprint does not match" in err[0]


def swap_lengths(values):
    """Changes counts of lengths but keeps their sums."""
    counts = values["splits"]["train"]["length_counts"]
    for length, change in {"4": 1, "5": -1, "6": -1, "7": 1}.items():
        counts[length] += change


def swap_labels(values):
    counts = values["splits"]["train"]["label_counts"]
    assert counts["a"] != counts["b"]
    counts["a"], counts["b"] = counts["b"], counts["a"]


def rename_reason(values):
    reasons = values["rejected"]["by_reason"]
    reasons["wrong_type"] = reasons.pop("not_json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_lengths, "splits.train.length_counts.4 is "),
        (swap_labels, "splits.train.label_counts.a is "),
        (rename_reason, "rejected.by_reason.not_json is 0, but its files hold 1"),
        (edit("splits", "validation", "truncated", by=100), "splits.validation.truncated is "),
        (edit("statistics", "x", "mean", 1, by=0.001), "statistics.x does not match the records of train"),
        (edit("statistics", "x", "variance", 0, by=0.001), "statistics.x does not match the records of train"),
        (edit("statistics", "x", "max", 0, by=1), "statistics.x does not match the records of train"),
        (edit("statistics", to={}), "statistics.x does not match the records of train"),
    ],
)
def test_consistent_but_wrong_numbers_of_the_manifest_are_found(dataset, change, message):
    edit_manifest(dataset, change)
    faults = verify(str(dataset)).faults
    assert faults[0].file == "manifest.json"
    assert faults[0].message.startswith(message)


def test_consistent_but_wrong_numbers_of_a_shard_are_found(dataset):
    def change(values):
        split = values["splits"]["validation"]
        for place in (split, split["shards"][0], split["length_counts"]):
            key = "5" if place is split["length_counts"] else "records"
            place[key] += 1
        for key in ("steps", "labels"):
            split[key] += 5 if key == "steps" else 1
        split["shards"][0]["steps"] += 5
        split["label_counts"]["a"] += 1

    edit_manifest(dataset, change)
    shard = read_manifest(str(dataset)).splits["validation"].shards[0]
    faults = verify(str(dataset)).faults
    assert [(fault.file, fault.offset) for fault in faults] == [(shard.index_path, None), (shard.path, shard.bytes)]


def test_wrong_steps_and_bytes_of_a_shard_are_found(dataset):
    first, second = read_manifest(str(dataset)).splits["train"].shards

    def change(values):
        one, other = values["splits"]["train"]["shards"]
        one["steps"], other["steps"] = one["steps"] + 1, other["steps"] - 1
        other["bytes"] += 1

    edit_manifest(dataset, change)
    faults = [(fault.file, fault.offset, fault.message) for fault in verify(str(dataset)).faults]
    assert faults == [
        (first.path, None, f"has {first.steps} steps, but the manifest says {first.steps + 1}"),
        (
            second.path,
            second.bytes,
            f"the file ends here, but the manifest says that it has {second.bytes + 1:,} bytes",
        ),
    ]


def test_a_missing_or_damaged_rejects_file_is_found(dataset):
    (path,) = read_manifest(str(dataset)).rejected.files
    lines = (dataset / path).read_bytes().splitlines(keepends=True)
    (dataset / path).write_bytes(lines[0] + b"no reject\n" + lines[2])
    (fault,) = verify(str(dataset)).faults
    assert (fault.file, fault.message.startswith("the SHA-256 of the file is")) == (path, True)
    report = Report()
    verify_rejects(str(dataset), read_manifest(str(dataset)), {}, report)  # without a digest of the file
    assert report.faults == [Fault(path, len(lines[0]), "is not a line of a rejects file")]
    (dataset / path).unlink()
    assert verify(str(dataset)).faults == [Fault(path, None, "is missing, but the manifest lists it")]


def test_the_command_ends_without_signal_or_traceback(dataset):
    shard = first_shard(dataset)
    header = struct.pack("<Q", 2**40)
    # TensorFlow 2.21 ends by a segmentation fault on this file of 112 bytes, which claims a record of a terabyte.
    (dataset / shard.path).write_bytes((header + struct.pack("<I", masked_crc(header))).ljust(112, b"\0"))
    command = [sys.executable, "-m", "lengthwise", "verify", str(dataset)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert f"{shard.path}, offset 0: its length is 1,099,511,627,776 bytes" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_json_of_the_command_lists_every_fault(capsys, dataset):
    shard = first_shard(dataset)
    (dataset / shard.path).write_bytes(b"")
    status = lengthwise.main(["verify", str(dataset), "--json"])
    out, err = capsys.readouterr()
    assert (status, without_progress(err.splitlines(), "verify")) == (1, [])
    assert json.loads(out) == verify(str(dataset)).to_dict()
    assert json.loads(out)["faults"][0]["file"] == shard.path


def test_memory_depends_on_the_record_not_on_the_shard(tmp_path, peak_of):
    schema = Schema.parse(
        "{id: id, steps: {x: {dtype: float32, shape: [8]}}, label: {name: y, kind: regression}, splits: {train: 1.0}}"
    )
    generation, output = new_generation(), str(tmp_path / "dataset")
    values = np.arange(8 * 4000, dtype=np.float32).reshape(-1, 8)
    records = [
        encode_for_shuffle(
            ParsedRecord(f"r{i}", len(values), {"x": values + i}, np.array([i], np.float32)),
            Origin(None, 0, 0, 0, b"", None),
            schema,
            seed=0,
        )
        for i in range(200)
    ]
    shards = ShardWriter(schema, output, generation).write(0, [to_block(records)], num_shards=1, reject=print)
    sources = list_sources([], output=output, generation=generation)
    Publisher(schema, output, generation, Base("create")).publish(shards, [], [sources])
    measured = peak_of(output)
    assert measured["faults"] == 0
    assert measured["bytes"] > 25e6
    assert measured["peak"] < 5e6


def test_swapped_splits_are_found(dataset):
    def change(values):
        splits = values["splits"]
        splits["validation"], splits["train"] = splits["train"], splits["validation"]
        values["statistics"] = {}

    edit_manifest(dataset, change)
    faults = verify(str(dataset)).faults
    assert len(faults) == 4
    assert {fault.message.split("' ")[1].split(",")[0] for fault in faults} == {
        "belongs to the split train",
        "belongs to the split validation",
    }


def test_one_record_is_reported_in_the_singular(capsys):
    print_report(Report([], records=1, steps=1, shards=1, bytes=1200), "d")
    assert capsys.readouterr().out == "d: no fault in 1 record, 1 step, 1 shard, 1,200 bytes\n"
