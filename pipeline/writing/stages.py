"""The two stages of a build: parses raw lines into sorted runs, and merges the runs into shards.

Both are functions of plain values, so that a worker process can run them as well as a Beam step.
"""

import collections
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipeline import progress
from pipeline.raw.early_stop import EarlyStop, FirstRecords
from pipeline.raw.json_lines import Chunk, ChunkSummary, LineBatch, parse_lines, read_chunk
from pipeline.raw.parse_batch import BatchParser
from pipeline.raw.records import LIMITS, Limits
from pipeline.raw.rejects import Reject
from pipeline.raw.spooled_messages import MessageChunk, read_messages
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows
from pipeline.shuffle.copies import last_of_each, numbers_copies
from pipeline.shuffle.encoded_records import (
    RECORDS,
    encode_batch_for_shuffle,
    encode_for_shuffle,
    from_run_block,
)
from pipeline.shuffle.hashing import shard_range
from pipeline.shuffle.merge_runs import merge_runs, read_key_numbers
from pipeline.shuffle.record_runs import RunBuffer
from pipeline.shuffle.reject_runs import RejectBuffer, RejectRun, RejectRunWriter
from pipeline.shuffle.runs import Run
from pipeline.shuffle.sorted_rows import Block
from pipeline.writing.number_copies import number_copies
from pipeline.writing.open_shard import ShardSummary
from pipeline.writing.parse_rejects import RejectsChunk, parse_rejects
from pipeline.writing.published_ids import find_published, reject_published
from pipeline.writing.shards import SHARD_BYTES, ShardWriter

# Bytes of the shards of one split and number, in all windows together.
_MAX_SHARDS_BYTES = 8 * SHARD_BYTES


class ParsedRuns(NamedTuple):
    """The files that the first stage wrote, and counts of the lines that it read.

    Attributes:
        runs: Runs of encoded records.
        reject_runs: Runs of the rejects.
        chunks: The chunks that were read completely.
        parsed: Number of records in `runs`.
        rejected: Number of records in `reject_runs`.
    """

    runs: list[Run]
    reject_runs: list[RejectRun]
    chunks: list[ChunkSummary]
    parsed: int
    rejected: int


def parse_into_runs(
    items: list[Chunk | LineBatch | MessageChunk | RejectsChunk],
    schema: Schema,
    *,
    seed: int,
    folder: str,
    keep_raw: bool,
    limits: Limits = LIMITS,
    stop: EarlyStop | None = None,
    windows: EventWindows | None = None,
) -> ParsedRuns:
    """Parses and encodes lines, and writes the records and the rejects to sorted runs in `folder`.

    Args:
        stop: When to end the job because the first records of a file are all rejected.
        windows: The windows of the dataset, which name the field of the event time.

    Raises:
        UserError: A file cannot be read, or `stop` applies.
    """
    runs: list[Run] = []
    reject_runs: list[RejectRun] = []
    chunks: list[ChunkSummary] = []
    parsed = rejected = 0
    first_records = FirstRecords(stop)
    batch_parser = BatchParser(schema, limits=limits, windows=windows) if BatchParser.can_parse(schema) else None
    buffer, again = RunBuffer(folder, windows), RejectBuffer(folder)
    with RejectRunWriter(folder) as reject_writer:
        for lines in _read_in_order(items, limits):
            if isinstance(lines, ChunkSummary):
                chunks.append(lines)
                continue
            is_replayed = isinstance(lines, RejectsChunk)
            if isinstance(lines, RejectsChunk):
                results = parse_rejects(lines, schema, limits=limits, windows=windows)
            else:
                first_records.begin(lines)
                first_record = None
                if batch_parser is not None:
                    batch, of_batch, lines = batch_parser.parse(lines)
                    if batch.records:
                        first_record = of_batch.numbers[0]
                        parsed += len(batch.records)
                        block = encode_batch_for_shuffle(batch, of_batch, schema, seed=seed, keep_raw=keep_raw)
                        runs += buffer.add_block(block)
                    del batch, of_batch
                results = parse_lines(lines, schema, keep_raw=keep_raw, limits=limits, windows=windows)
                results = first_records.watch(results, record=first_record)
            for result in results:
                if isinstance(result, Reject):
                    rejected += 1
                    if is_replayed:  # in the order of other raw files than those of this call
                        reject_runs += again.add(result)
                    else:
                        reject_writer.add(result)
                    progress.add_rejects(1)
                else:
                    parsed += 1
                    runs += buffer.add(encode_for_shuffle(*result, schema, seed=seed))
                del result  # frees the record before the next one is parsed
    reject_runs += reject_writer.runs + again.flush()
    return ParsedRuns(runs + buffer.flush(), reject_runs, chunks, parsed, rejected)


