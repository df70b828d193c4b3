"""`prepare` estimates what it will write and refuses a disk with too little free space before the job starts."""

import collections
import gzip
import json
import shutil

import pytest

from pipeline.beam.prepare import PrepareOptions, prepare
from pipeline.errors import UserError
from pipeline.raw.find_files import find_files
from pipeline.schema.schema import Schema
from pipeline.writing.free_space import _estimate_bytes, check_free_space

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
def test_the_estimate_is_the_size_of_the_shards(tmp_path, raw, compressed):
    schema = Schema.parse(SCHEMA)
    if compressed:
        raw.write_bytes(gzip.compress(raw.read_bytes(), 1))
    estimate = _estimate_bytes(find_files([str(raw)]), schema)
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    prepare(PrepareOptions((str(raw),), str(tmp_path / "schema.yaml"), str(tmp_path / "out")))
    # The estimate assumes the smallest ratio of decompressed to compressed size, so the shards may be larger.
    assert (0.05 if compressed else 0.95) < estimate / written(tmp_path / "out") < 1.05


def test_too_little_free_space_is_a_user_error_and_nothing_is_written(tmp_path, raw, monkeypatch):
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 10**5, 10**5))
    with pytest.raises(UserError, match=r"out/deeper: the job needs about 1 MB there, but 0 MB are free"):
        prepare(PrepareOptions((str(raw),), str(tmp_path / "schema.yaml"), str(tmp_path / "out" / "deeper")))
    assert not (tmp_path / "out").exists()


def test_an_input_that_cannot_be_estimated_passes(tmp_path):
    schema = Schema.parse(SCHEMA)
    for content in (b"", b"\n\n", b"no json\n", b'{"id": "' + b"a" * 2**19 + b'"}\n'):
        path = tmp_path / "odd.jsonl"
        path.write_bytes(content)
        assert _estimate_bytes(find_files([str(path)]), schema) == 0
    check_free_space(find_files([str(path)]), schema, "gs://bucket/out")
