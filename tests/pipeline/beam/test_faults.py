"""Failing file systems and malicious input end with one clear line, and the old dataset stays as it was."""

import errno
import gzip
import os
import subprocess
import sys

import pytest
from datasets import call
from file_faults import watch_file_system
from paths import ROOT
from prepare_jobs import (
    MOST_BYTES,
    PLAIN,
    SCHEMA,
    prepare_measured,
    read_whole,
    without_progress,
    write_parts,
)


def snapshot(folder):
    """Returns the bytes of every file in a folder, by path, except the lock, which tells who held it last."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def only_line(stderr):
    """Returns the only line of stderr besides progress."""
    (line,) = without_progress(stderr)
    return line


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Makes a folder with a raw file and a schema the working folder, and returns it."""
    write_parts(tmp_path / "parts", 2e4)
    (tmp_path / "raw.jsonl").write_bytes((tmp_path / "parts/0.jsonl").read_bytes())
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


OPTIONS = ("--schema", "schema.yaml", "--output", "dataset", "--overwrite")
OPTIONS += ("--retain", "0s", "--max_rejected", "0.6", "--num_shards", "1", "--processes", "0")


def test_a_manifest_that_cannot_be_read_back_keeps_all_files_that_it_lists(place, capsys):
    assert call(capsys, "prepare", "raw.jsonl", *OPTIONS)[0] == 0
    broken = False

    def before_call(name, path):
        nonlocal broken
        broken = broken or name == "unlink"  # the first removes an older file, after the new manifest is in place
        if broken and name in ("unlink", "open rb"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)

    with watch_file_system(before_call):
        status, _, err = call(capsys, "prepare", "raw.jsonl", *OPTIONS)
    assert (status, os.strerror(errno.EMFILE) in only_line(err)) == (1, True)
    read_whole(place / "dataset")


@pytest.mark.proof
@pytest.mark.parametrize(
    "limits",
    [
        ((1_000, "0"), (100_000, "2")),
        pytest.param(((1_000, "0"), (100_000, "2"), (180_000, "0")), marks=pytest.mark.proof),
    ],
    ids=len,
)
def test_a_file_that_cannot_grow_ends_the_job_with_one_line(place, capsys, limits):
    """A limit on the size of files comes closest to a full disk without a disk of its own."""
    write_parts(place / "raw", 1e6)
    program = (
        "import resource, sys, lengthwise\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))\n"
        "sys.exit(lengthwise.main(sys.argv[2:]))\n"
    )

    def run(most_bytes, *arguments):
        return subprocess.run(
            [sys.executable, "-c", program, str(most_bytes), "prepare", "raw", *OPTIONS, *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )

    assert call(capsys, "prepare", "raw", *OPTIONS)[0] == 0
    before = snapshot(place / "dataset")
    for most_bytes, processes in limits:
        done = run(most_bytes, "--processes", processes)
        line = only_line(done.stderr.splitlines())
        assert (done.returncode, done.stdout) == (1, "")
        assert line.startswith("lengthwise prepare: A file could not be read or written: [Errno 27] File too large")
        assert snapshot(place / "dataset") == before


@pytest.mark.proof
def test_more_files_than_a_process_can_open_are_prepared(place):
    records = [b'{"id": "%d", "x": [[1, 2, 3, 4]], "word": ["a"], "y": "a"}\n' % n for n in range(300)]
    records += [b"no record\n"] * 300
    (place / "many").mkdir()
    for n in range(300):
        (place / f"many/{n}.jsonl").write_bytes(records[n] + records[300 + n])
    program = (
        "import resource, sys, lengthwise\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
        "sys.exit(lengthwise.main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "prepare", "many", *OPTIONS],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def bomb(piece, num_bytes):
    """Returns a gzip file that repeats `piece` up to `num_bytes` in all."""
    block = piece * (2**20 // len(piece))
    return gzip.compress(block) * (num_bytes // len(block))


ZEROS = (b"0", "1 of 1 record (100.00%) was rejected: 1 too_large; at most 1.00% may be. ")
BLANK = (b"\n", "{raw}: ")
# Short records are parsed until there are too many of them. This takes a minute on slow cores.
RECORD = (b'{"id":"a","x":[[0,0,0,0,0,0,0,0]],"y":"a"}\n', "{raw}: ")
WORKERS = ("--processes", "2")


@pytest.mark.parametrize(
    ("bytes_and_message", "num_bytes", "processes"),
    [
        pytest.param(ZEROS, 2**28, (), id="a_quarter_of_the_zeros", marks=pytest.mark.proof),
        pytest.param(ZEROS, 2**30, (), id="zeros", marks=pytest.mark.proof),
        pytest.param(ZEROS, 2**30, WORKERS, id="zeros-workers", marks=pytest.mark.proof),
        pytest.param(BLANK, 2**30, (), id="blank_lines", marks=pytest.mark.proof),
        pytest.param(BLANK, 2**30, WORKERS, id="blank_lines-workers", marks=pytest.mark.proof),
        pytest.param(RECORD, 2**30, (), id="records", marks=pytest.mark.proof),
        pytest.param(RECORD, 2**30, WORKERS, id="records-workers", marks=pytest.mark.proof),
    ],
)
def test_a_gzip_bomb_ends_with_one_line_in_bounded_memory(tmp_path, bytes_and_message, num_bytes, processes):
    piece, message = bytes_and_message
    (tmp_path / "raw").write_bytes(bomb(piece, num_bytes))
    assert os.path.getsize(tmp_path / "raw") < 8e6
    (tmp_path / "schema.yaml").write_text(PLAIN)
    status, stderr, peak, seconds = prepare_measured(tmp_path, *processes)
    assert (status, peak < MOST_BYTES) == (1, True), (stderr, peak, seconds)
    line = only_line(stderr)
    assert line.startswith(f"lengthwise prepare: {message.format(raw=tmp_path / 'raw')}")
    if piece != b"0":
        assert " compressed bytes expand to more than " in line
    print(f"\n{os.path.getsize(tmp_path / 'raw'):,} bytes, {peak / 1e6:,.0f} MB peak, {seconds:.1f} s")
