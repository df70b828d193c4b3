"""Locks a local file, and stores in it which process holds the lock."""

import contextlib
import datetime
import errno
import json
import os
import socket

from filelock import FileLock, Timeout

from pipeline.errors import UserError
from pipeline.files import open_read

# What flock raises on a file system without locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
# A description of a process has less than 200 bytes.
_MAX_BYTES = 4096


class LockHeld(Exception):
    """Another process holds the lock. The text describes that process."""


def acquire(path: str, *, timeout: float, command: str) -> FileLock:
    """Creates and locks the file `path`, and returns the lock, whose `release()` keeps the file.

    The operating system releases the lock when the process ends, even if it is killed. Child processes do not inherit
    the lock. A file that its holder removes before it releases the lock is never locked by another process: that one
    creates the file again.

    Args:
        timeout: Seconds to wait for the lock; 0: try once.
        command: Name of the command, which others are told.

    Raises:
        LockHeld: Another process, or another call in this one, holds the lock.
        UserError: The file system has no locks.
        OSError: The file cannot be created or opened.
    """

    def store_holder(descriptor: int) -> None:
        # A full disk must not prevent a command that removes files.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, describe_this_process(command), 0)

    # The fallback of filelock is a file that exists while the lock is held, and so outlives a holder that is killed.
    lock = FileLock(path, thread_local=False, fallback_to_soft=False, on_acquired=store_holder)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise LockHeld(read_process(path)) from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise UserError(
                f"{path}: cannot be locked, since the file system has no locks ({error.strerror}). Choose a folder on "
                "another file system, or mount this one with locks."
            ) from None
        raise
    return lock


def describe_this_process(command: str) -> bytes:
    """Returns the process id, the host, the command and the time (UTC) as JSON, for `read_process`."""
    now = datetime.datetime.now(datetime.UTC)
    fields = {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "started": f"{now:%FT%TZ}"}
    return json.dumps(fields).encode()


def read_process(path: str) -> str:
    """Returns who wrote the description in a file, for messages; "unknown" if the file does not tell.

    For example: prepare, process 4711 on node-3 since 2026-01-31T12:00:00Z
    """
    try:
        with open_read(path) as file:
            fields = json.loads(file.read(_MAX_BYTES))
        text = "{command}, process {pid} on {host} since {started}".format_map(fields)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "unknown"
    return text if text.isprintable() else "unknown"
