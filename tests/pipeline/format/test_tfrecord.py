"""Every byte of a TFRecord file is checked, and a damaged record is refused with its offset."""

import io
import struct

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.format.tfrecord import FRAME_BYTES, CorruptRecord, check_frames, frame, masked_crc, walk

PAYLOADS = [bytes([n]) * n for n in range(1, 10)]
WHOLE = b"".join(map(frame, PAYLOADS))
# Offset of each record's frame.
OFFSETS = [sum(len(p) + FRAME_BYTES for p in PAYLOADS[:n]) for n in range(len(PAYLOADS))]
DAMAGED = pytest.mark.parametrize("number", [0, 4, 8])


def read(data, **options):
    return list(walk(io.BytesIO(data), num_bytes=len(data), **options))


def corrupt(data, **options):
    with pytest.raises(CorruptRecord) as caught:
        read(data, **options)
    return caught.value.offset, str(caught.value)


def header(length):
    packed = struct.pack("<Q", length)
    return packed + struct.pack("<I", masked_crc(packed))


def test_a_frame_is_what_tensorflow_writes(tmp_path):
    import tensorflow as tf

    path = str(tmp_path / "a.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for payload in [b"", *PAYLOADS]:
            writer.write(payload)
    with open(path, "rb") as file:
        assert file.read() == frame(b"") + WHOLE


def test_a_complete_file_gives_every_record_and_its_offset():
    records = read(WHOLE)
    assert [record.data for record in records] == PAYLOADS
    assert [record.offset for record in records] == OFFSETS
    assert read(b"") == []


@DAMAGED
def test_a_file_that_is_cut_off_inside_a_record_is_refused_at_the_records_offset(number):
    offset = OFFSETS[number]
    for kept in range(1, FRAME_BYTES + len(PAYLOADS[number])):
        left = (
            f"{kept} bytes are left, but a record takes at least 16: the file is cut off, or has extra bytes"
            if kept < FRAME_BYTES
            else f"its length is {len(PAYLOADS[number])} bytes, expected at most {kept - FRAME_BYTES}"
        )
        assert corrupt(WHOLE[: offset + kept]) == (offset, f"record at offset {offset}: {left}")


@DAMAGED
@pytest.mark.parametrize(
    ("place", "message"),
    [
        (0, "the CRC of the length does not match"),
        (9, "the CRC of the length does not match"),
        (12, "the CRC of the data does not match"),
        (-1, "the CRC of the data does not match"),
    ],
)
def test_one_flipped_bit_is_found(number, place, message):
    offset = OFFSETS[number]
    at = offset + place if place >= 0 else offset + FRAME_BYTES + len(PAYLOADS[number]) - 1
    damaged = bytearray(WHOLE)
    damaged[at] ^= 4
    assert corrupt(bytes(damaged)) == (offset, f"record at offset {offset}: {message}")


@DAMAGED
@pytest.mark.parametrize("length", [2**30, 2**33, 2**40, 2**62, 2**64 - 1])
def test_a_crafted_length_is_refused_before_it_is_used(number, length):
    offset = OFFSETS[number]
    data = WHOLE[:offset] + header(length) + b"x" * 100
    found, message = corrupt(data)
    assert found == offset
    assert f"its length is {length:,} bytes, expected at most 96" in message


def test_a_record_beyond_the_callers_limit_is_refused():
    assert read(WHOLE, max_data_bytes=9)
    assert corrupt(WHOLE, max_data_bytes=8)[0] == OFFSETS[8]


@pytest.mark.parametrize("tail", [b"x", b"garbage tail of a file", bytes(20)])
def test_extra_bytes_after_the_last_record_are_refused(tail):
    assert corrupt(WHOLE + tail)[0] == len(WHOLE)


def test_a_file_that_is_shorter_than_its_given_size_is_refused():
    for stop, message in [(OFFSETS[8] + 5, "ends inside the header"), (len(WHOLE) - 6, "ends inside the data")]:
        with pytest.raises(CorruptRecord, match=f"{message}, expected {len(WHOLE)} bytes in all") as caught:
            list(walk(io.BytesIO(WHOLE[:stop]), num_bytes=len(WHOLE)))
        assert caught.value.offset == OFFSETS[8]


@given(st.integers(0, len(WHOLE)), st.integers(0, 30), st.binary(max_size=30))
def test_a_damaged_file_gives_the_records_before_the_damage_and_then_an_error(start, width, junk):
    damaged = WHOLE[:start] + junk + WHOLE[start + width :]
    seen = []
    try:
        for record in walk(io.BytesIO(damaged), num_bytes=len(damaged)):
            seen.append(record.data)
    except CorruptRecord as error:
        # A length and its CRC look like a record of 8 bytes. Damage that turns one into the other cannot be detected.
        assume(not {struct.pack("<Q", len(data)) for data in PAYLOADS} & set(seen))
        assert seen == PAYLOADS[: len(seen)]
        assert error.offset == OFFSETS[len(seen)] if len(seen) < len(OFFSETS) else len(WHOLE)
    else:
        # A file without some of its records looks complete. Only the count in the manifest shows the loss.
        assume(not {struct.pack("<Q", len(data)) for data in PAYLOADS} & set(seen))
        assert all(data in PAYLOADS for data in seen)


def test_check_frames_finds_the_same_damage_as_walk():
    begin, sizes = np.array(OFFSETS), np.array([len(payload) for payload in PAYLOADS])
    check_frames(WHOLE, begin, sizes)
    some = slice(None, None, 3)
    check_frames(WHOLE, begin[some], sizes[some])
    for position in range(len(WHOLE)):
        changed = bytearray(WHOLE)
        changed[position] ^= 4
        expected, _ = corrupt(bytes(changed))
        with pytest.raises(CorruptRecord) as caught:
            check_frames(bytes(changed), begin, sizes)
        assert caught.value.offset == expected
    with pytest.raises(CorruptRecord, match="its length differs from the index"):
        check_frames(WHOLE, begin, sizes + (sizes == 4))
