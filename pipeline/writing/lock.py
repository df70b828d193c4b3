"""Locks a dataset, so that only one process commits to it at a time."""

import contextlib
import sys
import time
from collections.abc import Iterator

from pipeline.errors import LockTimeout
from pipeline.files import is_local, join
from pipeline.locks import LockHeld, acquire
from pipeline.writing.paths import LOCK

# Default of --lock_timeout.
DEFAULT_LOCK_TIMEOUT = 60.0
# Seconds until a message says that the command waits.
_QUIET_SECONDS = 2.0


@contextlib.contextmanager
def lock_dataset(output: str, *, timeout: float, command: str = "prepare") -> Iterator[None]:
    """Holds the lock of a dataset inside the block. The lock file stays there.

    The operating system releases the lock when the process ends, even if it is killed. A dataset on an object store is
    not locked: an object store has no lock that is released when its holder is killed.

    Args:
        timeout: Seconds to wait for the lock. After two of them, a line on stderr names the process that holds it.
        command: Name of the command, for messages here and in other processes.

    Raises:
        LockTimeout: Another process held the lock for `timeout` seconds.
        UserError: The file system has no locks.
    """
    if not is_local(output):
        yield
        return
    path = join(output, LOCK)
    begin = time.monotonic()
    try:
        try:
            lock = acquire(path, timeout=min(timeout, _QUIET_SECONDS), command=command)
        except LockHeld as held:
            if timeout <= _QUIET_SECONDS:
                raise
            print(f"{command}: waiting for the lock of {output} (held by: {held})", file=sys.stderr, flush=True)
            lock = acquire(path, timeout=max(begin + timeout - time.monotonic(), 0), command=command)
    except LockHeld as held:
        raise LockTimeout(
            f"{output}: another process held the lock of the dataset for {timeout:g} s ({held}). Run the command again "
            "later, or wait longer with --lock_timeout."
        ) from None
    try:
        yield
    finally:
        lock.release()
