"""Sorts records by the engine's own shuffle: blocks of sorted records, with the number of their shard as the key.

No file is written but those of the dataset. A worker buffers what it parses, so that a block has about 1 MiB, or less
where there are many shards, and spools the blocks of a large shard to its local disk.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipeline.beam.call_on_chunks import CallOnChunks
from pipeline.beam.fenced import while_wanted
from pipeline.beam.file_shuffle import with_origins
from pipeline.beam.outputs import copy_output, in_global_window
from pipeline.beam.read_lines import CHUNKS
from pipeline.beam.shuffle import Shuffle, Written
from pipeline.beam.write_lists import CHUNK_LINES, REJECT_LINES, WriteListsByKey, pack_chunks, pack_rejects
from pipeline.raw.json_lines import Chunk
from pipeline.raw.spooled_messages import MessageChunk
from pipeline.schema.schema import Schema
from pipeline.shuffle.encoded_records import RECORDS, encode_for_shuffle
from pipeline.shuffle.packed_blocks import PackedBlock, cut_by_shard, pack_in_pieces
from pipeline.shuffle.record_runs import BlockBuffer, SortedBlocks, add_totals
from pipeline.shuffle.sorted_rows import Block, sort_blocks
from pipeline.shuffle.spooled_blocks import SPOOL_BYTES
from pipeline.writing.commit_log import find_published
from pipeline.writing.fence import remove_if_unwanted
from pipeline.writing.job import DatasetJob, JobFiles
from pipeline.writing.parse_rejects import RejectsChunk
from pipeline.writing.shards import ShardWriter
from pipeline.writing.stages import ParsedBlocks, choose_num_shards, parse_into_blocks, write_grouped

# The tags of the outputs of steps, and the names of the PCollections between the steps.
BLOCKS, TOTALS = "blocks", "totals"
# A worker sorts this number of bytes of packed blocks at a time into shards: at least the first, at most the second,
# and so many that each shard gets _BYTES_PER_SHARD of them.
_MIN_KEYED_BYTES, _MAX_KEYED_BYTES, _BYTES_PER_SHARD = 32 * 2**20, 128 * 2**20, 64 * 2**10


class EngineShuffle(Shuffle):
    """Sorts by the engine's shuffle.

    Args:
        spool_bytes: Bytes of a shard's blocks that a worker holds in memory. More of them go to its local disk.
    """

    def __init__(self, schema: Schema, job: Any, files: Any, *, spool_bytes: int = SPOOL_BYTES) -> None:
        self._schema, self._job, self._files, self._spool_bytes = schema, job, files, spool_bytes

    def parse(self, chunks: Any, options: dict[str, Any]) -> dict[str, Any]:
        make = beam.ParDo(_MakeBlocks(options), self._job).with_outputs(TOTALS, REJECT_LINES, CHUNKS, main=BLOCKS)
        made = chunks | "MakeBlocks" >> make
        chunk_lines = pack_chunks(made[CHUNKS])
        return {tag: made[tag] for tag in (BLOCKS, TOTALS, REJECT_LINES)} | {CHUNK_LINES: chunk_lines}

    def encode(self, sequences: Any, rejects: Any, chunks: Any) -> dict[str, Any]:
        encode = beam.ParDo(_Encode(self._schema), self._job).with_outputs(TOTALS, main=BLOCKS)
        encoded = sequences | "Encode" >> encode
        return {
            BLOCKS: encoded[BLOCKS],
            TOTALS: encoded[TOTALS],
            REJECT_LINES: pack_rejects(rejects),
            CHUNK_LINES: pack_chunks(chunks),
        }

    def write(self, parsed: Mapping[str, Any], num_shards: int | None) -> Written:
        number: Any = num_shards
        if num_shards is None:
            sums = parsed[TOTALS] | "AddTotals" >> beam.CombineGlobally(add_totals)
            number = beam.pvalue.AsSingleton(sums | "CountShards" >> beam.Map(lambda sums: choose_num_shards([sums])))
        write = beam.ParDo(_WriteGroup(self._schema, self._spool_bytes), number, self._job)
        written = (
            parsed[BLOCKS]
            | "KeyByShard" >> beam.ParDo(KeyByShard(), number).with_output_types(tuple[int, bytes])
            | "GroupByShard" >> beam.GroupByKey()
            | "WriteShards" >> write.with_outputs(REJECT_LINES, main="shards")
        )
        reject_lines = (parsed[REJECT_LINES], written[REJECT_LINES]) | "Flatten" >> beam.Flatten()
        lists = {REJECT_LINES: reject_lines, CHUNK_LINES: parsed[CHUNK_LINES]} | WriteListsByKey(
            self._files, is_published
        )
        return Written(copy_output(written["shards"], "Written"), lists)


def is_published(files: JobFiles) -> bool:
    """Whether a commit has the generation of a job."""
    return find_published(files.output, files.generation, after=0) is not None


class _MakeBlocks(CallOnChunks):
    """Parses and sorts chunks: Chunk or RejectsChunk -> packed blocks; totals, rejects and ChunkSummary under tags."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(parse_into_blocks, options, None)
        self._parsed = Metrics.counter("lengthwise", "records_parsed")
        self._rejected = Metrics.counter("lengthwise", "records_rejected")

    def start_bundle(self) -> None:
        super().start_bundle()
        self._files: JobFiles | None = None

    def of_job(self, job: DatasetJob) -> dict[str, Any]:
        return {"seed": job.base.seed, "windows": job.base.windows}

    def process(self, chunk: Chunk | MessageChunk | RejectsChunk, job: DatasetJob | None = None) -> Iterator[Any]:
        assert job is not None
        self._files = job.files
        yield from while_wanted(self._files, super().process(chunk, job))

    def finish_bundle(self) -> Iterator[Any]:
        if self._files is not None:
            yield from while_wanted(self._files, super().finish_bundle())

    def outputs(self, result: ParsedBlocks) -> Iterator[Any]:
        self._parsed.inc(result.parsed)
        self._rejected.inc(result.rejected)
        yield from result.blocks
        yield beam.pvalue.TaggedOutput(TOTALS, dict(result.totals))
        for tag, values in ((REJECT_LINES, result.rejects), (CHUNKS, result.chunks)):
            for value in values:
                yield beam.pvalue.TaggedOutput(tag, value)


