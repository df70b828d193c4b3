"""Only one process commits to a dataset at a time; others wait, say so, and give up with their own status."""

import os
import subprocess
import sys

import holders
import pytest
from paths import ROOT

from pipeline.errors import LockTimeout
from pipeline.writing import lock
from pipeline.writing.lock import lock_dataset

LONG = 120


def test_a_lock_that_cannot_be_had_names_the_dataset_the_seconds_and_the_holder(tmp_path, capsys):
    with holders.Holder(holders.LOCK_DATASET, tmp_path) as holder:
        with pytest.raises(LockTimeout) as raised, lock_dataset(str(tmp_path), timeout=0.5):
            pass
    assert raised.value.status == 69
    message = str(raised.value)
    assert message.startswith(
        f"{tmp_path}: another process held the lock of the dataset for 0.5 s (prepare, process {holder.pid} on "
    )
    assert message.endswith("). Run the command again later, or wait longer with --lock_timeout.")
    assert capsys.readouterr().err == ""


def test_a_long_wait_is_reported_once_and_ends_when_the_lock_is_free(tmp_path, monkeypatch):
    lines = []
    with holders.Holder(holders.LOCK_DATASET, tmp_path) as holder:

        def release(line, **options):
            lines.append(line)
            assert options["file"] is sys.stderr
            holder.release()

        monkeypatch.setattr(lock, "print", release, raising=False)
        monkeypatch.setattr(lock, "_QUIET_SECONDS", 0.1)
        with lock_dataset(str(tmp_path), timeout=LONG, command="compact"):
            (line,) = lines
        assert line.startswith(f"compact: waiting for the lock of {tmp_path} (held by: prepare, process {holder.pid} ")


def test_kill_9_of_the_holder_frees_the_dataset(tmp_path):
    with holders.Holder(holders.LOCK_DATASET, tmp_path) as holder:
        holder.kill()
    with lock_dataset(str(tmp_path), timeout=0):
        pass
    assert os.listdir(tmp_path / "commits") == ["lock"]


def test_an_error_in_the_block_frees_the_dataset(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), lock_dataset(str(tmp_path), timeout=0):
            raise KeyError


COUNT = f"""
import pathlib, sys
from pipeline.writing.lock import lock_dataset
path = pathlib.Path(sys.argv[1], "number")
for _ in range(20):
    with lock_dataset(sys.argv[1], timeout={LONG}):
        path.write_text(str(int(path.read_text()) + 1))
"""


def test_no_two_processes_are_in_the_block_at_once(tmp_path):
    (tmp_path / "number").write_text("0")
    command = [sys.executable, "-c", COUNT, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "60"


def test_an_object_store_is_not_locked(capsys):
    with lock_dataset("store://bucket/dataset", timeout=0), lock_dataset("store://bucket/dataset", timeout=0):
        pass
