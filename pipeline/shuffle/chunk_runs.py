"""Sorts the summaries of chunks through files, by file and place: there may be millions of raw files."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from pipeline.raw.find_files import FileRange
from pipeline.raw.json_lines import ChunkSummary
from pipeline.shuffle.row_runs import Row, RowBuffer, RowRun, merge_row_runs, write_lines

CHUNK_RUN_ENDING = ".chunks"
ChunkRun: TypeAlias = RowRun


class ChunkBuffer(RowBuffer[ChunkSummary]):
    """Buffers summaries of chunks in any order, and writes runs to a folder."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder, CHUNK_RUN_ENDING, _to_row)


class ChunkLinesBuffer(RowBuffer[Row]):
    """Buffers rows of `write_chunk_lines` in any order, and writes runs to a folder."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder, CHUNK_RUN_ENDING, lambda row: row)


def write_chunk_lines(chunks: Iterable[ChunkSummary]) -> bytes:
    """Returns summaries of chunks as a block of lines."""
    return write_lines(map(_to_row, chunks))


@contextlib.contextmanager
def merge_chunk_runs(chunk_runs: Iterable[ChunkRun]) -> Iterator[Iterator[ChunkSummary]]:
    """Opens any number of runs and gives an iterator over their summaries, sorted by file and place.

    A chunk that was read twice, as by two `ReadLines` with a file in common, occurs once.
    """
    with merge_row_runs(chunk_runs) as rows:
        yield (_from_row(row) for row, _ in itertools.groupby(rows))


def _to_row(chunk: ChunkSummary) -> Row:
    place = [] if chunk.range is None else [*chunk.range[:-1], chunk.range.tail.hex()]
    return [*chunk[:5], chunk.sha256.hex(), chunk.split, place]


def _from_row(row: Row) -> ChunkSummary:
    *numbers, sha256, split, place = row
    found = FileRange._make([*place[:-1], bytes.fromhex(place[-1])]) if place else None
    return ChunkSummary._make([*numbers, bytes.fromhex(sha256), split, found])
