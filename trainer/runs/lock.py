"""Locks a run's folder, so that only one process trains into it."""

import contextlib
import os
from collections.abc import Iterator

from pipeline.errors import UserError
from pipeline.locks import LockHeld, acquire

LOCK = "lock"
# A process that has just ended its training gets this long to release the lock.
_TIMEOUT_SECONDS = 0.2


class RunLocked(UserError):
    """Another process trains into this run."""

    status = 69  # EX_UNAVAILABLE of sysexits.h


@contextlib.contextmanager
def lock_run(folder: str) -> Iterator[None]:
    """Holds the lock of a run's folder inside the block, and removes the lock file afterwards.

    The operating system releases the lock when the process ends, even if it is killed. A folder on an object store is
    not locked: an object store has no lock that is released when its holder is killed.

    Raises:
        RunLocked: Another process holds the lock; the message has its process id and host.
        UserError: The file system has no locks.
    """
    if "://" in folder:
        yield
        return
    path = f"{folder}/{LOCK}"
    try:
        lock = acquire(path, timeout=_TIMEOUT_SECONDS, command="train")
    except LockHeld as held:
        raise RunLocked(
            f"{folder}: another process trains into it ({held}). Wait until it ends, stop it, or choose another "
            "--output."
        ) from None
    try:
        yield
    finally:
        os.unlink(path)
        lock.release()
