"""Checks that the numbers and names in a manifest, or in the summary of a generation, do not contradict one another."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from pipeline.format.models import TRAIN, FeatureStatistics, Rejected, Split, Vocabulary
from pipeline.schema.labels import ONE_CLASS
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows


class Numbers(NamedTuple):
    """The numbers that are compared with one another.

    Attributes:
        vocabularies: None for a generation, whose strings are counted before a vocabulary is chosen.
        windows: The windows of the shards, if they have any.
    """

    schema: Schema
    splits: Mapping[str, Split]
    statistics: Mapping[str, FeatureStatistics]
    vocabularies: Mapping[str, Vocabulary] | None
    rejected: Rejected
    windows: EventWindows | None = None


def find_contradictions(numbers: Numbers) -> Iterator[str]:
    """Yields a message for each place that contradicts another one."""
    # The names come first, for the other checks look up counts by the name of a split or feature.
    return itertools.chain(_find_wrong_names(numbers), _find_wrong_numbers(numbers), _find_wrong_windows(numbers))


class _Check(NamedTuple):
    """A number in the manifest, and the limits that other numbers in the manifest set for it.

    Attributes:
        place: Path of the number.
        found: The number.
        minimum, maximum: The limits, both included.
        expectation: The limits and where they come from, in words.
    """

    place: str
    found: int
    minimum: int
    maximum: int
    expectation: str


def _equal(place: str, found: int, expected: int, source: str) -> _Check:
    return _Check(place, found, expected, expected, f"{source} say {expected:,}")


def _between(place: str, found: int, minimum: int, maximum: int) -> _Check:
    return _Check(place, found, minimum, maximum, f"other counts allow {minimum:,} to {maximum:,}")


def _find_wrong_names(numbers: Numbers) -> Iterator[str]:
    """Yields a message for each place that has other features than the schema says."""
    features = numbers.schema.features
    in_vocabulary = {name for name, feature in features.items() if feature.vocabulary is not None}
    allows_nulls = {name for name, feature in features.items() if feature.allows_nulls}
    if numbers.vocabularies is None:
        in_vocabulary = set()
    if set(numbers.splits) != set(numbers.schema.split_names):
        yield f"splits are {sorted(numbers.splits)}, but the schema says {sorted(numbers.schema.split_names)}"
    places: list[tuple[str, Iterable[str], set[str]]] = [("vocabularies", numbers.vocabularies or (), in_vocabulary)]
    for name, split in numbers.splits.items():
        counts = [split.parts, *(shard.parts for shard in split.shards)]
        if not numbers.schema.stores_parts and any(count is not None for count in counts):
            yield f"splits.{name} counts parts, but the schema has over_length: {numbers.schema.over_length}"
        places.append((f"splits.{name}.missing", split.missing, allows_nulls))
        places.append((f"splits.{name}.unknown", split.unknown, in_vocabulary))
    for place, found, expected in places:
        if set(found) != expected:
            yield f"{place} has the features {sorted(found)}, but the schema says {sorted(expected)}"


def _find_wrong_numbers(numbers: Numbers) -> Iterator[str]:
    """Yields a message for each number that contradicts other numbers."""
    for check in itertools.chain(_check_sums(numbers), _check_statistics(numbers), _check_limits(numbers)):
        if not check.minimum <= check.found <= check.maximum:
            yield f"{check.place} is {check.found:,}, but {check.expectation}"


def _find_wrong_windows(numbers: Numbers) -> Iterator[str]:
    """Yields a message for each shard whose window and event times contradict one another."""
    windows = numbers.windows
    for name, split in numbers.splits.items():
        for place, shard in enumerate(split.shards):
            times = (shard.window, shard.oldest, shard.newest)
            if times == (None, None, None):
                continue
            where = f"splits.{name}.shards.{place}"
            if windows is None or shard.window is None or shard.oldest is None or shard.newest is None:
                given = f"of event times {shard.oldest} to {shard.newest}, but the windows are {windows}"
                yield f"{where} has the window {shard.window} {given}"
            elif not windows.start_of(shard.oldest) == windows.start_of(shard.newest) == shard.window:
                yield (
                    f"{where}.window is {shard.window}, but its event times, {shard.oldest} to {shard.newest}, are in "
                    f"the windows {windows.start_of(shard.oldest)} to {windows.start_of(shard.newest)}"
                )
            elif shard.oldest > shard.newest:
                yield f"{where}.oldest is {shard.oldest}, but its newest is {shard.newest}"


def _check_sums(numbers: Numbers) -> Iterator[_Check]:
    """Yields checks of the counts that the manifest also gives as a sum of other counts."""
    label = numbers.schema.label
    for name, split in numbers.splits.items():
        place, lengths = f"splits.{name}", split.length_counts
        yield _equal(f"{place}.records", split.records, sum(s.records for s in split.shards), "its shards")
        yield _equal(f"{place}.steps", split.steps, sum(s.steps for s in split.shards), "its shards")
        yield _equal(f"{place}.records", split.records, sum(lengths.values()), "its length_counts")
        steps = sum(length * count for length, count in lengths.items())
        yield _equal(f"{place}.steps", split.steps, steps, "its length_counts")
        if numbers.schema.stores_parts:
            parts = sum(numbers.schema.count_parts(length) * count for length, count in lengths.items())
            yield _equal(f"{place}.parts", split.parts or 0, parts, "its length_counts")
            yield _equal(f"{place}.parts", split.parts or 0, sum(s.examples for s in split.shards), "its shards")
        if label.name is not None and label.kind in ONE_CLASS:
            labels = sum(split.label_counts.values())
            yield _equal(f"{place}.labels", split.labels, labels, "its label_counts")
        if not label.per_step:
            yield _equal(f"{place}.labels", split.labels, split.records, "its records")
    rejected = numbers.rejected
    yield _equal("rejected.total", rejected.total, sum(rejected.by_reason.values()), "its reasons")


def _check_statistics(numbers: Numbers) -> Iterator[_Check]:
    """Yields checks of the counts and the number of columns of each feature's statistics."""
    schema = numbers.schema
    train = numbers.splits.get(TRAIN)
    for name, statistics in numbers.statistics.items():
        place = f"statistics.{name}"
        rows = 0 if train is None else train.steps if schema.is_per_step(name) else train.records
        yield _equal(f"{place}.count", statistics.count, rows, f"the counts of {TRAIN}")
        labels, nulls = (0, {}) if train is None else (train.labels, train.missing)
        missing = rows - labels if name == schema.label.name else nulls.get(name, 0)
        yield _equal(f"{place}.missing", sum(statistics.missing), missing, f"the counts of {TRAIN}")
        width = schema.statistics_widths.get(name, 0)
        for key, columns in statistics.columns().items():
            yield _equal(f"{place}.{key}", len(columns), width, "the columns of the schema")


