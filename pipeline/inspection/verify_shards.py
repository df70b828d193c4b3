"""Checks the two files of a shard: the records in one pass, and their rows of the index."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline import progress
from pipeline.errors import counted
from pipeline.files import join, open_read, size
from pipeline.format.examples import decode_example
from pipeline.format.index import NUM_LABELS, index_label, index_schema, read_index
from pipeline.format.models import Shard
from pipeline.format.parts import count_labels
from pipeline.format.tfrecord import MAX_DATA_BYTES, walk
from pipeline.inspection.verify_counts import RecordCounter
from pipeline.inspection.verify_parts import PartCheck
from pipeline.inspection.verify_records import KeyCheck, OriginCheck, TimeCheck, check_example
from pipeline.inspection.verify_report import (
    FaultError,
    HashingReader,
    Report,
    check_exists,
    collect_fault,
    read_verified,
)
from pipeline.schema.labels import Label
from pipeline.schema.record import Values
from pipeline.schema.schema import Schema

# Rows of the index that are in memory as Python objects at once.
_INDEX_ROWS = 4096


def verify_shard(
    dataset: str,
    shard: Shard,
    counter: RecordCounter,
    origins: OriginCheck,
    keys: KeyCheck,
    times: TimeCheck,
    report: Report,
) -> bool:
    """Checks the two files of a shard, counts its records, and returns whether both files match the manifest.

    Args:
        shard: The manifest's entry.
    """
    index = None
    with collect_fault(shard.index_path, report):
        index = _check_index(join(dataset, shard.index_path), shard, counter.schema.label, with_key=keys.with_key)
    # Without its index, a shard is checked by its checksums and counts.
    complete = False
    with collect_fault(shard.path, report):
        _check_shard(join(dataset, shard.path), shard, index, counter, origins, keys, times)
        complete = index is not None
    if complete:
        report.records += shard.records
        if shard.parts is not None:
            report.parts = (report.parts or 0) + shard.parts
        report.steps += shard.steps
        report.shards += 1
        report.bytes += shard.bytes
    return complete


def _check_index(path: str, shard: Shard, label: Label, *, with_key: bool) -> pa.Table:
    """Returns the index of a shard.

    Raises:
        FaultError: The file is not the one that the manifest lists, or is not an index of this shard.
    """
    try:
        index = read_index(read_verified(path, shard.index_sha256), shard)
    except ValueError as error:
        raise FaultError(None, str(error)) from None
    if not index.schema.equals(index_schema(label, with_key=with_key, with_window=shard.window is not None)):
        raise FaultError(None, f"has columns of other types than an index: {index.schema.types}")
    return index


def _check_shard(
    path: str,
    shard: Shard,
    index: pa.Table | None,
    counter: RecordCounter,
    origins: OriginCheck,
    keys: KeyCheck,
    times: TimeCheck,
) -> None:
    """Reads a shard once and compares each record with its row of the index. Raises a FaultError at the first fault."""
    check_exists(path)
    rows = None if index is None else _iterate_rows(index)
    parts = PartCheck(counter.schema)
    examples = steps = end = 0
    with open_read(path) as file:
        hashing = HashingReader(file)
        for record in walk(hashing, num_bytes=size(path), max_data_bytes=_largest_record(shard, index)):
            end = hashing.position
            try:
                example = decode_example(record.data)
                num_steps = check_example(example, counter.schema)
                part = parts.add(example, num_steps)
                if rows is not None:
                    found = _expected_row(example, counter.schema, record.offset, len(record.data), num_steps)
                    found["part"] = part
                    if shard.window is not None:
                        found[NUM_LABELS] = count_labels(example, num_steps, counter.schema, is_first=part == 0)
                    row = next(rows, None)
                    if row is None:
                        raise ValueError(f"the index has no row for this record, with the id {found['id']!r}")
                    _compare_rows(found, row)
                    parts.check_row(row)
                    if part == 0:
                        origins.check(row)
                        keys.check(row)
                        times.check(row)
            except ValueError as error:
                raise FaultError(record.offset, str(error)) from None
            counter.add(example, num_steps, part=part)
            progress.add_records(part == 0)
            progress.add_bytes(end - record.offset)
            examples, steps = examples + 1, steps + num_steps
    try:
        parts.finish()
    except ValueError as error:
        raise FaultError(end, str(error)) from None
    for found_number, expected, what in ((parts.records, shard.records, "record"), (examples, shard.examples, "part")):
        if found_number != expected:
            raise FaultError(
                end, f"the file ends after {counted(found_number, what)}, but the manifest says {expected:,}"
            )
    if end != shard.bytes:
        raise FaultError(end, f"the file ends here, but the manifest says that it has {shard.bytes:,} bytes")
    if steps != shard.steps:
        raise FaultError(None, f"has {counted(steps, 'step')}, but the manifest says {shard.steps:,}")
    try:
        times.finish()
    except ValueError as error:
        raise FaultError(None, str(error)) from None
    hashing.check_sha256(shard.sha256)


def _largest_record(shard: Shard, index: pa.Table | None) -> int:
    """Returns the largest size of a record in bytes. A record that claims more is not read, to save memory."""
    sizes = [shard.bytes] if index is None else index["num_bytes"].to_numpy()
    return min(max(map(int, sizes), default=0), MAX_DATA_BYTES)


_Row = dict[str, Any]


def _iterate_rows(index: pa.Table) -> Iterator[_Row]:
    for batch in index.to_batches(max_chunksize=_INDEX_ROWS):
        yield from batch.to_pylist()


def _expected_row(example: dict[str, Values], schema: Schema, offset: int, num_bytes: int, num_steps: int) -> _Row:
    """Returns the columns of the index that follow from the record itself."""
    label = None if schema.label.name is None else example[schema.label.name]
    record_id = bytes(example["id"][0]).decode()
    return {
        "offset": offset,
        "num_bytes": num_bytes,
        "num_steps": num_steps,
        "id": record_id,
        "label": index_label(label, schema.label),
    }


def _compare_rows(found: _Row, row: _Row) -> None:
    for column, value in found.items():
        if value != row[column]:
            raise ValueError(f"the record's {column} is {value!r}, but the index says {row[column]!r}")
