"""Selects the records of a split whose windows of event time overlap a range of time."""

import argparse
import dataclasses
import datetime
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from pipeline.errors import UserError, show
from pipeline.flags import duration
from pipeline.format.models import Shard, Split
from pipeline.format.view import add_counts
from pipeline.schema.windows import (
    MICROSECONDS,
    EventTimeError,
    EventWindows,
    format_duration,
    format_event_time,
    format_time,
    parse_event_time,
)
from trainer.data.dataset import Dataset
from trainer.data.shard_index import count_shard

Time: TypeAlias = str | int | float | datetime.datetime
# A duration such as "7d", which ends with the newest event time, or the start and the end.
Windows: TypeAlias = str | tuple[Time | None, Time | None]


class _Range(NamedTuple):
    """A range of event times in microseconds: [start, end). None has no limit."""

    start: int | None
    end: int | None
    description: str


def select_windows(dataset: Dataset, split: str, windows: Windows) -> Dataset:
    """Returns the dataset with those shards of a split whose window overlaps a range of event times.

    Windows are selected as a whole: some of their records may be outside of the range. Records without a window are not
    selected. The other splits, the statistics, the vocabularies and the fingerprint stay those of the whole dataset.

    Args:
        windows: The range (start, end), without its end, or a duration that ends with the newest event time of the
            dataset. See `lengthwise.batches`.

    Returns:
        A dataset whose split has the records, steps, labels and lengths of the selected shards. Its other counts
        (`truncated`, `copies`, `label_counts`, `missing`, `unknown`) are 0 or empty.

    Raises:
        UserError: The dataset has no windows, none of them is selected, or an index is not the one that was written.
        ValueError: The range is wrong.
    """
    return _select(dataset, split, _read_range(windows, _find_newest(dataset)))


def _select(dataset: Dataset, split: str, found: _Range) -> Dataset:
    whole, of_dataset = dataset.split(split), dataset.manifest.windows
    assert of_dataset is not None
    shards = tuple(shard for shard in whole.shards if _overlaps(shard, found, of_dataset))
    if not sum(shard.records for shard in shards):
        starts = [shard.window for shard in whole.shards if shard.window is not None]
        newest = f"its newest window begins at {format_time(max(starts))}" if starts else "it has no window"
        raise UserError(
            f"{dataset.path}: the split {split!r} has no record in {found.description}; {newest}. Choose an earlier or "
            "a longer time."
        )
    splits = {**dataset.manifest.splits, split: _count(dataset, shards)}
    return dataclasses.replace(dataset, manifest=dataset.manifest.model_copy(update={"splits": splits}))


def select_newest(dataset: Dataset, split: str, seconds: float | None) -> Dataset:
    """Returns the dataset with the windows of a split of the last seconds before the newest event time.

    Args:
        seconds: None returns the dataset itself.

    Raises:
        UserError: See `select_windows`.
    """
    return dataset if seconds is None else _select(dataset, split, _before(_find_newest(dataset), seconds))


def describe_selection(dataset: Dataset, split: str) -> dict[str, str | int]:
    """Returns the start and the end of the windows of a split as strings in ISO 8601, and its number of records."""
    windows, shards = dataset.manifest.windows, dataset.split(split).shards
    starts = [shard.window for shard in shards if shard.window is not None]
    assert windows is not None and starts
    return {
        "start": format_time(min(starts)),
        "end": format_time(max(starts) + windows.seconds),
        "records": dataset.split(split).records,
    }


def _find_newest(dataset: Dataset) -> int:
    """Returns the newest event time of all splits. Raises a UserError if there is none."""
    shards = (shard for split in dataset.manifest.splits.values() for shard in split.shards)
    times = [shard.newest for shard in shards if shard.newest is not None]
    if not times:
        raise UserError(
            f"{dataset.path}: has no windows of event time, so that none can be selected. Prepare it with --window and "
            "--event_time."
        )
    return max(times)


def _overlaps(shard: Shard, found: _Range, windows: EventWindows) -> bool:
    if shard.window is None:
        return False
    start, end = shard.window * MICROSECONDS, (shard.window + windows.seconds) * MICROSECONDS
    return (found.start is None or end > found.start) and (found.end is None or start < found.end)


def _before(newest: int, seconds: float) -> _Range:
    """Returns the range of some seconds that ends with the newest event time."""
    description = f"the {format_duration(seconds)} before the newest event time ({format_event_time(newest)})"
    return _Range(newest - round(seconds * MICROSECONDS), newest + 1, description)


def _read_range(windows: Windows, newest: int) -> _Range:
    """Returns a range of event times.

    Args:
        newest: The newest event time.
    """
    if isinstance(windows, str):
        try:
            return _before(newest, duration(windows))
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"windows: {error}.") from None
    try:
        start, end_of_range = (None if time is None else _parse(time) for time in windows)
    except (TypeError, ValueError) as error:
        expected = "a duration such as '7d', or a start and an end: ISO 8601, datetime, seconds since 1970 or None"
        raise ValueError(f"windows is {show(windows)}, expected {expected} ({error}).") from None
    if start is not None and end_of_range is not None and start >= end_of_range:
        raise ValueError(f"windows is {show(windows)}, expected a start before the end.")
    ends = ["…" if time is None else format_event_time(time) for time in (start, end_of_range)]
    return _Range(start, end_of_range, f"the time from {ends[0]} to {ends[1]}")


def _parse(time: Time) -> int:
    try:
        return parse_event_time(time, EventWindows(field="windows", seconds=1))
    except EventTimeError as error:
        raise ValueError(f"{time!r}: {error}") from None


def _count(dataset: Dataset, shards: Iterable[Shard]) -> Split:
    """Returns a split of some shards, with the counts that a reader needs, from the indexes."""
    shards = tuple(shard for shard in shards if shard.records)
    parts = [count_shard(dataset.path, shard, per_step=dataset.schema.label.per_step) for shard in shards]
    return Split(
        records=sum(shard.records for shard in shards),
        parts=sum(shard.examples for shard in shards) if any(shard.parts is not None for shard in shards) else None,
        steps=sum(shard.steps for shard in shards),
        labels=sum(labels for labels, _ in parts),
        truncated=0,
        shards=shards,
        length_counts=dict(sorted(add_counts(lengths for _, lengths in parts).items())),
        label_counts={},
    )
