"""Locks a run's folder, so that only one process trains into it."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator

from pipeline.errors import UserError

LOCK = "lock"


class RunLocked(UserError):
    """Another process trains into this run."""

    status = 69  # EX_UNAVAILABLE of sysexits.h


@contextlib.contextmanager
def lock_run(folder: str) -> Iterator[None]:
    """Holds the lock of a run's folder inside the block.

    The operating system releases the lock when the process ends, even if it is killed. A folder on an object store is
    not locked: an object store has no lock that is released when its holder is killed.

    Raises:
        RunLocked: Another process holds the lock; the message has its process id and host.
    """
    if "://" in folder:
        yield
        return
    path = f"{folder}/{LOCK}"
    descriptor = _acquire(path)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        os.unlink(path)
        os.close(descriptor)


def _acquire(path: str) -> int:
    """Returns the descriptor of the locked file at `path`."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder may have removed the file after this process opened it. Then try again.
            if _is_file_at(descriptor, path):
                return descriptor
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace")
            os.close(descriptor)
            raise RunLocked(
                f"{os.path.dirname(path)}: another process trains into it ({holder or 'just started'}). Wait until it "
                "ends, stop it, or choose another --output."
            ) from None
        os.close(descriptor)


def _is_file_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
