"""Checks every byte of a dataset against its manifest. Each fault names its file and the offset in it."""

import collections
import itertools
from collections.abc import Container, Iterator
from typing import Any

import orjson
import pyarrow as pa

from pipeline import progress
from pipeline.files import join, open_read, size
from pipeline.format.examples import decode_example
from pipeline.format.history import read_manifest_at
from pipeline.format.index import index_label, index_schema, read_index
from pipeline.format.manifest import FILE_NAME, Manifest
from pipeline.format.models import TRAIN, Shard
from pipeline.format.tfrecord import MAX_DATA_BYTES, walk
from pipeline.format.vocabulary import choose_terms, parse_terms, serialize_terms
from pipeline.inspection.verify_counts import SplitCounts, compare_counts
from pipeline.inspection.verify_log import Log, compare_with_log, known_sources, verify_log
from pipeline.inspection.verify_records import KeyCheck, OriginCheck, check_example
from pipeline.inspection.verify_report import (
    Fault,
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
from pipeline.shuffle.hashing import shard_ranges

# Rows of the index that are in memory as Python objects at once.
_INDEX_ROWS = 4096
# Most faults of the manifest that are reported for each split.
_MANIFEST_FAULTS = 10


def verify(dataset: str, *, commit: int | None = None) -> Report:
    """Checks a dataset and returns a report. A fault in one file does not hide a fault in another file.

    Memory holds the index of one shard, one record, and all strings that the vocabularies are chosen from.

    Args:
        commit: Number of the commit to check. None checks the newest one.

    Raises:
        UserError: There is no dataset, its manifest contradicts itself, or the commit cannot be opened.
    """
    manifest = read_manifest_at(dataset, commit)
    report = Report()
    total = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    with progress.report("verify", total_bytes=total):
        log: Log | None = None
        sources: Container[str] = frozenset(source.path for source in manifest.sources)
        if manifest.format_version > 1:
            log = verify_log(dataset, manifest, report, is_newest=commit is None)
            sources = known_sources(dataset, log)
        vocabularies = _read_vocabularies(dataset, manifest, report)
        # Without a train split, a vocabulary is empty.
        train: SplitCounts | None = SplitCounts(manifest.record_schema, with_sums=False)
        for name, split in manifest.splits.items():
            counts = SplitCounts(manifest.record_schema, with_sums=name == TRAIN)
            origins = OriginCheck(manifest, name, sources)
            ranges = shard_ranges([shard.path for shard in split.shards])
            # A list, not a generator: every shard is checked, also after a fault.
            complete = all(
                [
                    _verify_shard(dataset, shard, counts, origins, KeyCheck(manifest, keys), report)
                    for shard, keys in zip(split.shards, ranges, strict=True)
                ]
            )
            train = (counts if complete else None) if name == TRAIN else train
            # The counts of a split that could not be read completely are wrong for that reason alone.
            if complete:
                statistics = manifest.statistics if name == TRAIN else {}
                messages = counts.compare(name, split, statistics, vocabularies, exact=manifest.format_version > 1)
                report.faults += [Fault(FILE_NAME, None, text) for text in itertools.islice(messages, _MANIFEST_FAULTS)]
        if train is not None:
            _verify_vocabularies(manifest, vocabularies, train, report)
        _verify_rejects(dataset, manifest, report)
        if log is not None:
            compare_with_log(manifest, log, report)
    return report


def _verify_shard(
    dataset: str, shard: Shard, counts: SplitCounts, origins: OriginCheck, keys: KeyCheck, report: Report
) -> bool:
    """Checks the two files of a shard and returns whether both match the manifest."""
    index = None
    with collect_fault(shard.index_path, report):
        index = _check_index(join(dataset, shard.index_path), shard, counts.schema.label, with_key=keys.with_key)
    # Without its index, a shard is checked by its checksums and counts.
    complete = False
    with collect_fault(shard.path, report):
        _check_shard(join(dataset, shard.path), shard, index, counts, origins, keys)
        complete = index is not None
    if complete:
        report.records += shard.records
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
    if not index.schema.equals(index_schema(label, with_key=with_key)):
        raise FaultError(None, f"has columns of other types than an index: {index.schema.types}")
    return index


def _check_shard(
    path: str, shard: Shard, index: pa.Table | None, counts: SplitCounts, origins: OriginCheck, keys: KeyCheck
) -> None:
    """Reads a shard once and compares each record with its row of the index. Raises a FaultError at the first fault."""
    check_exists(path)
    rows = None if index is None else _iterate_rows(index)
    records = steps = end = 0
    with open_read(path) as file:
        hashing = HashingReader(file)
        for record in walk(hashing, num_bytes=size(path), max_data_bytes=_largest_record(shard, index)):
            end = hashing.position
            try:
                example = decode_example(record.data)
                num_steps = check_example(example, counts.schema)
                if rows is not None:
                    found = _expected_row(example, counts.schema, record.offset, len(record.data), num_steps)
                    row = next(rows, None)
                    if row is None:
                        raise ValueError(f"the index has no row for this record, with the id {found['id']!r}")
                    _compare_rows(found, row)
                    origins.check(row)
                    keys.check(row)
            except ValueError as error:
                raise FaultError(record.offset, str(error)) from None
            counts.add(example, num_steps)
            progress.add_records(1)
            progress.add_bytes(end - record.offset)
            records, steps = records + 1, steps + num_steps
    if records != shard.records:
        raise FaultError(end, f"the file ends after {records:,} records, but the manifest says {shard.records:,}")
    if end != shard.bytes:
        raise FaultError(end, f"the file ends here, but the manifest says that it has {shard.bytes:,} bytes")
    if steps != shard.steps:
        raise FaultError(None, f"has {steps:,} steps, but the manifest says {shard.steps:,}")
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
        "part": 0,
        "num_parts": 1,
    }


