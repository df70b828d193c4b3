"""The report of `verify`: what was checked, and the faults with their files and offsets."""

import contextlib
import dataclasses
import hashlib
import sys
from collections.abc import Iterator
from typing import IO, Any

from pipeline.errors import counted
from pipeline.files import exists, join, open_read, read_bytes
from pipeline.format.tfrecord import CorruptRecord

_CHUNK_BYTES = 2**20
_MESSAGE_CHARACTERS = 500


@dataclasses.dataclass(frozen=True)
class Fault:
    """A difference between a file and the manifest.

    Attributes:
        file: Path in the dataset.
        offset: Offset in the file in bytes, or None if it is unknown.
        message: The value found and the value expected.
    """

    file: str
    offset: int | None
    message: str


@dataclasses.dataclass
class Report:
    """The result of `verify`.

    Attributes:
        faults: At most one fault of each shard and index, because a first fault may cause others.
        records, steps, shards, bytes: Totals of the shards without fault.
        parts: Parts of these records, each of which is an Example; None if the dataset stores no parts.
        notes: What is not as it should be, but harms nobody.
    """

    faults: list[Fault] = dataclasses.field(default_factory=list)
    records: int = 0
    steps: int = 0
    shards: int = 0
    bytes: int = 0
    parts: int | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    def files(self) -> set[str]:
        """Returns the files with a fault."""
        return {fault.file for fault in self.faults}

    def to_dict(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        if self.parts is None:
            del values["parts"]
        return values


def print_report(report: Report, dataset: str) -> None:
    """Prints one line to stdout if there is no fault, else to stderr a line for each fault and a total."""
    for note in report.notes:
        print(f"{dataset}: note: {note}", file=sys.stderr)
    for fault in report.faults:
        place = "" if fault.offset is None else f", offset {fault.offset}"
        print(f"{join(dataset, fault.file)}{place}: {fault.message}", file=sys.stderr)
    counts = [(report.records, "record"), (report.steps, "step"), (report.shards, "shard"), (report.bytes, "byte")]
    if report.parts is not None:
        counts.insert(1, (report.parts, "part"))
    checked = ", ".join(counted(number, noun) for number, noun in counts)
    if report.faults:
        print(
            f"lengthwise verify: {dataset}: {counted(len(report.faults), 'fault')} (without fault: {checked}). "
            "Do not use this dataset: copy it again, or build it again with `lengthwise prepare --overwrite`.",
            file=sys.stderr,
        )
    else:
        print(f"{dataset}: no fault in {checked}")


class FaultError(Exception):
    """Ends the check of a file at its first fault. Attributes as in `Fault`."""

    def __init__(self, offset: int | None, message: str) -> None:
        super().__init__(offset, message)  # with these arguments, pickle makes the error again
        self.offset = offset
        self.message = message

    def __str__(self) -> str:
        return self.message


@contextlib.contextmanager
def collect_fault(path: str, report: Report) -> Iterator[None]:
    """Adds a fault of the file `path` that the block raises to the report, and leaves the block."""
    try:
        yield
    except (FaultError, CorruptRecord) as error:
        # A message quotes names and ids of the file, which may be of any length.
        report.faults.append(Fault(path, error.offset, error.message[:_MESSAGE_CHARACTERS]))
    except OSError as error:
        report.faults.append(Fault(path, None, f"cannot be read: {error.strerror or error}"))


def check_exists(path: str) -> None:
    """Raises a FaultError if there is no such file."""
    if not exists(path):
        raise FaultError(None, "is missing, but the manifest lists it")


class HashingReader:
    """Reads a file and computes its SHA-256.

    Attributes:
        position: Number of bytes that were read.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.position = 0

    def read(self, num_bytes: int) -> bytes:
        data = self._file.read(num_bytes)
        self._digest.update(data)
        self.position += len(data)
        return data

    def check_sha256(self, expected: str) -> None:
        """Raises a FaultError if the bytes that were read have another SHA-256."""
        found = self._digest.hexdigest()
        if found != expected:
            raise FaultError(None, f"the SHA-256 of the file is {found}, but the manifest says {expected}")


def read_verified(path: str, sha256: str) -> bytes:
    """Returns the bytes of a file whose SHA-256 is the expected one.

    The file is hashed in chunks before it is read at once, so that a replaced file costs no memory.

    Raises:
        FaultError: The file is missing or has another SHA-256.
    """
    check_sha256(path, sha256)
    return read_bytes(path)


def check_sha256(path: str, sha256: str) -> None:
    """Raises a FaultError if a file is missing or has another SHA-256. Memory holds a chunk of it."""
    check_exists(path)
    with open_read(path) as file:
        hashing = HashingReader(file)
        while hashing.read(_CHUNK_BYTES):
            pass
    hashing.check_sha256(sha256)
