"""Counts the records of a split again, to compare the counts and statistics of the manifest with them."""

import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.format.models import FeatureStatistics, Split
from pipeline.format.statistics import ColumnSums
from pipeline.format.vocabulary import count_unknown
from pipeline.schema.labels import class_name
from pipeline.schema.record import MISSING_STRING, ParsedRecord, Values, is_missing, named_classes, num_labels
from pipeline.schema.schema import Schema


class SplitCounts:
    """The counts of the records of one split.

    Args:
        with_sums: Whether to compute the statistics too.
    """

    def __init__(self, schema: Schema, *, with_sums: bool) -> None:
        self.schema = schema
        self._lengths: collections.Counter[int] = collections.Counter()
        self._labels = 0
        self._label_counts: collections.Counter[int] = collections.Counter()
        self._missing: collections.Counter[str] = collections.Counter()
        self._strings: dict[str, collections.Counter[bytes]] = {
            name: collections.Counter() for name, feature in schema.features.items() if feature.vocabulary is not None
        }
        widths = schema.statistics_widths if with_sums else {}
        self._columns = {name: (width, ColumnSums(width)) for name, width in widths.items()}

    def add(self, example: dict[str, Values], num_steps: int) -> None:
        """Counts a decoded Example that passed `check_example`."""
        self._lengths[num_steps] += 1
        name = self.schema.label.name
        label = None if name is None else np.asarray(example[name])
        self._labels += num_labels(ParsedRecord("", num_steps, example, label), self.schema)
        if label is not None:
            self._label_counts.update(named_classes(label, self.schema.label).tolist())
        for name, feature in self.schema.features.items():
            if feature.allows_nulls:
                self._missing[name] += int(is_missing(example[name]).sum())
        for name, counts in self._strings.items():
            counts.update(value for value in example[name] if value != MISSING_STRING)
        for name, (width, column) in self._columns.items():
            column.add(np.asarray(example[name]).reshape(-1, width))

    def strings(self, name: str) -> Mapping[bytes, int]:
        """Returns the number of occurrences of each string of a feature with a vocabulary."""
        return self._strings[name]

    def compare(
        self,
        name: str,
        split: Split,
        statistics: dict[str, FeatureStatistics],
        vocabularies: Mapping[str, Sequence[bytes]],
        *,
        exact: bool,
    ) -> Iterator[str]:
        """Yields a message for each number of the manifest that does not match the records.

        Args:
            name: Name of the split.
            split: The split in the manifest.
            statistics: The statistics in the manifest; empty if they are not of this split.
            vocabularies: The vocabularies that could be read, by feature.
            exact: Whether the statistics must be equal to the last bit.
        """
        place = f"splits.{name}"
        yield from compare_counts(f"{place}.length_counts", dict(self._lengths), split.length_counts)
        if split.labels != self._labels:
            yield f"{place}.labels is {split.labels:,}, but the shards hold {self._labels:,}"
        labels = {class_name(c): self._label_counts[position] for position, c in enumerate(self.schema.label.classes)}
        yield from compare_counts(f"{place}.label_counts", labels, split.label_counts)
        yield from compare_counts(f"{place}.missing", dict(self._missing), split.missing)
        unknown = {n: count_unknown(self._strings[n], terms) for n, terms in vocabularies.items()}
        expected_unknown = {n: count for n, count in split.unknown.items() if n in unknown}
        yield from compare_counts(f"{place}.unknown", unknown, expected_unknown)
        at_max_length = self._lengths[self.schema.max_length or 0]
        if split.truncated > at_max_length:
            yield f"{place}.truncated is {split.truncated:,}, but {at_max_length:,} records have max_length steps"
        for feature in sorted(self._columns.keys() | statistics.keys()):
            sums = self._columns[feature][1].sums() if feature in self._columns else None
            found = None if sums is None else sums.statistics()
            # Those of format version 1 may be means of means, rounded many times. Newer ones are equal.
            is_right = found == statistics.get(feature) if exact else _are_close(found, statistics.get(feature))
            if not is_right:
                yield f"statistics.{feature} does not match the records of {name}"


def compare_counts(
    place: str, found: dict[Any, int], expected: dict[Any, int], *, holder: str = "the shards"
) -> Iterator[str]:
    """Yields a message for each count of the manifest that does not match the count that was found.

    Args:
        place: Key of the counts in the manifest.
        found: Counts of what `holder` contains.
        expected: Counts in the manifest.
    """
    for key in sorted(found.keys() | expected.keys()):
        if found.get(key, 0) != expected.get(key, 0):
            yield f"{place}.{key} is {expected.get(key, 0):,}, but {holder} hold {found.get(key, 0):,}"


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