def _compare_rows(found: _Row, row: _Row) -> None:
    for column, value in found.items():
        if value != row[column]:
            raise ValueError(f"the record's {column} is {value!r}, but the index says {row[column]!r}")


def _read_vocabularies(dataset: str, manifest: Manifest, report: Report) -> dict[str, list[bytes]]:
    """Returns the vocabularies whose files match the manifest, by feature."""
    found = {}
    for name, vocabulary in manifest.vocabularies.items():
        with collect_fault(vocabulary.path, report):
            data = read_verified(join(dataset, vocabulary.path), vocabulary.sha256)
            terms = parse_terms(data)
            if serialize_terms(terms) != data:
                raise FaultError(None, "is not in the format of a vocabulary, which is one escaped string per line")
            if len(terms) != vocabulary.size:
                raise FaultError(None, f"has {len(terms):,} strings, but the manifest says {vocabulary.size:,}")
            found[name] = terms
    return found


def _verify_vocabularies(
    manifest: Manifest, vocabularies: dict[str, list[bytes]], train: SplitCounts, report: Report
) -> None:
    """Compares the vocabularies with those that are chosen again from the strings of the train split."""
    for name, terms in vocabularies.items():
        expected = choose_terms(train.strings(name), manifest.record_schema.features[name].vocabulary or 0)
        with collect_fault(manifest.vocabularies[name].path, report):
            for line, (term, expected_term) in enumerate(itertools.zip_longest(terms, expected), 1):
                if term != expected_term:
                    message = f"line {line} is {term!r}, but the records of {TRAIN} give {expected_term!r}"
                    raise FaultError(None, message)


def _verify_rejects(dataset: str, manifest: Manifest, report: Report) -> None:
    """Compares the counts of rejects by reason with the files that the manifest lists."""
    reasons: collections.Counter[str] = collections.Counter()
    num_faults = len(report.faults)
    if {fault.file for fault in report.faults} & {*manifest.rejected.files}:
        return  # a file has another digest, so its lines are not those that were counted
    for path in manifest.rejected.files:
        with collect_fault(path, report):
            _count_reasons(join(dataset, path), reasons)
    if len(report.faults) == num_faults:
        by_reason = manifest.rejected.by_reason
        messages = compare_counts("rejected.by_reason", dict(reasons), by_reason, holder="its files")
        report.faults += [Fault(FILE_NAME, None, message) for message in messages]


def _count_reasons(path: str, reasons: collections.Counter[str]) -> None:
    check_exists(path)
    offset = 0
    with open_read(path) as file:
        for line in file:
            try:
                reasons[str(orjson.loads(line)["reason"])] += 1
            except (ValueError, TypeError, KeyError):
                raise FaultError(offset, "is not a line of a rejects file") from None
            offset += len(line)
