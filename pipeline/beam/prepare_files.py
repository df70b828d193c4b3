"""Turns raw files into a dataset in fewer steps than the single transforms."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipeline.beam import workers
from pipeline.beam.call_in_workers import CallInWorkers, in_global_window
from pipeline.beam.read_lines import CHUNKS, split_files
from pipeline.beam.write_dataset import WriteDataset
from pipeline.beam.write_rejects import SPILLS
from pipeline.build.publish import check_output
from pipeline.build.stages import ParsedRuns, parse_into_runs
from pipeline.raw.find_files import RawFile
from pipeline.raw.json_lines import CHUNK_BYTES, GZIP_BATCH_BYTES, Chunk, ChunkSummary, LineBatch, read_chunk
from pipeline.raw.records import LIMITS, Limits


@dataclasses.dataclass
class PrepareFiles(beam.PTransform):
    """Begin -> the manifest of the dataset that was published: ReadLines, ParseRecords and WriteDataset in one.

    From a chunk of a file to its runs is one step here, so that no record travels through Beam, and the worker
    processes of `pipeline.beam.workers`, where there are any, do it.

    Attributes:
        write: Says where to, and how.
        keep_raw, limits: As for ParseRecords.
    """

    files: Sequence[RawFile]
    write: WriteDataset
    keep_raw: bool = False
    limits: Limits = LIMITS

    def expand(self, pipeline: Any) -> Any:
        check_output(self.write.output, overwrite=self.write.overwrite)
        made = split_files(pipeline, self.files) | "MakeRuns" >> beam.ParDo(
            _MakeRuns(self.write, self.keep_raw, self.limits)
        ).with_outputs(SPILLS, CHUNKS, main="runs")
        # A step between, as above.
        runs, spills, chunks = (
            made[name] | f"Made{name.title()}" >> beam.Map(lambda value: value) for name in ("runs", SPILLS, CHUNKS)
        )
        return self.write.publish(runs, spills, chunks)


class _MakeRuns(CallInWorkers):
    """Chunk -> Run, RejectRun, ChunkSummary."""

    def __init__(self, write: WriteDataset, keep_raw: bool, limits: Limits) -> None:
        self._schema = write.schema
        self._options: Any = {"seed": write.seed, "folder": write.runs_folder, "keep_raw": keep_raw, "limits": limits}
        self._parsed = Metrics.counter("lengthwise", "records_parsed")
        self._rejected = Metrics.counter("lengthwise", "records_rejected")

    def start_bundle(self) -> None:
        super().start_bundle()
        self._items: list[Chunk | LineBatch] = []
        self._size = 0

    def process(self, chunk: Chunk) -> Iterator[Any]:
        if not chunk.compressed or workers.current() is None:
            yield from self._add(chunk, chunk.stop - chunk.start)
            return
        # Only one can read a gzip file. The others parse.
        record_bytes = self._options["limits"].record_bytes
        for item in read_chunk(chunk, batch_bytes=GZIP_BATCH_BYTES, record_bytes=record_bytes):
            if isinstance(item, ChunkSummary):
                yield beam.pvalue.TaggedOutput(CHUNKS, item)
            else:
                # These are in memory: fewer bytes are enough.
                yield from self._add(item, item.num_bytes * CHUNK_BYTES // GZIP_BATCH_BYTES)

    def _add(self, item: Chunk | LineBatch, size: int) -> Iterator[Any]:
        """Small files come together, so that there are not as many runs as files."""
        if self._size + size > CHUNK_BYTES:
            yield from self._make()
        self._items.append(item)
        self._size += size

    def _make(self) -> Iterator[Any]:
        items, self._items, self._size = self._items, [], 0
        if items:
            yield from self.call(parse_into_runs, items, self._schema, **self._options)

    def finish_bundle(self) -> Iterator[Any]:
        yield from map(in_global_window, self._make())
        yield from super().finish_bundle()

    def outputs(self, result: ParsedRuns) -> Iterator[Any]:
        self._parsed.inc(result.parsed)
        self._rejected.inc(result.rejected)
        yield from result.runs
        for tag, values in ((SPILLS, result.reject_runs), (CHUNKS, result.chunks)):
            for value in values:
                yield beam.pvalue.TaggedOutput(tag, value)
