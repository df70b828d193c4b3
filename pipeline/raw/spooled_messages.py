"""Copies the messages of a topic to a temporary file, and reads them from there as the lines of a file are read.

A round of a stream copies the messages that it takes before its job begins. So a worker that is tried again reads the
same messages, also if the topic was compacted meanwhile, and no worker needs access to the broker.

The file consists of blocks of messages of one partition. A block has the offsets, int64[messages], the sizes of the
values, int64[messages], and the values. The values may be any bytes.
"""

import contextlib
import hashlib
import uuid
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, Self

import numpy as np

from pipeline import progress
from pipeline.errors import TryAgain
from pipeline.files import create, join, open_read
from pipeline.raw.find_files import Block, FileRange, RawFile, Spool
from pipeline.raw.json_lines import BATCH_BYTES, CHUNK_BYTES, Chunk, ChunkSummary, LineBatch, split_file
from pipeline.raw.line_splitter import Line
from pipeline.raw.records import LIMITS

SPOOL_ENDING = ".messages"
# Values that wait to be written, in bytes. Above it, those of all partitions are written.
_BUFFER_BYTES = 16 * 2**20
# What a message counts for besides its value.
_MESSAGE_BYTES = 64
_INTEGER = np.dtype("<i8")


class MessageChunk(NamedTuple):
    """A part of the messages of a partition, in blocks that follow one another.

    Attributes:
        path: `kafka://TOPIC/PARTITION`.
        start, stop: Offsets in the partition: the messages in [start, stop). Some offsets may have no message.
        spool: The file with the messages.
        blocks: Where they are in it.
        file_bytes: Bytes of the values of all messages that the round takes from the partition.
        range: The place in the partition of what the round takes from it.
    """

    path: str
    start: int
    stop: int
    spool: str
    blocks: tuple[Block, ...]
    file_bytes: int
    range: FileRange

    @property
    def num_bytes(self) -> int:
        """Bytes of the values."""
        return sum(block.num_bytes for block in self.blocks)


