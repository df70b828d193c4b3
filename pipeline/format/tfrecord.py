"""The frame of a TFRecord file: writes records, and walks a file checking every byte before anyone trusts it.

    uint64 length | uint32 masked CRC32C of length | data[length] | uint32 masked CRC32C of data

The format has no footer, no count and no index, so a file cut between two records looks whole: only the manifest's
count tells. TensorFlow 2.21 dies by a signal on some crafted lengths, and takes a cut inside a header for the end.
Source: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

import dataclasses
import functools
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import google_crc32c
import numpy as np

from pipeline.schema.record import Array

HEADER_BYTES = 12
FOOTER_BYTES = 4
FRAME_BYTES = HEADER_BYTES + FOOTER_BYTES
# The largest Example that any reader can parse: a protobuf message ends at 2 GiB.
MAX_DATA_BYTES = 2**31 - 1

_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")


class Readable(Protocol):
    """What `walk` needs of a file, from wherever it is opened."""

    def read(self, num_bytes: int, /) -> bytes: ...


class CorruptRecord(Exception):
    """A TFRecord file that is not whole. `offset` is where the broken record begins, in bytes."""

    def __init__(self, offset: int, message: str) -> None:
        super().__init__(f"record at offset {offset}: {message}")
        self.offset = offset
        self.message = message


@dataclasses.dataclass(frozen=True, slots=True)
class TFRecord:
    """One record as it lies in a file: `offset` is that of its frame, `data` the payload."""

    offset: int
    data: bytes


def masked_crc(data: bytes) -> int:
    return int(_masked(google_crc32c.value(data)))


def check_frames(data: bytes, begin: Array, num_bytes: Array) -> None:
    """`walk` for many records that an index knows, at once: int64[records] each, where a frame begins in `data`, and
    how many bytes of payload it should have.

    Raises:
        CorruptRecord: a frame is another one; `offset` is where it begins in `data`.
    """
    view = np.frombuffer(data, np.uint8)
    claimed = _gather(view, begin, "<u8")
    _refuse(begin, claimed != num_bytes.astype(np.uint64), "its header claims another length than the index")
    lengths, which = np.unique(num_bytes, return_inverse=True)
    crcs = np.array([masked_crc(struct.pack("<Q", length)) for length in lengths.tolist()], np.uint32)
    _refuse(begin, _gather(view, begin + 8, "<u4") != crcs[which], "the CRC of the length does not fit")
    first = begin + HEADER_BYTES
    end = first + num_bytes
    value = google_crc32c.value
    crc = np.array([value(data[a:b]) for a, b in zip(first.tolist(), end.tolist(), strict=True)], np.int64)
    _refuse(begin, _gather(view, end, "<u4") != _masked(crc), "the CRC of the data does not fit")


def _masked(crc: Any) -> Any:
    """A CRC, or int64 ones, as a frame has them."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _gather(view: Array, position: Array, dtype: str) -> Array:
    """The numbers at these bytes."""
    return view[position[:, None] + np.arange(np.dtype(dtype).itemsize)].view(dtype)[:, 0]


def _refuse(begin: Array, wrong: Array, message: str) -> None:
    if wrong.any():
        raise CorruptRecord(int(begin[np.argmax(wrong)]), message)


def frame(data: bytes) -> bytes:
    """`data` as it is written to a file: FRAME_BYTES longer."""
    return b"".join((_header(len(data)), data, _CRC.pack(masked_crc(data))))


def frames(records: Sequence[bytes]) -> list[bytes]:
    """What `frame` makes of each record, in pieces that follow one another."""
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
    """Every record of a file of `num_bytes`; no length is believed before it was checked, so memory is one record.

    Raises:
        CorruptRecord: a frame is cut off, a CRC does not fit, or a length is beyond the file or `max_data_bytes`.
    """
    offset = 0
    while offset < num_bytes:
        left = num_bytes - offset
        if left < FRAME_BYTES:
            raise CorruptRecord(
                offset, f"{left} bytes are left, a record takes at least {FRAME_BYTES}: cut off, or garbage"
            )
        header = file.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            raise CorruptRecord(offset, f"the file ends inside the header, expected {num_bytes:,} bytes in all")
        length, length_crc = _HEADER.unpack(header)
        if masked_crc(header[:8]) != length_crc:
            raise CorruptRecord(offset, "the CRC of the length does not fit")
        if length > max_data_bytes or length > left - FRAME_BYTES:
            raise CorruptRecord(
                offset,
                f"claims {length:,} bytes of data, where at most {min(max_data_bytes, left - FRAME_BYTES):,} can be",
            )
        data = file.read(length)
        footer = file.read(FOOTER_BYTES)
        if len(data) < length or len(footer) < FOOTER_BYTES:
            raise CorruptRecord(offset, f"the file ends inside the data, expected {num_bytes:,} bytes in all")
        if _CRC.unpack(footer)[0] != masked_crc(data):
            raise CorruptRecord(offset, "the CRC of the data does not fit")
        yield TFRecord(offset, data)
        offset += FRAME_BYTES + length
