"""A lock is held by one process at a time, names that process, and is released when it is killed."""

import errno
import os
import socket
import subprocess
import sys

import filelock
import holders
import pytest
from paths import ROOT

from pipeline import locks
from pipeline.errors import UserError
from pipeline.locks import LockHeld, acquire, describe_this_process, read_process

# Seconds; nothing waits this long unless it fails.
LONG = 120


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "folder" / "lock")


def test_a_lock_is_held_once_and_names_its_holder(path):
    lock = acquire(path, timeout=0, command="compact")
    with pytest.raises(LockHeld, match=rf"^compact, process {os.getpid()} on {socket.gethostname()} since 20\d\d-.*Z$"):
        acquire(path, timeout=0.1, command="prepare")
    lock.release()
    again = acquire(path, timeout=0, command="prepare")
    assert read_process(path).startswith("prepare, process ")
    again.release()


def test_kill_9_frees_the_lock(path):
    with holders.Holder(holders.LOCK_FILE, path) as holder:
        with pytest.raises(LockHeld, match=f"holder, process {holder.pid} on "):
            acquire(path, timeout=0, command="prepare")
        holder.kill()
    acquire(path, timeout=0, command="prepare").release()


def test_a_forked_child_does_not_keep_the_lock_of_a_killed_process(path):
    fork = f"{holders.LOCK_FILE}import os\nif not os.fork(): os.read(0, 1); os._exit(0)\n"
    with holders.Holder(fork, path) as holder:
        with pytest.raises(LockHeld):
            acquire(path, timeout=0, command="prepare")
        holder.process.kill()
        holder.process.wait()
        acquire(path, timeout=LONG, command="prepare").release()
        holder.process.communicate()  # ends the child, which has waited for its input


def test_a_file_that_the_holder_removed_is_not_locked_by_the_next(path):
    lock = acquire(path, timeout=0, command="first")
    program = (
        "import sys\nfrom pipeline.locks import acquire\nprint('started', flush=True)\n"
        f"lock = acquire(sys.argv[1], timeout={LONG}, command='second')\nprint('locked', flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", program, path]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "started\n"
        os.unlink(path)
        lock.release()
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(LockHeld, match="second, process"):
            acquire(path, timeout=0, command="third")
        process.stdin.close()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_named(path, monkeypatch, number):
    def no_lock(self):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "_acquire", no_lock)
    with pytest.raises(UserError, match=r"lock: cannot be locked, since the file system has no locks \("):
        acquire(path, timeout=0, command="prepare")


def test_flock_is_never_replaced_by_a_file_that_outlives_its_holder(path, monkeypatch):
    import fcntl

    def no_flock(*arguments):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_flock)
    with pytest.raises(UserError, match="has no locks"):
        acquire(path, timeout=0, command="prepare")


def test_a_full_disk_does_not_prevent_a_lock(path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(locks.os, "pwrite", full)
    lock = acquire(path, timeout=0, command="clean")
    with pytest.raises(LockHeld, match="^unknown$"):
        acquire(path, timeout=0, command="prepare")
    lock.release()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"7",
        b'{"pid": 1}',
        b"[" * 4096,
        describe_this_process("x" * 5000),
        describe_this_process("\x1b[31m"),
        describe_this_process("prepare")[:-1],
    ],
    ids=range(10),
)
def test_a_description_that_is_not_ours_is_unknown(tmp_path, content):
    (tmp_path / "lock").write_bytes(content)
    assert read_process(str(tmp_path / "lock")) == "unknown"
    assert read_process(str(tmp_path / "missing")) == "unknown"
