"""All rejects of a generation are in one file, sorted by raw file and place, with their lines in the raw files."""

import hashlib
import json
import random

import pytest
from spills import spill

from pipeline.raw.json_lines import ChunkSummary
from pipeline.raw.rejects import IN_FILE, Origin, Reject
from pipeline.shuffle.chunk_runs import ChunkBuffer
from pipeline.shuffle.reject_runs import RejectBuffer
from pipeline.writing.rejects import RejectsFile, count_rejects, write_rejects

GENERATION = "20260102T030405-0123abcd"
# Files of three chunks of 10 lines each; the lines of a chunk begin every 5 bytes.
FILES = ("/raw/b.jsonl", "/raw/a.jsonl", "/raw/a")
CHUNKS = [ChunkSummary(path, start, 50, 50, 10, b"") for path in FILES for start in (0, 50, 100)]


def reject(path, number, reason="not_json"):
    """Returns the reject of the line with this number in a file, from 0."""
    digest = hashlib.sha256(f"{path}{number}".encode()).digest()
    if path is None:
        return Reject(reason, "m", f"{number}", Origin(None, 0, 0, 0, digest, None))
    return Reject(reason, "m", None, Origin(path, number // 10 * 50, number * 5, number % 10, digest, b"\xff"))


def write(rejects, folder, *, run_size):
    runs = spill(RejectBuffer, rejects, folder, size=run_size)
    chunk_runs = spill(ChunkBuffer, random.sample(CHUNKS, len(CHUNKS)), folder, size=4)
    return write_rejects(runs, chunk_runs, output=str(folder), generation=GENERATION)


@pytest.mark.parametrize("run_size", [1, 7, 100])
def test_one_file_has_all_rejects_sorted_by_file_and_place(tmp_path, run_size):
    rejects = [reject(path, number) for path in FILES for number in range(30)]
    rejects += [reject(None, number, "duplicate_id") for number in range(5)]
    expected = [
        (r.origin.path, r.origin.byte_offset // 5 + 1, r.origin.byte_offset)
        for r in sorted(rejects[:90], key=lambda r: (r.origin.path, r.origin.byte_offset))
    ]
    random.Random(run_size).shuffle(rejects)
    file = write(rejects, tmp_path, run_size=run_size)
    data = (tmp_path / file.path).read_bytes()
    assert file == RejectsFile(
        f"rejected/{GENERATION}.jsonl",
        hashlib.sha256(data).hexdigest(),
        {"not_json": 90, "duplicate_id": 5},
        first="duplicate_id: m",
    )
    rows = [json.loads(line) for line in data.splitlines()]
    # Rejects that come from no file are the first.
    assert {(row["file"], row["line"], row["byte_offset"]) for row in rows[:5]} == {(None, None, None)}
    assert [(row["file"], row["line"], row["byte_offset"]) for row in rows[5:]] == expected
    assert write(rejects, tmp_path, run_size=11) == file
    assert (tmp_path / file.path).read_bytes() == data


def test_the_first_reject_is_described_with_its_place(tmp_path):
    """The first one that is not tried again; those have the line of their file already."""
    again = reject(FILES[2], 3)
    again = again._replace(origin=again.origin._replace(chunk=IN_FILE, number=4))
    file = write([reject(FILES[0], 11), reject(FILES[1], 25), again], tmp_path, run_size=2)
    assert file.first == "line 26 of /raw/a.jsonl, not_json: m"
    assert write([again], tmp_path, run_size=2).first is None


def test_without_rejects_there_is_no_file(tmp_path):
    assert write([], tmp_path, run_size=1) is None
    assert not (tmp_path / "rejected").exists()
    assert count_rejects([]).model_dump() == {"total": 0, "by_reason": {}, "files": ()}


def test_the_rejects_are_counted_by_reason(tmp_path):
    file = write([reject(FILES[0], n, "not_json" if n % 3 else "bad_id") for n in range(9)], tmp_path, run_size=4)
    assert count_rejects([file]).model_dump() == {
        "total": 9,
        "by_reason": {"bad_id": 3, "not_json": 6},
        "files": (file.path,),
    }
