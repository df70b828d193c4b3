"""Reads JSON Lines files, plain and .gz, as batches of lines that know where they come from."""

import dataclasses
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipeline import progress
from pipeline.errors import UserError
from pipeline.records import MAX_RECORD_BYTES
from pipeline.storage import filesystems, is_local, list_files, open_read

# Bytes of a file that one element stands for. A constant: the digest of a source is over those of its chunks.
CHUNK_BYTES = 16 * 2**20
# Lines travel in batches of about this size, so that Beam's cost for an element is paid once for hundreds of them.
BATCH_BYTES = 2**20
_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# What a folder's raw files are called. A file that is named by itself, or by a glob, may be called anything.
ENDINGS = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
_OTHER_COMPRESSION = (".bz2", ".zst", ".xz", ".zip", ".lz4", ".7z")


class RawFile(NamedTuple):
    """A file to read, and its size in bytes as it is stored."""

    path: str
    num_bytes: int


class Chunk(NamedTuple):
    """A part of a file: the lines that begin in [start, stop). A gzip file, which has no way in midway, is one."""

    path: str
    start: int
    stop: int
    compressed: bool


class ReadChunk(NamedTuple):
    """What a chunk turned out to hold; lines are counted, so that a reject can name its line in the file."""

    path: str
    start: int
    num_bytes: int
    num_lines: int
    sha256: bytes


class Lines(NamedTuple):
    """A batch of lines that are not blank.

    Attributes:
        path: The file.
        chunk: Where the chunk starts; the line numbers of a batch count from there.
        offsets: Byte offset of each line, in the decompressed file.
        numbers: Number of each line in its chunk, from 0.
        lines: The lines, without their line break. One that is too large is cut off beyond the limit.
    """

    path: str
    chunk: int
    offsets: list[int]
    numbers: list[int]
    lines: list[bytes]


def find_files(patterns: Sequence[str]) -> list[RawFile]:
    """The files that paths, globs and folders name, sorted, each once.

    Raises:
        UserError: one of them matches no file, or a compression that is not read.
    """
    files: dict[str, RawFile] = {}
    for pattern in patterns:
        found = _match(pattern)
        if not found:
            raise UserError(
                f"{pattern}: matches no file. Expected a file, a glob, or a folder with files named "
                f"*{', *'.join(ENDINGS[:3])} (or the same with .gz)."
            )
        files.update((file.path, file) for file in found)
    for path in files:
        if path.endswith(_OTHER_COMPRESSION):
            raise UserError(
                f"{path}: this compression is not read; expected plain JSON Lines or .gz. Decompress it first."
            )
    return sorted(files.values())


def _match(pattern: str) -> list[RawFile]:
    # A name that exists is itself, even where it reads as a glob: "run[1].jsonl".
    if is_local(pattern) and os.path.isfile(pattern):
        return [RawFile(pattern, os.path.getsize(pattern))]
    folder = pattern.rstrip("/") or "/"
    if _is_folder(folder):
        return [RawFile(path, os.path.getsize(path)) for path in list_files(folder) if _is_raw(path, folder)]
    beam_filesystems = filesystems()
    try:
        direct = [m for result in beam_filesystems.match([folder]) for m in result.metadata_list]
        files = [RawFile(m.path, m.size_in_bytes) for m in direct if not _is_folder(m.path)]
        if files:
            return files
        inside = [m for result in beam_filesystems.match([f"{folder}/**"]) for m in result.metadata_list]
    except Exception as error:  # each file system has its own; Beam wraps some of them
        raise UserError(f"{pattern}: cannot be listed: {' '.join(str(error).split())}.") from None
    return [RawFile(m.path, m.size_in_bytes) for m in inside if _is_raw(m.path, folder) and not _is_folder(m.path)]


def _is_raw(path: str, folder: str) -> bool:
    """Whether a file in a folder is meant: by its ending, and not hidden or temporary (`_tmp/`, `.a.jsonl`)."""
    return path.endswith(ENDINGS) and not any(p.startswith((".", "_")) for p in path[len(folder) :].split("/"))


def _is_folder(path: str) -> bool:
    return is_local(path) and os.path.isdir(path)


