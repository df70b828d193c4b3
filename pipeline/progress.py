"""Counts what this process has done, so that a command can show that it moves."""

import collections
import contextlib
import sys
import threading
import time
from collections.abc import Iterator

# Plain numbers of this process: what a worker counts comes with its results, and Beam's own counters are exact.
_counts: collections.Counter[str] = collections.Counter()
_INTERVAL_SECONDS = 2.0
# Of a job that reads records and then writes them, what reading takes. Measured.
_SHARE_OF_READING = 0.7


def add_records(count: int) -> None:
    _counts["records"] += count


def add_bytes(count: int) -> None:
    _counts["bytes"] += count


def add_rejects(count: int) -> None:
    _counts["rejects"] += count


def add_written(count: int) -> None:
    """Records that were read before."""
    _counts["written"] += count


def add_counts(counts: dict[str, int]) -> None:
    _counts.update(counts)


def take_counts() -> dict[str, int]:
    """What was counted since the last time."""
    counts = dict(_counts)
    _counts.clear()
    return counts


@contextlib.contextmanager
def report(what: str, *, total_bytes: int = 0, total_records: int = 0, written: bool = False) -> Iterator[None]:
    """Prints a line to stderr every two seconds while the block runs; nothing when it is faster than that.

    Args:
        total_bytes, total_records: What there is to do in all, in one of them, for the share and the time left.
        written: What is read is written in a second pass.
    """
    ended = threading.Event()
    begin, before = time.monotonic(), _counts.copy()

    def tell() -> None:
        while not ended.wait(_INTERVAL_SECONDS):
            seconds = time.monotonic() - begin
            done = {name: _counts[name] - before[name] for name in ("records", "bytes", "rejects", "written")}
            records = done["records"]
            text = f"{what}: {records:,} records" if records else f"{what}: working"
            if total_bytes and done["bytes"]:
                text += f", {_mega(done['bytes'])} of {_mega(total_bytes)} MB"
            if done["rejects"]:
                text += f", {done['rejects']:,} rejected"
            share = done["bytes"] / total_bytes if total_bytes else records / max(total_records, 1)
            if written:
                share = _SHARE_OF_READING * share + (1 - _SHARE_OF_READING) * done["written"] / max(records, 1)
            if 0 < share < 1:
                text += f", {share:.0%}, {seconds / share - seconds:,.0f} s left"
            print(f"{text}, {seconds:,.0f} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _mega(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f}"
