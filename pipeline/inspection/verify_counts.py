"""Counts the records of a split again, to compare the counts and statistics in a manifest or a summary with them."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.format.models import FeatureStatistics, Split
from pipeline.format.parts import count_labels
from pipeline.format.statistics import ColumnSums
from pipeline.format.sums import SQUARES_UNIT, SUM_UNIT, FeatureSums, format_number, merge_sums
from pipeline.schema.labels import class_name
from pipeline.schema.record import Values, is_missing, named_classes
from pipeline.schema.schema import Schema
from pipeline.shuffle.copies import is_numbered_copy


@dataclasses.dataclass
class Counts:
    """The counts of the records of a split.

    Attributes:
        lengths: Number of records of each length.
        labels: Number of labelled records, or of labelled steps for labels per step.
        label_counts: Number of labels of each class.
        missing: Number of missing values of each feature that allows nulls.
        sums: The exact sums of each feature (or label) with statistics; empty without records.
        copies: Number of records that are equal to another one, without the first of each.
    """

    lengths: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    labels: int = 0
    label_counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    missing: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    sums: dict[str, FeatureSums] = dataclasses.field(default_factory=dict)
    copies: int = 0

    def add(self, other: "Counts") -> None:
        """Adds the counts of other records."""
        self.lengths.update(other.lengths)
        self.labels += other.labels
        self.copies += other.copies
        self.label_counts.update(other.label_counts)
        self.missing.update(other.missing)
        for name, sums in other.sums.items():
            merged = merge_sums([self.sums.get(name), sums])
            assert merged is not None
            self.sums[name] = merged


class RecordCounter:
    """Counts records one by one.

    Args:
        schema: The schema of the records.
        with_sums: Whether to compute the sums.
        count_strings: Called with the name and the strings of each feature with a vocabulary, record by record.
    """

    def __init__(self, schema: Schema, *, with_sums: bool, count_strings: Callable[[str, list[bytes]], None]) -> None:
        self.schema = schema
        self._lengths: collections.Counter[int] = collections.Counter()
        # Steps of the last record, of which more parts may follow.
        self._length = 0
        self._labels = self._copies = 0
        self._classes: collections.Counter[int] = collections.Counter()
        self._missing = {name: 0 for name, feature in schema.features.items() if feature.allows_nulls}
        self._in_vocabulary = list(schema.vocabulary_sizes)
        self._count_strings = count_strings
        widths = schema.statistics_widths if with_sums else {}
        self._columns = {name: (width, ColumnSums(width)) for name, width in widths.items()}

    def add(self, example: dict[str, Values], num_steps: int, *, part: int = 0) -> None:
        """Counts a decoded Example that passed `check_example`.

        Args:
            part: Number of the part, which follows the parts before it. What the parts of a record repeat is counted in
                the first one.
        """
        if part == 0:
            self._end_record()
            self._copies += is_numbered_copy(bytes(example["id"][0]).decode(), self.schema)
        self._length += num_steps
        self._labels += count_labels(example, num_steps, self.schema, is_first=part == 0)
        name = self.schema.label.name
        if name is not None and self._counts(name, part):
            self._classes.update(named_classes(np.asarray(example[name]), self.schema.label).tolist())
        for name in self._missing:
            if self._counts(name, part):
                self._missing[name] += int(is_missing(example[name]).sum())
        for name in self._in_vocabulary:
            if self._counts(name, part):
                self._count_strings(name, list(example[name]))
        for name, (width, column) in self._columns.items():
            if self._counts(name, part):
                column.add(np.asarray(example[name]).reshape(-1, width))

    def _counts(self, name: str, part: int) -> bool:
        """Whether the values of a field are counted in this part."""
        return part == 0 or self.schema.is_per_step(name)

    def _end_record(self) -> None:
        if self._length:
            self._lengths[self._length] += 1
        self._length = 0

    def counts(self) -> Counts:
        """Returns the counts of the records that were added."""
        self._end_record()
        classes = self.schema.label.classes
        sums = {name: column.sums() for name, (_, column) in self._columns.items()}
        return Counts(
            lengths=self._lengths,
            labels=self._labels,
            label_counts=collections.Counter({class_name(c): self._classes[n] for n, c in enumerate(classes)}),
            missing=collections.Counter(self._missing),
            sums={name: total for name, total in sums.items() if total is not None},
            copies=self._copies,
        )


def compare_split(name: str, found: Counts, split: Split, schema: Schema) -> Iterator[str]:
    """Yields a message for each number of a split that does not match its records.

    Args:
        name: Name of the split.
        found: The counts of the records.
        split: The split in a manifest or a summary.
        schema: The schema in it.
    """
    place = f"splits.{name}"
    yield from compare_counts(f"{place}.length_counts", found.lengths, split.length_counts)
    if split.labels != found.labels:
        yield f"{place}.labels is {split.labels:,}, but the shards hold {found.labels:,}"
    yield from compare_counts(f"{place}.label_counts", found.label_counts, split.label_counts)
    yield from compare_counts(f"{place}.missing", found.missing, split.missing)
    if split.copies != found.copies:
        yield f"{place}.copies is {split.copies:,}, but the shards hold {found.copies:,}"
    at_max_length = found.lengths[schema.max_length or 0]
    if split.truncated > at_max_length:
        yield f"{place}.truncated is {split.truncated:,}, but {at_max_length:,} records have max_length steps"


def compare_counts(
    place: str, found: Mapping[Any, int], expected: Mapping[Any, int], *, holder: str = "the shards"
) -> Iterator[str]:
    """Yields a message for each count that does not match the count that was found.

    Args:
        place: Key of the counts in the manifest or summary.
        found: Counts of what `holder` contains.
        expected: Counts in the manifest or summary.
    """
    for key in sorted(found.keys() | expected.keys()):
        if found.get(key, 0) != expected.get(key, 0):
            yield f"{place}.{key} is {expected.get(key, 0):,}, but {holder} hold {found.get(key, 0):,}"


def compare_sums(found: Mapping[str, FeatureSums], expected: Mapping[str, FeatureSums]) -> Iterator[str]:
    """Yields a message for each feature whose sums in a summary are not those of the records.

    The message has the first number that is wrong. Columns are counted from 0.
    """
    for name in sorted(found.keys() | expected.keys()):
        if name not in found or name not in expected:
            which, other = ("missing", "have") if name in found else ("listed", "do not have")
            yield f"sums.{name} is {which}, but the shards {other} values to sum"
            continue
        one, other_sums = found[name], expected[name]
        for field in ("count", "missing", "sum", "sum_squares", "min", "max"):
            is_value, should_be = getattr(other_sums, field), getattr(one, field)
            if is_value != should_be:
                yield _describe_difference(f"sums.{name}.{field}", field, is_value, should_be)
                break


def _describe_difference(place: str, field: str, stored: Any, found: Any) -> str:
    if isinstance(stored, tuple):
        if len(stored) != len(found):
            return f"{place} has {len(stored):,} columns, but the shards give {len(found):,}"
        column = next(n for n, (a, b) in enumerate(zip(stored, found, strict=True)) if a != b)
        place, stored, found = f"{place}.{column}", stored[column], found[column]
    if unit := {"sum": SUM_UNIT, "sum_squares": SQUARES_UNIT}.get(field):
        stored, found = format_number(stored, unit=unit), format_number(found, unit=unit)
    return f"{place} is {stored}, but the shards give {found}"


def compare_statistics(
    found: Mapping[str, FeatureSums], expected: Mapping[str, FeatureStatistics], *, split: str, exact: bool
) -> Iterator[str]:
    """Yields a message for each feature whose statistics in the manifest do not match the records of a split.

    Args:
        found: The sums of the records.
        exact: Whether the statistics must be equal to the last bit.
    """
    for name in sorted(found.keys() | expected.keys()):
        statistics = found[name].statistics() if name in found else None
        # Those of format version 1 may be means of means, rounded many times. Newer ones are equal.
        if exact:
            is_right = statistics == expected.get(name)
        else:
            is_right = _are_close(statistics, expected.get(name))
        if not is_right:
            yield f"statistics.{name} does not match the records of {split}"


def _are_close(found: FeatureStatistics | None, expected: FeatureStatistics | None) -> bool:
    """Returns whether statistics are equal except for rounding."""
    if found is None or expected is None:
        return found is None and expected is None
    if len(expected.mean) != len(found.mean) or len(expected.variance) != len(found.mean):
        return False
    exact = ("count", "missing", "min", "max")
    if any(getattr(expected, name) != getattr(found, name) for name in exact):
        return False
    scale = np.maximum(np.abs(found.min), np.abs(found.max))
    mean_error = np.abs(np.subtract(expected.mean, found.mean))
    variance_error = np.abs(np.subtract(expected.variance, found.variance))
    variance_tolerance = 1e-9 * scale**2 + 1e-6 * np.array(found.variance)
    return bool((mean_error <= 1e-9 * scale).all() and (variance_error <= variance_tolerance).all())
