"""Shows the windows of event time of a dataset: the records and shards of each."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rich.console import Console
from rich.filesize import decimal

from pipeline.errors import counted
from pipeline.format.manifest import Manifest
from pipeline.schema.windows import format_event_time, format_time
from pipeline.tables import print_table

# Windows that the table shows: of more, the first and the last ones.
_NUM_FIRST, _NUM_LAST = 3, 12


class _Part(NamedTuple):
    """What one split has in one window."""

    records: int = 0
    shards: int = 0
    bytes: int = 0


def summarize_windows(manifest: Manifest) -> dict[str, Any] | None:
    """Returns the windows of a dataset as plain values for JSON, the oldest first; None if it has none.

    Times are strings in ISO 8601. `without_window` counts the shards from before the dataset had windows.
    """
    windows = manifest.windows
    if windows is None:
        return None
    found = _count(manifest)
    times = [
        (shard.oldest, shard.newest)
        for split in manifest.splits.values()
        for shard in split.shards
        if shard.oldest is not None and shard.newest is not None
    ]
    return {
        "field": windows.field,
        "unit": windows.unit,
        "seconds": windows.seconds,
        "oldest": format_event_time(min(oldest for oldest, _ in times)) if times else None,
        "newest": format_event_time(max(newest for _, newest in times)) if times else None,
        "windows": [
            {
                "start": format_time(start),
                "end": format_time(start + windows.seconds),
                "splits": {name: part._asdict() for name, part in parts.items()},
            }
            for start, parts in found.items()
            if start is not None
        ],
        "without_window": {name: part._asdict() for name, part in found.get(None, {}).items()},
    }


def _count(manifest: Manifest) -> dict[int | None, dict[str, _Part]]:
    """Returns the counts of each split by window, the shards without a window (None) first."""
    found: dict[int | None, dict[str, _Part]] = {}
    for name, split in manifest.splits.items():
        for shard in split.shards:
            parts = found.setdefault(shard.window, dict.fromkeys(manifest.splits, _Part()))
            before = parts[name]
            parts[name] = _Part(before.records + shard.records, before.shards + 1, before.bytes + shard.bytes)
    starts = sorted(found, key=lambda start: (start is not None, start or 0))
    return {start: found[start] for start in starts}


def print_windows(console: Console, manifest: Manifest) -> None:
    """Prints a table of the windows, if the dataset has any."""
    summary = summarize_windows(manifest)
    if summary is None or manifest.windows is None:
        return
    number = counted(len(summary["windows"]), "window")
    ends = f", events from {summary['oldest']} to {summary['newest']}" if summary["oldest"] else ""
    described = manifest.windows.describe().removeprefix("windows ")
    title = f"Event time: {number} {described}{ends}"
    columns = ("window", *manifest.splits, "shards", "size")
    print_table(console, title, columns, _rows(_count(manifest)))


def _rows(found: Mapping[int | None, Mapping[str, _Part]]) -> Iterator[tuple[str, ...]]:
    """Yields a row for each window, with the records by split. Of many windows, the middle ones are one row."""
    starts = list(found)
    num_left_out = len(starts) - _NUM_FIRST - _NUM_LAST
    last = starts[-_NUM_LAST:] if num_left_out > 1 else starts[_NUM_FIRST:]
    middle = starts[_NUM_FIRST : len(starts) - _NUM_LAST] if num_left_out > 1 else []
    for start in starts[:_NUM_FIRST]:
        yield _row("none" if start is None else format_time(start), found[start])
    if middle:
        total = {
            name: _Part(*map(sum, zip(*(found[start][name] for start in middle), strict=True)))
            for name in found[middle[0]]
        }
        yield _row(f"{len(middle):,} more", total)
    for start in last:
        yield _row("none" if start is None else format_time(start), found[start])


def _row(name: str, parts: Mapping[str, _Part]) -> tuple[str, ...]:
    records = (f"{part.records:,}" for part in parts.values())
    shards, num_bytes = (sum(getattr(part, key) for part in parts.values()) for key in ("shards", "bytes"))
    return name, *records, f"{shards:,}", decimal(num_bytes)
