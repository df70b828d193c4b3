"""A record as it travels to its shard: its Example, and beside it all that decides where it goes and what is told."""

import hashlib
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.format.examples import encode_record
from pipeline.raw.rejects import Origin
from pipeline.schema.record import ParsedRecord, num_labels
from pipeline.schema.schema import Schema, SplitFromField
from pipeline.shuffle.hashing import choose_split, order_key


class EncodedRecord(NamedTuple):
    """A record as it travels to its shard."""

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


class Block(NamedTuple):
    """Records in the order of `sort_key`.

    Attributes:
        rows: The columns of COLUMNS, a row a record.
        examples: Their Examples, one a record.
    """

    rows: pa.Table
    examples: list[bytes]


# An EncodedRecord, of which the origin comes first and the Example is elsewhere.
COLUMNS = pa.schema(
    [
        ("path", pa.string()),
        ("chunk", pa.int64()),
        ("byte_offset", pa.int64()),
        ("number", pa.int64()),
        ("sha256", pa.binary()),
        ("raw", pa.binary()),
        ("key", pa.binary(16)),
        ("digest", pa.binary(32)),
        ("id", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("num_steps", pa.int64()),
        ("num_labels", pa.int64()),
        ("truncated", pa.bool_()),
    ]
)


def encode_for_shuffle(sequence: ParsedRecord, origin: Origin, schema: Schema, *, seed: int) -> EncodedRecord:
    """A sequence as bytes, with the split and the place that follow from its id."""
    group = None if schema.group is None else sequence.group
    if isinstance(schema.splits, SplitFromField):
        if sequence.split is None:
            raise ValueError(
                f"Record {sequence.id!r} names no split, but the schema takes it from {schema.splits.field!r}."
            )
        split = sequence.split
    else:
        if schema.group is not None and sequence.group is None:
            raise ValueError(f"Record {sequence.id!r} has no group, but the schema has one: {schema.group!r}.")
        split = choose_split(sequence.id if group is None else group, schema.splits, seed=seed)
    example = encode_record(sequence, schema)
    return EncodedRecord(
        key=order_key(sequence.id, seed=seed),
        digest=hashlib.sha256(example).digest(),
        origin=origin,
        id=sequence.id,
        group=group,
        split=split,
        num_steps=sequence.num_steps,
        num_labels=num_labels(sequence, schema),
        truncated=sequence.truncated,
        example=example,
    )


def sort_key(record: EncodedRecord) -> tuple[Any, ...]:
    """The order of records: by key, and of doubles by what is in them."""
    # The origin comes late: which of two doubles stays must not hang on the order of the input as long as they differ.
    origin = record.origin
    content = (record.digest, record.split, record.truncated)
    return record.key, record.id, *content, origin.path or "", origin.byte_offset, origin.sha256, record.group or ""


def to_block(records: Iterable[EncodedRecord]) -> Block:
    """Records of any order as a block."""
    ordered = sorted(records, key=operator.attrgetter("key"))
    # Few have the key of another one, and the whole sort_key of every record takes longer than all else here.
    if any(a.key == b.key for a, b in zip(ordered, ordered[1:], strict=False)):
        ordered.sort(key=sort_key)
    rows = [(*record.origin, record.key, record.digest, *record[3:-1]) for record in ordered]
    columns = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, COLUMNS, strict=True)]
    return Block(pa.Table.from_arrays(arrays, schema=COLUMNS), [record.example for record in ordered])


def from_rows(rows: pa.Table) -> list[EncodedRecord]:
    """The records of rows, without their Examples."""
    columns: Sequence[list[Any]] = [column.to_pylist() for column in rows.select(COLUMNS.names).columns]
    origins = map(Origin, *columns[: len(Origin._fields)])
    keys, digests, *rest = columns[len(Origin._fields) :]
    return [EncodedRecord._make((*values, b"")) for values in zip(keys, digests, origins, *rest, strict=True)]