class _Encode(beam.DoFn):
    """Encodes and sorts records: ParsedRecord or lists of (ParsedRecord, Origin) -> packed blocks, and their totals."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def start_bundle(self) -> None:
        self._buffer: BlockBuffer | None = None

    def process(self, element: Any, job: DatasetJob) -> Iterator[Any]:
        if self._buffer is None:
            self._buffer = BlockBuffer(job.base.windows)
        for record, origin in with_origins(element):
            found = self._buffer.add(encode_for_shuffle(record, origin, self._schema, seed=job.base.seed))
            yield from _tagged(found)

    def finish_bundle(self) -> Iterator[Any]:
        if self._buffer is not None:
            yield from map(in_global_window, _tagged(self._buffer.flush()))


def _tagged(found: Iterable[SortedBlocks]) -> Iterator[Any]:
    for blocks, totals in found:
        yield from blocks
        yield beam.pvalue.TaggedOutput(TOTALS, dict(totals))


def keyed_bytes(num_shards: int) -> int:
    """Returns the bytes of packed blocks that a worker sorts at a time."""
    return min(max(_MIN_KEYED_BYTES, num_shards * _BYTES_PER_SHARD), _MAX_KEYED_BYTES)


class KeyByShard(beam.DoFn):
    """Sorts packed blocks into shards: packed blocks -> (number of the shard, packed block)."""

    def start_bundle(self) -> None:
        self._blocks: list[Block] = []
        self._num_bytes = self._num_shards = 0

    def process(self, data: bytes, num_shards: int) -> Iterator[tuple[int, bytes]]:
        self._num_shards = num_shards
        if self._blocks and self._num_bytes + len(data) > keyed_bytes(num_shards):
            yield from self._flush()
        self._blocks.append(PackedBlock(data).unpack())
        self._num_bytes += len(data)

    def finish_bundle(self) -> Iterator[Any]:
        yield from map(in_global_window, self._flush())

    def _flush(self) -> Iterator[tuple[int, bytes]]:
        blocks, self._blocks, self._num_bytes = self._blocks, [], 0
        if blocks:
            for number, block in cut_by_shard(sort_blocks(blocks, RECORDS), num_shards=self._num_shards):
                for packed in pack_in_pieces(block):
                    yield number, packed


class _WriteGroup(beam.DoFn):
    """Writes the shards of one number: (number, packed blocks) -> ShardSummary, and under a tag rows of duplicates."""

    def __init__(self, schema: Schema, spool_bytes: int) -> None:
        self._schema, self._spool_bytes = schema, spool_bytes
        self._rejected = Metrics.counter("lengthwise", "records_rejected")
        self._written = Metrics.counter("lengthwise", "records_written")

    def process(self, element: tuple[int, Iterable[bytes]], num_shards: int, job: DatasetJob) -> Iterator[Any]:
        yield from while_wanted(job.files, self._write(*element, num_shards, job))

    def _write(self, number: int, blocks: Iterable[bytes], num_shards: int, job: DatasetJob) -> Iterator[Any]:
        output, generation = job.files.output, job.files.generation
        writer = ShardWriter(self._schema, output, generation, job.base.published, job.base.windows)
        written = write_grouped(number, num_shards, blocks, writer, spool_bytes=self._spool_bytes)
        remove_if_unwanted(job.files, is_published)
        self._rejected.inc(written.num_rejects)
        self._written.inc(sum(shard.shard.records for shard in written.shards))
        yield from written.shards
        for lines in written.rejects:
            yield beam.pvalue.TaggedOutput(REJECT_LINES, lines)
