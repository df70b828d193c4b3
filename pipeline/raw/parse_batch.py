"""Parses the lines of a batch together, so that NumPy converts and checks the numbers of hundreds of records at once.

This module takes the records that are easy to check, and leaves all other lines to the parser of single lines, which
finds each fault. Both give the same values, as the tests prove.

pyarrow.json was measured in place of simdjson: it reads 60 MB/s of such lines, and simdjson 300 MB/s.
"""

from typing import Any, NamedTuple

import numpy as np
import simdjson

from pipeline.raw.json_arrays import BUFFER_TYPES, MANY_NAMES, count_rows, flatten, is_large, parse_document
from pipeline.raw.json_lines import LineBatch
from pipeline.raw.records import LIMITS, Limits, parse_id, parse_other_fields, parse_time
from pipeline.raw.rejects import RecordError
from pipeline.schema.features import Feature
from pipeline.schema.record import Array, ParsedRecord
from pipeline.schema.record_batch import RecordBatch
from pipeline.schema.schema import Schema, SplitFromField
from pipeline.schema.windows import EventWindows

# After a batch of at least this number of lines of which fewer than half were parsed here, all are left.
_MIN_LINES = 64
_LONG_BYTES = 2**13


class ParsedBatch(NamedTuple):
    """What `BatchParser.parse` made of a batch of lines.

    Attributes:
        records: The records of the lines that it parsed.
        lines: These lines, in the same order.
        rest: The other lines, for `parse_lines`.
    """

    records: RecordBatch
    lines: LineBatch
    rest: LineBatch


class _StepField(NamedTuple):
    """A step feature, its field, and the type of its numbers in simdjson and in NumPy."""

    name: str
    field: str
    feature: Feature
    of_type: Any
    dtype: str


class _Line(NamedTuple):
    """A line that was read: the record without its step features, and the numbers of each of these as a buffer."""

    record: ParsedRecord
    numbers: list[Any]


class BatchParser:
    """Parses batches of lines.

    Args:
        schema: A schema for which `can_parse` is true.
        limits, windows: As for `parse_line`.
    """

    def __init__(self, schema: Schema, *, limits: Limits = LIMITS, windows: EventWindows | None = None) -> None:
        self._schema, self._limits, self._windows = schema, limits, windows
        fields = schema.raw_fields
        self._steps = [
            _StepField(name, fields[name], feature, *BUFFER_TYPES[feature.dtype])
            for name, feature in schema.steps.items()
        ]
        others = [schema.id, schema.label.field, schema.group, *map(fields.get, schema.context)]
        if isinstance(schema.splits, SplitFromField):
            others.append(schema.splits.field)
        if windows is not None:
            others.append(windows.field)
        self._others = {field for field in others if field is not None}
        self._num_fields = len(self._others) + len(self._steps)
        self._max_steps = limits.record_steps
        if schema.max_length is not None and not schema.stores_parts:
            self._max_steps = min(self._max_steps, schema.max_length)
        # simdjson ends a name at a null character when it looks it up.
        self._leaves_all = "\0" in "".join([*self._others, *(step.field for step in self._steps)])

    @staticmethod
    def can_parse(schema: Schema) -> bool:
        """Whether records of a schema can be parsed in batches.

        They have an id, all step features are numbers, and the label is one per record and of known classes.
        """
        fields, label = schema.raw_fields, schema.label
        return (
            schema.id is not None
            and not (label.per_step or label.next_of is not None or label.is_open)
            and all(f.dtype in BUFFER_TYPES and fields[name] in schema.array_steps for name, f in schema.steps.items())
        )

    def parse(self, batch: LineBatch) -> ParsedBatch:
        """Parses those lines of a batch that it can. Removes the lines from `batch`."""
        read: dict[int, _Line] = {}
        if not self._leaves_all:
            for place, line in enumerate(batch.lines):
                if (found := self._read_line(line)) is not None:
                    read[place] = found
            self._leaves_all = len(batch.lines) >= _MIN_LINES and 2 * len(read) < len(batch.lines)
        features = self._convert(read)
        lines, rest = _divide(batch, read)
        batch.lines.clear()
        records = [line.record for line in read.values()]
        if batch.split is not None:
            for record in records:
                record.split = batch.split
        return ParsedBatch(RecordBatch(records, features), lines, rest)

    def _read_line(self, line: bytes | bytearray) -> _Line | None:
        """Returns the values of a line, of which those of the step features are not checked yet; or None."""
        if line[:1] != b"{" or is_large(line) or len(line) > self._limits.record_bytes:
            return None
        try:
            document = parse_document(line)
            num_names = len(document)
            if num_names != self._num_fields and not _are_distinct(document, num_names):
                return None
            others = {field: document[field] for field in self._others}
            brackets, num_steps, numbers = 0, None, []
            for step in self._steps:
                values = document[step.field]
                if type(values) is not simdjson.Array or (num_steps is not None and len(values) != num_steps):
                    return None
                num_steps = len(values)
                rows = _count_rows(values, step.feature.shape)
                if rows is None or not 0 < num_steps <= self._max_steps:
                    return None
                brackets += 1 + rows
                numbers.append(values.as_buffer(of_type=step.of_type))
            for field, value in others.items():
                if type(value) is simdjson.Array:
                    others[field] = value.as_list()
                elif type(value) is simdjson.Object:
                    return None
            # simdjson flattens lists. With a bracket for each row and no others, no row has a list among its numbers.
            if _count_brackets(line) != brackets and not all(
                set(map(type, flatten(document[step.field], len(step.feature.shape)))) <= {int, float}
                for step in self._steps
            ):
                return None
            assert num_steps is not None
            schema = self._schema
            record = parse_other_fields(others, parse_id(others, schema), num_steps, None, schema)
            if self._windows is not None:
                record.event_time = parse_time(others, self._windows)
            return _Line(record, numbers)
        except (KeyError, TypeError, ValueError, RuntimeError, RecordError):
            return None

    def _convert(self, read: dict[int, _Line]) -> dict[str, Array]:
        """Returns the step features of all lines. Removes lines with a number that does not fit."""
        while True:
            features, wrong = {}, set[int]()
            for number, step in enumerate(self._steps):
                joined = b"".join([line.numbers[number] for line in read.values()])
                features[step.name], is_wrong = _check(np.frombuffer(joined, step.dtype), step.feature)
                if is_wrong is not None:
                    sizes = [line.record.num_steps * step.feature.width for line in read.values()]
                    of_line = np.repeat(list(read), sizes)
                    wrong.update(of_line[is_wrong].tolist())
            if not wrong:
                return features
            for place in wrong:
                del read[place]


