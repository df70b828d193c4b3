"""Does the work of one round: reads the next parts of files, and adds their records to the dataset in one commit."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline import progress
from pipeline.beam.prepare import PrepareOptions, prepare_parts_with_beam
from pipeline.beam.workers import PendingCalls, WorkerPool
from pipeline.errors import NothingNew, TryAgain, check_unpublished, file_errors
from pipeline.format.manifest import Manifest
from pipeline.raw.chunk_pieces import Place, cut_chunk, join_pieces
from pipeline.raw.early_stop import stop_early
from pipeline.raw.file_kind import check_kinds
from pipeline.raw.find_files import RawFile
from pipeline.raw.json_lines import CHUNK_BYTES, COMPRESSED_BATCH_BYTES, Chunk, ChunkSummary, LineBatch, read_chunk
from pipeline.raw.records import Limits
from pipeline.raw.spooled_messages import MessageChunk, split_input
from pipeline.schema.schema import Schema
from pipeline.shuffle.chunk_runs import ChunkBuffer, ChunkRun
from pipeline.shuffle.encoded_records import RECORDS
from pipeline.shuffle.hashing import END_NUMBER
from pipeline.shuffle.merge_runs import read_key_numbers
from pipeline.shuffle.reduce_runs import reduce_runs
from pipeline.shuffle.runs import Run
from pipeline.streaming.kept_workers import KeptWorkers
from pipeline.writing.commit_log import find_published
from pipeline.writing.free_space import check_free_space
from pipeline.writing.job import DatasetJob
from pipeline.writing.marker import mark_writer
from pipeline.writing.publish import Publisher, discard_generation
from pipeline.writing.published_keys import PublishedKeys
from pipeline.writing.rejects import write_rejects
from pipeline.writing.shards import ShardWriter
from pipeline.writing.stages import ParsedRuns, WrittenShards, choose_num_shards, merge_into_shards, parse_into_runs
from pipeline.writing.summary_cache import SummaryCache
from pipeline.writing.write_sources import list_sources

# A process gets this number of calls for a round if the files are small, and at least this number of bytes in a call.
_CALLS, _MIN_CALL_BYTES = 2, 2**20
# What a chunk counts for in a call, at least, so that the summaries of tiny files take little memory.
_MIN_CHUNK_BYTES = 2**12
# A round removes old files only if so much time has passed since the last one that did.
_REMOVAL_SECONDS = 300.0


@dataclasses.dataclass
class Kept:
    """What a stream keeps from round to round.

    Attributes:
        workers: The processes that parse and write.
        keys: Keys of published ids.
        summaries: Summaries of the generations of the dataset.
        removed: When files were removed that are too old to keep, by the monotonic clock.
    """

    workers: KeptWorkers
    keys: PublishedKeys
    summaries: SummaryCache
    removed: float = -math.inf

    def take_retain(self, retain: float) -> float | None:
        """Returns `--retain`, or None if no old files should be removed in this round: they are many to look at."""
        if time.monotonic() - self.removed < min(retain, _REMOVAL_SECONDS):
            return None
        self.removed = time.monotonic()
        return retain


def prepare_parts(
    options: PrepareOptions,
    schema: Schema,
    files: Sequence[RawFile],
    job: DatasetJob,
    beam_options: dict[str, Any],
    *,
    kept: Kept,
    announce: bool = True,
) -> Manifest:
    """Adds parts of files that a stream follows to a dataset, in one commit, and returns its manifest.

    Without Beam options, this process and its workers call the functions that a Beam pipeline connects, and give the
    same dataset. Beam takes 0.4 seconds of processor time to build and run even the smallest pipeline.

    Args:
        job: The names of the files, and the dataset as it is.
        kept: What the round takes over from the one before. A Beam job does not use it.
        beam_options: Beam's pipeline options by name. With any, the round is a batch job of Beam.
        announce: Whether a line on stderr says where a pipeline of Beam runs.

    Raises:
        UserError: As `prepare`.
        NothingNew: There is no dataset yet, and no record was accepted.
        TryAgain: A file was changed while it was read, or another job took the same part.
    """
    if beam_options:
        return prepare_parts_with_beam(options, schema, files, job, beam_options, announce=announce)
    check_kinds([file for file in files if file.spool is None and not file.start])
    check_free_space(files, schema, job.files.output)
    output, generation = job.files.output, job.files.generation
    num_bytes = sum(file.num_bytes for file in files)
    with file_errors(), mark_writer(output, generation, command="prepare"):
        try:
            with progress.report("prepare", total_bytes=num_bytes, second_pass=True):
                return _Round(options, schema, job, kept, kept.workers.get(files)).run(files, num_bytes)
        except BaseException as error:
            read_published = functools.partial(find_published, output, generation, after=job.base.number)
            check_unpublished(output, error, read_published)
            if not isinstance(error, TryAgain | NothingNew):
                kept.workers.close()  # before the files that they write are removed
            discard_generation(output, generation)
            raise


class _Round:
    def __init__(
        self, options: PrepareOptions, schema: Schema, job: DatasetJob, kept: Kept, pool: WorkerPool | None
    ) -> None:
        self._options, self._schema, self._job, self._kept, self._pool = options, schema, job, kept, pool

    def run(self, files: Sequence[RawFile], num_bytes: int) -> Manifest:
        """Does the round, and returns the manifest of its commit."""
        options, base, (output, generation, folder, _) = self._options, self._job.base, self._job.files
        wanted = num_bytes // (_CALLS * self._pool.num_workers) if self._pool is not None else CHUNK_BYTES
        call_bytes = min(max(wanted, _MIN_CALL_BYTES), CHUNK_BYTES)
        whole: dict[Place, int] = {}
        pieces: list[Chunk | MessageChunk] = []
        for chunk in (chunk for file in files for chunk in split_input(file, message_bytes=call_bytes)):
            if isinstance(chunk, MessageChunk):
                pieces.append(chunk)
                continue
            cut = cut_chunk(chunk, call_bytes)
            whole |= {Place(piece.path, piece.start): chunk.start for piece in cut if piece.is_piece}
            pieces += cut
        summaries: list[ChunkSummary] = []
        calls = self._make_calls(pieces, call_bytes, summaries)
        parse = functools.partial(
            parse_into_runs,
            schema=self._schema,
            seed=base.seed,
            folder=folder,
            keep_raw=options.keep_raw,
            windows=base.windows,
            limits=Limits(options.max_record_bytes, options.max_record_steps),
            stop=stop_early(files, options.max_rejected),
        )
        parsed: list[ParsedRuns] = list(self._call(parse, calls))
        summaries += [summary for each in parsed for summary in each.chunks]
        written = self._merge([run for each in parsed for run in each.runs])
        reject_runs = [run for each in parsed for run in each.reject_runs]
        reject_runs += [run for each in written for run in each.reject_runs]
        place = {"output": output, "generation": generation}
        # A reject knows its line within a piece.
        rejects = write_rejects(reject_runs, self._sort(summaries) if reject_runs else [], **place)
        sources = list_sources(self._sort(join_pieces(summaries, whole)), **place)
        publisher = Publisher(
            self._schema,
            output,
            generation,
            base,
            max_rejected=options.max_rejected,
            retain=self._kept.take_retain(options.retain),
            lock_timeout=options.lock_timeout,
            left_out=self._job.left_out,
            recent=self._job.recent,
            keep_vocabularies=self._job.keep_vocabularies,
            known=self._kept.summaries,
        )
        shards = [shard for each in written for shard in each.shards]
        return publisher.publish(shards, [] if rejects is None else [rejects], [sources])

    def _make_calls(
        self, chunks: Sequence[Chunk | MessageChunk], call_bytes: int, summaries: list[ChunkSummary]
    ) -> Iterator[list[Chunk | LineBatch | MessageChunk]]:
        """Yields what each call parses: several small chunks together.

        Only one process can read a compressed file, so this one reads it and the workers parse. The summary of the file
        is added to `summaries`.
        """
        batch: list[Chunk | LineBatch | MessageChunk] = []
        batch_bytes = 0
        record_bytes = self._options.max_record_bytes
        for chunk in chunks:
            if isinstance(chunk, Chunk) and chunk.compressed and self._pool is not None:
                for item in read_chunk(chunk, batch_bytes=COMPRESSED_BATCH_BYTES, record_bytes=record_bytes):
                    if isinstance(item, ChunkSummary):
                        summaries.append(item)
                    else:
                        yield [item]
                continue
            num_bytes = chunk.stop - chunk.start if isinstance(chunk, Chunk) else chunk.num_bytes
            chunk_bytes = max(_MIN_CHUNK_BYTES, num_bytes)
            if batch and batch_bytes + chunk_bytes > call_bytes:
                yield batch
                batch, batch_bytes = [], 0
            batch.append(chunk)
            batch_bytes += chunk_bytes
        if batch:
            yield batch

    def _merge(self, runs: list[Run]) -> list[WrittenShards]:
        """Merges sorted runs into shards."""
        output, generation, folder, _ = self._job.files
        runs = reduce_runs(runs, folder, RECORDS, call=self._call)
        num_shards = self._options.num_shards or choose_num_shards(run.totals for run in runs)
        published, windows = self._job.base.published, self._job.base.windows
        if published:
            published = self._kept.keys.narrow(published, read_key_numbers(runs, 0, END_NUMBER, RECORDS))
        writer = ShardWriter(self._schema, output, generation, published, windows)
        merge = functools.partial(merge_into_shards, num_shards=num_shards, runs=runs, writer=writer, folder=folder)
        return list(self._call(merge, range(num_shards)))

    def _call(self, function: Callable[[Any], Any], values: Any) -> Iterator[Any]:
        """Yields the results of a function for values, in order, computed in several processes if there are any."""
        calls = PendingCalls(self._pool)
        try:
            for value in values:
                yield from calls.call(function, value)
            yield from calls.finish()
        except TryAgain:
            calls.abandon()
            raise

    def _sort(self, summaries: Any) -> list[ChunkRun]:
        """Writes summaries of chunks to sorted runs."""
        buffer = ChunkBuffer(self._job.files.folder)
        return [run for summary in summaries for run in buffer.add(summary)] + buffer.flush()
