"""The two stages of a build: parses raw lines into sorted records, and merges these into shards.

Each stage is there twice. In process, sorted runs are files, since Beam's grouping would hold all records in memory. On
an engine, its own shuffle moves packed blocks of sorted records. Both give the same shards. All are functions of plain
values, so that a worker process can run them as well as a Beam step.
"""

import collections
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple

from pipeline import progress
from pipeline.files import local_folder
from pipeline.raw.early_stop import EarlyStop, FirstRecords
from pipeline.raw.json_lines import Chunk, ChunkSummary, LineBatch, parse_lines, read_chunk
from pipeline.raw.parse_batch import BatchParser
from pipeline.raw.records import LIMITS, Limits
from pipeline.raw.rejects import Reject
from pipeline.raw.spooled_messages import MessageChunk, read_messages
from pipeline.schema.record import Array
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
from pipeline.shuffle.record_runs import BlockBuffer, RecordBuffer, RunBuffer, Sorted, Totals, add_totals
from pipeline.shuffle.reject_runs import RejectBuffer, RejectRun, RejectRunWriter
from pipeline.shuffle.row_runs import read_line_blocks
from pipeline.shuffle.runs import Run
from pipeline.shuffle.sorted_rows import Block
from pipeline.shuffle.spooled_blocks import SPOOL_BYTES, SpooledBlocks
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


class _Parsed(NamedTuple, Generic[Sorted]):
    """The fields of ParsedRuns, with the records as a buffer sorted them."""

    records: list[Sorted]
    reject_runs: list[RejectRun]
    chunks: list[ChunkSummary]
    parsed: int
    rejected: int


class ParsedBlocks(NamedTuple):
    """What the first stage found, and counts of the lines that it read.

    Attributes:
        blocks: Packed blocks of sorted records.
        totals: The bytes of these records in TFRecord files, by split and window.
        rejects: Rows of the rejects, as `read_line_blocks` gives them.
        chunks: The chunks that were read completely.
        parsed: Number of records in `blocks`.
        rejected: Number of records in `rejects`.
    """

    blocks: list[bytes]
    totals: Totals
    rejects: list[bytes]
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
    more: dict[str, Any] = {"seed": seed, "keep_raw": keep_raw, "limits": limits, "stop": stop, "windows": windows}
    return ParsedRuns(*_parse(items, schema, RunBuffer(folder, windows), folder, **more))


def parse_into_blocks(
    items: list[Chunk | LineBatch | MessageChunk | RejectsChunk],
    schema: Schema,
    *,
    seed: int,
    keep_raw: bool,
    limits: Limits = LIMITS,
    stop: EarlyStop | None = None,
    windows: EventWindows | None = None,
) -> ParsedBlocks:
    """Does what `parse_into_runs` does, but returns the records and the rejects, and leaves no file.

    The rejects are on the local disk until the end.
    """
    more: dict[str, Any] = {"seed": seed, "keep_raw": keep_raw, "limits": limits, "stop": stop, "windows": windows}
    with local_folder("lengthwise-rejects-") as folder:
        found = _parse(items, schema, BlockBuffer(windows), folder, **more)
        blocks = [block for each in found.records for block in each.blocks]
        totals = add_totals(each.totals for each in found.records)
        rejects = list(read_line_blocks(found.reject_runs))
        return ParsedBlocks(blocks, totals, rejects, found.chunks, found.parsed, found.rejected)


def _parse(
    items: list[Chunk | LineBatch | MessageChunk | RejectsChunk],
    schema: Schema,
    buffer: RecordBuffer[Sorted],
    folder: str,
    *,
    seed: int,
    keep_raw: bool,
    limits: Limits,
    stop: EarlyStop | None,
    windows: EventWindows | None,
) -> _Parsed[Sorted]:
    """Parses and encodes lines.

    Args:
        buffer: Sorts the records.
        folder: Folder for the runs of the rejects.
    """
    runs: list[Sorted] = []
    reject_runs: list[RejectRun] = []
    chunks: list[ChunkSummary] = []
    parsed = rejected = 0
    first_records = FirstRecords(stop)
    batch_parser = BatchParser(schema, limits=limits, windows=windows) if BatchParser.can_parse(schema) else None
    again = RejectBuffer(folder)
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
    return _Parsed(runs + buffer.flush(), reject_runs, chunks, parsed, rejected)


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
    """The shards of one number, one for each split, and the runs and the number of the rejected duplicates."""

    shards: list[ShardSummary]
    reject_runs: list[RejectRun]
    num_rejects: int


