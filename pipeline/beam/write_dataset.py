"""Writes sequences as a dataset and publishes it."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows

from pipeline.beam.call_in_workers import CallInWorkers
from pipeline.beam.parse_records import REJECTS
from pipeline.beam.read_lines import CHUNKS
from pipeline.beam.write_rejects import SPILLS, SpillRejects, WriteRejects
from pipeline.build.paths import new_generation, runs_folder
from pipeline.build.publish import DEFAULT_MAX_REJECTED, Publisher, check_output
from pipeline.build.shards import ShardWriter
from pipeline.build.stages import WrittenShards, merge_into_shards
from pipeline.files import absolute
from pipeline.raw.rejects import Origin
from pipeline.schema.record import ParsedRecord
from pipeline.schema.schema import Schema
from pipeline.shuffle.encoded_records import encode_for_shuffle
from pipeline.shuffle.runs import Run, RunBuffer

# Bytes of a shard by default: large enough to read in one go, small enough that several readers find work.
SHARD_BYTES = 64 * 2**20


@dataclasses.dataclass
class WriteDataset(beam.PTransform):
    """Sequences, or what `ParseRecords` gives, -> the manifest of the dataset that was published.

    Takes a PCollection of ParsedRecord or of lists of (ParsedRecord, Origin), or the dict of `ParseRecords`, whose
    rejects are written and counted then. Nothing is published unless all of it was written and few enough records were
    rejected.

    Attributes:
        output: Folder of the dataset, on any file system that Beam knows.
        num_shards: TFRecord files for each split; by default so many that those of the largest have about 64 MB.
        seed: Another seed gives other splits and another order.
        max_rejected: Share of the records, from 0 to 1, that may be rejected; above it nothing is published.
        overwrite: Replace the dataset that is there; without it, that is an error.
    """

    schema: Schema
    output: str
    num_shards: int | None = None
    seed: int = 0
    max_rejected: float = DEFAULT_MAX_REJECTED
    overwrite: bool = False
    generation: str = dataclasses.field(default_factory=new_generation)

    def __post_init__(self) -> None:
        super().__init__()
        if self.num_shards is not None and self.num_shards < 1:
            raise ValueError(f"num_shards is {self.num_shards}, expected at least 1.")
        if not 0 <= self.max_rejected <= 1:
            raise ValueError(f"max_rejected is {self.max_rejected}, expected a share from 0 to 1.")
        # A worker's folder is another one.
        self.output = absolute(self.output)

    def expand(self, inputs: Any) -> Any:
        check_output(self.output, overwrite=self.overwrite)
        inputs = inputs if isinstance(inputs, Mapping) else {"sequences": inputs}
        pipeline = inputs["sequences"].pipeline
        nothing = pipeline | "Nothing" >> beam.Create([], reshuffle=False)
        runs = inputs["sequences"] | "WriteRuns" >> beam.ParDo(_WriteRuns(self.schema, self.seed, self.runs_folder))
        spills = inputs.get(REJECTS, nothing) | "Spill" >> beam.ParDo(SpillRejects(self.runs_folder))
        return self.publish(runs, spills, inputs.get(CHUNKS, nothing))

    @property
    def runs_folder(self) -> str:
        return runs_folder(self.output, self.generation)

    def publish(self, runs: Any, spills: Any, chunks: Any) -> Any:
        """PCollections of Run, RejectRun and ChunkSummary -> the manifest of the dataset that was published."""
        pipeline = runs.pipeline
        all_runs = beam.pvalue.AsList(runs)
        writer = ShardWriter(self.schema, self.output, self.generation)
        written = (
            pipeline
            | "OnceForAll" >> beam.Create([self.num_shards], reshuffle=False)
            | "Shards" >> beam.FlatMap(_number_shards, all_runs)
            | "SpreadShards" >> beam.Reshuffle()
            | "WriteShards"
            >> beam.ParDo(_WriteShards(writer, self.runs_folder), all_runs).with_outputs(SPILLS, main="shards")
        )
        # Beam's older direct runner takes one output for another where a side input is one of several: a step between.
        shards = written["shards"] | "Written" >> beam.Map(lambda shard: shard)
        all_spills = (spills, written[SPILLS]) | "Flatten" >> beam.Flatten()
        chunks = chunks | "Chunks" >> beam.Map(lambda chunk: chunk)
        rejects_files = {"spills": all_spills, "chunks": chunks} | WriteRejects(self.output, self.generation)
        publisher = Publisher(self.schema, self.output, self.generation, self.seed, self.max_rejected, self.overwrite)
        return (
            pipeline
            | "Once" >> beam.Create([publisher], reshuffle=False)
            | "Publish"
            >> beam.Map(
                Publisher.publish,
                beam.pvalue.AsList(shards),
                beam.pvalue.AsList(rejects_files),
                beam.pvalue.AsList(chunks),
            )
        )


class _WriteRuns(beam.DoFn):
    """Sequences -> Run, some of a bundle's at a time."""

    def __init__(self, schema: Schema, seed: int, folder: str) -> None:
        self._schema = schema
        self._seed = seed
        self._folder = folder

    def start_bundle(self) -> None:
        self._gathered = RunBuffer(self._folder)

    def process(self, element: Any) -> Iterator[Run]:
        batch = [(element, Origin(None, 0, 0, 0, b"", None))] if isinstance(element, ParsedRecord) else element
        for sequence, origin in batch:
            yield from self._gathered.add(encode_for_shuffle(sequence, origin, self._schema, seed=self._seed))

    def finish_bundle(self) -> Iterator[Any]:
        yield from map(GlobalWindows.windowed_value, self._gathered.flush())


def _number_shards(num_shards: int | None, runs: list[Run]) -> Iterator[tuple[int, int]]:
    """(number, number of shards) of every shard."""
    if num_shards is None:
        num_bytes = collections.Counter[str]()
        for run in runs:
            num_bytes.update(run.split_bytes)
        num_shards = max(1, round(max(num_bytes.values(), default=0) / SHARD_BYTES))
    return ((number, num_shards) for number in range(num_shards))


class _WriteShards(CallInWorkers):
    """Number of shards -> ShardSummary, RejectRun."""

    def __init__(self, writer: ShardWriter, folder: str) -> None:
        self._writer = writer
        self._folder = folder

    def process(self, element: tuple[int, int], runs: list[Run]) -> Iterator[Any]:
        yield from self.call(merge_into_shards, *element, runs, self._writer, folder=self._folder)

    def outputs(self, result: WrittenShards) -> Iterator[Any]:
        yield from result.shards
        for spill in result.reject_runs:
            yield beam.pvalue.TaggedOutput(SPILLS, spill)