def split_file(file: RawFile) -> Iterator[Chunk]:
    """The chunks of a file. What is compressed shows in its first bytes, whatever its name."""
    with open_read(file.path) as stream:
        if stream.read(2) == _GZIP_MAGIC:
            yield Chunk(file.path, 0, file.num_bytes, True)
            return
    for start in range(0, file.num_bytes, CHUNK_BYTES):
        yield Chunk(file.path, start, min(start + CHUNK_BYTES, file.num_bytes), False)


def read_chunk(chunk: Chunk) -> Iterator[Lines | ReadChunk]:
    """The lines that begin in a chunk, in batches, then what the chunk held.

    Raises:
        UserError: the file cannot be read: gone, cut off, or a broken gzip stream.
    """
    try:
        with open_read(chunk.path) as stored:
            if chunk.compressed:
                # Beam's own decompression takes a stream that is cut off for its end; this checks length and CRC.
                with gzip.GzipFile(fileobj=stored) as stream:
                    yield from _read_lines(chunk, stream, stop=None)
            else:
                yield from _read_lines(chunk, stored, stop=chunk.stop)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{chunk.path}: not a whole gzip file: {str(error).removesuffix('.')}.") from None
    except OSError as error:
        raise UserError(f"{chunk.path}: cannot be read: {error.strerror or error}.") from None


def _read_lines(chunk: Chunk, stream: IO[bytes] | gzip.GzipFile, *, stop: int | None) -> Iterator[Lines | ReadChunk]:
    position = chunk.start
    if chunk.start:
        # A line that begins before the chunk belongs to the chunk before, unless it ends right there.
        stream.seek(chunk.start - 1)
        position = chunk.start - 1 + _read_line(stream, hashlib.sha256())[1]
    digest, number, batch = hashlib.sha256(), 0, Lines(chunk.path, chunk.start, [], [], [])
    size, first = 0, position
    while stop is None or position < stop:
        line, width = _read_line(stream, digest)
        if not line:
            break
        content = line.removesuffix(b"\n").removesuffix(b"\r")
        if position == 0:
            content = content.removeprefix(_BYTE_ORDER_MARK)
        if content and not content.isspace():
            batch.offsets.append(position)
            batch.numbers.append(number)
            batch.lines.append(content)
            size += len(content)
        position += width
        number += 1
        if size >= BATCH_BYTES:
            yield batch
            batch, size = Lines(chunk.path, chunk.start, [], [], []), 0
    if batch.lines:
        yield batch
    yield ReadChunk(chunk.path, chunk.start, position - first, number, digest.digest())


def _read_line(stream: Any, digest: Any) -> tuple[bytes, int]:
    """The next line and its length with the break, in bounded memory: what is beyond the limit is read and dropped."""
    limit = MAX_RECORD_BYTES + 2
    line: bytes = stream.readline(limit)
    digest.update(line)
    width, rest = len(line), line
    while len(rest) == limit and not rest.endswith(b"\n"):
        rest = stream.readline(limit)
        digest.update(rest)
        width += len(rest)
    return line, width


class _ReadChunks(beam.DoFn):
    CHUNKS = "chunks"

    def __init__(self) -> None:
        self._lines = Metrics.counter("lengthwise", "lines_read")

    def process(self, chunk: Chunk) -> Iterable[Any]:
        told = 0
        for item in read_chunk(chunk):
            if isinstance(item, ReadChunk):
                yield beam.pvalue.TaggedOutput(self.CHUNKS, item)
                progress.add_bytes(item.num_bytes - told)
            else:
                self._lines.inc(len(item.lines))
                progress.add_records(len(item.lines))
                yield item
                # Once all that follows in this stage is done with them. A chunk is large, and may take a minute.
                size = sum(map(len, item.lines))
                told += size
                progress.add_bytes(size)


@dataclasses.dataclass
class ReadLines(beam.PTransform):
    """Begin -> {"lines": batches of lines, "chunks": what was read}, from the files that `find_files` found."""

    files: Sequence[RawFile]

    def expand(self, pipeline: Any) -> Any:
        outputs = (
            pipeline
            | "Files" >> beam.Create(list(self.files))
            | "Split" >> beam.FlatMap(split_file)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(_ReadChunks()).with_outputs(_ReadChunks.CHUNKS, main="lines")
        )
        return {"lines": outputs["lines"], "chunks": outputs[_ReadChunks.CHUNKS]}
