"""Lists the raw files of a generation in one file, from the summaries of their chunks."""

import hashlib
import heapq
import itertools
import operator
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence

from pipeline.files import file_sha256, join, remove, replace
from pipeline.format.sources import SourceRow, SourcesFile, read_sources, rows_of, write_sources
from pipeline.raw.json_lines import ChunkSummary
from pipeline.shuffle.chunk_runs import ChunkRun, merge_chunk_runs
from pipeline.writing.paths import SOURCES_RUN_ENDING, sources_path

# Files that are merged at the same time. Some systems allow a process 256 open files.
_MAX_OPEN = 64


def list_sources(chunk_runs: Iterable[ChunkRun], *, output: str, generation: str) -> SourcesFile:
    """Writes the file of sources of a generation, also if no raw file is known. A retried call writes the same bytes.

    Args:
        chunk_runs: All chunks that were read.
    """
    path = sources_path(generation)
    with merge_chunk_runs(chunk_runs) as chunks, replace(join(output, path)) as file:
        written = write_sources(file, join_chunks(chunks))
    return SourcesFile(path=path, sha256=file_sha256(join(output, path)), **written._asdict())


def merge_sources(files: Sequence[SourcesFile], *, output: str, generation: str) -> SourcesFile:
    """Writes the sources of several generations as those of one, and joins neighbouring parts of the same file.

    Memory holds one block of each of at most 64 files, and the parts of one file.

    Args:
        files: The sources of the generations, from the oldest to the newest.

    Raises:
        ValueError: A file is damaged.
    """
    left, temporary = list(files), list[SourcesFile]()
    while len(left) > _MAX_OPEN:
        # Neighbours are merged, so that of equal paths the newest stays last.
        groups = [left[start : start + _MAX_OPEN] for start in range(0, len(left), _MAX_OPEN)]
        left = [
            _merge_some(group, output, f"data/{generation}/{uuid.uuid4().hex}{SOURCES_RUN_ENDING}", lambda rows: rows)
            for group in groups
        ]
        temporary += left
    merged = _merge_some(left, output, sources_path(generation), join_parts)
    remove([join(output, file.path) for file in temporary])
    return merged


def _merge_some(
    files: Sequence[SourcesFile],
    output: str,
    path: str,
    change: Callable[[Iterable[SourceRow]], Iterable[SourceRow]],
) -> SourcesFile:
    """Merges files of sources, with all of them open at the same time.

    Args:
        change: Applied to the merged rows, sorted by path.
    """
    rows = heapq.merge(*(_read_rows(output, file) for file in files), key=operator.attrgetter("path"))
    has_parts = any(some.parts for some in files)
    with replace(join(output, path)) as file:
        written = write_sources(file, change(rows), with_parts=has_parts, with_joined=has_parts)
    return SourcesFile(path=path, sha256=file_sha256(join(output, path)), **written._asdict())


def _read_rows(output: str, file: SourcesFile) -> Iterator[SourceRow]:
    for block in read_sources(output, file):
        yield from rows_of(block)


def join_parts(rows: Iterable[SourceRow]) -> Iterator[SourceRow]:
    """Yields the same rows, with one row for parts of a file that follow one another.

    Args:
        rows: Sorted by path.
    """
    for _, some in itertools.groupby(rows, key=operator.attrgetter("path")):
        of_path = list(some)
        yield from (row for row in of_path if row.start is None)
        parts = [row for row in of_path if row.start is not None]
        parts.sort(key=operator.attrgetter("rewrites", "start"))
        neighbours: list[SourceRow] = []
        for row in parts:
            if neighbours and not _follows(row, neighbours[-1]):
                yield _join(neighbours)
                neighbours = []
            neighbours.append(row)
        if neighbours:
            yield _join(neighbours)


def _follows(row: SourceRow, before: SourceRow) -> bool:
    assert before.start is not None
    return (row.rewrites, row.start, row.split) == (before.rewrites, before.start + before.stored_bytes, before.split)


def _join(parts: Sequence[SourceRow]) -> SourceRow:
    """Returns one row for parts that follow one another."""
    if len(parts) == 1:
        return parts[0]
    return parts[-1]._replace(
        num_bytes=sum(part.num_bytes for part in parts),
        stored_bytes=sum(part.stored_bytes for part in parts),
        sha256=hashlib.sha256(b"".join(part.sha256 for part in parts)).digest(),
        start=parts[0].start,
        joined=sum(part.joined or 1 for part in parts),
    )


def join_chunks(chunks: Iterable[ChunkSummary]) -> Iterator[SourceRow]:
    """Yields the raw files that chunks belong to.

    Args:
        chunks: All chunks of the raw files, sorted by file and place.
    """
    for path, parts in itertools.groupby(chunks, key=operator.attrgetter("path")):
        digest, num_bytes, stored_bytes, num_lines, split, place = hashlib.sha256(), 0, 0, 0, None, None
        for chunk in parts:
            digest.update(chunk.sha256)
            num_bytes += chunk.num_bytes
            stored_bytes += chunk.stored_bytes
            num_lines += chunk.num_lines
            split, place = chunk.split, chunk.range
        row = SourceRow(path, num_bytes, stored_bytes, digest.digest(), split)
        if place is not None:
            start, lines, rewrites, tail = place
            row = row._replace(start=start, lines=lines + num_lines, rewrites=rewrites, tail=tail)
        yield row
