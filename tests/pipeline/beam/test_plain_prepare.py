"""The job writes the bytes that plain calls of the functions which it connects write."""

import pathlib
import re

import numpy as np

SCHEMA = """\
id: id
steps:
  x: {dtype: float32, shape: [2], missing: {fill: mean}}
  word: {dtype: string, vocabulary: 5}
label: {name: y, kind: multilabel, classes: [a, b]}
"""
GENERATION = re.compile(rb"\d{8}T\d{6}-[0-9a-f]{8}")


def rows_of(first, last):
    """Returns records, some of which occur twice, and lines that are rejected."""
    random, rows = np.random.default_rng(first), []
    for number in range(first, last):
        length = int(random.integers(1, 9))
        x = random.normal(size=(length, 2)).astype(np.float32).tolist()
        word = [f"w{n}" for n in random.integers(0, 9, length)]
        rows.append({"id": f"id-{number}", "x": x, "word": word, "y": ["ab"[number % 2]]})
    return [*rows, "{", rows[0] | {"y": []}, {"id": "no x"}]


def files_of(folder):
    """Returns the bytes of each file by path, without the names of the generations."""
    found = {}
    for path in sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file()):
        if path.suffix != ".json" and path.name != "lock":  # these have times and digests of what contains names
            name = GENERATION.sub(b"GENERATION", str(path.relative_to(folder)).encode())
            found.setdefault(name, []).append(GENERATION.sub(b"GENERATION", path.read_bytes()))
    return {name: sorted(contents) for name, contents in found.items()}


def test_the_job_writes_the_bytes_of_plain_calls(run_prepare, write_raw, tmp_path):
    found = []
    for output, plain in (("job", False), ("plain", True)):
        options = {"schema": SCHEMA, "output": output, "plain": plain, "max_rejected": 0.5, "keep_raw": True}
        manifest = run_prepare(write_raw(rows_of(0, 60)), num_shards=3, **options)
        # Some of these records were published by the first job.
        more = run_prepare(write_raw(rows_of(50, 90), "more.jsonl"), append=True, **options)
        found.append((manifest.fingerprint, more.fingerprint, manifest.rejected.by_reason, more.rejected.by_reason))
    assert found[0] == found[1] and len(found[0][2]) >= 3
    assert files_of(tmp_path / "job") == files_of(tmp_path / "plain")
    assert b"rejected/GENERATION.jsonl" in files_of(tmp_path / "job")