class SpoolWriter:
    """Writes messages of several partitions to one new file in a folder. Without messages it writes no file.

    Leaving the context with an exception removes the file.
    """

    def __init__(self, folder: str) -> None:
        self._path = join(folder, f"{uuid.uuid4().hex}{SPOOL_ENDING}")
        self._files = contextlib.ExitStack()
        self._file: IO[bytes] | None = None
        self._place = self._buffered = 0
        # The messages that wait, and the blocks that were written, by partition.
        self._waiting: dict[str, _Messages] = {}
        self._blocks: dict[str, list[Block]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._files.__exit__(*error)

    def add(self, path: str, offset: int, value: bytes) -> None:
        """Adds the next message of a partition."""
        messages = self._waiting.get(path)
        if messages is None:
            messages = self._waiting[path] = _Messages([], [], 0)
        messages.offsets.append(offset)
        messages.values.append(value)
        messages.num_bytes += len(value)
        self._buffered += len(value) + _MESSAGE_BYTES
        if messages.num_bytes + _MESSAGE_BYTES * len(messages.offsets) >= BATCH_BYTES:
            self._write(path)
        elif self._buffered >= _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes all messages that were added."""
        for path in list(self._waiting):
            self._write(path)
        if self._file is not None:
            self._file.flush()

    def _write(self, path: str) -> None:
        messages = self._waiting.pop(path)
        offsets, values = messages.offsets, messages.values
        if self._file is None:
            self._file = self._files.enter_context(create(self._path))
        sizes = np.fromiter(map(len, values), _INTEGER, len(values))
        block = Block(self._place, offsets[0], len(offsets), messages.num_bytes)
        self._file.write(b"".join([np.array(offsets, _INTEGER).tobytes(), sizes.tobytes(), *values]))
        self._blocks.setdefault(path, []).append(block)
        self._place += 2 * _INTEGER.itemsize * len(offsets) + messages.num_bytes
        self._buffered -= messages.num_bytes + _MESSAGE_BYTES * len(offsets)

    def spool(self, path: str, stop: int) -> Spool:
        """Returns where the messages of a partition are. Call `flush` before.

        Args:
            stop: Offset in the partition where the part ends.
        """
        blocks = tuple(self._blocks.get(path, ()))
        return Spool(self._path if blocks else "", stop, blocks)


class _Messages:
    """Messages of a partition that wait to be written."""

    __slots__ = ("num_bytes", "offsets", "values")

    def __init__(self, offsets: list[int], values: list[bytes], num_bytes: int) -> None:
        self.offsets, self.values, self.num_bytes = offsets, values, num_bytes


def split_input(file: RawFile, *, message_bytes: int = CHUNK_BYTES) -> Iterator[Chunk | MessageChunk]:
    """Yields the chunks of a file, or of the messages of a partition, at least one. See `split_file` for the errors.

    Args:
        message_bytes: Bytes of the values in a chunk of messages, but at least one block.
    """
    if file.spool is None:
        yield from split_file(file)
        return
    assert file.range is not None
    groups: list[list[Block]] = [[]]
    num_bytes = 0
    for block in file.spool.blocks:
        if groups[-1] and num_bytes + block.num_bytes > message_bytes:
            groups.append([])
            num_bytes = 0
        groups[-1].append(block)
        num_bytes += block.num_bytes
    starts = [file.range.start, *(group[0].first for group in groups[1:])]
    stops = [*starts[1:], file.spool.stop]
    for start, stop, group in zip(starts, stops, groups, strict=True):
        yield MessageChunk(file.path, start, stop, file.spool.path, tuple(group), file.num_bytes, file.range)


def read_messages(
    chunk: MessageChunk, *, record_bytes: int = LIMITS.record_bytes
) -> Iterator[LineBatch | ChunkSummary]:
    """Yields the values of the messages in batches, then the summary of the chunk.

    The offset of a line is that of the message in the partition. A value is one record, whatever it contains: also an
    empty one, which is rejected. The digest of the summary is the SHA-256 of the partition, the start of the chunk, and
    the digests of the values.

    Args:
        record_bytes: A longer value is truncated, but it stays longer than this.

    Raises:
        TryAgain: The file with the messages was removed, as another job may do that keeps no old files.
    """
    digest, num_lines = hashlib.sha256(f"{chunk.path}@{chunk.start}".encode()), 0
    for block in chunk.blocks:
        offsets, values = _read_block(chunk.spool, block)
        numbers = list(range(num_lines, num_lines + len(values)))
        lines: list[Line] = [v if len(v) <= record_bytes else v[: record_bytes + 1] for v in values]
        digests = [hashlib.sha256(line).digest() for line in lines]
        digest.update(b"".join(digests))
        num_lines += len(values)
        yield LineBatch(chunk.path, chunk.start, offsets, numbers, lines, digests, chunk.file_bytes)
        progress.add_records(len(offsets))
        progress.add_bytes(block.num_bytes)
    counts = chunk.num_bytes, chunk.stop - chunk.start, num_lines
    yield ChunkSummary(chunk.path, chunk.start, *counts, digest.digest(), None, chunk.range)


def _read_block(path: str, block: Block) -> tuple[list[int], list[bytes]]:
    """Returns the offsets and the values of the messages of a block."""
    num_bytes = 2 * _INTEGER.itemsize * block.num_messages + block.num_bytes
    try:
        with open_read(path) as file:
            file.seek(block.place)
            data = file.read(num_bytes)
    except FileNotFoundError:
        raise TryAgain(f"{path}: was removed while it was read. Nothing was published.") from None
    if len(data) != num_bytes:
        raise TryAgain(f"{path}: was changed while it was read. Nothing was published.")
    count = block.num_messages
    offsets = np.frombuffer(data, _INTEGER, count).tolist()
    ends = np.cumsum(np.frombuffer(data, _INTEGER, count, count * _INTEGER.itemsize)) + num_bytes - block.num_bytes
    begins = [num_bytes - block.num_bytes, *ends[:-1].tolist()]
    return offsets, [data[begin:end] for begin, end in zip(begins, ends.tolist(), strict=True)]
