"""Checks every byte of a dataset against its manifest; each fault names its file and the offset in it."""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import sys
from collections.abc import Iterator
from typing import IO, Any

import orjson
import pyarrow as pa

from pipeline import progress
from pipeline.contents import Contents, check_example, differences
from pipeline.examples import Value, decode_example
from pipeline.index import index_schema, read_index
from pipeline.inspect import load
from pipeline.manifest import FILE_NAME, TRAIN, Manifest, Shard
from pipeline.schema import Label, Schema, class_name
from pipeline.storage import exists, join, open_read, read_bytes, size
from pipeline.tfrecord import MAX_DATA_BYTES, CorruptRecord, walk

_CHUNK_BYTES = 2**20
_INDEX_ROWS = 4096
# Wrong numbers told of each split; more of them tell no more.
_MANIFEST_FAULTS = 10
_MESSAGE_CHARACTERS = 500


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something that is not as the manifest says. `file` is relative to the dataset, `offset` in bytes if known."""

    file: str
    offset: int | None
    message: str


@dataclasses.dataclass
class Report:
    """What was checked, and what was found. A file of data has one fault: what follows may follow from it."""

    faults: list[Fault] = dataclasses.field(default_factory=list)
    records: int = 0
    steps: int = 0
    shards: int = 0
    bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class _FaultError(Exception):
    def __init__(self, offset: int | None, message: str) -> None:
        super().__init__(message)
        self.offset = offset
        self.message = message


def verify(dataset: str) -> Report:
    """What was checked of a dataset, with its faults; a fault in one file does not hide another's.

    Memory is that of one shard's index and of its largest record.

    Raises:
        UserError: there is no dataset, or the manifest itself cannot be believed.
    """
    manifest = load(dataset)
    report = Report()
    total = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    with progress.shown("verify", total_bytes=total):
        for name, split in manifest.splits.items():
            contents = Contents(manifest.record_schema, with_moments=name == TRAIN)
            whole = [_verify_shard(dataset, shard, contents, report) for shard in split.shards]
            # Of a split that was not read to its end the counts would be wrong for that reason alone.
            if all(whole):
                statistics = manifest.statistics if name == TRAIN else {}
                off = itertools.islice(contents.differences(name, split, statistics), _MANIFEST_FAULTS)
                report.faults += [Fault(FILE_NAME, None, message) for message in off]
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


def _verify_shard(dataset: str, shard: Shard, contents: Contents, report: Report) -> bool:
    """Checks the two files of a shard; True if both are as the manifest says."""
    index = None
    with _reported(shard.index_path, report):
        index = _check_index(join(dataset, shard.index_path), shard, contents.schema.label)
    # Without its index the shard still has its checksums and counts.
    whole = False
    with _reported(shard.path, report):
        _check_shard(join(dataset, shard.path), shard, index, contents)
        whole = index is not None
    if whole:
        report.records += shard.records
        report.steps += shard.steps
        report.shards += 1
        report.bytes += shard.bytes
    return whole


@contextlib.contextmanager
def _reported(path: str, report: Report) -> Iterator[None]:
    """Puts what goes wrong in the block with the file `path` into the report, and goes on after the block."""
    try:
        yield
    except (_FaultError, CorruptRecord) as error:
        # Names and ids in a message come from the file, and may be as long as it pleases.
        report.faults.append(Fault(path, error.offset, error.message[:_MESSAGE_CHARACTERS]))
    except OSError as error:
        report.faults.append(Fault(path, None, f"cannot be read: {error.strerror or error}"))


def _check_listed(path: str) -> None:
    if not exists(path):
        raise _FaultError(None, "is missing, but the manifest lists it")


def _check_index(path: str, shard: Shard, label: Label) -> pa.Table:
    """The index of a shard, whose bytes are those that the manifest names."""
    _check_listed(path)
    with open_read(path) as file:
        hashing = _HashingReader(file)
        while hashing.read(_CHUNK_BYTES):
            pass
    # Nothing is parsed that is not what was written.
    hashing.check(shard.index_sha256)
    try:
        index = read_index(read_bytes(path))
    except ValueError as error:
        raise _FaultError(None, str(error)) from None
    if not index.schema.equals(index_schema(label)):
        raise _FaultError(None, f"has columns of other types than an index: {index.schema.types}")
    if index.num_rows != shard.records:
        raise _FaultError(None, f"has {index.num_rows:,} rows, but the manifest says {shard.records:,} records")
    return index


def _check_shard(path: str, shard: Shard, index: pa.Table | None, contents: Contents) -> None:
    """Walks a shard once, record by record beside its index; raises at the first thing that is off."""
    _check_listed(path)
    rows = None if index is None else _index_rows(index)
    records = steps = end = 0
    with open_read(path) as file:
        hashing = _HashingReader(file)
        for record in walk(hashing, num_bytes=size(path), max_data_bytes=_largest_record(shard, index)):
            end = hashing.position
            try:
                example = decode_example(record.data)
                num_steps = check_example(example, contents.schema)
                if rows is not None:
                    found = _index_row(example, contents.schema, record.offset, len(record.data), num_steps)
                    _compare(found, next(rows, None))
            except ValueError as error:
                raise _FaultError(record.offset, str(error)) from None
            contents.add(example, num_steps)
            progress.add_records(1)
            progress.add_bytes(end - record.offset)
            records, steps = records + 1, steps + num_steps
    if records != shard.records:
        raise _FaultError(end, f"the file ends after {records:,} records, but the manifest says {shard.records:,}")
    if end != shard.bytes:
        raise _FaultError(end, f"the file ends here, but the manifest says after {shard.bytes:,} bytes")
    if steps != shard.steps:
        raise _FaultError(None, f"has {steps:,} steps, but the manifest says {shard.steps:,}")
    hashing.check(shard.sha256)


class _HashingReader:
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.position = 0

    def read(self, num_bytes: int) -> bytes:
        data = self._file.read(num_bytes)
        self._digest.update(data)
        self.position += len(data)
        return data

    def check(self, expected: str) -> None:
        found = self._digest.hexdigest()
        if found != expected:
            raise _FaultError(None, f"the SHA-256 of the file is {found}, but the manifest says {expected}")


def _largest_record(shard: Shard, index: pa.Table | None) -> int:
    """Bytes of data beyond which no record's length is believed: a false one must not cost memory."""
    sizes = [shard.bytes] if index is None else index["num_bytes"].to_numpy()
    return min(max(map(int, sizes), default=0), MAX_DATA_BYTES)


