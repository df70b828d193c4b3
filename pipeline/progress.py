"""Counts what this process has done, so that a command can show that it moves."""

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
def shown(what: str, *, total_bytes: int = 0, total_records: int = 0) -> Iterator[None]:
    """Prints a line to stderr every two seconds while the block runs; nothing when it is faster than that.

    Args:
        total_bytes, total_records: What there is to do in all, in one of them, for the share and the time left.
    """
    done = threading.Event()
    begin, first_records, first_bytes = time.monotonic(), _records, _bytes

    def tell() -> None:
        while not done.wait(_INTERVAL_SECONDS):
            seconds, records = time.monotonic() - begin, _records - first_records
            text = f"{what}: {records:,} records" if records else f"{what}: working"
            share = (_bytes - first_bytes) / total_bytes if total_bytes else records / max(total_records, 1)
            if 0 < share < 1:
                text += f", {share:.0%}, {seconds / share - seconds:,.0f} s left"
            print(f"{text}, {seconds:,.0f} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
