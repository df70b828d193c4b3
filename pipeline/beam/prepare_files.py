"""Turns raw files into a published dataset, without passing any record through Beam."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipeline.beam.read_lines import CHUNKS, split_files
from pipeline.beam.workers import PendingCalls, WorkerPool
from pipeline.beam.write_dataset import WriteDataset, copy_output, in_global_window
from pipeline.beam.write_lists import REJECT_RUNS
from pipeline.raw.early_stop import stop_early
from pipeline.raw.find_files import RawFile, RawFiles, find_files
from pipeline.raw.json_lines import CHUNK_BYTES, COMPRESSED_BATCH_BYTES, Chunk, ChunkSummary, LineBatch, read_chunk
from pipeline.raw.records import LIMITS, Limits
from pipeline.raw.refuse_output import refuse_output
from pipeline.raw.replay import RejectsChunk, split_rejects
from pipeline.schema.schema import Schema
from pipeline.writing.job import DatasetJob
from pipeline.writing.paths import is_of_dataset
from pipeline.writing.stages import ParsedRuns, parse_into_runs

# What a chunk counts for in a batch, at least, so that the summaries of a batch of tiny files take little memory.
_MIN_BYTES = 2**12


@dataclasses.dataclass
class PrepareFiles(beam.PTransform):
    """Prepares raw files: Begin -> one Manifest. Gives the same dataset as ReadLines, ParseRecords and WriteDataset.

    One step reads a chunk of a file and writes its sorted runs, so Beam handles names of files only, and worker
    processes can take the step. The three single transforms exist beside it for pipelines that get records from
    elsewhere or change them on the way. Both use the same parser, encoder and writer of runs.

    Attributes:
        files: A path, a glob or a folder, or a list of them. Also takes the files that `find_files` found.
        write: Schema, output folder and options of the dataset.
        keep_raw: Stores the raw line in each reject.
        limits: Largest record. A larger record is rejected as `too_large`.
        pool: Worker processes that parse and write. None parses and writes in the workers of Beam.
        rejects: Files of rejects whose raw lines are parsed again. The `job` of `write` takes them back.

    Raises:
        UserError: A path matches no file or a file of the dataset, or there is a dataset already. Raised when the
            transform is applied.
    """

    files: RawFiles
    write: WriteDataset
    keep_raw: bool = False
    limits: Limits = LIMITS
    pool: WorkerPool | None = None
    rejects: Sequence[RawFile] = ()

    def expand(self, pipeline: Any) -> Any:
        job, files = self.write.begin(pipeline)
        raw = find_files(self.files)
        refuse_output(self.files, raw, self.write.output, is_written=is_of_dataset)
        chunks_to_read = split_files(pipeline, raw)
        if self.rejects:
            again = pipeline | "Rejects" >> beam.Create(self.rejects) | "SplitRejects" >> beam.FlatMap(split_rejects)
            chunks_to_read = (chunks_to_read, again | "SpreadRejects" >> beam.Reshuffle()) | "Join" >> beam.Flatten()
        options = {
            "keep_raw": self.keep_raw,
            "limits": self.limits,
            "stop": stop_early(raw, self.write.max_rejected),
        }
        make = beam.ParDo(_MakeRuns(self.write.schema, options, self.pool), job)
        made = chunks_to_read | "MakeRuns" >> make.with_outputs(REJECT_RUNS, CHUNKS, main="runs")
        runs, reject_runs, chunks = (
            copy_output(made[tag], label)
            for tag, label in (("runs", "MadeRuns"), (REJECT_RUNS, "MadeSpills"), (CHUNKS, "MadeChunks"))
        )
        return self.write.publish(job, files, runs, reject_runs, chunks, self.pool)


class _MakeRuns(beam.DoFn):
    """Parses and sorts chunks: Chunk or RejectsChunk -> Run, and under tags RejectRun and ChunkSummary."""

    def __init__(self, schema: Schema, options: dict[str, Any], pool: WorkerPool | None) -> None:
        self._schema = schema
        self._options = options  # of `parse_into_runs`
        self._record_bytes = options["limits"].record_bytes
        self._pool = pool
        self._parsed = Metrics.counter("lengthwise", "records_parsed")
        self._rejected = Metrics.counter("lengthwise", "records_rejected")

    def start_bundle(self) -> None:
        self._calls = PendingCalls(self._pool)
        self._job: DatasetJob | None = None
        # Input of the next call, and its size in bytes.
        self._batch: list[Chunk | LineBatch | RejectsChunk] = []
        self._batch_bytes = 0

    def process(self, chunk: Chunk | RejectsChunk, job: DatasetJob) -> Iterator[Any]:
        self._job = job
        if isinstance(chunk, RejectsChunk) or not chunk.compressed or self._pool is None:
            yield from self._add(chunk, max(_MIN_BYTES, chunk.stop - chunk.start))
            return
        # Only one process can read a compressed file, so this one reads and the others parse.
        for item in read_chunk(chunk, batch_bytes=COMPRESSED_BATCH_BYTES, record_bytes=self._record_bytes):
            if isinstance(item, ChunkSummary):
                yield beam.pvalue.TaggedOutput(CHUNKS, item)
            else:
                # These lines are in memory already, so a call takes fewer bytes of them.
                yield from self._add(item, item.num_bytes * CHUNK_BYTES // COMPRESSED_BATCH_BYTES)

    def _add(self, item: Chunk | LineBatch | RejectsChunk, num_bytes: int) -> Iterator[Any]:
        """Adds an item to the batch. Small files share a batch, so that there are fewer runs than files."""
        if self._batch_bytes + num_bytes > CHUNK_BYTES:
            yield from self._call()
        self._batch.append(item)
        self._batch_bytes += num_bytes

    def _call(self) -> Iterator[Any]:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        if batch and self._job is not None:
            place = {"seed": self._job.base.seed, "folder": self._job.files.folder}
            for made in self._calls.call(parse_into_runs, batch, self._schema, **place, **self._options):
                yield from self._outputs(made)

    def finish_bundle(self) -> Iterator[Any]:
        yield from map(in_global_window, self._call())
        for made in self._calls.finish():
            yield from map(in_global_window, self._outputs(made))

    def _outputs(self, made: ParsedRuns) -> Iterator[Any]:
        self._parsed.inc(made.parsed)
        self._rejected.inc(made.rejected)
        yield from made.runs
        for tag, values in ((REJECT_RUNS, made.reject_runs), (CHUNKS, made.chunks)):
            for value in values:
                yield beam.pvalue.TaggedOutput(tag, value)
