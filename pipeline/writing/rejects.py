"""Merges the runs of rejects into the file of rejects of a generation."""

import collections
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pipeline.files import join, replace
from pipeline.format.models import Rejected
from pipeline.raw.find_files import TOPIC_SCHEME
from pipeline.raw.json_lines import ChunkSummary
from pipeline.raw.rejects import IN_FILE
from pipeline.shuffle.chunk_runs import ChunkRun, merge_chunk_runs
from pipeline.shuffle.reject_runs import RejectRun, merge_reject_runs
from pipeline.writing.paths import rejects_path


class RejectsFile(NamedTuple):
    """A file of rejects.

    Attributes:
        path: Path inside the output folder.
        sha256: SHA-256 of the file, as hexadecimal digits.
        by_reason: Number of rejects for each reason.
        replayed: The same for those of them that were rejected before, and are again.
        example: Reason and message of the first one of these.
        first: Place, reason and message of the first one of the others.
    """

    path: str
    sha256: str
    by_reason: dict[str, int]
    replayed: dict[str, int] = {}  # never changed
    example: str | None = None
    first: str | None = None


def write_rejects(
    reject_runs: Iterable[RejectRun], chunk_runs: Iterable[ChunkRun], *, output: str, generation: str
) -> RejectsFile | None:
    """Writes all rejects to one file, sorted by raw file and by place in it. Without rejects, writes no file.

    Args:
        chunk_runs: All chunks that were read. A reject knows its line within its chunk; the number of lines in the
            chunks before it gives its line within the file.

    Returns:
        The file, or None if there are no rejects.
    """
    path = rejects_path(generation)
    digest, reasons, replayed = hashlib.sha256(), collections.Counter[str](), collections.Counter[str]()
    example: str | None = None
    first_fresh: str | None = None
    with merge_reject_runs(reject_runs) as rows:
        first = next(rows, None)
        if first is None:
            return None
        with merge_chunk_runs(chunk_runs) as chunks, replace(join(output, path)) as file:
            line_numbers = _LineNumbers(chunks)
            for row in itertools.chain([first], rows):
                reasons[row["reason"]] += 1
                chunk = row.pop("chunk")
                if chunk == IN_FILE:
                    replayed[row["reason"]] += 1
                    example = example or f"{row['reason']}: {row['message']}"
                row["line"] = line_numbers.in_file(row["file"], chunk, row["line"])
                if chunk != IN_FILE:
                    first_fresh = first_fresh or _describe(row)
                line = json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
                digest.update(line)
                file.write(line)
    return RejectsFile(path, digest.hexdigest(), dict(reasons), dict(replayed), example, first_fresh)


def _describe(row: dict[str, Any]) -> str:
    """Returns the place, the reason and the message of a reject."""
    line = "" if row["line"] is None else f"line {row['line']:,} of "
    if (row["file"] or "").startswith(TOPIC_SCHEME):
        line = f"offset {row['byte_offset']:,} of "
    place = "" if row["file"] is None else f"{line}{row['file']}, "
    return f"{place}{row['reason']}: {row['message']}"


def count_rejects(files: Iterable[RejectsFile]) -> Rejected:
    """Returns the number of rejects in all files, in total and for each reason, and the paths of the files."""
    files = list(files)
    by_reason: collections.Counter[str] = collections.Counter()
    for file in files:
        by_reason.update(file.by_reason)
    return Rejected(
        total=by_reason.total(),
        by_reason=dict(sorted(by_reason.items())),
        files=tuple(sorted(file.path for file in files)),
    )


def find_first(files: Iterable[RejectsFile]) -> str | None:
    """Returns the place, the reason and the message of the first reject that was not rejected before."""
    return next((file.first for file in files if file.first), None)


class _LineNumbers:
    """Converts line numbers within chunks to line numbers within files.

    Args:
        chunks: All chunks, sorted by file and place. They are read as far as the rejects need them.
    """

    def __init__(self, chunks: Iterator[ChunkSummary]) -> None:
        self._chunks = chunks
        self._path: str | None = None
        # The number of lines in the chunks of this file before the next chunk, and those before the current one.
        self._lines_to_next = self._lines_before = 0
        self._next = next(chunks, None)

    def in_file(self, source: str | None, chunk: int, line: int | None) -> int | None:
        """Returns the line number within the file, from 1, or None if it is unknown.

        The calls are in the order of file and place.

        Args:
            source: Path of the raw file.
            chunk: Where the chunk starts, in bytes. IN_FILE if `line` is the number within the file.
            line: Line number within the chunk, from 0.
        """
        if source is None or line is None:
            return None
        if chunk == IN_FILE:
            return line + 1 if line >= 0 else None
        while self._next is not None and (self._next.path, self._next.start) <= (source, chunk):
            if self._next.path != self._path:
                before = 0 if self._next.range is None else self._next.range.lines
                self._path, self._lines_to_next = self._next.path, before
            self._lines_before = self._lines_to_next
            self._lines_to_next += self._next.num_lines
            self._next = next(self._chunks, None)
        return self._lines_before + line + 1 if self._path == source else None
