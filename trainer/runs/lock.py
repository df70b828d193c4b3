"""Keeps a second process out of a run's folder for as long as one trains into it."""

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
    """Holds the folder's lock, which the system gives back however this process ends.

    Not on an object store: none has a lock that a killed process gives back.

    Raises:
        RunLocked: another process holds it; says which.
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
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it may have removed the file after we had opened it.
            if _is_at(descriptor, path):
                return descriptor
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace")
            os.close(descriptor)
            raise RunLocked(
                f"{os.path.dirname(path)}: another process trains into it ({holder or 'just begun'}). Wait for its "
                "end, stop it, or choose another --output."
            ) from None
        os.close(descriptor)


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
