"""What a job does to data, as functions of plain values: a worker process runs them as well as one of Beam's."""

from pipeline.raw.parse_lines import parse_lines

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipeline import progress
from pipeline.shuffle.encoded import Block, Encoded, encode
from pipeline.raw.origin import Origin, Reject
from pipeline.shuffle.hashing import shard_range
from pipeline.raw.json_lines import Chunk, Lines, ReadChunk, read_chunk
from pipeline.raw.reasons import RecordError
from pipeline.raw.records import LIMITS, Limits, parse_line
from pipeline.schema.record import ParsedRecord
from pipeline.shuffle.spills import GatheredRejects, Spill, Spiller
from pipeline.shuffle.runs import RUN_BYTES, RUN_RECORDS, Run, merge_runs, write_run
from pipeline.schema.schema import Schema
from pipeline.build.shards import ShardSummary, ShardWriter


class Made(NamedTuple):
    """What became of some lines.

    Attributes:
        chunks: Of those that were read whole.
    """

    runs: list[Run]
    spills: list[Spill]
    chunks: list[ReadChunk]
    parsed: int
    rejected: int




def make_runs(
    items: list[Chunk | Lines], schema: Schema, *, seed: int, folder: str, keep_raw: bool, limits: Limits = LIMITS
) -> Made:
    """Parses and encodes lines, and writes them sorted into a folder: records in runs, rejects in a spill."""
    runs, chunks, parsed, rejected = [], [], 0, 0
    gathered = Gathered(folder)
    with Spiller(folder) as spiller:
        for lines in _read(items, limits):
            if isinstance(lines, ReadChunk):
                chunks.append(lines)
                continue
            for result in parse_lines(lines, schema, keep_raw=keep_raw, limits=limits):
                if isinstance(result, Reject):
                    rejected += 1
                    spiller.add(result)
                    progress.add_rejects(1)
                else:
                    parsed += 1
                    runs += gathered.add(encode(*result, schema, seed=seed))
                del result
    return Made(runs + gathered.write(), spiller.spills, chunks, parsed, rejected)


def _read(items: list[Chunk | Lines], limits: Limits) -> Iterator[Lines | ReadChunk]:
    """All lines in the order of their places, which is that of rejects in a spill."""
    for item in sorted(items, key=lambda item: (item.path, item.offsets[0] if isinstance(item, Lines) else item.start)):
        yield from [item] if isinstance(item, Lines) else read_chunk(item, record_bytes=limits.record_bytes)


class Gathered:
    """Records that wait to be a run in a folder, which they are when they are many."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._records: list[Encoded] = []
        self._num_bytes = 0

    def add(self, record: Encoded) -> list[Run]:
        """The run that was written, if it was time."""
        self._records.append(record)
        self._num_bytes += len(record.example) + len(record.origin.raw or b"")
        return self.write() if self._num_bytes >= RUN_BYTES or len(self._records) >= RUN_RECORDS else []

    def write(self) -> list[Run]:
        """The run of what is left, if anything is."""
        records, self._records, self._num_bytes = self._records, [], 0
        return [write_run(records, self._folder)] if records else []


class Written(NamedTuple):
    """The shards of one number, and what became of the records that are doubles."""

    shards: list[ShardSummary]
    spills: list[Spill]


def write_shards(number: int, num_shards: int, runs: list[Run], writer: ShardWriter, *, folder: str) -> Written:
    """Merges the records of one number's shards, one for each split, from all runs, and writes them."""
    spills: list[Spill] = []
    gathered = GatheredRejects(folder)

    def refuse(reject: Reject) -> None:
        spills.extend(gathered.add(reject))

    blocks = merge_runs(runs, *shard_range(number, num_shards=num_shards))
    shards = writer.write(number, _counted(blocks), num_shards=num_shards, refuse=refuse)
    return Written(shards, spills + gathered.write())


def _counted(blocks: Iterable[Block]) -> Iterator[Block]:
    for block in blocks:
        yield block
        progress.add_written(len(block.examples))
