"""Looks into the records of a split: does each hold what the schema says, and what do they add up to."""

import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.format.manifest import FeatureStatistics, Split
from pipeline.format.statistics import Moments, merge_moments
from pipeline.format.vocabulary import count_unknown
from pipeline.schema.features import Feature
from pipeline.schema.labels import MULTILABEL, ONE_CLASS, Label, class_name
from pipeline.schema.record import (
    MISSING_INTEGER,
    MISSING_STRING,
    NO_LABEL,
    Array,
    ParsedRecord,
    Values,
    is_missing,
    named_classes,
    num_labels,
)
from pipeline.schema.schema import Schema

# Numbers of a feature that are summed at once: enough for NumPy to be fast, few enough for any machine.
_BLOCK_VALUES = 2**16
# What an Example holds in arrays, by NumPy's kind: to ask for a dtype's name takes as long as all other checks.
_DTYPES = {"f": "float32", "i": "int64"}


def check_example(example: dict[str, Values], schema: Schema) -> int:
    """The number of steps of a decoded Example that holds what the schema says, and nothing else.

    Raises:
        ValueError: names the feature, what it holds and what was expected.
    """
    label = schema.label
    names = sorted([*schema.features, *([] if label.name is None else [label.name]), "length", "id"])
    if sorted(example) != names:
        raise ValueError(f"has the features {sorted(example)}, expected {names}")
    _check_values("length", example["length"], "int64", 1)
    _check_values("id", example["id"], "string", 1)
    _check_strings("id", example["id"], allows_nulls=False)
    num_steps = int(example["length"][0])
    if num_steps < 1:
        raise ValueError(f"length: {num_steps}, expected at least 1")
    for name, feature in schema.features.items():
        rows = num_steps if name in schema.steps else 1
        _check_feature(name, example[name], feature, rows * feature.width)
    if label.name is not None:
        _check_label(label.name, example[label.name], label, num_steps if label.per_step else 1)
    elif label.kind == "step_multilabel":
        assert label.next_of is not None
        _check_numbers(label.next_of, example[label.next_of], (0, 1), "0 or 1 for a multilabel next_of")
    return num_steps


def _check_feature(name: str, values: Values, feature: Feature, number: int) -> None:
    _check_values(name, values, feature.dtype, number)
    if isinstance(values, list):
        _check_strings(name, values, allows_nulls=feature.allows_nulls)
    elif feature.dtype == "float32":
        _check_finite(name, values, allows_nulls=feature.allows_nulls)
    else:
        _check_range(name, values, MISSING_INTEGER if feature.allows_nulls else 0, feature.num_values)


def _check_label(name: str, values: Values, label: Label, rows: int) -> None:
    of_classes = label.kind in ("distribution", *MULTILABEL)
    dtype = "int64" if label.kind in (*ONE_CLASS, *MULTILABEL) else "float32"
    _check_values(name, values, dtype, rows * len(label.classes) if of_classes else rows)
    assert isinstance(values, np.ndarray)
    if label.kind in ONE_CLASS:
        _check_range(name, values, NO_LABEL if label.per_step else 0, len(label.classes))
    elif label.kind == "multilabel":
        _check_numbers(name, values, (0, 1), "0 or 1")
    elif label.kind == "step_multilabel":
        _check_numbers(name, values, (0, 1, NO_LABEL), "0 or 1, or -1 in a step without label")
        none = (values == NO_LABEL).reshape(rows, -1)
        if (none.any(axis=1) != none.all(axis=1)).any():
            raise ValueError(f"{name}: -1 for some classes of a step, expected it for all or none")
    else:
        _check_finite(name, values, allows_nulls=label.kind == "step_regression")


def _check_values(name: str, values: Values, dtype: str, number: int) -> None:
    found = "string" if isinstance(values, list) else _DTYPES[values.dtype.kind]
    if found != dtype or len(values) != number:
        raise ValueError(f"{name}: {len(values):,} values of {found}, expected {number:,} of {dtype}")


def _check_finite(name: str, values: Any, *, allows_nulls: bool) -> None:
    wrong = np.isinf(values) if allows_nulls else ~np.isfinite(values)
    if wrong.any():
        raise ValueError(f"{name}: {values[wrong][0]}, expected a finite number" + (" or NaN" if allows_nulls else ""))


def _check_range(name: str, values: Any, low: int, end: int | None) -> None:
    if end is not None and (values.min() < low or values.max() >= end):
        wrong = values[(values < low) | (values >= end)][0]
        raise ValueError(f"{name}: {wrong}, expected {low} to {end - 1}")


def _check_numbers(name: str, values: Any, allowed: tuple[int, ...], expected: str) -> None:
    # Whether a value may be missing was asked before.
    wrong = values[~(np.isin(values, allowed) | np.isnan(values))]
    if len(wrong):
        raise ValueError(f"{name}: {wrong[0]}, expected {expected}")


