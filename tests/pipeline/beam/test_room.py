"""A disk with too little room is told before the job begins, and by the records at hand."""

import collections
import gzip
import json

import pytest

from pipeline.beam import prepare as room
from pipeline.beam.prepare import PrepareOptions, prepare
from pipeline.errors import UserError
from pipeline.raw.find_files import find_files
from pipeline.schema.schema import Schema

SCHEMA = "id: id\nsteps: {x: {dtype: float32}}\nlabel: {name: y, kind: regression}\n"
Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "raw.jsonl"
    path.write_text("\n" + "".join(json.dumps({"id": n, "x": [n / 7] * 50, "y": n}) + "\n" for n in range(2000)))
    return path


def written(folder):
    return sum(path.stat().st_size for path in folder.glob("data/*/*.tfrecord"))


@pytest.mark.parametrize("compressed", [False, True])
def test_what_will_be_written_is_foreseen(tmp_path, raw, compressed):
    schema = Schema.parse(SCHEMA)
    if compressed:
        raw.write_bytes(gzip.compress(raw.read_bytes(), 1))
    estimate = room._estimate_bytes(find_files([str(raw)]), schema)
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    prepare(PrepareOptions((str(raw),), str(tmp_path / "schema.yaml"), str(tmp_path / "out")))
    # A compressed file expands at least so much; how much more is seen when it is read.
    assert (0.05 if compressed else 0.95) < estimate / written(tmp_path / "out") < 1.05


def test_a_disk_with_too_little_room_is_one_line_and_nothing_is_written(tmp_path, raw, monkeypatch):
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 10**5, 10**5))
    with pytest.raises(UserError, match=r"out/deeper: about 1 MB will be written there, but 0 MB are free"):
        prepare(PrepareOptions((str(raw),), str(tmp_path / "schema.yaml"), str(tmp_path / "out" / "deeper")))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_measured_is_no_reason_to_refuse(tmp_path):
    schema = Schema.parse(SCHEMA)
    for content in (b"", b"\n\n", b"no json\n", b'{"id": "' + b"a" * 2**19 + b'"}\n'):
        path = tmp_path / "odd.jsonl"
        path.write_bytes(content)
        assert room._estimate_bytes(find_files([str(path)]), schema) == 0
    room.check_room(find_files([str(path)]), schema, "gs://bucket/out")
