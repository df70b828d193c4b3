"""The public Beam transforms: raw files to lines, lines or records to sequences, sequences to a dataset.

lines | ParseRecords(schema) | WriteDataset(schema, "/data/strokes")
"""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows

from pipeline.beam import workers
from pipeline.build.publish import DEFAULT_MAX_REJECTED, Publisher, check_output, new_generation, runs_folder
from pipeline.build.rejects import RejectsFile, write_rejects
from pipeline.build.shards import ShardWriter
from pipeline.build.tasks import Gathered, Made, Written, make_runs, write_shards
from pipeline.files import absolute
from pipeline.raw.find_files import RawFile
from pipeline.raw.json_lines import CHUNK_BYTES, GZIP_BATCH_BYTES, Chunk, Lines, ReadChunk, read_chunk, split_file
from pipeline.raw.origin import Origin, Reject
from pipeline.raw.parse_lines import parse_lines
from pipeline.raw.reasons import RecordError
from pipeline.raw.records import LIMITS, Limits, canonical, parse_line, parse_record
from pipeline.schema.record import ParsedRecord
from pipeline.schema.schema import Schema
from pipeline.shuffle.encoded import encode
from pipeline.shuffle.runs import Run
from pipeline.shuffle.spills import GatheredRejects, Spill

# Bytes of a shard by default: large enough to read in one go, small enough that several readers find work.
SHARD_BYTES = 64 * 2**20

_REJECTS, _CHUNKS, _SPILLS = "rejects", "chunks", "spills"


@dataclasses.dataclass
class ReadLines(beam.PTransform):
    """Begin -> {"lines": batches of lines, "chunks": what was read}, from the files that `find_files` found."""

    files: Sequence[RawFile]

    def expand(self, pipeline: Any) -> Any:
        outputs = _chunks_of(pipeline, self.files) | "Read" >> beam.ParDo(_ReadChunks()).with_outputs(
            _CHUNKS, main="lines"
        )
        return {"lines": outputs["lines"], "chunks": outputs[_CHUNKS]}


def _chunks_of(pipeline: Any, files: Sequence[RawFile]) -> Any:
    return (
        pipeline
        | "Files" >> beam.Create(list(files))
        | "Split" >> beam.FlatMap(split_file)
        | "SpreadChunks" >> beam.Reshuffle()
    )


class _ReadChunks(beam.DoFn):
    def __init__(self) -> None:
        self._lines = Metrics.counter("lengthwise", "lines_read")

    def process(self, chunk: Chunk) -> Iterable[Any]:
        for item in read_chunk(chunk):
            if isinstance(item, ReadChunk):
                yield beam.pvalue.TaggedOutput(_CHUNKS, item)
            else:
                self._lines.inc(len(item.offsets))
                yield item


@dataclasses.dataclass
class ParseRecords(beam.PTransform):
    """Raw records -> {"sequences": lists of (ParsedRecord, Origin), "rejects": Reject}.

    An element is one line of JSON (str or bytes; a blank one is no record), one record as JSON gives it (a dict; NumPy
    arrays serve as lists), or a batch from `ReadLines`. Every record comes out once, as a sequence or as a reject.

    Attributes:
        keep_raw: Rejects carry the raw line.
        labelled: False reads no label, group or split, for records that are only to be predicted.
        limits: Beyond them a record is `too_large`.
    """

    schema: Schema
    keep_raw: bool = False
    labelled: bool = True
    limits: Limits = LIMITS

    def expand(self, records: Any) -> Any:
        parse = _Parse(self.schema, self.keep_raw, self.labelled, self.limits)
        outputs = records | "Parse" >> beam.ParDo(parse).with_outputs(_REJECTS, main="sequences")
        return {"sequences": outputs["sequences"], "rejects": outputs[_REJECTS]}


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
        spills = inputs.get(_REJECTS, nothing) | "Spill" >> beam.ParDo(SpillRejects(self.runs_folder))
        return self.publish(runs, spills, inputs.get(_CHUNKS, nothing))

    @property
    def runs_folder(self) -> str:
        return runs_folder(self.output, self.generation)

    def publish(self, runs: Any, spills: Any, chunks: Any) -> Any:
        """PCollections of Run, Spill and ReadChunk -> the manifest of the dataset that was published."""
        pipeline = runs.pipeline
        all_runs = beam.pvalue.AsList(runs)
        writer = ShardWriter(self.schema, self.output, self.generation)
        written = (
            pipeline
            | "OnceForAll" >> beam.Create([self.num_shards], reshuffle=False)
            | "Shards" >> beam.FlatMap(_number_shards, all_runs)
            | "SpreadShards" >> beam.Reshuffle()
            | "WriteShards"
            >> beam.ParDo(_WriteShards(writer, self.runs_folder), all_runs).with_outputs(_SPILLS, main="shards")
        )
        # Beam's older direct runner takes one output for another where a side input is one of several: a step between.
        shards = written["shards"] | "Written" >> beam.Map(lambda shard: shard)
        all_spills = (spills, written[_SPILLS]) | "Flatten" >> beam.Flatten()
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
        made = _chunks_of(pipeline, self.files) | "MakeRuns" >> beam.ParDo(
            _MakeRuns(self.write, self.keep_raw, self.limits)
        ).with_outputs(_SPILLS, _CHUNKS, main="runs")
        # A step between, as above.
        runs, spills, chunks = (
            made[name] | f"Made{name.title()}" >> beam.Map(lambda value: value) for name in ("runs", _SPILLS, _CHUNKS)
        )
        return self.write.publish(runs, spills, chunks)