def choose_num_shards(totals: Iterable[Totals]) -> int:
    """Returns the number of shards of each split (and window) with which those of the largest have about SHARD_BYTES.

    The shards of one number are written together. So that they fit into the memory of a worker, and so that there is
    work for several, those of all windows have at most _MAX_SHARDS_BYTES in the largest split.
    """
    by_window = add_totals(totals)
    by_split = collections.Counter[str]()
    for (split, _), num_bytes in by_window.items():
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
    keys = shard_range(number, num_shards=num_shards)
    blocks, read_keys = merge_runs(runs, *keys, RECORDS), functools.partial(read_key_numbers, runs, *keys, RECORDS)
    return _write_sorted(number, num_shards, blocks, read_keys, writer, folder)


class WrittenGroup(NamedTuple):
    """The shards of one number, and the rows of the rejected duplicates, as `read_line_blocks` gives them."""

    shards: list[ShardSummary]
    rejects: list[bytes]
    num_rejects: int


def write_grouped(
    number: int, num_shards: int, blocks: Iterable[bytes], writer: ShardWriter, *, spool_bytes: int = SPOOL_BYTES
) -> WrittenGroup:
    """Does what `merge_into_shards` does with the packed blocks of shard `number`, and leaves no file but the shards.

    Args:
        blocks: All packed blocks of the shard, in any order. They are read once.
        spool_bytes: Bytes of blocks to hold in memory. More of them go to the local disk.
    """
    with (
        SpooledBlocks(RECORDS, max_bytes=spool_bytes) as spooled,
        local_folder("lengthwise-rejects-") as folder,
    ):
        for block in blocks:
            spooled.add(block)
        spooled.finish()
        written = _write_sorted(number, num_shards, spooled.merge(), spooled.key_numbers, writer, folder)
        rejects = list(read_line_blocks(written.reject_runs))
        return WrittenGroup(written.shards, rejects, written.num_rejects)


def _write_sorted(
    number: int,
    num_shards: int,
    blocks: Iterator[Block],
    read_keys: Callable[[], Array],
    writer: ShardWriter,
    folder: str,
) -> WrittenShards:
    """Writes the shards of one number.

    Args:
        blocks: The sorted records of these shards.
        read_keys: Returns uint64[keys], the key numbers of these records, ascending, each once.
        folder: Folder for the runs of rejected duplicates.
    """
    reject_runs: list[RejectRun] = []
    buffer = RejectBuffer(folder)
    num_rejects = 0

    def reject(duplicate: Reject) -> None:
        nonlocal num_rejects
        num_rejects += 1
        reject_runs.extend(buffer.add(duplicate))

    blocks = _report_progress(map(from_run_block, blocks))
    copies, published = numbers_copies(writer.schema), None
    if writer.published:
        published = find_published(writer.published, read_keys(), last_of_each if copies else None)
        blocks = reject_published(blocks, published, reject, copies=copies)
    if copies:
        blocks = number_copies(blocks, published)
    shards = writer.write(number, blocks, num_shards=num_shards, reject=reject)
    return WrittenShards(shards, reject_runs + buffer.flush(), num_rejects)


def _report_progress(blocks: Iterable[Block]) -> Iterator[Block]:
    """Yields the same blocks. Adds the records of each block to the progress line after it is consumed."""
    for block in blocks:
        number = len(block.payloads)
        yield block
        del block  # may be large, and would be held while the next one is read
        progress.add_written(number)
