"""Counts the work of this process, and prints it to stderr while a command runs."""

import collections
import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping

from pipeline.errors import counted

# Counts of this process since it started. A worker's counts arrive with its results. They are only for display: the
# numbers in a manifest come from Beam.
_counts: collections.Counter[str] = collections.Counter()
# What the work does if it is not counted yet, or something else than usual.
_WORKING = _state = "working"
_INTERVAL_SECONDS = 2.0
# Share of the time that reading takes in a job that reads and parses records, and then writes them. Measured.
_SHARE_OF_READING = 0.7


def add_records(count: int) -> None:
    """Counts records that were read."""
    _counts["records"] += count


def add_bytes(count: int) -> None:
    """Counts bytes that were read."""
    _counts["bytes"] += count


def add_rejects(count: int) -> None:
    """Counts rejected records."""
    _counts["rejects"] += count


def add_written(count: int) -> None:
    """Counts records that were written after they were read."""
    _counts["written"] += count


def add_counts(counts: dict[str, int]) -> None:
    """Adds the counts that `take_counts` returned in another process."""
    _counts.update(counts)


def take_counts() -> dict[str, int]:
    """Returns the counts since the last call, and resets them."""
    counts = dict(_counts)
    _counts.clear()
    return counts


def read_counts() -> dict[str, int]:
    """Returns the counts of this process."""
    return dict(_counts)


def show_state(state: str) -> None:
    """Sets the word for what the work does, for example restarting. Usually it is working."""
    global _state
    _state = state


# rich.progress cannot replace this. On a pipe, rich 15 prints nothing while the work runs, and a single bar of box
# characters at the end (tried). A log needs lines in this form while the command runs.
@contextlib.contextmanager
def report(
    command: str,
    *,
    total_bytes: int = 0,
    total_records: int = 0,
    second_pass: bool = False,
    since: Mapping[str, int] | None = None,
) -> Iterator[None]:
    """Prints a line to stderr every two seconds while the block runs, on a terminal or not.

    Args:
        command: First word of each line.
        total_bytes: Bytes to read in all, to show the share that is done and the time left.
        total_records: Records to read in all; has the same purpose where the bytes are unknown.
        second_pass: Whether the records are written in a second pass after they are read.
        since: The result of `read_counts` when the work began, if that was before the block.
    """
    ended = threading.Event()
    begin, before = time.monotonic(), collections.Counter(read_counts() if since is None else since)

    def print_lines() -> None:
        while not ended.wait(_INTERVAL_SECONDS):
            seconds = time.monotonic() - begin
            counts = {name: _counts[name] - before[name] for name in ("records", "bytes", "rejects", "written")}
            records = counts["records"]
            text = f"{command}: {counted(records, 'record') if records else _state}"
            if total_bytes and counts["bytes"]:
                text += f", {_megabytes(counts['bytes'])} of {_megabytes(total_bytes)} MB"
            if counts["rejects"]:
                text += f", {counts['rejects']:,} rejected"
            if records and _state != _WORKING:
                text += f", {_state}"
            share = counts["bytes"] / total_bytes if total_bytes else records / max(total_records, 1)
            if second_pass:
                written = counts["written"] / max(records, 1)
                share = _SHARE_OF_READING * share + (1 - _SHARE_OF_READING) * written
            if 0 < share < 1:
                text += f", {share:.0%}, {seconds / share - seconds:,.0f} s left"
            print(f"{text}, {seconds:,.0f} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f}"