@dataclasses.dataclass
class WriteRejects(beam.PTransform):
    """{"spills": Spill, "chunks": ReadChunk} -> RejectsFile, one for each raw file that has any."""

    output: str
    generation: str

    def expand(self, inputs: Any) -> Any:
        output, generation = self.output, self.generation

        def write(_: Any, spills: list[Spill], chunks: list[ReadChunk]) -> list[RejectsFile]:
            return write_rejects(spills, chunks, output=output, generation=generation)

        return (
            inputs["spills"].pipeline
            | "OnceForRejects" >> beam.Create([None], reshuffle=False)
            | "WriteRejects"
            >> beam.FlatMap(write, beam.pvalue.AsList(inputs["spills"]), beam.pvalue.AsList(inputs["chunks"]))
        )


class _Parse(beam.DoFn):
    def __init__(self, schema: Schema, keep_raw: bool, labelled: bool, limits: Limits) -> None:
        self._schema = schema
        self._options: Any = {"labelled": labelled, "limits": limits}
        self._keep_raw = keep_raw
        self._parsed = Metrics.counter("lengthwise", "records_parsed")
        self._rejected = Metrics.counter("lengthwise", "records_rejected")

    def process(self, element: Any) -> Iterable[Any]:
        sequences = []
        for result in self._results(element):
            if isinstance(result, Reject):
                self._rejected.inc()
                yield beam.pvalue.TaggedOutput(_REJECTS, result)
            else:
                sequences.append(result)
        self._parsed.inc(len(sequences))
        if sequences:
            yield sequences

    def _results(self, element: Any) -> Iterator[tuple[ParsedRecord, Origin] | Reject]:
        if isinstance(element, Lines):
            yield from parse_lines(element, self._schema, keep_raw=self._keep_raw, **self._options)
        elif not isinstance(element, str | bytes) or element.strip():
            raw = _raw_bytes(element)
            origin = Origin(None, 0, 0, 0, hashlib.sha256(raw).digest(), raw if self._keep_raw else None)
            parse: Callable[..., ParsedRecord] = parse_line if isinstance(element, str | bytes) else parse_record
            try:
                yield parse(element, self._schema, **self._options), origin
            except RecordError as error:
                yield Reject(error.reason, error.message, error.id, origin)


def _raw_bytes(element: Any) -> bytes:
    if isinstance(element, bytes):
        return element
    if isinstance(element, str):
        return element.encode("utf-8", "surrogatepass")
    try:
        return canonical(element)
    except RecordError:  # nested too deep for any text: parsing it says whether that matters
        return b""


class SpillRejects(beam.DoFn):
    """Reject -> Spill, files in a folder of some of a bundle's rejects."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def start_bundle(self) -> None:
        self._gathered = GatheredRejects(self._folder)

    def process(self, reject: Reject) -> Iterator[Spill]:
        yield from self._gathered.add(reject)

    def finish_bundle(self) -> Iterator[Any]:
        yield from map(GlobalWindows.windowed_value, self._gathered.write())


class _WriteRuns(beam.DoFn):
    """Sequences -> Run, some of a bundle's at a time."""

    def __init__(self, schema: Schema, seed: int, folder: str) -> None:
        self._schema = schema
        self._seed = seed
        self._folder = folder

    def start_bundle(self) -> None:
        self._gathered = Gathered(self._folder)

    def process(self, element: Any) -> Iterator[Run]:
        batch = [(element, Origin(None, 0, 0, 0, b"", None))] if isinstance(element, ParsedRecord) else element
        for sequence, origin in batch:
            yield from self._gathered.add(encode(sequence, origin, self._schema, seed=self._seed))

    def finish_bundle(self) -> Iterator[Any]:
        yield from map(GlobalWindows.windowed_value, self._gathered.write())


