"""Failing file systems and malicious input end with one clear line, and the old dataset stays as it was."""

import builtins
import contextlib
import errno
import gzip
import io
import os
import subprocess
import sys
import types

import pytest
from datasets import call
from paths import ROOT
from prepare_jobs import (
    MOST_BYTES,
    PLAIN,
    SCHEMA,
    load,
    prepare_measured,
    read_whole,
    unlisted,
    without_progress,
    write_parts,
)

from pipeline import files
from pipeline.format.manifest import FILE_NAME
from pipeline.inspection.verify import verify

WRITES = ("makedirs", "open xb", "write", "fsync", "replace")


class WatchedFile(io.BufferedWriter):
    """A file that calls `before_call` before each write."""

    def __init__(self, path, mode, before_call):
        super().__init__(io.FileIO(path, mode.strip("b")))
        self._before_call = before_call

    def write(self, data):
        self._before_call("write", None)
        return super().write(data)

    def writelines(self, lines):
        self.write(b"".join(lines))


@contextlib.contextmanager
def watch_file_system(before_call):
    """Calls `before_call(name, path or None)` before each call that pipeline.files makes to the file system."""

    def watched(name, function):
        def call_watched(path, *arguments, **named):
            before_call(name, path if isinstance(path, str) else None)
            return function(path, *arguments, **named)

        return call_watched

    def open_watched(path, mode):
        before_call(f"open {mode}", path)
        return builtins.open(path, mode) if mode == "rb" else WatchedFile(path, mode, before_call)

    calls = {name: watched(name, getattr(os, name)) for name in ("makedirs", "replace", "unlink", "fsync")}
    path = types.SimpleNamespace(**vars(os.path) | {"getsize": watched("getsize", os.path.getsize)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", types.SimpleNamespace(**vars(os) | calls | {"path": path}))
        patch.setattr(files, "open", open_watched, raising=False)
        yield


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


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.proof)])
@pytest.mark.parametrize(
    ("code", "names", "lasting"),
    [
        pytest.param(errno.EACCES, ("open rb", "getsize", "unlink", *WRITES), False, marks=pytest.mark.proof),
        (errno.ENOSPC, WRITES, True),
    ],
    ids=["a_call_is_refused", "the_disk_is_full_from_there_on"],
)
def test_whichever_call_fails_one_line_says_so_and_the_dataset_is_the_old_or_the_new_one(
    place, capsys, code, names, lasting, every
):
    dataset = place / "dataset"
    assert call(capsys, "prepare", "raw.jsonl", *OPTIONS)[0] == 0
    expected = read_whole(dataset).fingerprint
    calls, failing, failed = 0, 1, None

    def before_call(name, path):
        nonlocal calls, failed
        calls += name in names
        if name in names and (calls == failing or (lasting and calls > failing)):
            failed = failed or (name, path)
            # Like the system: an error of an open file names no path.
            raise OSError(code, os.strerror(code), *([path] if path else []))

    problems, rounds = [], 0
    while True:
        before, calls, failed = snapshot(dataset), 0, None
        with watch_file_system(before_call):
            status, _, err = call(capsys, "prepare", "raw.jsonl", *OPTIONS)
        if failed is None:
            assert (status, calls < failing) == (0, True)
            break
        after, path = snapshot(dataset), failed[1] or ""
        lines = without_progress(err)
        if (status, len(lines)) != (1, 1) or os.strerror(code) not in lines[0] or path not in lines[0]:
            problems.append((failing, *failed, status, err))
        if before[FILE_NAME] == after[FILE_NAME]:
            # Rejects stay, because the message names them.
            more = {name for name in after.keys() - before.keys() if not name.startswith("rejected/")}
            if more or not before.items() <= after.items():
                problems.append((failing, *failed, "left", more, "took", before.keys() - after.keys()))
        elif ": was published, but " not in lines[-1]:
            problems.append((failing, *failed, "was published", err))
        if load(dataset).fingerprint != expected or verify(str(dataset)).faults:
            problems.append((failing, *failed, "mixed"))
        rounds += 1
        if every == 1 or rounds % 5 == 0:
            status, _, err = call(capsys, "prepare", "raw.jsonl", *OPTIONS)
            more = [path for path in unlisted(dataset) if not path.is_dir()]
            if status or load(dataset).fingerprint != expected or more:
                problems.append((failing, *failed, "after", status, err, more))
        failing += every
    print(f"{rounds} of {calls} calls failed")
    assert not problems, "\n".join(map(str, problems))
    assert rounds > 8


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


ZEROS = (b"0", "1 of 1 records (100.00%) were rejected: 1 too_large; at most 1.00% may be. ")
BLANK = (b"\n", "{raw}: ")
# Short records are parsed until there are too many of them. This takes a minute on slow cores.
RECORD = (b'{"id":"a","x":[[0,0,0,0,0,0,0,0]],"y":"a"}\n', "{raw}: ")
WORKERS = ("--processes", "2")


@pytest.mark.parametrize(
    ("bytes_and_message", "num_bytes", "processes"),
    [
        pytest.param(ZEROS, 2**29, (), id="half_the_zeros"),
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
        assert " bytes of gzip expand to more than " in line
    print(f"\n{os.path.getsize(tmp_path / 'raw'):,} bytes, {peak / 1e6:,.0f} MB peak, {seconds:.1f} s")
