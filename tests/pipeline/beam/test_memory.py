"""The memory of all processes of `prepare` depends neither on the size of the input nor on its shape."""

import gzip
import os
import shutil

import numpy as np
import orjson
import pytest
from prepare_jobs import MOST_BYTES, PLAIN, prepare_measured

STRINGS = PLAIN.replace("x: {dtype: float32, shape: [8]}", "w: {dtype: string, vocabulary: 10000}")
ONE_SPLIT = PLAIN + "splits: {train: 1}\n"


def rendered(num_records, mean_length, label=None):
    """Returns the JSON text of records without their ids."""
    random = np.random.default_rng(0)
    lengths = np.exp(random.normal(np.log(mean_length), 0.8, num_records)).round().clip(1, 400).astype(int)
    return [
        orjson.dumps(
            {"x": random.normal(size=(length, 8)).astype(np.float32).round(4), "y": label or "abc"[n % 3]},
            option=orjson.OPT_SERIALIZE_NUMPY,
        )[1:]
        + b"\n"
        for n, length in enumerate(lengths.tolist())
    ]


def write_lines(path, num_bytes, texts, num_ids=None):
    """Writes records with these texts in turn. Each has a new id, or one of `num_ids` ids."""
    written, number = 0, 0
    with open(path, "wb") as file:
        while written < num_bytes:
            lines = []
            for text in texts:
                lines.append(b'{"id":"%d",%s' % (number % num_ids if num_ids else number, text))
                number += 1
            written += file.write(b"".join(lines))


def write_huge(path, num_records, num_bytes):
    """Writes records that are almost as large as the limit."""
    rows = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32).round(4)
    text = orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    times = num_bytes // (len(text) + 1)
    with open(path, "wb") as file:
        for number in range(num_records):
            file.write(b'{"id":"%d","y":"a","x":[%s%s]}\n' % (number, (text + b",") * (times - 1), text))


@pytest.fixture
def measure(tmp_path):
    """Returns a function that runs `prepare` on a raw file and prints its peak memory. Removes all files afterwards."""

    def run(name, schema, *arguments):
        (tmp_path / "schema.yaml").write_text(schema)
        num_bytes = os.path.getsize(tmp_path / "raw")
        status, stderr, peak, seconds = prepare_measured(tmp_path, "--memory", f"{MOST_BYTES / 1e6:.0f}MB", *arguments)
        print(f"\n{name:<44}{num_bytes / 1e6:>8,.0f} MB raw {peak / 1e6:>7,.0f} MB peak {seconds:>7.1f} s")
        return status, stderr, peak

    yield run
    shutil.rmtree(tmp_path)


@pytest.mark.proof
@pytest.mark.parametrize("megabytes", [30, 60])
def test_some_megabytes_are_prepared_in_bounded_memory(tmp_path, measure, megabytes):
    write_lines(tmp_path / "raw", megabytes * 1e6, rendered(2000, 24))
    status, stderr, peak = measure("records around 24 steps", PLAIN)
    assert (status, peak < MOST_BYTES) == (0, True), stderr


@pytest.mark.proof
@pytest.mark.parametrize("gigabytes", [1, 4])
def test_memory_does_not_grow_with_the_input(tmp_path, measure, gigabytes):
    write_lines(tmp_path / "raw", gigabytes * 1e9, rendered(5000, 24))
    status, stderr, peak = measure("records around 24 steps", PLAIN)
    assert (status, peak < MOST_BYTES) == (0, True), stderr


@pytest.mark.proof
def test_one_large_shard_takes_no_more_memory(tmp_path, measure):
    write_lines(tmp_path / "raw", 1e9, rendered(5000, 24))
    status, stderr, peak = measure("all in one shard", ONE_SPLIT, "--num_shards", "1")
    assert (status, peak < MOST_BYTES) == (0, True), stderr


@pytest.mark.proof
@pytest.mark.parametrize(
    ("flags", "most"), [((), MOST_BYTES), (("--keep_raw",), MOST_BYTES + 50 * 10**6)], ids=["", "keep_raw"]
)
def test_the_largest_records_take_no_more_memory(tmp_path, measure, flags, most):
    write_huge(tmp_path / "raw", 16, 60_000_000)
    status, stderr, peak = measure(" ".join(["16 records of 60 MB", *flags]), ONE_SPLIT, *flags)
    assert (status, peak < most) == (0, True), stderr


@pytest.mark.proof
@pytest.mark.parametrize("mean_length", [24, 2])
def test_rejecting_every_record_takes_no_more_memory(tmp_path, measure, mean_length):
    write_lines(tmp_path / "raw", 500e6, rendered(5000, mean_length, label="no class"))
    status, stderr, peak = measure(f"rejects around {mean_length} steps", PLAIN, "--max_rejected", "1")
    assert (status, "lengthwise prepare: All " in stderr[-1]) == (1, True), stderr
    assert peak < MOST_BYTES


@pytest.mark.proof
@pytest.mark.parametrize("mean_length", [24, 2])
def test_duplicates_of_a_few_ids_take_no_more_memory(tmp_path, measure, mean_length):
    write_lines(tmp_path / "raw", 500e6, rendered(5000, mean_length), num_ids=7)
    status, stderr, peak = measure(f"duplicates of 7 ids, around {mean_length} steps", PLAIN, "--max_rejected", "1")
    assert (status, peak < MOST_BYTES) == (0, True), stderr


@pytest.mark.proof
@pytest.mark.parametrize("mean_length", [24, 250])
@pytest.mark.parametrize("num_ids", [None, 7])
def test_raw_lines_that_are_kept_take_no_more_memory(tmp_path, measure, num_ids, mean_length):
    write_lines(tmp_path / "raw", 400e6, rendered(2000, mean_length), num_ids=num_ids)
    kind = "duplicates" if num_ids else "records"
    flags = ("--keep_raw", "--max_rejected", "1")
    status, stderr, peak = measure(f"kept lines of {kind} around {mean_length} steps", PLAIN, *flags)
    assert (status, peak < MOST_BYTES) == (0, True), stderr


@pytest.mark.proof
@pytest.mark.parametrize("flags", [(), ("--num_shards", "4"), ("--keep_raw",)])
def test_millions_of_strings_take_no_more_memory(tmp_path, measure, flags):
    with open(tmp_path / "raw", "wb") as file:
        for number in range(100_000):
            words = ["string-%012x" % ((50 * number + n) * 2654435761 % 2**40) for n in range(50)]
            file.write(orjson.dumps({"id": str(number), "w": words, "y": "abc"[number % 3]}) + b"\n")
    status, stderr, peak = measure("5,000,000 distinct strings", STRINGS, *flags)
    assert (status, peak < MOST_BYTES) == (0, True), stderr


@pytest.mark.proof
def test_short_records_in_gzip_take_no_more_memory(tmp_path, measure):
    write_lines(tmp_path / "plain", 200e6, [b'"x":[[0,0,0,0,0,0,0,%d]],"y":"a"}\n' % n for n in range(1000)])
    with open(tmp_path / "plain", "rb") as plain, gzip.open(tmp_path / "raw", "wb", compresslevel=1) as file:
        shutil.copyfileobj(plain, file)
    os.unlink(tmp_path / "plain")
    status, stderr, peak = measure("gzip of records of 45 bytes", PLAIN)
    assert (status, peak < MOST_BYTES) == (0, True), stderr
