"""Counts what this process has read, so that a command can show that it moves."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

# Plain numbers of this process: a worker in a process of its own counts for itself, and Beam's counters are exact.
_records = 0
_bytes = 0
_INTERVAL_SECONDS = 2.0


def add_records(count: int) -> None:
    global _records
    _records += count


def add_bytes(count: int) -> None:
    global _bytes
    _bytes += count


@contextlib.contextmanager
def shown(what: str, *, total_bytes: int) -> Iterator[None]:
    """Prints a line to stderr every two seconds while the block runs; nothing when it is faster than that."""
    done = threading.Event()
    begin, first_records, first_bytes = time.monotonic(), _records, _bytes

    def tell() -> None:
        while not done.wait(_INTERVAL_SECONDS):
            seconds = time.monotonic() - begin
            read = f"{_records - first_records:,} records read" if _records > first_records else "working"
            share = min(1.0, (_bytes - first_bytes) / max(total_bytes, 1))
            left = f", {share:.0%} of {total_bytes / 1e6:,.0f} MB" if share else ""
            print(f"{what}: {read}{left}, {seconds:.0f} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
