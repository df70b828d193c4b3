"""Sorts records through files: sorted runs are files, and only their names go through Beam.

This is the way for a pipeline in this process: Beam's own grouping holds all records in memory there.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipeline.beam.call_on_chunks import CallOnChunks
from pipeline.beam.outputs import copy_output, in_global_window
from pipeline.beam.read_lines import CHUNKS
from pipeline.beam.shuffle import Shuffle, Written
from pipeline.beam.sort_rows import SortRows
from pipeline.beam.workers import PendingCalls, WorkerPool
from pipeline.beam.write_lists import WriteLists
from pipeline.raw.json_lines import ChunkSummary
from pipeline.raw.rejects import Origin
from pipeline.schema.record import ParsedRecord
from pipeline.schema.schema import Schema
from pipeline.shuffle.chunk_runs import ChunkBuffer
from pipeline.shuffle.encoded_records import RECORDS, encode_for_shuffle
from pipeline.shuffle.record_runs import RunBuffer
from pipeline.shuffle.reduce_runs import reduce_runs
from pipeline.shuffle.reject_runs import RejectBuffer
from pipeline.shuffle.runs import Run
from pipeline.writing.job import DatasetJob, JobFiles
from pipeline.writing.shards import ShardWriter
from pipeline.writing.stages import (
    ParsedRuns,
    WrittenShards,
    choose_num_shards,
    merge_into_shards,
    parse_into_runs,
)

# The tags of the outputs of steps, and the names of the PCollections between the steps.
RUNS, REJECT_RUNS = "runs", "reject_runs"


class FileShuffle(Shuffle):
    """Sorts through files.

    Args:
        pool: Worker processes that parse and write. None parses and writes in the workers of Beam.
    """

    def __init__(self, schema: Schema, job: Any, files: Any, pool: WorkerPool | None = None) -> None:
        self._schema, self._job, self._files, self._pool = schema, job, files, pool

    def parse(self, chunks: Any, options: dict[str, Any]) -> dict[str, Any]:
        make = beam.ParDo(_MakeRuns(options, self._pool), self._job)
        made = chunks | "MakeRuns" >> make.with_outputs(REJECT_RUNS, CHUNKS, main=RUNS)
        labels = {RUNS: "MadeRuns", REJECT_RUNS: "MadeSpills", CHUNKS: "MadeChunks"}
        return {tag: copy_output(made[tag], label) for tag, label in labels.items()}

    def encode(self, sequences: Any, rejects: Any, chunks: Any) -> dict[str, Any]:
        runs = sequences | "WriteRuns" >> beam.ParDo(_WriteRuns(self._schema), self._job)
        reject_runs = rejects | "Spill" >> beam.ParDo(SortRows(RejectBuffer), self._files)
        return {RUNS: runs, REJECT_RUNS: reject_runs, CHUNKS: chunks}

    def write(self, parsed: Mapping[str, Any], num_shards: int | None) -> Written:
        runs, files = parsed[RUNS], self._files
        pipeline = runs.pipeline
        planned = (
            pipeline
            | "OnceForAll" >> beam.Create([num_shards], reshuffle=False)
            | "Shards"
            >> beam.ParDo(_PlanShards(self._pool), beam.pvalue.AsList(runs), files).with_outputs(RUNS, main="numbers")
        )
        all_runs = beam.pvalue.AsList(copy_output(planned[RUNS], "Reduced"))
        write = beam.ParDo(_WriteShards(self._schema, self._pool), all_runs, self._job)
        written = (
            planned["numbers"]
            | "SpreadShards" >> beam.Reshuffle()
            | "WriteShards" >> write.with_outputs(REJECT_RUNS, main="shards")
        )
        chunk_runs = parsed[CHUNKS] | "SortChunks" >> beam.ParDo(SortRows(ChunkBuffer), files)
        reject_runs = (parsed[REJECT_RUNS], written[REJECT_RUNS]) | "Flatten" >> beam.Flatten()
        lists = {"reject_runs": reject_runs, "chunk_runs": chunk_runs} | "WriteLists" >> WriteLists(files)
        return Written(copy_output(written["shards"], "Written"), lists)


class _MakeRuns(CallOnChunks):
    """Parses and sorts chunks: Chunk or RejectsChunk -> Run, and under tags RejectRun and ChunkSummary."""

    def __init__(self, options: dict[str, Any], pool: WorkerPool | None) -> None:
        super().__init__(parse_into_runs, options, pool)
        self._parsed = Metrics.counter("lengthwise", "records_parsed")
        self._rejected = Metrics.counter("lengthwise", "records_rejected")

    def outputs(self, result: ParsedRuns | ChunkSummary) -> Iterator[Any]:
        if isinstance(result, ChunkSummary):
            yield beam.pvalue.TaggedOutput(CHUNKS, result)
            return
        self._parsed.inc(result.parsed)
        self._rejected.inc(result.rejected)
        yield from result.runs
        for tag, values in ((REJECT_RUNS, result.reject_runs), (CHUNKS, result.chunks)):
            for value in values:
                yield beam.pvalue.TaggedOutput(tag, value)


class _WriteRuns(beam.DoFn):
    """Sorts the sequences of a bundle: ParsedRecord or lists of (ParsedRecord, Origin) -> Run."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def start_bundle(self) -> None:
        self._buffer: RunBuffer | None = None

    def process(self, element: Any, job: DatasetJob) -> Iterator[Run]:
        if self._buffer is None:
            self._buffer = RunBuffer(job.files.folder, job.base.windows)
        for record, origin in with_origins(element):
            yield from self._buffer.add(encode_for_shuffle(record, origin, self._schema, seed=job.base.seed))

    def finish_bundle(self) -> Iterator[Any]:
        if self._buffer is not None:
            yield from map(in_global_window, self._buffer.flush())