def _read_in_order(
    items: list[Chunk | LineBatch | MessageChunk | RejectsChunk], limits: Limits
) -> Iterator[LineBatch | RejectsChunk | ChunkSummary]:
    """Yields all lines sorted by file and offset, the order that `RejectRunWriter` expects."""
    for item in sorted(
        items, key=lambda item: (item.path, item.offsets[0] if isinstance(item, LineBatch) else item.start)
    ):
        if isinstance(item, Chunk):
            yield from read_chunk(item, record_bytes=limits.record_bytes)
        elif isinstance(item, MessageChunk):
            yield from read_messages(item, record_bytes=limits.record_bytes)
        else:
            yield item


class WrittenShards(NamedTuple):
    """The shards of one number, one for each split, and the runs of the rejected duplicates."""

    shards: list[ShardSummary]
    reject_runs: list[RejectRun]


def choose_num_shards(runs: Iterable[Run]) -> int:
    """Returns the number of shards of each split (and window) with which those of the largest have about SHARD_BYTES.

    The shards of one number are written together. So that they fit into the memory of a worker, and so that there is
    work for several, those of all windows have at most _MAX_SHARDS_BYTES in the largest split.
    """
    by_split, by_window = collections.Counter[str](), collections.Counter[tuple[str, int | None]]()
    for run in runs:
        by_window.update(run.totals)
        for (split, _), num_bytes in run.totals.items():
            by_split[split] += num_bytes
    total = max(by_split.values(), default=0)
    if all(window is None for _, window in by_window):
        return max(1, round(total / SHARD_BYTES))
    return max(1, round(max(by_window.values()) / SHARD_BYTES), math.ceil(total / _MAX_SHARDS_BYTES))


def merge_into_shards(
    number: int, num_shards: int, runs: list[Run], writer: ShardWriter, *, folder: str
) -> WrittenShards:
    """Merges the records of shard `number` from all runs, and writes one shard for each split.

    A record whose id is in a published shard of `writer` is rejected, and so is all but one record of each new id.
    Without an id in the schema, equal records are kept and numbered instead.

    Args:
        runs: The result of `reduce_runs`.
        folder: Folder for the runs of rejected duplicates.
    """
    reject_runs: list[RejectRun] = []
    buffer = RejectBuffer(folder)

    def reject(duplicate: Reject) -> None:
        reject_runs.extend(buffer.add(duplicate))

    keys = shard_range(number, num_shards=num_shards)
    blocks = _report_progress(map(from_run_block, merge_runs(runs, *keys, RECORDS)))
    copies, published = numbers_copies(writer.schema), None
    if writer.published:
        new_keys = read_key_numbers(runs, *keys, RECORDS)
        published = find_published(writer.published, new_keys, last_of_each if copies else None)
        blocks = reject_published(blocks, published, reject, copies=copies)
    if copies:
        blocks = number_copies(blocks, published)
    shards = writer.write(number, blocks, num_shards=num_shards, reject=reject)
    return WrittenShards(shards, reject_runs + buffer.flush())


def _report_progress(blocks: Iterable[Block]) -> Iterator[Block]:
    """Yields the same blocks. Adds the records of each block to the progress line after it is consumed."""
    for block in blocks:
        number = len(block.payloads)
        yield block
        del block  # may be large, and would be held while the next one is read
        progress.add_written(number)
