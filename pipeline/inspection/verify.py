"""Checks every byte of a dataset against its manifest; each fault names its file and the offset in it."""

import collections
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import orjson
import pyarrow as pa

from pipeline import progress
from pipeline.files import join, open_read, size
from pipeline.format.examples import decode_example
from pipeline.format.index import index_label, index_schema, read_index
from pipeline.format.manifest import FILE_NAME, TRAIN, Manifest, Shard, read_manifest
from pipeline.format.tfrecord import MAX_DATA_BYTES, walk
from pipeline.format.vocabulary import choose_terms, parse_terms, serialize_terms
from pipeline.inspection.contents import Contents, check_example, differences
from pipeline.inspection.faults import Fault, FaultError, HashingReader, Report, check_listed, read_checked, reported
from pipeline.inspection.origins import Origins
from pipeline.schema.labels import Label
from pipeline.schema.record import Values
from pipeline.schema.schema import Schema

_INDEX_ROWS = 4096
# Wrong numbers told of each split; more of them tell no more.
_MANIFEST_FAULTS = 10


def verify(dataset: str) -> Report:
    """What was checked of a dataset, with its faults; a fault in one file does not hide another's.

    Memory is that of one shard's index, of its largest record, and of all strings that a vocabulary is chosen from.

    Raises:
        UserError: there is no dataset, or the manifest itself cannot be believed.
    """
    manifest = read_manifest(dataset)
    report = Report()
    total = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    with progress.report("verify", total_bytes=total):
        vocabularies = _read_vocabularies(dataset, manifest, report)
        # A vocabulary is empty where there is no train split.
        train: Contents | None = Contents(manifest.record_schema, with_moments=False)
        for name, split in manifest.splits.items():
            contents = Contents(manifest.record_schema, with_moments=name == TRAIN)
            origins = Origins.of(manifest, name)
            # All of them, for each has its own faults to tell.
            whole = all([_verify_shard(dataset, shard, contents, origins, report) for shard in split.shards])
            train = (contents if whole else None) if name == TRAIN else train
            # Of a split that was not read to its end the counts would be wrong for that reason alone.
            if whole:
                statistics = manifest.statistics if name == TRAIN else {}
                off = itertools.islice(contents.differences(name, split, statistics, vocabularies), _MANIFEST_FAULTS)
                report.faults += [Fault(FILE_NAME, None, message) for message in off]
        if train is not None:
            _verify_vocabularies(manifest, vocabularies, train, report)
        _verify_rejects(dataset, manifest, report)
    return report


def print_report(report: Report, dataset: str) -> None:
    """Prints one line to stdout where all is well; else to stderr a line for each fault, and their number."""
    for fault in report.faults:
        place = "" if fault.offset is None else f", offset {fault.offset}"
        print(f"{join(dataset, fault.file)}{place}: {fault.message}", file=sys.stderr)
    checked = f"{report.records:,} records, {report.steps:,} steps, {report.shards:,} shards, {report.bytes:,} bytes"
    if report.faults:
        number = f"{len(report.faults)} faults" if len(report.faults) > 1 else "1 fault"
        print(
            f"lengthwise verify: {dataset}: {number} (without fault: {checked}). Don't use this dataset: "
            "copy it anew, or make it again with `lengthwise prepare --overwrite`.",
            file=sys.stderr,
        )
    else:
        print(f"{dataset}: no fault in {checked}")


def _verify_shard(dataset: str, shard: Shard, contents: Contents, origins: Origins, report: Report) -> bool:
    """Checks the two files of a shard; True if both are as the manifest says."""
    index = None
    with reported(shard.index_path, report):
        index = _check_index(join(dataset, shard.index_path), shard, contents.schema.label)
    # Without its index the shard still has its checksums and counts.
    whole = False
    with reported(shard.path, report):
        _check_shard(join(dataset, shard.path), shard, index, contents, origins)
        whole = index is not None
    if whole:
        report.records += shard.records
        report.steps += shard.steps
        report.shards += 1
        report.bytes += shard.bytes
    return whole


def _check_index(path: str, shard: Shard, label: Label) -> pa.Table:
    """The index of a shard, whose bytes are those that the manifest names."""
    try:
        index = read_index(read_checked(path, shard.index_sha256))
    except ValueError as error:
        raise FaultError(None, str(error)) from None
    if not index.schema.equals(index_schema(label)):
        raise FaultError(None, f"has columns of other types than an index: {index.schema.types}")
    if index.num_rows != shard.records:
        raise FaultError(None, f"has {index.num_rows:,} rows, but the manifest says {shard.records:,} records")
    return index


