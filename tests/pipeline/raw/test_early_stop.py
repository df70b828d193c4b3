"""A job ends early if the first records of a file are all rejected, unless these may be few of all records."""

import gzip
import re

import pytest
from datasets import call

from pipeline.beam.parse_records import _Parse
from pipeline.errors import UserError
from pipeline.raw import early_stop
from pipeline.raw.early_stop import EarlyStop, stop_early
from pipeline.raw.find_files import RawFile
from pipeline.raw.json_lines import LineBatch, read_chunk, split_file
from pipeline.schema.schema import Schema
from pipeline.writing.stages import parse_into_runs

SCHEMA = "id: id\nsteps: {x: {dtype: float32}}\nlabel: {name: y, kind: regression}\nsplits: {train: 1}\n"
GOOD, BAD = b'{"id": 1, "x": [1], "y": 2}', b'{"id": 1, "z": [1], "y": 2}'
ALWAYS = EarlyStop(0)


def write(path, lines, compress=bytes):
    path.write_bytes(compress(b"\n".join(lines)))
    return list(split_file(RawFile(str(path), path.stat().st_size)))


def parse(items, folder, stop):
    """Parses as a worker of `prepare` does, and returns the numbers of records and of rejects."""
    made = parse_into_runs(items, Schema.parse(SCHEMA), seed=0, folder=f"{folder}/runs", keep_raw=False, stop=stop)
    return made.parsed, made.rejected


def parse_in_beam(items, folder, stop):
    """Parses as a bundle of ParseRecords does."""
    step = _Parse(Schema.parse(SCHEMA), {"labelled": False}, keep_raw=False, stop=stop)
    step.start_bundle()
    outputs = []
    for item in items:
        for batch in [item] if isinstance(item, LineBatch) else read_chunk(item):
            outputs += step.process(batch) if isinstance(batch, LineBatch) else []
    return sum(len(made) for made in outputs if isinstance(made, list)), sum(not isinstance(m, list) for m in outputs)


@pytest.mark.parametrize("parse", [parse, parse_in_beam])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_job_ends_if_the_first_records_of_a_file_are_all_rejected(tmp_path, monkeypatch, parse, compress):
    monkeypatch.setattr(early_stop, "_RECORDS", 5)
    path = tmp_path / "bad"
    wrong = write(path, [BAD] * 5 + [GOOD], compress)
    for items in (wrong, write(tmp_path / "a", [GOOD]) + wrong):
        with pytest.raises(
            UserError,
            match=rf"^{path}: its first 5 records were all rejected, the first of them in line 1 as missing_field: x: "
            r"this field is missing; the record has .*\. The job ended, .* all records with --max_rejected 1\.$",
        ):
            parse(items, tmp_path, ALWAYS)
    # The file is not too large a part of the input, or the job may reject all records.
    for stop in (EarlyStop(path.stat().st_size), None):
        assert parse(wrong, tmp_path, stop) == (1, 5)
    # A record among the first is accepted; too few records are rejected, in each of two files; a later part of a file.
    assert parse(write(path, [BAD] * 4 + [GOOD] + [BAD] * 9), tmp_path, ALWAYS) == (1, 13)
    few = [chunk for name in "bc" for chunk in write(tmp_path / name, [BAD] * 4)]
    assert parse(few, tmp_path, ALWAYS) == (0, 8)
    start = len(GOOD) + 1
    (chunk,) = write(path, [GOOD] + [BAD] * 9)
    assert parse([chunk._replace(start=start)], tmp_path, ALWAYS) == (0, 9)


@pytest.mark.parametrize("parse", [parse, parse_in_beam])
def test_fewer_large_records_end_a_job_and_each_batch_of_a_compressed_file_is_enough(tmp_path, parse):
    bad = b'{"id": 1, "note": "%s"}' % (b"x" * 4000)
    (chunk,) = write(tmp_path / "bad", [bad] * 1100, gzip.compress)
    batches = [item for item in read_chunk(chunk, batch_bytes=2**22) if isinstance(item, LineBatch)]
    with pytest.raises(UserError, match=r"bad: its first 1,0\d\d records were all rejected"):
        parse(batches[:1], tmp_path, ALWAYS)


def test_the_condition_follows_from_the_share_of_records_that_may_be_rejected():
    files = [RawFile("a", 900), RawFile("b", 100)]
    assert [stop_early(files, share) for share in (0, 0.25, 1)] == [EarlyStop(0), EarlyStop(250), None]


@pytest.mark.parametrize("processes", ["0", "1"])
def test_prepare_shows_the_first_reject_in_one_line(tmp_path, capsys, processes):
    (tmp_path / "raw").write_bytes(b"\n".join([BAD] * 10_100))
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    command = ["prepare", tmp_path / "raw", "--schema", tmp_path / "schema.yaml", "--output", tmp_path / "out"]
    status, _, lines = call(capsys, *command, "--processes", processes)
    assert status == 1
    assert re.match(rf"lengthwise prepare: {tmp_path}/raw: its first [\d,]+ records were all rejected", lines[-1])
    assert not list((tmp_path / "out").rglob("*.*"))
