"""Reads JSON Lines files, plain or compressed: files -> chunks -> batches of lines -> parsed records and rejects.

Another raw format is another file beside this one, with the same four steps.
"""

import collections
import hashlib
import os
import pickle
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

from pipeline import progress
from pipeline.errors import TryAgain, UserError
from pipeline.files import open_read
from pipeline.raw.compression import MAGIC_BYTES, decompress, find_compression, refuse_bomb
from pipeline.raw.find_files import TAIL_BYTES, FileRange, RawFile
from pipeline.raw.line_splitter import BLOCK_BYTES, BYTE_ORDER_MARK, Line, LineSplitter
from pipeline.raw.records import LIMITS, Limits, parse_line
from pipeline.raw.rejects import Origin, RecordError, Reject
from pipeline.schema.record import ParsedRecord
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows

# Size of a chunk in bytes. It never changes: the digest of a source is computed over the digests of its chunks.
CHUNK_BYTES = 32 * 2**20
# Approximate size of a batch in bytes, so that Beam's cost per element is paid once for hundreds of lines.
BATCH_BYTES = 2**20
# The same for compressed files, where each batch is later written to a file of its own.
COMPRESSED_BATCH_BYTES = 4 * 2**20
# Memory in bytes that a line takes besides its own bytes: the Python object, the offset, the number and the digest.
LINE_BYTES = 200


class Chunk(NamedTuple):
    """A part of a file: the lines that begin in [start, stop).

    A compressed file is a single chunk, because it can be read only from its start.

    Attributes:
        path: The file.
        start, stop: Offsets in the file, in bytes.
        compressed: Whether the file is compressed.
        file_bytes: Size of the file when it was listed; of a part of a file, the end of the part.
        split: Split for which the file was given; None if files are not given by split.
        range: Of a file that is followed, the part to which the chunk belongs.
        is_piece: Whether it is only a piece of a chunk.
    """

    path: str
    start: int
    stop: int
    compressed: bool
    file_bytes: int
    split: str | None = None
    range: FileRange | None = None
    is_piece: bool = False


class ChunkSummary(NamedTuple):
    """The size and the digest of a chunk. The number of lines gives each reject its line number in the file.

    Attributes:
        path: The file.
        start: Offset of the chunk in the file, in bytes.
        num_bytes: Bytes of all lines, decompressed.
        stored_bytes: Bytes of the chunk in the file.
        num_lines: Number of lines, including blank lines.
        sha256: SHA-256 of the concatenated digests of the lines that are not blank. Each byte is thus hashed once. Of a
            piece of a chunk, the concatenated digests themselves.
        split: Split for which the file was given.
        range: Of a file that is followed, the part to which the chunk belongs.
    """

    path: str
    start: int
    num_bytes: int
    stored_bytes: int
    num_lines: int
    sha256: bytes
    split: str | None = None
    range: FileRange | None = None


