"""Checks that the parts of a record follow one another and make up the whole record."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.errors import counted
from pipeline.format.index import NUM_LABELS
from pipeline.format.stored_fields import stored_fields
from pipeline.schema.record import Values, is_missing
from pipeline.schema.schema import NEXT_STEP, Schema

# The columns of an index that differ between the parts of a record.
_OF_PART = ("offset", "num_bytes", "num_steps", "part", NUM_LABELS)


class PartCheck:
    """Finds the parts of each record of a shard in its Examples, and checks them.

    An Example that has the same id as the one before is its next part, if the schema stores parts.

    Attributes:
        records: Number of records so far.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._repeated = [field.name for field in stored_fields(schema) if not field.per_step]
        self._repeated = ["id", *(name for name in self._repeated if name not in ("length", NEXT_STEP))]
        self._first: dict[str, Values] = {}
        self._first_row: Mapping[str, Any] | None = None
        self._next_step: Values | None = None
        self._num_steps = self._part = 0
        self.records = 0

    def add(self, example: dict[str, Values], num_steps: int) -> int:
        """Returns the number of the part that a decoded Example is, 0 for the first part of a record.

        Raises:
            ValueError: The part does not continue the record, or has more steps than a part may have.
        """
        schema = self._schema
        if schema.stores_parts and num_steps > (schema.max_length or 0):
            raise ValueError(f"has {counted(num_steps, 'step')}, but a part has at most {schema.max_length:,}")
        if not schema.stores_parts or not self._first or list(example["id"]) != list(self._first["id"]):
            self.finish()
            # Copies, since the values are views of the bytes of the whole Example.
            self._first = {name: _copy(example[name]) for name in self._repeated}
            self._first_row, self._part = None, 0
            self.records += 1
        else:
            self._part += 1
            self._check_next(example)
        self._num_steps = num_steps
        self._next_step = _copy(example[NEXT_STEP]) if schema.stores_next_step else None
        return self._part

    def _check_next(self, example: dict[str, Values]) -> None:
        """Raises a ValueError unless an Example continues the part before it."""
        if self._num_steps != self._schema.max_length:
            raise ValueError(
                f"part {self._part} follows a part of {counted(self._num_steps, 'step')}, expected "
                f"{self._schema.max_length:,} in every part but the last"
            )
        for name in self._repeated:
            if not _are_equal(example[name], self._first[name]):
                raise ValueError(f"{name}: part {self._part} has another value than part 0 of the same record")
        if self._next_step is not None:
            feature = str(self._schema.label.next_of)
            first = example[feature][: len(self._next_step)]
            if not _are_equal(first, self._next_step):
                raise ValueError(f"{feature}: the first step is not the {NEXT_STEP} of the part before it")

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Raises a ValueError if the row of the index of the last Example contradicts that of the first part."""
        if self._first_row is None:
            self._first_row = row
            return
        for name, value in self._first_row.items():
            if name not in _OF_PART and row[name] != value and not (value != value and row[name] != row[name]):
                raise ValueError(f"the index has the {name} {row[name]!r}, but {value!r} for part 0 of the record")

    def finish(self) -> None:
        """Raises a ValueError if the last record lacks a part, or its number of parts is not that of the index."""
        if self._next_step is not None and not is_missing(self._next_step).all():
            raise ValueError(f"the record before it ends with a {NEXT_STEP}, so that a part of it is missing")
        if self._first_row is not None and self._first_row["num_parts"] != self._part + 1:
            raise ValueError(
                f"the record before it has {counted(self._part + 1, 'part')}, but the index says "
                f"{self._first_row['num_parts']:,}"
            )


def _copy(values: Values) -> Values:
    return list(values) if isinstance(values, list) else values.copy()


def _are_equal(some: Values, others: Values) -> bool:
    if isinstance(some, list):
        return some == others
    return np.array_equal(some, others, equal_nan=some.dtype.kind == "f")
