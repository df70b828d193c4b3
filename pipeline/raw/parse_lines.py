"""Parses batches of lines into sequences, or rejects."""

from collections.abc import Iterator

from pipeline.raw.json_lines import Lines
from pipeline.raw.origin import Origin, Reject
from pipeline.raw.reasons import RecordError
from pipeline.raw.records import LIMITS, Limits, parse_line
from pipeline.schema.record import ParsedRecord
from pipeline.schema.schema import Schema


def parse_lines(
    lines: Lines, schema: Schema, *, keep_raw: bool = False, labelled: bool = True, limits: Limits = LIMITS
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
