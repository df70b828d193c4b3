"""Rejected records: the reasons, the place in the raw input, and the error that parsing raises."""

from typing import Literal, NamedTuple, get_args

Reason = Literal[
    "not_json",
    "not_a_record",
    "duplicate_key",
    "missing_field",
    "wrong_type",
    "wrong_shape",
    "not_finite",
    "unknown_class",
    "empty_sequence",
    "over_length",
    "uneven_lengths",
    "bad_id",
    "duplicate_id",
    "too_large",
]
REASONS: tuple[str, ...] = get_args(Reason)
# The chunk of a record that was rejected before and is parsed again.
IN_FILE = -1


class RecordError(Exception):
    """Raised for a record that cannot be used.

    Attributes:
        reason: One of REASONS.
        message: The field, the value received and what was expected, in one line.
        id: Id of the record; None if the id itself is wrong or was not read.
    """

    def __init__(self, reason: Reason, message: str, record_id: str | None = None) -> None:
        super().__init__(reason, message, record_id)  # with these arguments, pickle makes the error again
        self.reason: Reason = reason
        self.message = message
        self.id = record_id

    def __str__(self) -> str:
        return self.message


class Origin(NamedTuple):
    """The place in the raw input that a record came from. A reject reports it.

    Attributes:
        path: The raw file; None if the record did not come from a file.
        chunk: Offset of the chunk in the file, in bytes. IN_FILE if the record was rejected before and is parsed again.
        byte_offset: Offset of the line in the decompressed file, in bytes.
        number: Number of lines before this line in its chunk; with IN_FILE, in the file, and -1 if it is unknown.
        sha256: SHA-256 of the raw line; for a line that is too large, of its beginning.
        raw: The line itself if `keep_raw` is set, else None.
        input_split: Split for which the raw file was given; None if raw files are not given by split.
    """

    path: str | None
    chunk: int
    byte_offset: int
    number: int
    sha256: bytes
    raw: bytes | bytearray | None
    input_split: str | None = None


class Reject(NamedTuple):
    """A record that cannot be used, with the reason, the message, the id if it is known, and the origin."""

    reason: Reason
    message: str
    id: str | None
    origin: Origin
