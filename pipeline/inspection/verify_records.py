"""Checks single records: an Example against the schema, and its row of the index against the manifest."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pipeline.format.index import EVENT_TIME, KEY
from pipeline.format.manifest import Manifest
from pipeline.format.models import TRAIN, Shard
from pipeline.format.stored_fields import stored_fields
from pipeline.inspection.verify_log import Sources
from pipeline.schema.features import Feature
from pipeline.schema.labels import MULTILABEL, ONE_CLASS, Label
from pipeline.schema.record import MISSING_INTEGER, MISSING_STRING, NO_LABEL, Values, is_missing
from pipeline.schema.schema import NEXT_STEP, NamedSplits, Schema
from pipeline.schema.windows import EventWindows
from pipeline.shuffle.copies import first_id, split_copy_id
from pipeline.shuffle.hashing import choose_moved, choose_split, key_number, order_key

# Type names by NumPy's kind. Reading the name of a dtype takes as long as all other checks together.
_DTYPES = {"f": "float32", "i": "int64"}


def check_example(example: dict[str, Values], schema: Schema) -> int:
    """Checks that a decoded Example has the features of the schema and no others, and returns its number of steps.

    Raises:
        ValueError: Names the feature, the value found and the value expected.
    """
    label = schema.label
    names = sorted([field.name for field in stored_fields(schema)] + ["id"])
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
        _check_allowed(label.next_of, example[label.next_of], (0, 1), "0 or 1 for a multilabel next_of")
    if schema.stores_next_step:
        feature = schema.steps[str(label.next_of)]
        # Missing in the last part, so that a feature that allows no missing value has one here.
        if not is_missing(example[NEXT_STEP]).all():
            _check_feature(NEXT_STEP, example[NEXT_STEP], feature, feature.width)
        _check_values(NEXT_STEP, example[NEXT_STEP], feature.dtype, feature.width)
    return num_steps


def _check_feature(name: str, values: Values, feature: Feature, num_values: int) -> None:
    _check_values(name, values, feature.dtype, num_values)
    if isinstance(values, list):
        _check_strings(name, values, allows_nulls=feature.allows_nulls)
    elif feature.dtype == "float32":
        _check_finite(name, values, allows_nulls=feature.allows_nulls)
    else:
        _check_range(name, values, MISSING_INTEGER if feature.allows_nulls else 0, feature.num_values)


def _check_label(name: str, values: Values, label: Label, rows: int) -> None:
    per_class = label.kind in ("distribution", *MULTILABEL)
    dtype = "int64" if label.kind in (*ONE_CLASS, *MULTILABEL) else "float32"
    _check_values(name, values, dtype, rows * len(label.classes) if per_class else rows)
    assert isinstance(values, np.ndarray)
    if label.kind in ONE_CLASS:
        _check_range(name, values, NO_LABEL if label.per_step else 0, len(label.classes))
    elif label.kind == "multilabel":
        _check_allowed(name, values, (0, 1), "0 or 1")
    elif label.kind == "step_multilabel":
        _check_allowed(name, values, (0, 1, NO_LABEL), "0 or 1, or -1 in a step without label")
        unlabelled = (values == NO_LABEL).reshape(rows, -1)
        if (unlabelled.any(axis=1) != unlabelled.all(axis=1)).any():
            raise ValueError(f"{name}: -1 for some classes of a step, expected it for all or none")
    else:
        _check_finite(name, values, allows_nulls=label.kind == "step_regression")


def _check_values(name: str, values: Values, dtype: str, num_values: int) -> None:
    found = "string" if isinstance(values, list) else _DTYPES[values.dtype.kind]
    if found != dtype or len(values) != num_values:
        raise ValueError(f"{name}: {len(values):,} values of {found}, expected {num_values:,} of {dtype}")


def _check_finite(name: str, values: Any, *, allows_nulls: bool) -> None:
    wrong = np.isinf(values) if allows_nulls else ~np.isfinite(values)
    if wrong.any():
        raise ValueError(f"{name}: {values[wrong][0]}, expected a finite number" + (" or NaN" if allows_nulls else ""))


def _check_range(name: str, values: Any, low: int, end: int | None) -> None:
    """Raises a ValueError unless all values are in [low, end)."""
    if end is not None and (values.min() < low or values.max() >= end):
        wrong = values[(values < low) | (values >= end)][0]
        raise ValueError(f"{name}: {wrong}, expected {low} to {end - 1}")


def _check_allowed(name: str, values: Any, allowed: tuple[int, ...], expected: str) -> None:
    # NaN, a null, was checked before.
    wrong = values[~(np.isin(values, allowed) | np.isnan(values))]
    if len(wrong):
        raise ValueError(f"{name}: {wrong[0]}, expected {expected}")


def _check_strings(name: str, values: Any, *, allows_nulls: bool) -> None:
    present = [value for value in values if value != MISSING_STRING] if allows_nulls else values
    try:
        # Decodes all strings at once. A multi-byte character contains no zero byte, so none can span two strings.
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


class OriginCheck:
    """Checks that the records of a split belong to it and come from raw files that the dataset lists.

    Args:
        sources: The raw files; empty if they are unknown.
        count_group: Called with the group of each record, in UTF-8, in a list. None if groups are not counted.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        sources: Sources,
        count_group: Callable[[list[bytes]], None] | None = None,
    ) -> None:
        self._schema = manifest.record_schema
        self._seed = manifest.seed
        self._split = split
        self._sources = sources
        self._count_group = count_group

    def check(self, row: Mapping[str, Any]) -> None:
        """Raises a ValueError if the group, the split or the source of a row of the index is wrong."""
        group, source = row["group"], row["source"]
        if (group is None) != (self._schema.group is None):
            raise ValueError(f"the index has the group {group!r}, but the schema has the group {self._schema.group!r}")
        # A dataset of records that came from no file lists no sources.
        if self._sources.paths and source is not None and source not in self._sources.paths:
            raise ValueError(f"the index has the source {source!r}, but the dataset does not list it")
        key = first_id(row["id"], self._schema) if group is None else group
        self._check_split(key, source, kind="id" if group is None else "group")
        if self._count_group is not None:
            self._count_group([group.encode()])

    def _check_split(self, key: str, source: str | None, *, kind: str) -> None:
        """Raises a ValueError if a record with this group (or id) and source does not belong to the split."""
        splits = self._schema.splits
        if not isinstance(splits, NamedSplits):
            expected = choose_split(key, splits, seed=self._seed)
            if expected != self._split:
                raise ValueError(f"its {kind} {key!r} belongs to the split {expected}, not to {self._split}")
            return
        moved = choose_moved(key, splits.moved, seed=self._seed)
        if self._split == TRAIN and moved != TRAIN:
            raise ValueError(f"its {kind} {key!r} belongs to the split {moved}, not to {self._split}")
        by_split = self._sources.by_split
        if not by_split or source is None or source in by_split.get(self._split, ()):
            return  # the record, or its raw file, may have named this split
        if moved != self._split or source not in by_split.get(TRAIN, ()):
            given = ", ".join(name for name, paths in by_split.items() if source in paths)
            raise ValueError(f"its raw file {source!r} was given for the split {given}, not for {self._split}")