def _check_limits(numbers: Numbers) -> Iterator[_Check]:
    """Yields checks of the counts that other counts limit, but do not give exactly."""
    schema = numbers.schema
    for name, vocabulary in (numbers.vocabularies or {}).items():
        yield _between(f"vocabularies.{name}.size", vocabulary.size, 0, schema.features[name].vocabulary or 0)
    for name, split in numbers.splits.items():
        place = f"splits.{name}"
        values = {
            n: (split.steps if schema.is_per_step(n) else split.records) * feature.width
            for n, feature in schema.features.items()
        }
        for n, missing in split.missing.items():
            yield _between(f"{place}.missing.{n}", missing, 0, values[n])
        for n, unknown in split.unknown.items():
            yield _between(f"{place}.unknown.{n}", unknown, 0, values[n] - split.missing.get(n, 0))
        for n, count in split.label_counts.items():
            yield _between(f"{place}.label_counts.{n}", count, 0, split.labels)
        if schema.label.next_of is not None:
            # The label of a step is the value of the next step. A missing value removes the label of one step at most.
            maximum = split.steps - split.records
            minimum = maximum - split.missing.get(schema.label.next_of, 0)
        else:
            minimum, maximum = 0, split.steps if schema.label.per_step else split.records
        yield _between(f"{place}.labels", split.labels, minimum, maximum)
