"""Cuts chunks into pieces, so that several processes share the lines of a small file, and joins what they found."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from pipeline.raw.json_lines import Chunk, ChunkSummary


class Place(NamedTuple):
    """Where a chunk, or a piece of one, begins."""

    path: str
    start: int


def cut_chunk(chunk: Chunk, num_bytes: int) -> list[Chunk]:
    """Returns the pieces of a chunk, of `num_bytes` each; the chunk itself if it is not larger, or is compressed."""
    starts = range(chunk.start, chunk.stop, num_bytes)
    if chunk.compressed or len(starts) < 2:
        return [chunk]
    return [chunk._replace(start=start, stop=min(start + num_bytes, chunk.stop), is_piece=True) for start in starts]


def join_pieces(summaries: Iterable[ChunkSummary], chunks: Mapping[Place, int]) -> Iterator[ChunkSummary]:
    """Yields the summaries of chunks, sorted by file and place: those that would be had without any pieces.

    Args:
        summaries: The summaries of chunks and pieces, in any order.
        chunks: Of each piece, where its chunk begins.
    """
    ordered = sorted(summaries, key=lambda summary: summary[:2])
    for (_, start), group in itertools.groupby(
        ordered, lambda s: (s.path, chunks.get(Place(s.path, s.start), s.start))
    ):
        pieces = list(group)
        if Place(*pieces[0][:2]) not in chunks:
            yield from pieces
            continue
        yield pieces[0]._replace(
            start=start,
            num_bytes=sum(piece.num_bytes for piece in pieces),
            stored_bytes=sum(piece.stored_bytes for piece in pieces),
            num_lines=sum(piece.num_lines for piece in pieces),
            sha256=hashlib.sha256(b"".join(piece.sha256 for piece in pieces)).digest(),
        )