def with_origins(element: Any) -> list[tuple[ParsedRecord, Origin]]:
    """Returns the records of an element of sequences: a ParsedRecord, or a list of (ParsedRecord, Origin)."""
    return [(element, Origin(None, 0, 0, 0, b"", None))] if isinstance(element, ParsedRecord) else element


class _PlanShards(beam.DoFn):
    """Merges runs until few enough are left for a merge to keep all of them open, and numbers the shards.

    The number of shards of a split or None -> (shard number, number of shards) of each shard, and under a tag each Run.
    """

    def __init__(self, pool: WorkerPool | None) -> None:
        self._pool = pool

    def process(self, num_shards: int | None, runs: list[Run], files: JobFiles) -> Iterator[Any]:
        calls = PendingCalls(self._pool)

        def call(function: Callable[[list[Run]], Run], groups: list[list[Run]]) -> Iterator[Run]:
            for group in groups:
                yield from calls.call(function, group)
            yield from calls.finish()

        for run in reduce_runs(runs, files.folder, RECORDS, call=call):
            yield beam.pvalue.TaggedOutput(RUNS, run)
        num_shards = choose_num_shards(run.totals for run in runs) if num_shards is None else num_shards
        yield from ((number, num_shards) for number in range(num_shards))


class _WriteShards(beam.DoFn):
    """Merges runs: (shard number, number of shards) -> ShardSummary, and under a tag the RejectRun of duplicates."""

    def __init__(self, schema: Schema, pool: WorkerPool | None) -> None:
        self._schema = schema
        self._pool = pool
        self._rejected = Metrics.counter("lengthwise", "records_rejected")

    def start_bundle(self) -> None:
        self._calls = PendingCalls(self._pool)

    def process(self, element: tuple[int, int], runs: list[Run], job: DatasetJob) -> Iterator[Any]:
        files = job.files
        writer = ShardWriter(self._schema, files.output, files.generation, job.base.published, job.base.windows)
        for written in self._calls.call(merge_into_shards, *element, runs, writer, folder=files.folder):
            yield from self._outputs(written)

    def finish_bundle(self) -> Iterator[Any]:
        for written in self._calls.finish():
            yield from map(in_global_window, self._outputs(written))

    def _outputs(self, written: WrittenShards) -> Iterator[Any]:
        self._rejected.inc(written.num_rejects)
        yield from written.shards
        for reject_run in written.reject_runs:
            yield beam.pvalue.TaggedOutput(REJECT_RUNS, reject_run)
