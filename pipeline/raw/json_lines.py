"""Reads JSON Lines files, plain and .gz, as batches of lines that know where they come from."""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

from pipeline import progress
from pipeline.errors import UserError
from pipeline.files import open_read
from pipeline.raw.find_files import RawFile
from pipeline.raw.records import LIMITS, Limits, parse_line
from pipeline.raw.rejects import Origin, RecordError, Reject
from pipeline.schema.record import ParsedRecord
from pipeline.schema.schema import Schema

# Bytes of a file that one element stands for. A constant: the digest of a source is over those of its chunks.
CHUNK_BYTES = 32 * 2**20
# Lines travel in batches of about this size, so that Beam's cost for an element is paid once for hundreds of them.
BATCH_BYTES = 2**20
# And in larger ones where each batch becomes a file.
GZIP_BATCH_BYTES = 4 * 2**20
# What a line takes in memory beside its bytes: as an object, with its place and its digest.
_LINE_BYTES = 200
# Bytes that are read at once.
_BLOCK_BYTES = 2**18
# A gzip file whose lines take so many times its bytes, and so many in all, is taken for one that was made to do harm.
# (A record that is too large is a reject; what is dropped of it does not count.)
_BOMB_RATIO, _BOMB_BYTES = 200, 32 * 2**20
_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Chunk(NamedTuple):
    """A part of a file: the lines that begin in [start, stop). A gzip file, which has no way in midway, is one."""

    path: str
    start: int
    stop: int
    compressed: bool


class ChunkSummary(NamedTuple):
    """What a chunk turned out to hold; lines are counted, so that a reject can name its line in the file.

    Attributes:
        sha256: Over the digests of the lines that are not blank: each byte is hashed once.
    """

    path: str
    start: int
    num_bytes: int
    num_lines: int
    sha256: bytes


class LineBatch(NamedTuple):
    """A batch of lines that are not blank.

    Attributes:
        path: The file.
        chunk: Where the chunk starts; the line numbers of a batch count from there.
        offsets: Byte offset of each line, in the decompressed file.
        numbers: Number of each line in its chunk, from 0.
        lines: The lines, without their line break. One that is too large is cut off beyond the limit.
        digests: SHA-256 of each line.
    """

    path: str
    chunk: int
    offsets: list[int]
    numbers: list[int]
    lines: list[bytes | bytearray]
    digests: list[bytes]

    @property
    def num_bytes(self) -> int:
        """That all of it takes in memory, about."""
        return sum(map(len, self.lines)) + _LINE_BYTES * len(self.lines)


def split_file(file: RawFile) -> Iterator[Chunk]:
    """The chunks of a file. What is compressed shows in its first bytes, whatever its name."""
    with open_read(file.path) as stream:
        if stream.read(2) == _GZIP_MAGIC:
            yield Chunk(file.path, 0, file.num_bytes, True)
            return
    for start in range(0, file.num_bytes, CHUNK_BYTES):
        yield Chunk(file.path, start, min(start + CHUNK_BYTES, file.num_bytes), False)


def read_chunk(
    chunk: Chunk, *, batch_bytes: int = BATCH_BYTES, record_bytes: int = LIMITS.record_bytes
) -> Iterator[LineBatch | ChunkSummary]:
    """The lines that begin in a chunk, in batches of about `batch_bytes`, then what the chunk held.

    Args:
        record_bytes: A line that has more is cut off beyond that.

    Raises:
        UserError: the file cannot be read: gone, cut off, a broken gzip stream, or one that expands beyond all reason.
    """
    try:
        with open_read(chunk.path) as stored:
            if chunk.compressed:
                # Beam's own decompression takes a stream that is cut off for its end; this checks length and CRC.
                with gzip.GzipFile(fileobj=stored) as stream:
                    yield from _read_lines(chunk, _read_blocks(stream, 0, None), batch_bytes, record_bytes, stored)
            else:
                yield from _read_lines(chunk, _read_blocks(stored, chunk.start, chunk.stop), batch_bytes, record_bytes)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{chunk.path}: not a whole gzip file: {str(error).removesuffix('.')}.") from None
    except OSError as error:
        raise UserError(f"{chunk.path}: cannot be read: {error.strerror or error}.") from None