class LineBatch(NamedTuple):
    """A batch of lines of one chunk, without the blank lines.

    Attributes:
        path: The file.
        chunk: Offset of the chunk in the file, in bytes.
        offsets: Offset of each line in the decompressed file, in bytes.
        numbers: Number of each line in its chunk, from 0.
        lines: The lines without their line breaks. A line that is too large is truncated after the limit.
        digests: SHA-256 of each line.
        file_bytes: Size of the file when it was listed.
        split: Split for which the file was given.
    """

    path: str
    chunk: int
    offsets: list[int]
    numbers: list[int]
    lines: list[Line]
    digests: list[bytes]
    file_bytes: int
    split: str | None = None

    @property
    def num_bytes(self) -> int:
        """Approximate memory of the batch, in bytes."""
        return sum(map(len, self.lines)) + LINE_BYTES * len(self.lines)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickles large lines as buffers, so that a process can get them without a copy in the pickle."""
        as_buffer: Any = pickle.PickleBuffer if protocol >= 5 else lambda line: line
        lines = [as_buffer(line) if type(line) is bytearray else line for line in self.lines]
        return LineBatch, tuple(self._replace(lines=lines))


def split_file(file: RawFile) -> Iterator[Chunk]:
    """Yields the chunks of a file or of a part of it, at least one.

    Compression is recognized by the first bytes, not by the name.

    Raises:
        TryAgain: The file is followed, and was renamed or removed.
    """
    try:
        with open_read(file.path) as stream:
            is_compressed = find_compression(stream.read(MAGIC_BYTES)) is not None
    except FileNotFoundError:
        if file.range is not None:
            raise _changed(file.path) from None
        raise
    if is_compressed:
        yield Chunk(file.path, 0, file.num_bytes, True, file.num_bytes, file.split, file.range)
        return
    end = file.start + file.num_bytes
    for start in range(file.start, max(file.start + 1, end), CHUNK_BYTES):
        yield Chunk(file.path, start, min(start + CHUNK_BYTES, end), False, end, file.split, file.range)


def read_chunk(
    chunk: Chunk, *, batch_bytes: int = BATCH_BYTES, record_bytes: int = LIMITS.record_bytes
) -> Iterator[LineBatch | ChunkSummary]:
    """Yields the lines of a chunk in batches of about `batch_bytes`, then the summary of the chunk.

    A plain file may grow after it was listed, as a log does: only the lines that begin in the listed bytes are read,
    the last of them up to its end.

    Args:
        record_bytes: A longer line may be truncated, but it stays longer than this.

    Raises:
        UserError: The file cannot be read, is not a complete compressed file, looks like a decompression bomb, or is
            shorter than when it was listed. A compressed file must not have become longer either.
        TryAgain: Another file has taken the place of a file that is followed, or it was rewritten.
    """
    try:
        with open_read(chunk.path) as stored:
            if chunk.compressed:
                with decompress(stored, path=chunk.path) as stream:
                    yield from _read_batches(chunk, _read_blocks(stream, 0, None), batch_bytes, record_bytes, stored)
            else:
                blocks = _read_blocks(stored, chunk.start, chunk.stop)
                yield from _read_batches(chunk, blocks, batch_bytes, record_bytes)
            _check_size(stored, chunk)
            if chunk.range is not None and tail_digest(stored, chunk.file_bytes) != chunk.range.tail:
                raise _changed(chunk.path)
    except OSError as error:
        if chunk.range is not None and isinstance(error, FileNotFoundError):
            raise _changed(chunk.path) from None
        raise UserError(f"{chunk.path}: cannot be read: {error.strerror or error}.") from None


def summarize_chunk(chunk: Chunk, *, record_bytes: int = LIMITS.record_bytes) -> ChunkSummary:
    """Returns the summary of a chunk, without its lines. See `read_chunk` for the arguments and errors."""
    last = collections.deque(read_chunk(chunk, record_bytes=record_bytes), maxlen=1).pop()
    assert isinstance(last, ChunkSummary)
    return last


class HashedFile(NamedTuple):
    """What the lines of a file, or of a part of it, are known by."""

    num_bytes: int
    num_lines: int
    sha256: bytes


def hash_file(file: RawFile, *, record_bytes: int = LIMITS.record_bytes) -> HashedFile:
    """Returns the size and the digest of a file, as its chunks give them."""
    digest, num_bytes, num_lines = hashlib.sha256(), 0, 0
    for chunk in split_file(file):
        summary = summarize_chunk(chunk, record_bytes=record_bytes)
        digest.update(summary.sha256)
        num_bytes += summary.num_bytes
        num_lines += summary.num_lines
    return HashedFile(num_bytes, num_lines, digest.digest())


def _check_size(file: IO[bytes], chunk: Chunk) -> None:
    """Raises a UserError if a file that was read lacks bytes that it had when it was listed."""
    file.seek(0, os.SEEK_END)
    num_bytes = file.tell()
    if num_bytes < chunk.file_bytes or (chunk.compressed and num_bytes > chunk.file_bytes):
        if chunk.range is not None:
            raise _changed(chunk.path)
        raise UserError(
            f"{chunk.path}: has {num_bytes:,} bytes now, but had {chunk.file_bytes:,} when it was listed: it was "
            "changed meanwhile. Run the command again when the file is complete."
        )


def _changed(path: str) -> TryAgain:
    return TryAgain(f"{path}: was replaced or rewritten while it was read. Nothing was published.")


def tail_digest(file: IO[bytes], end: int) -> bytes:
    """Returns the SHA-256 of the last TAIL_BYTES bytes of a file before the offset `end`, or of all of them."""
    start = max(0, end - TAIL_BYTES)
    file.seek(start)
    return hashlib.sha256(file.read(end - start)).digest()


def _read_blocks(stream: Any, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """Yields contiguous (offset, bytes) blocks that hold the lines that begin in [start, stop).

    Args:
        stream: A file, or a Stream, which is read from its start.
    """
    if start == stop:  # the file was empty when it was listed
        return
    # A line that begins before `start` belongs to the previous chunk. The byte before `start` shows whether a line
    # begins exactly at `start`.
    position, found_start = start - (start > 0), not start
    if not found_start:
        stream.seek(position)
    while block := stream.read(BLOCK_BYTES):
        if not found_start:
            skipped = block.find(b"\n") + 1
            found_start = skipped > 0
            position += skipped if found_start else len(block)
            if stop is not None and position >= stop:
                return
            if not found_start:
                continue
            block = block[skipped:]
        if stop is not None and position + len(block) >= stop:
            # The last line contains the byte before `stop`, and may continue far beyond it.
            end = block.find(b"\n", max(0, stop - 1 - position)) + 1
            if end:
                yield position, block[:end]
                return
        yield position, block
        position += len(block)


def _read_batches(
    chunk: Chunk,
    blocks: Iterable[tuple[int, bytes]],
    batch_bytes: int,
    record_bytes: int,
    compressed: IO[bytes] | None = None,
) -> Iterator[LineBatch | ChunkSummary]:
    """Yields the lines of `blocks` in batches, then the summary. `compressed` is the compressed file of the lines."""
    lines, batches = LineSplitter(record_bytes), _Batches(chunk)
    num_bytes = reported = 0
    for position, block in blocks:
        num_bytes += len(block)
        batches.add(lines.split(position, block))
        if compressed is not None:
            refuse_bomb(chunk.path, compressed.tell(), batches.num_bytes)
        if batches.size >= batch_bytes:
            yield from batches.take()
            # Reported when the consumer has processed the batch: a chunk is large, and may take a minute.
            done = num_bytes if compressed is None else compressed.tell()
            progress.add_bytes(done - reported)
            reported = done
    batches.add(lines.finish())
    yield from batches.take()
    progress.add_bytes((num_bytes if compressed is None else compressed.tell()) - reported)
    numbers = num_bytes, chunk.stop - chunk.start, batches.num_lines
    yield ChunkSummary(chunk.path, chunk.start, *numbers, batches.finish_digest(), chunk.split, chunk.range)


class _Batches:
    """Collects the lines of a chunk that are not blank.

    Attributes:
        num_lines: Number of lines added, including blank lines.
        num_bytes: Bytes of these lines.
        size: Approximate memory of the lines that were not taken yet, in bytes.
    """

    def __init__(self, chunk: Chunk) -> None:
        self._chunk = chunk
        self._batch = self._begin()
        # The digests of the lines that were taken: their SHA-256, or of a piece they themselves.
        self._digest = hashlib.sha256()
        self._digests: list[bytes] = []
        self.num_lines = self.num_bytes = self.size = 0

    def _begin(self) -> LineBatch:
        chunk = self._chunk
        return LineBatch(chunk.path, chunk.start, [], [], [], [], chunk.file_bytes, chunk.split)

    def add(self, lines: Iterable[tuple[int, Line]]) -> None:
        """Adds (offset, line) pairs in the order of the file."""
        _, _, offsets, numbers, kept, digests, *_ = self._batch
        sha256 = hashlib.sha256
        for offset, line in lines:
            self.num_bytes += len(line) + 1
            self.num_lines += 1
            if line.endswith(b"\r"):
                line = line[:-1]
            if offset == 0 and line.startswith(BYTE_ORDER_MARK):
                line = line[len(BYTE_ORDER_MARK) :]
            if line and not line.isspace():
                offsets.append(offset)
                numbers.append(self.num_lines - 1)
                kept.append(line)
                digests.append(sha256(line).digest())
                self.size += len(line) + LINE_BYTES

    def take(self) -> Iterator[LineBatch]:
        """Yields the batch, if it has lines, and begins the next."""
        if self._batch.lines:
            if self._chunk.is_piece:
                self._digests += self._batch.digests
            else:
                self._digest.update(b"".join(self._batch.digests))
            batch, self._batch, self.size = self._batch, self._begin(), 0
            yield batch
            progress.add_records(len(batch.offsets))  # not of `lines`: the consumer may have emptied them

    def finish_digest(self) -> bytes:
        """Returns the `sha256` of the ChunkSummary, after all lines were taken."""
        return b"".join(self._digests) if self._chunk.is_piece else self._digest.digest()


def parse_lines(
    batch: LineBatch,
    schema: Schema,
    *,
    keep_raw: bool = False,
    labelled: bool = True,
    limits: Limits = LIMITS,
    windows: EventWindows | None = None,
) -> Iterator[tuple[ParsedRecord, Origin] | Reject]:
    """Yields each line as a parsed record with its origin, or as a reject. Removes the lines from `batch`."""
    batch.lines.reverse()
    for offset, number, digest in zip(batch.offsets, batch.numbers, batch.digests, strict=True):
        line = batch.lines.pop()
        raw = line if keep_raw else None
        origin = Origin(batch.path, batch.chunk, offset, number, digest, raw, batch.split)
        try:
            record = parse_line(line, schema, labelled=labelled, limits=limits, windows=windows)
        except RecordError as error:
            yield Reject(error.reason, error.message, error.id, origin)
            continue
        del line  # a single line may be very large
        if batch.split is not None:
            record.split = batch.split
        yield record, origin
        del record
