"""The place in the raw input that a record came from, and the reject that names it."""

from typing import NamedTuple

from pipeline.raw.reasons import Reason


class Origin(NamedTuple):
    """Where a record comes from, as far as it is known, for the day it is rejected.

    Attributes:
        path: The raw file; None where the record came from elsewhere.
        chunk: Where the chunk of the file starts, in bytes.
        byte_offset: Where the line starts, in bytes of the decompressed file.
        number: Lines before it in its chunk.
        sha256: Digest of the raw line; of one that is too large, of its beginning.
        raw: The line itself, only where it is to be kept.
    """

    path: str | None
    chunk: int
    byte_offset: int
    number: int
    sha256: bytes
    raw: bytes | None


class Reject(NamedTuple):
    """A record that cannot be used, and why."""

    reason: Reason
    message: str
    id: str | None
    origin: Origin
