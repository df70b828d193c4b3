"""Writes the frames of a TFRecord file, and reads a file while it checks every byte.

    uint64 length | uint32 masked CRC32C of length | data[length] | uint32 masked CRC32C of data

The format has no footer, no count and no index, so a file that is cut off between two records looks complete. Only the
count in the manifest shows the loss. TensorFlow 2.21 crashes on some crafted lengths, and treats a file that is cut off
inside a header as complete.
Source: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

import dataclasses
import functools
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import google_crc32c
import numpy as np

from pipeline.schema.record import Array

HEADER_BYTES = 12
FOOTER_BYTES = 4
FRAME_BYTES = HEADER_BYTES + FOOTER_BYTES
# Bytes of a large frame that are in memory at once.
_BLOCK_BYTES = 2**20
# Size of the largest Example that a reader can parse: a protobuf message is smaller than 2 GiB.
MAX_DATA_BYTES = 2**31 - 1

_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")


class Readable(Protocol):
    """The methods of a file that `walk` calls."""

    def read(self, num_bytes: int, /) -> bytes: ...


class CorruptRecord(Exception):
    """A TFRecord file is damaged.

    Attributes:
        offset: Where the damaged record begins, in bytes.
        message: Description of the damage.
    """

    def __init__(self, offset: int, message: str) -> None:
        super().__init__(offset, message)  # with these arguments, pickle makes the error again
        self.offset = offset
        self.message = message

    def __str__(self) -> str:
        return f"record at offset {self.offset}: {self.message}"


@dataclasses.dataclass(frozen=True, slots=True)
class TFRecord:
    """A record of a TFRecord file.

    Attributes:
        offset: Where its frame begins, in bytes.
        data: The bytes inside the frame.
    """

    offset: int
    data: bytes


def masked_crc(data: bytes) -> int:
    """Returns the CRC32C of `data` in the masked form that a frame stores."""
    return int(_masked(google_crc32c.value(data)))


def check_frames(data: bytes, begin: Array, num_bytes: Array) -> None:
    """Checks many frames at the same time, as `walk` checks them one by one.

    Args:
        begin: int64[records], where each frame begins in `data`.
        num_bytes: int64[records], the number of bytes inside each frame, as the index gives it.

    Raises:
        CorruptRecord: A frame is damaged or has another length. `offset` is where it begins in `data`.
    """
    view = np.frombuffer(data, np.uint8)
    lengths_found = _gather(view, begin, "<u8")
    _raise_at_first(begin, lengths_found != num_bytes.astype(np.uint64), "its length differs from the index")
    lengths, which = np.unique(num_bytes, return_inverse=True)
    crcs = np.array([masked_crc(struct.pack("<Q", length)) for length in lengths.tolist()], np.uint32)
    _raise_at_first(begin, _gather(view, begin + 8, "<u4") != crcs[which], "the CRC of the length does not match")
    first = begin + HEADER_BYTES
    end = first + num_bytes
    value = google_crc32c.value
    crc = np.array([value(data[a:b]) for a, b in zip(first.tolist(), end.tolist(), strict=True)], np.int64)
    _raise_at_first(begin, _gather(view, end, "<u4") != _masked(crc), "the CRC of the data does not match")


def check_large_frame(read: Callable[[int, int], bytes], num_bytes: int) -> None:
    """Checks one frame as `check_frames` does, in blocks of 1 MiB.

    Args:
        read: Reads bytes of the frame: (position of the first one, their number). Returns fewer if the file ends.
        num_bytes: The number of bytes inside the frame, as the index gives it.

    Raises:
        CorruptRecord: The frame is damaged or has another length. `offset` is 0.
    """
    if read(0, HEADER_BYTES) != _header(num_bytes):
        raise CorruptRecord(0, "its length differs from the index, or the CRC of the length does not match")
    crc, end = 0, HEADER_BYTES + num_bytes
    for start in range(HEADER_BYTES, end, _BLOCK_BYTES):
        crc = google_crc32c.extend(crc, read(start, min(_BLOCK_BYTES, end - start)))
    if read(end, FOOTER_BYTES) != _CRC.pack(_masked(crc)):
        raise CorruptRecord(0, "the CRC of the data does not match")


def _masked(crc: Any) -> Any:
    """Returns the masked form of a CRC, or of int64[CRCs]."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _gather(view: Array, position: Array, dtype: str) -> Array:
    """Returns the numbers that begin at these positions in the bytes of `view`."""
    return view[position[:, None] + np.arange(np.dtype(dtype).itemsize)].view(dtype)[:, 0]


def _raise_at_first(begin: Array, wrong: Array, message: str) -> None:
    """Raises a CorruptRecord for the first record for which `wrong` is true, if there is one."""
    if wrong.any():
        raise CorruptRecord(int(begin[np.argmax(wrong)]), message)


def frame(data: bytes) -> bytes:
    """Returns the frame of `data`, which is FRAME_BYTES longer."""
    return b"".join((_header(len(data)), data, _CRC.pack(masked_crc(data))))


def frames(records: Sequence[bytes]) -> list[bytes]:
    """Returns the frames of all records as pieces that follow one another, three for each record."""
    footers = _masked(np.array([google_crc32c.value(data) for data in records], np.int64)).astype("<u4").tobytes()
    pieces = [b""] * (3 * len(records))
    pieces[0::3] = [_header(len(data)) for data in records]
    pieces[1::3] = records
    pieces[2::3] = [footers[i : i + FOOTER_BYTES] for i in range(0, len(footers), FOOTER_BYTES)]
    return pieces


@functools.lru_cache(maxsize=1 << 16)
def _header(num_bytes: int) -> bytes:
    length = struct.pack("<Q", num_bytes)
    return length + _CRC.pack(masked_crc(length))


def walk(file: Readable, *, num_bytes: int, max_data_bytes: int = MAX_DATA_BYTES) -> Iterator[TFRecord]:
    """Yields every record of a file.

    Each length is checked before it is used, so that the memory holds one record at most.

    Args:
        num_bytes: Size of the file.
        max_data_bytes: Largest allowed size of a record.

    Raises:
        CorruptRecord: A record is cut off, larger than allowed or larger than the file, or its CRC does not match.
    """
    offset = 0
    while offset < num_bytes:
        left = num_bytes - offset
        if left < FRAME_BYTES:
            raise CorruptRecord(
                offset,
                f"{left} bytes are left, but a record takes at least {FRAME_BYTES}: "
                "the file is cut off, or has extra bytes",
            )
        header = file.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            raise CorruptRecord(offset, f"the file ends inside the header, expected {num_bytes:,} bytes in all")
        length, length_crc = _HEADER.unpack(header)
        if masked_crc(header[:8]) != length_crc:
            raise CorruptRecord(offset, "the CRC of the length does not match")
        if length > max_data_bytes or length > left - FRAME_BYTES:
            raise CorruptRecord(
                offset,
                f"its length is {length:,} bytes, expected at most {min(max_data_bytes, left - FRAME_BYTES):,}",
            )
        data = file.read(length)
        footer = file.read(FOOTER_BYTES)
        if len(data) < length or len(footer) < FOOTER_BYTES:
            raise CorruptRecord(offset, f"the file ends inside the data, expected {num_bytes:,} bytes in all")
        if _CRC.unpack(footer)[0] != masked_crc(data):
            raise CorruptRecord(offset, "the CRC of the data does not match")
        yield TFRecord(offset, data)
        offset += FRAME_BYTES + length