class TimeCheck:
    """Checks the event times in the index of a shard against its window, and its oldest and newest event time.

    Args:
        windows: The windows of the dataset; None if it has none.
        shard: The manifest's entry.
    """

    def __init__(self, windows: EventWindows | None, shard: Shard) -> None:
        self._windows, self._shard = windows, shard
        self._times: list[int] = []

    def check(self, row: Mapping[str, Any]) -> None:
        """Raises a ValueError if the event time of a row of the index is not in the window of the shard."""
        if self._windows is None or self._shard.window is None:
            return
        time = row[EVENT_TIME]
        if time is None or self._windows.start_of(time) != self._shard.window:
            raise ValueError(
                f"the index has the event time {time} µs, but the shard has the window {self._shard.window} s to "
                f"{self._shard.window + self._windows.seconds} s"
            )
        # Only the oldest and the newest so far.
        self._times = [min(time, *self._times), max(time, *self._times)] if self._times else [time]

    def finish(self) -> None:
        """Raises a ValueError if the oldest or the newest event time is another one than the manifest says."""
        for name, expected, choose in (("oldest", self._shard.oldest, min), ("newest", self._shard.newest, max)):
            if self._times and choose(self._times) != expected:
                raise ValueError(f"the {name} event time is {choose(self._times)}, but the manifest says {expected}")


class KeyCheck:
    """Checks the keys of the rows of a shard's index.

    Args:
        keys: The range [first, end) of the shard.

    Attributes:
        with_key: Whether an index has keys. Those of format version 1 have none.
    """

    def __init__(self, manifest: Manifest, keys: tuple[int, int]) -> None:
        self.with_key = manifest.format_version > 1
        self._schema = manifest.record_schema
        self._seed = manifest.seed
        self._first, self._end = keys
        self._last = 0
        self._last_id: str | None = None

    def check(self, row: Mapping[str, Any]) -> None:
        """Raises a ValueError if the key of the next row is not that of its id, or does not belong here.

        So does an id that is that of the record before, or a copy with a smaller number.
        """
        if not self.with_key:
            return
        first = first_id(row["id"], self._schema)
        key, expected = row[KEY], key_number(order_key(first, seed=self._seed))
        if key != expected:
            raise ValueError(f"the index has the key {key}, but the id {row['id']!r} has the key {expected}")
        if not self._first <= key < self._end:
            raise ValueError(f"its key {key} is not in the range of this shard, {self._first} to {self._end - 1}")
        if key < self._last:
            raise ValueError(f"its key {key} is less than the key of the record before, {self._last}")
        if self._last_id is not None and first == first_id(self._last_id, self._schema):
            if split_copy_id(row["id"])[1] <= split_copy_id(self._last_id)[1]:
                raise ValueError(f"its id {row['id']!r} follows the id {self._last_id!r}, expected another id")
        self._last, self._last_id = key, row["id"]
