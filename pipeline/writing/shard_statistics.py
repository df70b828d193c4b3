"""Counts the labels and missing values in the records of a shard, and sums up its numbers."""

import collections
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from pipeline.format.batch_decoding import decode_columns
from pipeline.format.examples import decode_example
from pipeline.format.index import index_label
from pipeline.format.statistics import ColumnSums
from pipeline.format.stored_fields import stored_fields
from pipeline.format.tfrecord import FOOTER_BYTES, FRAME_BYTES
from pipeline.schema.labels import class_name
from pipeline.schema.record import Array, is_missing, named_classes
from pipeline.schema.schema import Schema

# For each field: the values of all records, joined, and int64[records], the number of values of each record.
_Columns: TypeAlias = dict[str, tuple[Any, Array]]


def make_sums(schema: Schema) -> dict[str, ColumnSums]:
    """Returns empty sums of each feature (or label) that has statistics. They take much memory."""
    return {name: ColumnSums(width) for name, width in schema.statistics_widths.items()}


class ShardStatistics:
    """Statistics of the records of a shard, updated block by block.

    Attributes:
        label_counts: Number of labels of each class.
        missing: Number of missing values of each feature that allows nulls.

    Args:
        sums: The sums of each feature (or label) that has statistics, to which those of the records are added; empty
            without sums.
        count_strings: Called with the name and the strings of each feature with a vocabulary, block by block.
    """

    def __init__(
        self, schema: Schema, *, sums: Mapping[str, ColumnSums], count_strings: Callable[[str, list[bytes]], None]
    ) -> None:
        self._label = schema.label
        self._fields = stored_fields(schema)
        self._has_strings = any(field.dtype == "string" for field in self._fields)
        self._class_names = [class_name(c) for c in schema.label.classes]
        self._widths, self._sums = schema.statistics_widths, sums
        self.label_counts: collections.Counter[str] = collections.Counter()
        self.missing = {name: 0 for name, feature in schema.features.items() if feature.allows_nulls}
        self._in_vocabulary = schema.vocabulary_sizes
        self._count_strings = count_strings

    def add(self, records: list[bytes], framed: Sequence[bytes]) -> list[Any]:
        """Adds a block of records, and returns the label of each as the index stores it.

        Args:
            records: The serialized Example of each record.
            framed: The frames of the records, joined; or the three pieces of the frame of a single large record.
        """
        if self._has_strings:
            columns = _decode_with_strings(records)
        else:
            sizes = np.array([len(record) for record in records])
            is_joined = len(framed) == 1
            data, end = (framed[0], np.cumsum(sizes + FRAME_BYTES) - FOOTER_BYTES) if is_joined else (framed[1], sizes)
            columns = decode_columns(data, end - sizes, end, self._fields)
        for name in self.missing:
            self.missing[name] += int(is_missing(columns[name][0]).sum())
        for name in self._in_vocabulary:
            self._count_strings(name, columns[name][0])
        for name, sums in self._sums.items():
            sums.add(columns[name][0].reshape(-1, self._widths[name]))
        return self._count_labels(columns, len(records))

    def _count_labels(self, columns: _Columns, num_records: int) -> list[Any]:
        label = self._label
        if label.name is None:
            return [None] * num_records
        values, counts = columns[label.name]
        classes, totals = np.unique(named_classes(values, label), return_counts=True)
        for position, total in zip(classes.tolist(), totals.tolist(), strict=True):
            self.label_counts[self._class_names[position]] += total
        if label.kind == "class":  # the same as `index_label`, for all records at once
            return [self._class_names[position] for position in values.tolist()]
        return [index_label(part, label) for part in np.split(values, np.cumsum(counts)[:-1])]


def _decode_with_strings(records: list[bytes]) -> _Columns:
    """Decodes Examples as `decode_columns` does, and also string fields, whose values are a list of bytes."""
    examples = list(map(decode_example, records))
    columns: _Columns = {}
    for name, first in examples[0].items():
        parts: Any = [example[name] for example in examples]
        joined = [*itertools.chain(*parts)] if isinstance(first, list) else np.concatenate(parts)
        columns[name] = joined, np.array([len(part) for part in parts])
    return columns