def _check_strings(name: str, values: Any, *, allows_nulls: bool) -> None:
    present = [value for value in values if value != MISSING_STRING] if allows_nulls else values
    try:
        # All at once; no character of several bytes goes on after a zero, so none can hide between two strings.
        b"\0".join(present).decode()
    except UnicodeDecodeError:
        wrong = next(value for value in present if not _is_text(value))
        raise ValueError(f"{name}: {wrong!r}, expected text in UTF-8") from None


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


class Contents:
    """What lies in the records of a split, counted anew."""

    def __init__(self, schema: Schema, *, with_moments: bool) -> None:
        self.schema = schema
        self._lengths: collections.Counter[int] = collections.Counter()
        self._labels = 0
        self._label_counts: collections.Counter[int] = collections.Counter()
        self._missing: collections.Counter[str] = collections.Counter()
        self._strings: dict[str, collections.Counter[bytes]] = {
            name: collections.Counter() for name, feature in schema.features.items() if feature.vocabulary is not None
        }
        widths = schema.statistics_widths if with_moments else {}
        self._columns = {name: _Column(width) for name, width in widths.items()}

    def add(self, example: dict[str, Values], num_steps: int) -> None:
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
        for name, column in self._columns.items():
            column.add(np.asarray(example[name]))

    def strings(self, name: str) -> Mapping[bytes, int]:
        """How often each string of a feature with a vocabulary occurs."""
        return self._strings[name]

    def differences(
        self,
        name: str,
        split: Split,
        statistics: dict[str, FeatureStatistics],
        vocabularies: Mapping[str, Sequence[bytes]],
    ) -> Iterator[str]:
        """A message for each number of the manifest that is not that of the records.

        Args:
            vocabularies: Those that could be read.
        """
        place = f"splits.{name}"
        yield from differences(f"{place}.length_counts", dict(self._lengths), split.length_counts)
        if split.labels != self._labels:
            yield f"{place}.labels is {split.labels:,}, but the shards hold {self._labels:,}"
        labels = {class_name(c): self._label_counts[position] for position, c in enumerate(self.schema.label.classes)}
        yield from differences(f"{place}.label_counts", labels, split.label_counts)
        yield from differences(f"{place}.missing", dict(self._missing), split.missing)
        unknown = {n: count_unknown(self._strings[n], terms) for n, terms in vocabularies.items()}
        told = {n: count for n, count in split.unknown.items() if n in unknown}
        yield from differences(f"{place}.unknown", unknown, told)
        longest = self._lengths[self.schema.max_length or 0]
        if split.truncated > longest:
            yield f"{place}.truncated is {split.truncated:,}, but {longest:,} records have max_length steps"
        for feature in sorted(self._columns.keys() | statistics.keys()):
            moments = self._columns[feature].moments() if feature in self._columns else None
            found = None if moments is None else moments.statistics()
            if not _same_statistics(found, statistics.get(feature)):
                yield f"statistics.{feature} are not those of the records of {name}"


def differences(
    place: str, found: dict[Any, int], told: dict[Any, int], *, holder: str = "the shards"
) -> Iterator[str]:
    """A message for each count at `place` of the manifest that is not the one found in what holds them."""
    for key in sorted(found.keys() | told.keys()):
        if found.get(key, 0) != told.get(key, 0):
            yield f"{place}.{key} is {told.get(key, 0):,}, but {holder} hold {found.get(key, 0):,}"


class _Column:
    """The moments of one feature, summed block by block."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._block: list[Array] = []
        self._num_values = 0
        self._total: Moments | None = None

    def add(self, values: Array) -> None:
        # Decoded values are a view of the record's bytes: one number would keep a whole record in memory.
        self._block.append(values.copy())
        self._num_values += len(values)
        if self._num_values >= _BLOCK_VALUES:
            self.moments()

    def moments(self) -> Moments | None:
        """The moments of all that was added; None where nothing was."""
        if self._block:
            rows = np.concatenate(self._block).reshape(-1, self._width)
            self._total = merge_moments([self._total, Moments.of(rows)])
            self._block, self._num_values = [], 0
        return self._total


def _same_statistics(found: FeatureStatistics | None, told: FeatureStatistics | None) -> bool:
    """Whether both are the same but for rounding: blocks are cut elsewhere than where the dataset was made."""
    if found is None or told is None:
        return found is None and told is None
    if len(told.mean) != len(found.mean) or len(told.variance) != len(found.mean):
        return False
    if (told.count, told.missing, told.min, told.max) != (found.count, found.missing, found.min, found.max):
        return False
    scale = np.maximum(np.abs(found.min), np.abs(found.max))
    mean_off = np.abs(np.subtract(told.mean, found.mean))
    variance_off = np.abs(np.subtract(told.variance, found.variance))
    allowed = 1e-9 * scale**2 + 1e-6 * np.array(found.variance)
    return bool((mean_off <= 1e-9 * scale).all() and (variance_off <= allowed).all())