def _read_blocks(stream: IO[bytes] | gzip.GzipFile, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """The bytes of the lines that begin in [start, stop), some at a time, each with its offset."""
    # A line that begins before belongs to the chunk before, unless it ends right there.
    position, begun = start - (start > 0), not start
    if not begun:
        stream.seek(position)
    while block := stream.read(_BLOCK_BYTES):
        if not begun:
            skipped = block.find(b"\n") + 1
            begun = skipped > 0
            position += skipped if begun else len(block)
            if stop is not None and position >= stop:
                return
            if not begun:
                continue
            block = block[skipped:]
        if stop is not None and position + len(block) >= stop:
            # The last line is that of the byte before `stop`, and may go on for long.
            end = block.find(b"\n", max(0, stop - 1 - position)) + 1
            if end:
                yield position, block[:end]
                return
        yield position, block
        position += len(block)


def _read_lines(
    chunk: Chunk,
    blocks: Iterator[tuple[int, bytes]],
    batch_bytes: int,
    record_bytes: int,
    compressed: IO[bytes] | None = None,
) -> Iterator[LineBatch | ChunkSummary]:
    batches = _Batches(chunk)
    num_bytes = told = 0
    offset, rest, width = chunk.start, bytearray(), 0  # of the line that a block broke off: it grows in its place
    for position, block in blocks:
        offset = offset if num_bytes else position
        num_bytes += len(block)
        first: bytes | bytearray
        first, *others = block.split(b"\n")
        if width or not others:
            rest += first[: max(0, record_bytes + 2 - len(rest))]  # what is beyond is read, and dropped
            width += len(first)
            if not others:
                continue
            first = rest if width > _BLOCK_BYTES else bytes(rest)
            batches.add(first, offset)
            offset += width + 1
        else:
            batches.add(first, offset)
            offset += len(first) + 1
        rest, width, first = bytearray(), 0, b""  # whoever takes a large line alone holds it
        for line in others[:-1]:
            batches.add(line, offset)
            offset += len(line) + 1
        rest += others[-1]
        width = len(rest)
        if compressed is not None and batches.num_bytes > max(_BOMB_BYTES, _BOMB_RATIO * compressed.tell()):
            raise UserError(
                f"{chunk.path}: {compressed.tell():,} bytes of gzip hold more than {batches.num_bytes:,} bytes of "
                "lines: refused, as made to fill memory or disk. If it is meant, decompress it first."
            )
        if batches.size >= batch_bytes:
            yield from batches.take()
            # Once all that follows is done with them. A chunk is large, and may take a minute.
            done = num_bytes if compressed is None else compressed.tell()
            progress.add_bytes(done - told)
            told = done
    if width:
        batches.add(rest if width > _BLOCK_BYTES else bytes(rest), offset)
    yield from batches.take()
    progress.add_bytes((num_bytes if compressed is None else compressed.tell()) - told)
    yield ChunkSummary(chunk.path, chunk.start, num_bytes, batches.number, batches.digest.digest())


class _Batches:
    """Gathers the lines of a chunk that are not blank.

    Attributes:
        number: Of lines so far, the blank ones too.
        num_bytes: Of these lines.
        size: Bytes that those hold that wait.
        digest: Of the digests of those that were taken.
    """

    def __init__(self, chunk: Chunk) -> None:
        self._chunk = chunk
        self._batch = self._begin()
        self.digest = hashlib.sha256()
        self.number = self.num_bytes = self.size = 0

    def add(self, line: bytes | bytearray, offset: int) -> None:
        self.num_bytes += len(line) + 1
        self.number += 1
        if not line:
            return
        if line.endswith(b"\r"):
            line = line[:-1]
        if offset == 0 and line.startswith(_BYTE_ORDER_MARK):
            line = line[len(_BYTE_ORDER_MARK) :]
        if line and not line.isspace():
            self._batch.offsets.append(offset)
            self._batch.numbers.append(self.number - 1)
            self._batch.lines.append(line)
            self._batch.digests.append(hashlib.sha256(line).digest())
            self.size += len(line) + _LINE_BYTES

    def _begin(self) -> LineBatch:
        return LineBatch(self._chunk.path, self._chunk.start, [], [], [], [])

    def take(self) -> Iterator[LineBatch]:
        if self._batch.lines:
            self.digest.update(b"".join(self._batch.digests))
            batch, self._batch, self.size = self._batch, self._begin(), 0
            yield batch
            progress.add_records(len(batch.offsets))  # whoever has taken the lines may have emptied the batch


def parse_lines(
    lines: LineBatch, schema: Schema, *, keep_raw: bool = False, labelled: bool = True, limits: Limits = LIMITS
) -> Iterator[tuple[ParsedRecord, Origin] | Reject]:
    """Each line as a sequence and its origin, or as a reject. Takes the lines out of `lines` one by one."""
    lines.lines.reverse()
    for offset, number, digest in zip(lines.offsets, lines.numbers, lines.digests, strict=True):
        line = lines.lines.pop()
        kept = bytes(line) if keep_raw else None
        origin = Origin(lines.path, lines.chunk, offset, number, digest, kept)
        try:
            sequence = parse_line(line, schema, labelled=labelled, limits=limits)
        except RecordError as error:
            yield Reject(error.reason, error.message, error.id, origin)
            continue
        del line  # one may be as large as all else
        yield sequence, origin
        del sequence