_Row = dict[str, Any]


def _index_rows(index: pa.Table) -> Iterator[_Row]:
    for batch in index.to_batches(max_chunksize=_INDEX_ROWS):
        yield from batch.to_pylist()


def _index_row(example: dict[str, Value], schema: Schema, offset: int, num_bytes: int, num_steps: int) -> _Row:
    """The row that the index should have for a record."""
    label: Any = example[schema.label.name]
    stored = {
        "class": lambda: class_name(schema.label.classes[int(label[0])]),
        "distribution": label.tolist,
        "regression": lambda: float(label[0]),
        "step_class": lambda: None,
    }[schema.label.kind]()
    record_id = bytes(example["id"][0]).decode()
    return {
        "offset": offset,
        "num_bytes": num_bytes,
        "num_steps": num_steps,
        "id": record_id,
        "label": stored,
        "part": 0,
        "num_parts": 1,
    }


def _compare(found: _Row, expected: _Row | None) -> None:
    if expected is None:
        raise ValueError(f"a record more than the index has, with the id {found['id']!r}")
    for column, value in found.items():
        if value != expected[column]:
            raise ValueError(f"the record's {column} is {value!r}, but the index says {expected[column]!r}")


def _verify_rejects(dataset: str, manifest: Manifest, report: Report) -> None:
    """Counts the rejects by reason in the files that the manifest lists."""
    reasons: collections.Counter[str] = collections.Counter()
    faults = len(report.faults)
    for path in manifest.rejected.files:
        with _reported(path, report):
            _count_reasons(join(dataset, path), reasons)
    if len(report.faults) == faults:
        off = differences("rejected.by_reason", dict(reasons), manifest.rejected.by_reason, holder="its files")
        report.faults += [Fault(FILE_NAME, None, message) for message in off]


def _count_reasons(path: str, reasons: collections.Counter[str]) -> None:
    _check_listed(path)
    offset = 0
    with open_read(path) as file:
        for line in file:
            try:
                reasons[str(orjson.loads(line)["reason"])] += 1
            except (ValueError, TypeError, KeyError):
                raise _FaultError(offset, "is no line of a rejects file") from None
            offset += len(line)
