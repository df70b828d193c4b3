"""Parses the raw lines in a file of rejects again."""

import sys
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.format.reject_rows import RejectRow, raw_line, read_row
from pipeline.raw.find_files import RawFile
from pipeline.raw.json_lines import Chunk, LineBatch, read_chunk, split_file
from pipeline.raw.records import LIMITS, Limits, parse_line
from pipeline.raw.rejects import IN_FILE, Origin, RecordError, Reject
from pipeline.schema.record import ParsedRecord
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows


class RejectsChunk(NamedTuple):
    """A part of a file of rejects: the lines that begin in [start, stop)."""

    path: str
    start: int
    stop: int


def split_rejects(file: RawFile) -> Iterator[RejectsChunk]:
    """Yields the chunks of a file of rejects."""
    for chunk in split_file(file):
        yield RejectsChunk(chunk.path, chunk.start, chunk.stop)


def parse_rejects(
    chunk: RejectsChunk, schema: Schema, *, limits: Limits = LIMITS, windows: EventWindows | None = None
) -> Iterator[tuple[ParsedRecord, Origin] | Reject]:
    """Yields each raw line of a chunk as a parsed record with its first origin, or as a reject that keeps the raw line.

    A line that was too large stays rejected for the same reason: only its beginning was kept.

    Raises:
        UserError: The file cannot be read, or has a line that is not a reject with its raw line.
    """
    # A line of the file is longer than the raw line that it contains.
    part = Chunk(*chunk, compressed=False, file_bytes=chunk.stop)
    for batch in read_chunk(part, record_bytes=sys.maxsize // 2):
        if not isinstance(batch, LineBatch):
            continue
        batch.lines.reverse()
        for offset in batch.offsets:
            try:
                row = read_row(bytes(batch.lines.pop()))
                raw, origin = raw_line(row), _read_origin(row)
                if raw is None:
                    raise ValueError("without its raw line")
            except (ValueError, TypeError) as error:
                raise UserError(f"{chunk.path}: byte {offset}: not a reject with its raw line: {error}.") from None
            origin = origin._replace(raw=raw)
            if row["reason"] == "too_large":
                yield Reject("too_large", row["message"], row["id"], origin)
                continue
            try:
                record = parse_line(raw, schema, limits=limits, windows=windows)
            except RecordError as error:
                yield Reject(error.reason, error.message, error.id, origin)
                continue
            if origin.input_split is not None:
                record.split = origin.input_split
            yield record, origin


def _read_origin(row: RejectRow) -> Origin:
    line = -1 if row["line"] is None else row["line"] - 1
    sha256 = bytes.fromhex(row["sha256"])
    return Origin(row["file"], IN_FILE, row["byte_offset"] or 0, line, sha256, None, row.get("split"))
