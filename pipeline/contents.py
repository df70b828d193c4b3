"""Looks into the records of a split: does each hold what the schema says, and what do they add up to."""

import collections
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.examples import Value
from pipeline.manifest import FeatureStatistics, Split
from pipeline.schema import Schema, class_name
from pipeline.statistics import Moments, merge
from pipeline.values import NO_LABEL

# Numbers of a feature that are summed at once: enough for NumPy to be fast, few enough for any machine.
_BLOCK_VALUES = 2**16
# What an Example holds in arrays, by NumPy's kind: to ask for a dtype's name takes as long as all other checks.
_DTYPES = {"f": "float32", "i": "int64"}


def check_example(example: dict[str, Value], schema: Schema) -> int:
    """The number of steps of a decoded Example that holds what the schema says, and nothing else.

    Raises:
        ValueError: names the feature, what it holds and what was expected.
    """
    label = schema.label
    names = sorted([*schema.steps, label.name, "length", "id"])
    if sorted(example) != names:
        raise ValueError(f"has the features {sorted(example)}, expected {names}")
    _check_values("length", example["length"], "int64", 1)
    _check_values("id", example["id"], "string", 1)
    num_steps = int(example["length"][0])
    if num_steps < 1:
        raise ValueError(f"length: {num_steps}, expected at least 1")
    for name, feature in schema.steps.items():
        _check_values(name, example[name], feature.dtype, num_steps * feature.width)
        if feature.dtype == "int64":
            _check_range(name, example[name], 0, feature.num_values)
    if label.kind in ("class", "step_class"):
        _check_values(label.name, example[label.name], "int64", num_steps if label.per_step else 1)
        _check_range(label.name, example[label.name], NO_LABEL if label.per_step else 0, len(label.classes))
    else:
        _check_values(label.name, example[label.name], "float32", max(len(label.classes), 1))
    return num_steps


def _check_values(name: str, values: Value, dtype: str, number: int) -> None:
    found = "string" if isinstance(values, list) else _DTYPES[values.dtype.kind]
    if found != dtype or len(values) != number:
        raise ValueError(f"{name}: {len(values):,} values of {found}, expected {number:,} of {dtype}")
    if dtype == "float32" and not np.isfinite(values).all():
        raise ValueError(f"{name}: {values[~np.isfinite(values)][0]}, expected a finite number")


def _check_range(name: str, values: Any, low: int, end: int | None) -> None:
    if end is not None and (values.min() < low or values.max() >= end):
        wrong = values[(values < low) | (values >= end)][0]
        raise ValueError(f"{name}: {wrong}, expected {low} to {end - 1}")


class Contents:
    """What lies in the records of a split, counted anew."""

    def __init__(self, schema: Schema, *, with_moments: bool) -> None:
        self.schema = schema
        self._lengths: collections.Counter[int] = collections.Counter()
        self._labels: collections.Counter[int] = collections.Counter()
        widths = schema.measured_widths if with_moments else {}
        self._columns = {name: _Column(width) for name, width in widths.items()}

    def add(self, example: dict[str, Value], num_steps: int) -> None:
        self._lengths[num_steps] += 1
        if self.schema.label.kind in ("class", "step_class"):
            self._labels.update(np.asarray(example[self.schema.label.name]).tolist())
        for name, column in self._columns.items():
            column.add(np.asarray(example[name]))

    def differences(self, name: str, split: Split, statistics: dict[str, FeatureStatistics]) -> Iterator[str]:
        """A message for each number of the manifest that is not that of the records."""
        yield from differences(f"splits.{name}.length_counts", dict(self._lengths), split.length_counts)
        labels = {class_name(c): self._labels[position] for position, c in enumerate(self.schema.label.classes)}
        yield from differences(f"splits.{name}.label_counts", labels, split.label_counts)
        longest = self._lengths[self.schema.max_length or 0]
        if split.truncated > longest:
            yield f"splits.{name}.truncated is {split.truncated:,}, but {longest:,} records have max_length steps"
        for feature in sorted(self._columns.keys() | statistics.keys()):
            moments = self._columns[feature].moments() if feature in self._columns else None
            if not _same_statistics(moments, statistics.get(feature)):
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
        self._block: list[np.ndarray[Any, Any]] = []
        self._num_values = 0
        self._total: Moments | None = None

    def add(self, values: np.ndarray[Any, Any]) -> None:
        # Decoded values are a view of the record's bytes: one number would keep a whole record in memory.
        self._block.append(values.copy())
        self._num_values += len(values)
        if self._num_values >= _BLOCK_VALUES:
            self.moments()

    def moments(self) -> Moments | None:
        """The moments of all that was added; None where nothing was."""
        if self._block:
            rows = np.concatenate(self._block).reshape(-1, self._width)
            self._total = merge([self._total, Moments.of(rows)])
            self._block, self._num_values = [], 0
        return self._total


def _same_statistics(moments: Moments | None, told: FeatureStatistics | None) -> bool:
    """Whether both are the same but for rounding: blocks are cut elsewhere than where the dataset was made."""
    if moments is None or told is None:
        return moments is None and told is None
    if len(told.mean) != len(moments.mean) or len(told.variance) != len(moments.mean) or told.count != moments.count:
        return False
    if told.min != tuple(moments.minimum.tolist()) or told.max != tuple(moments.maximum.tolist()):
        return False
    scale = np.maximum(abs(moments.minimum), abs(moments.maximum))
    mean_off = abs(np.array(told.mean) - moments.mean)
    variance_off = abs(np.array(told.variance) - moments.variance)
    return bool((mean_off <= 1e-9 * scale).all() and (variance_off <= 1e-9 * scale**2 + 1e-6 * moments.variance).all())
