"""Encoded records, which is the form in which records are sorted: an Example, its sort key and what a shard needs.

In runs, a kept raw line follows the Example in the payload, because a merge holds many rows, but few payloads.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.format.batch_encoding import encode_batch
from pipeline.format.examples import encode_record
from pipeline.format.models import TRAIN
from pipeline.raw.json_lines import LineBatch
from pipeline.raw.rejects import Origin
from pipeline.schema.record import ParsedRecord, num_labels
from pipeline.schema.record_batch import RecordBatch
from pipeline.schema.schema import NamedSplits, Schema, SplitFromField
from pipeline.shuffle.copies import first_id
from pipeline.shuffle.hashing import choose_moved, choose_split, order_key
from pipeline.shuffle.sorted_rows import KEY_COLUMN, Block, RowKind, payload_size


class EncodedRecord(NamedTuple):
    """An encoded record.

    Attributes:
        key: 16 bytes, the `order_key` of the id.
        digest: SHA-256 of `example`.
        origin: Place in the raw input.
        group: Value of the schema's group field; None if the schema has no group.
        split: Name of the split.
        num_steps: Number of steps.
        num_labels: Number of labelled steps, or 1 if the record has one label.
        truncated: Whether the record was shortened to max_length.
        example: The serialized tf.train.Example.
        event_time: Microseconds since 1970; None if the dataset has no windows.
    """

    key: bytes
    digest: bytes
    origin: Origin
    id: str
    group: str | None
    split: str
    num_steps: int
    num_labels: int
    truncated: bool
    example: bytes
    event_time: int | None = None


# The fields of an EncodedRecord without its Example, and the fields of its origin. Columns are found by their names.
COLUMNS = pa.schema(
    [
        ("path", pa.string()),
        ("chunk", pa.int64()),
        ("byte_offset", pa.int64()),
        ("number", pa.int64()),
        ("sha256", pa.binary()),
        ("raw", pa.binary()),
        ("input_split", pa.string()),
        KEY_COLUMN,
        ("digest", pa.binary(32)),
        ("id", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("num_steps", pa.int64()),
        ("num_labels", pa.int64()),
        ("truncated", pa.bool_()),
        ("event_time", pa.int64()),
    ]
)


def encode_for_shuffle(record: ParsedRecord, origin: Origin, schema: Schema, *, seed: int) -> EncodedRecord:
    """Encodes a record, and chooses its split and sort key, which depend on its id (or group), the schema and `seed`.

    A copy of a record that has a number, as one read from another dataset, loses it and is numbered again.

    Raises:
        ValueError: The record lacks the split, the group or the label that the schema requires.
    """
    first = first_id(record.id, schema)
    if first != record.id:
        record = dataclasses.replace(record, id=first)
    split = find_split(record, schema, seed=seed)
    example = encode_record(record, schema)
    return EncodedRecord(
        key=order_key(record.id, seed=seed),
        digest=hashlib.sha256(example).digest(),
        origin=origin,
        id=record.id,
        group=None if schema.group is None else record.group,
        split=split,
        num_steps=record.num_steps,
        num_labels=num_labels(record, schema),
        truncated=record.truncated,
        example=example,
        event_time=record.event_time,
    )


def encode_batch_for_shuffle(
    batch: RecordBatch, lines: LineBatch, schema: Schema, *, seed: int, keep_raw: bool
) -> Block:
    """Encodes records as `encode_for_shuffle` does, and returns them as rows of RECORDS, not sorted.

    Args:
        batch: The records of a schema with an id and with one label per record.
        lines: The line of each record.
        keep_raw: Whether the lines follow the Examples in the payloads.
    """
    records, examples = batch.records, encode_batch(batch, schema)
    number, nulls = len(records), functools.partial(pa.nulls, len(records))
    columns = {
        "path": pa.repeat(pa.scalar(lines.path), number),
        "chunk": [lines.chunk] * number,
        "byte_offset": lines.offsets,
        "number": lines.numbers,
        "sha256": lines.digests,
        "raw_bytes": list(map(len, lines.lines)) if keep_raw else nulls(pa.int64()),
        "input_split": nulls(pa.string()) if lines.split is None else pa.repeat(pa.scalar(lines.split), number),
        "key": [order_key(record.id, seed=seed) for record in records],
        "digest": [hashlib.sha256(example).digest() for example in examples],
        "id": [record.id for record in records],
        "group": nulls(pa.string()) if schema.group is None else [record.group for record in records],
        "split": [find_split(record, schema, seed=seed) for record in records],
        "num_steps": [record.num_steps for record in records],
        "num_labels": [1] * number,
        "truncated": [False] * number,
        "event_time": [record.event_time for record in records],
    }
    fields = RECORDS.columns
    rows = pa.Table.from_arrays([pa.array(columns[field.name], field.type) for field in fields], schema=fields)
    if keep_raw:
        examples = [example + line for example, line in zip(examples, lines.lines, strict=True)]
    return Block(rows, examples)


def find_split(record: ParsedRecord, schema: Schema, *, seed: int) -> str:
    """Returns the split of a record. Raises ValueError if the record lacks the split or the group that it needs."""
    if schema.group is not None and record.group is None:
        raise ValueError(f"Record {record.id!r} has no group, but the schema has one: {schema.group!r}.")
    group = None if schema.group is None else record.group
    key = record.id if group is None else group
    if not isinstance(schema.splits, NamedSplits):
        return choose_split(key, schema.splits, seed=seed)
    if record.split is None:
        place = schema.splits.field if isinstance(schema.splits, SplitFromField) else "the input of its raw file"
        raise ValueError(f"Record {record.id!r} has no split, but the schema takes it from {place!r}.")
    return choose_moved(key, schema.splits.moved, seed=seed) if record.split == TRAIN else record.split


def sort_key(record: EncodedRecord) -> tuple[Any, ...]:
    """Returns the sort key of a record: its hash key, its id, and for duplicates their content and their origin."""
    # The origin comes after the content: which of two different duplicates is kept must not depend on input order.
    origin = record.origin
    content = (record.digest, record.split, record.truncated, record.event_time or 0)
    return record.key, record.id, *content, origin.path or "", origin.byte_offset, origin.sha256, record.group or ""


def _sort_keys(rows: pa.Table) -> list[tuple[Any, ...]]:
    return list(map(sort_key, from_rows(rows)))


_RAW = COLUMNS.get_field_index("raw")
# A raw line of this size, in bytes, is not copied.
_LARGE_BYTES = 2**20
# Encoded records as rows of runs. The payload is the Example, then the raw line, of `raw_bytes` (null: there is none).
RECORDS = RowKind(COLUMNS.set(_RAW, pa.field("raw_bytes", pa.int64())), _sort_keys, last_part="raw_bytes")


def to_run_block(records: Sequence[EncodedRecord]) -> Block:
    """Returns records as rows of RECORDS, in the same order."""
    raws = [record.origin.raw for record in records]
    sizes = pa.array([None if raw is None else len(raw) for raw in raws], pa.int64())
    rows = _to_rows([record._replace(origin=record.origin._replace(raw=None)) for record in records])
    payloads = [
        _join(record.example, raw) if raw else record.example for record, raw in zip(records, raws, strict=True)
    ]
    return Block(rows.set_column(_RAW, "raw_bytes", sizes), payloads)


def _join(example: bytes, raw: bytes | bytearray) -> bytes | tuple[bytes, bytes | bytearray]:
    return example + raw if len(raw) < _LARGE_BYTES else (example, raw)


def from_run_block(block: Block) -> Block:
    """Returns the same records with the columns COLUMNS and with Examples as payloads. Empties the list of payloads."""
    sizes = block.rows["raw_bytes"].to_pylist()
    examples, raws = block.payloads, pa.nulls(len(sizes), pa.binary())
    if block.rows["raw_bytes"].null_count < len(sizes):
        examples, lines = [], []
        block.payloads.reverse()
        for size in sizes:
            payload = block.payloads.pop()
            end = payload_size(payload) - (size or 0)
            example, raw = payload if isinstance(payload, tuple) else (payload[:end], payload[end:])
            examples.append(example)
            lines.append(None if size is None else raw)
            del payload, example, raw  # may be large
        raws = _to_array(lines)
    return Block(block.rows.set_column(_RAW, "raw", raws), examples)


def _to_array(lines: list[bytes | None]) -> pa.Array:
    """Returns binary[lines]. A single large line is not copied."""
    if len(lines) > 1 or lines[0] is None or len(lines[0]) < _LARGE_BYTES:
        return pa.array(lines, pa.binary())
    ends = np.array([0, len(lines[0])], np.int32)
    return pa.Array.from_buffers(pa.binary(), 1, [None, pa.py_buffer(ends), pa.py_buffer(lines[0])])


def to_block(records: Iterable[EncodedRecord]) -> Block:
    """Sorts records into a block with the columns COLUMNS, whose payloads are their Examples."""
    ordered = sorted(records, key=sort_key)
    return Block(_to_rows(ordered), [record.example for record in ordered])


def _to_rows(records: Sequence[EncodedRecord]) -> pa.Table:
    """Returns a table with the columns COLUMNS."""
    columns = _transpose(EncodedRecord._fields, records)
    columns |= _transpose(Origin._fields, columns["origin"])
    arrays = [pa.array(columns[field.name], field.type) for field in COLUMNS]
    return pa.Table.from_arrays(arrays, schema=COLUMNS)


def _transpose(names: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """Returns the columns of `rows` by name; empty columns if there are no rows."""
    return dict.fromkeys(names, ()) | dict(zip(names, zip(*rows, strict=True), strict=False))


def from_rows(rows: pa.Table) -> list[EncodedRecord]:
    """Returns the records of a table with the columns COLUMNS, or those of RECORDS. Their `example` is empty.

    Of RECORDS, the raw line is missing, too.
    """
    columns: dict[str, Iterable[Any]] = {"raw": itertools.repeat(None, len(rows))}
    columns |= {name: rows[name].to_pylist() for name in COLUMNS.names if name in rows.column_names}
    columns["origin"] = map(Origin._make, zip(*(columns[name] for name in Origin._fields), strict=True))
    columns["example"] = itertools.repeat(b"", len(rows))
    values = zip(*(columns[name] for name in EncodedRecord._fields), strict=True)
    return list(map(EncodedRecord._make, values))