def _are_distinct(document: Any, num_names: int) -> bool:
    """Returns whether the fields of a line can be looked up: their names are not many, and have no duplicates."""
    return num_names <= MANY_NAMES and len(set(document)) == num_names


def _count_rows(values: Any, shape: tuple[int, ...]) -> int | None:
    """Does the same as `count_rows`, faster for the most common shapes."""
    if len(shape) != 1:
        return count_rows(values, shape)
    # Of a string or an object that has the length of a row, simdjson makes no numbers.
    lengths = [*map(len, values)]
    return len(lengths) if lengths.count(shape[0]) == len(lengths) else None


def _count_brackets(line: bytes | bytearray) -> int:
    """Returns how many "[" a line has. For a long line, NumPy takes a third of the time."""
    if len(line) < _LONG_BYTES:
        return line.count(b"[")
    return int(np.count_nonzero(np.frombuffer(line, np.uint8) == ord("[")))


def _check(numbers: Array, feature: Feature) -> tuple[Array, Array | None]:
    """Returns numbers as they are stored, and bool[values], which of them do not fit the schema; None if all fit."""
    if feature.dtype == "float32":
        with np.errstate(over="ignore"):  # the result is not finite then
            numbers = numbers.astype(np.float32)
        fits = np.isfinite(numbers)
    else:
        fits = (numbers >= 0) & (numbers < feature.num_values)
    return numbers, None if fits.all() else ~fits


def _divide(batch: LineBatch, places: dict[int, Any]) -> tuple[LineBatch, LineBatch]:
    """Returns the lines at some places, and the others."""
    others = [place for place in range(len(batch.lines)) if place not in places]
    return _take(batch, list(places)), _take(batch, others)


def _take(batch: LineBatch, places: list[int]) -> LineBatch:
    def pick(values: list[Any]) -> list[Any]:
        return [values[place] for place in places]

    return batch._replace(
        offsets=pick(batch.offsets), numbers=pick(batch.numbers), lines=pick(batch.lines), digests=pick(batch.digests)
    )