class _InWorkers(beam.DoFn):
    """Calls a function for an element, in a worker process where there are any, several of a bundle at a time."""

    def start_bundle(self) -> None:
        self._pending: collections.deque[Any] = collections.deque()

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Iterator[Any]:
        """The outputs for this result, or for others that came meanwhile."""
        pool = workers.current()
        if pool is None:
            yield from self.outputs(function(*arguments, **named))
            return
        self._pending.append(pool.submit(functools.partial(function, **named), *arguments))
        # One waits while the others run: enough to be hardly ever idle.
        while len(self._pending) > pool.count + 1:
            yield from self.outputs(self._pending.popleft().result())

    def outputs(self, result: Any) -> Iterator[Any]:
        raise NotImplementedError

    def finish_bundle(self) -> Iterator[Any]:
        while self._pending:
            yield from map(_windowed, self.outputs(self._pending.popleft().result()))


def _windowed(output: Any) -> Any:
    """What `finish_bundle` gives of an output."""
    if isinstance(output, beam.pvalue.TaggedOutput):
        return beam.pvalue.TaggedOutput(output.tag, GlobalWindows.windowed_value(output.value))
    return GlobalWindows.windowed_value(output)


class _MakeRuns(_InWorkers):
    """Chunk -> Run, Spill, ReadChunk."""

    def __init__(self, write: WriteDataset, keep_raw: bool, limits: Limits) -> None:
        self._schema = write.schema
        self._options: Any = {"seed": write.seed, "folder": write.runs_folder, "keep_raw": keep_raw, "limits": limits}
        self._parsed = Metrics.counter("lengthwise", "records_parsed")
        self._rejected = Metrics.counter("lengthwise", "records_rejected")

    def start_bundle(self) -> None:
        super().start_bundle()
        self._items: list[Chunk | Lines] = []
        self._size = 0

    def process(self, chunk: Chunk) -> Iterator[Any]:
        if not chunk.compressed or workers.current() is None:
            yield from self._add(chunk, chunk.stop - chunk.start)
            return
        # Only one can read a gzip file. The others parse.
        record_bytes = self._options["limits"].record_bytes
        for item in read_chunk(chunk, batch_bytes=GZIP_BATCH_BYTES, record_bytes=record_bytes):
            if isinstance(item, ReadChunk):
                yield beam.pvalue.TaggedOutput(_CHUNKS, item)
            else:
                # These are in memory: fewer bytes are enough.
                yield from self._add(item, item.num_bytes * CHUNK_BYTES // GZIP_BATCH_BYTES)

    def _add(self, item: Chunk | Lines, size: int) -> Iterator[Any]:
        """Small files come together, so that there are not as many runs as files."""
        if self._size + size > CHUNK_BYTES:
            yield from self._make()
        self._items.append(item)
        self._size += size

    def _make(self) -> Iterator[Any]:
        items, self._items, self._size = self._items, [], 0
        if items:
            yield from self.call(make_runs, items, self._schema, **self._options)

    def finish_bundle(self) -> Iterator[Any]:
        yield from map(_windowed, self._make())
        yield from super().finish_bundle()

    def outputs(self, result: Made) -> Iterator[Any]:
        self._parsed.inc(result.parsed)
        self._rejected.inc(result.rejected)
        yield from result.runs
        for tag, values in ((_SPILLS, result.spills), (_CHUNKS, result.chunks)):
            for value in values:
                yield beam.pvalue.TaggedOutput(tag, value)


def _number_shards(num_shards: int | None, runs: list[Run]) -> Iterator[tuple[int, int]]:
    """(number, number of shards) of every shard."""
    if num_shards is None:
        num_bytes = collections.Counter[str]()
        for run in runs:
            num_bytes.update(run.split_bytes)
        num_shards = max(1, round(max(num_bytes.values(), default=0) / SHARD_BYTES))
    return ((number, num_shards) for number in range(num_shards))


class _WriteShards(_InWorkers):
    """Number of shards -> ShardSummary, Spill."""

    def __init__(self, writer: ShardWriter, folder: str) -> None:
        self._writer = writer
        self._folder = folder

    def process(self, element: tuple[int, int], runs: list[Run]) -> Iterator[Any]:
        yield from self.call(write_shards, *element, runs, self._writer, folder=self._folder)

    def outputs(self, result: Written) -> Iterator[Any]:
        yield from result.shards
        for spill in result.spills:
            yield beam.pvalue.TaggedOutput(_SPILLS, spill)
