"""Lists the raw files of a generation in one file, from the summaries of their chunks."""

import hashlib
import itertools
import operator
from collections.abc import Iterable, Iterator

from pipeline.files import file_sha256, join, replace
from pipeline.format.sources import SourceRow, SourcesFile, write_sources
from pipeline.raw.json_lines import ChunkSummary
from pipeline.shuffle.chunk_runs import ChunkRun, merge_chunk_runs
from pipeline.writing.paths import sources_path


def list_sources(chunk_runs: Iterable[ChunkRun], *, output: str, generation: str) -> SourcesFile:
    """Writes the file of sources of a generation, also if no raw file is known. A retried call writes the same bytes.

    Args:
        chunk_runs: All chunks that were read.
    """
    path = sources_path(generation)
    with merge_chunk_runs(chunk_runs) as chunks, replace(join(output, path)) as file:
        files, num_bytes = write_sources(file, join_chunks(chunks))
    return SourcesFile(path=path, sha256=file_sha256(join(output, path)), files=files, bytes=num_bytes)


def join_chunks(chunks: Iterable[ChunkSummary]) -> Iterator[SourceRow]:
    """Yields the raw files that chunks belong to.

    Args:
        chunks: All chunks of the raw files, sorted by file and place.
    """
    for path, parts in itertools.groupby(chunks, key=operator.attrgetter("path")):
        digest, num_bytes, stored_bytes = hashlib.sha256(), 0, 0
        for chunk in parts:
            digest.update(chunk.sha256)
            num_bytes += chunk.num_bytes
            stored_bytes += chunk.stored_bytes
        yield SourceRow(path, num_bytes, stored_bytes, digest.digest())