def _check_shard(path: str, shard: Shard, index: pa.Table | None, contents: Contents, origins: Origins) -> None:
    """Walks a shard once, record by record beside its index; raises at the first thing that is off."""
    check_listed(path)
    rows = None if index is None else _index_rows(index)
    records = steps = end = 0
    with open_read(path) as file:
        hashing = HashingReader(file)
        for record in walk(hashing, num_bytes=size(path), max_data_bytes=_largest_record(shard, index)):
            end = hashing.position
            try:
                example = decode_example(record.data)
                num_steps = check_example(example, contents.schema)
                if rows is not None:
                    found = _index_row(example, contents.schema, record.offset, len(record.data), num_steps)
                    row = next(rows, None)
                    if row is None:
                        raise ValueError(f"a record more than the index has, with the id {found['id']!r}")
                    _compare(found, row)
                    origins.check(row)
            except ValueError as error:
                raise FaultError(record.offset, str(error)) from None
            contents.add(example, num_steps)
            progress.add_records(1)
            progress.add_bytes(end - record.offset)
            records, steps = records + 1, steps + num_steps
    if records != shard.records:
        raise FaultError(end, f"the file ends after {records:,} records, but the manifest says {shard.records:,}")
    if end != shard.bytes:
        raise FaultError(end, f"the file ends here, but the manifest says after {shard.bytes:,} bytes")
    if steps != shard.steps:
        raise FaultError(None, f"has {steps:,} steps, but the manifest says {shard.steps:,}")
    hashing.check(shard.sha256)


def _largest_record(shard: Shard, index: pa.Table | None) -> int:
    """Bytes of data beyond which no record's length is believed: a false one must not cost memory."""
    sizes = [shard.bytes] if index is None else index["num_bytes"].to_numpy()
    return min(max(map(int, sizes), default=0), MAX_DATA_BYTES)


_Row = dict[str, Any]


def _index_rows(index: pa.Table) -> Iterator[_Row]:
    for batch in index.to_batches(max_chunksize=_INDEX_ROWS):
        yield from batch.to_pylist()


def _index_row(example: dict[str, Values], schema: Schema, offset: int, num_bytes: int, num_steps: int) -> _Row:
    """What the index should have for a record, as far as the record itself says it."""
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


def _compare(found: _Row, expected: _Row) -> None:
    for column, value in found.items():
        if value != expected[column]:
            raise ValueError(f"the record's {column} is {value!r}, but the index says {expected[column]!r}")


def _read_vocabularies(dataset: str, manifest: Manifest, report: Report) -> dict[str, list[bytes]]:
    """The vocabularies whose files are as the manifest says."""
    found = {}
    for name, vocabulary in manifest.vocabularies.items():
        with reported(vocabulary.path, report):
            data = read_checked(join(dataset, vocabulary.path), vocabulary.sha256)
            terms = parse_terms(data)
            if serialize_terms(terms) != data:
                raise FaultError(None, "is not written as a vocabulary is: a string a line, with escapes")
            if len(terms) != vocabulary.size:
                raise FaultError(None, f"has {len(terms):,} strings, but the manifest says {vocabulary.size:,}")
            found[name] = terms
    return found


def _verify_vocabularies(
    manifest: Manifest, vocabularies: dict[str, list[bytes]], train: Contents, report: Report
) -> None:
    """Chooses the vocabularies anew, from the strings of the train split."""
    for name, terms in vocabularies.items():
        due = choose_terms(train.strings(name), manifest.record_schema.features[name].vocabulary or 0)
        with reported(manifest.vocabularies[name].path, report):
            for line, (is_there, is_due) in enumerate(itertools.zip_longest(terms, due), 1):
                if is_there != is_due:
                    raise FaultError(None, f"line {line} is {is_there!r}, but by the records of {TRAIN} {is_due!r}")


def _verify_rejects(dataset: str, manifest: Manifest, report: Report) -> None:
    """Counts the rejects by reason in the files that the manifest lists."""
    reasons: collections.Counter[str] = collections.Counter()
    faults = len(report.faults)
    for path in manifest.rejected.files:
        with reported(path, report):
            _count_reasons(join(dataset, path), reasons)
    if len(report.faults) == faults:
        off = differences("rejected.by_reason", dict(reasons), manifest.rejected.by_reason, holder="its files")
        report.faults += [Fault(FILE_NAME, None, message) for message in off]


def _count_reasons(path: str, reasons: collections.Counter[str]) -> None:
    check_listed(path)
    offset = 0
    with open_read(path) as file:
        for line in file:
            try:
                reasons[str(orjson.loads(line)["reason"])] += 1
            except (ValueError, TypeError, KeyError):
                raise FaultError(offset, "is no line of a rejects file") from None
            offset += len(line)
