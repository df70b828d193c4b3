"""What is wrong with a file of a dataset, told with the offset in it, and gathered in a report."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator
from typing import IO, Any

from pipeline.files import exists, open_read, read_bytes
from pipeline.format.tfrecord import CorruptRecord

_CHUNK_BYTES = 2**20
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


class FaultError(Exception):
    def __init__(self, offset: int | None, message: str) -> None:
        super().__init__(message)
        self.offset = offset
        self.message = message


@contextlib.contextmanager
def reported(path: str, report: Report) -> Iterator[None]:
    """Puts what goes wrong in the block with the file `path` into the report, and goes on after the block."""
    try:
        yield
    except (FaultError, CorruptRecord) as error:
        # Names and ids in a message come from the file, and may be as long as it pleases.
        report.faults.append(Fault(path, error.offset, error.message[:_MESSAGE_CHARACTERS]))
    except OSError as error:
        report.faults.append(Fault(path, None, f"cannot be read: {error.strerror or error}"))


def check_listed(path: str) -> None:
    if not exists(path):
        raise FaultError(None, "is missing, but the manifest lists it")


class HashingReader:
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
            raise FaultError(None, f"the SHA-256 of the file is {found}, but the manifest says {expected}")


def read_checked(path: str, sha256: str) -> bytes:
    """All of a file. Nothing is parsed, or takes memory, that is not what was written."""
    check_listed(path)
    with open_read(path) as file:
        hashing = HashingReader(file)
        while hashing.read(_CHUNK_BYTES):
            pass
    hashing.check(sha256)
    return read_bytes(path)
