"""Lists the raw files of a generation in one file, from the summaries of their chunks."""

import hashlib
import heapq
import itertools
import operator
import uuid
from collections.abc import Iterable, Iterator, Sequence

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
    """Writes the sources of several generations as those of one. Memory holds one block of each of at most 64 files.

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
            _merge_some(group, output, f"data/{generation}/{uuid.uuid4().hex}{SOURCES_RUN_ENDING}") for group in groups
        ]
        temporary += left
    merged = _merge_some(left, output, sources_path(generation))
    remove([join(output, file.path) for file in temporary])
    return merged


def _merge_some(files: Sequence[SourcesFile], output: str, path: str) -> SourcesFile:
    """Merges files of sources, with all of them open at the same time."""
    rows = heapq.merge(*(_read_rows(output, file) for file in files), key=operator.attrgetter("path"))
    with replace(join(output, path)) as file:
        written = write_sources(file, rows, with_parts=any(some.parts for some in files))
    return SourcesFile(path=path, sha256=file_sha256(join(output, path)), **written._asdict())


def _read_rows(output: str, file: SourcesFile) -> Iterator[SourceRow]:
    for block in read_sources(output, file):
        yield from rows_of(block)


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
