"""The public Beam transforms: raw records to sequences, and sequences to a dataset.

lines | ParseRecords(schema) | WriteDataset(schema, "/data/strokes")
"""

import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipeline.encoded import Encoded, Origin, Reject, encode
from pipeline.hashing import shard_range
from pipeline.lines import Lines, ReadChunk
from pipeline.publish import Publisher, check_output, new_generation, runs_folder
from pipeline.reasons import RecordError
from pipeline.records import Sequence, canonical, parse_line, parse_record
from pipeline.rejects import RejectsFile, write_rejects
from pipeline.runs import RUN_BYTES, RUN_RECORDS, Run, merge_runs, write_run
from pipeline.schema import Schema
from pipeline.shards import ShardWriter
from pipeline.storage import absolute

DEFAULT_MAX_REJECTED = 0.01
# Bytes of a shard by default: large enough to read in one go, small enough that several readers find work.
SHARD_BYTES = 64 * 2**20

_REJECTS = "rejects"


@dataclasses.dataclass
class ParseRecords(beam.PTransform):
    """Raw records -> {"sequences": lists of (Sequence, Origin), "rejects": Reject}.

    An element is one line of JSON (str or bytes; a blank one is no record), one record as JSON gives it (a dict; NumPy
    arrays serve as lists), or a batch from `ReadLines`. Every record comes out once, as a sequence or as a reject.

    Attributes:
        keep_raw: Rejects carry the raw line.
        labelled: False reads no label, group or split, for records that are only to be predicted.
    """

    schema: Schema
    keep_raw: bool = False
    labelled: bool = True

    def expand(self, records: Any) -> Any:
        parse = _Parse(self.schema, self.keep_raw, self.labelled)
        outputs = records | "Parse" >> beam.ParDo(parse).with_outputs(_REJECTS, main="sequences")
        return {"sequences": outputs["sequences"], "rejects": outputs[_REJECTS]}


@dataclasses.dataclass
class WriteDataset(beam.PTransform):
    """Sequences, or what `ParseRecords` gives, -> the manifest of the dataset that was published.

    Takes a PCollection of Sequence or of lists of (Sequence, Origin), or the dict of `ParseRecords`, whose rejects are
    written and counted then. Nothing is published unless all of it was written and few enough records were rejected.

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
        sequences = inputs["sequences"]
        pipeline = sequences.pipeline
        nothing = pipeline | "Nothing" >> beam.Create([], reshuffle=False)
        folder = runs_folder(self.output, self.generation)
        runs = beam.pvalue.AsList(sequences | "WriteRuns" >> beam.ParDo(_WriteRuns(self.schema, self.seed, folder)))
        writer = ShardWriter(self.schema, self.output, self.generation)
        written = (
            pipeline
            | "OnceForAll" >> beam.Create([self.num_shards], reshuffle=False)
            | "Shards" >> beam.FlatMap(_number_shards, runs)
            | "Spread" >> beam.Reshuffle()
            | "WriteShard" >> beam.ParDo(_WriteShard(writer), runs).with_outputs(_REJECTS, main="shards")
        )
        # Beam's older direct runner takes one output for another where a side input is one of several: a step between.
        shards = written["shards"] | "Written" >> beam.Map(lambda shard: shard)
        chunks = inputs.get("chunks", nothing) | "Chunks" >> beam.Map(lambda chunk: chunk)
        rejects_files = (
            (inputs.get(_REJECTS, nothing), written[_REJECTS])
            | "AllRejects" >> beam.Flatten()
            | "KeyByFile" >> beam.Map(lambda reject: (reject.origin.path or "", reject))
            | "GroupByFile" >> beam.GroupByKey()
            | "WriteRejects" >> beam.ParDo(_WriteRejects(self.output, self.generation), beam.pvalue.AsList(chunks))
        )
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


class _Parse(beam.DoFn):
    def __init__(self, schema: Schema, keep_raw: bool, labelled: bool) -> None:
        self._schema = schema
        self._keep_raw = keep_raw
        self._labelled = labelled
        self._parsed = Metrics.counter("lengthwise", "records_parsed")
        self._rejected = Metrics.counter("lengthwise", "records_rejected")

    def process(self, element: Any) -> Iterable[Any]:
        sequences = []
        for record, origin in self._records(element):
            try:
                parse = parse_line if isinstance(record, str | bytes) else parse_record
                sequences.append((parse(record, self._schema, labelled=self._labelled), origin))
            except RecordError as error:
                self._rejected.inc()
                yield beam.pvalue.TaggedOutput(_REJECTS, Reject(error.reason, error.message, error.id, origin))
        self._parsed.inc(len(sequences))
        if sequences:
            yield sequences

    def _records(self, element: Any) -> Iterator[tuple[Any, Origin]]:
        if isinstance(element, str | bytes) and not element.strip():
            return
        if not isinstance(element, Lines):
            yield element, self._origin(_raw_bytes(element), None)
            return
        for offset, number, line in zip(element.offsets, element.numbers, element.lines, strict=True):
            yield line, self._origin(line, element, offset, number)

    def _origin(self, raw: bytes, batch: Lines | None, offset: int = 0, number: int = 0) -> Origin:
        kept = raw if self._keep_raw else None
        path, chunk = (None, 0) if batch is None else (batch.path, batch.chunk)
        return Origin(path, chunk, offset, number, hashlib.sha256(raw).digest(), kept)


def _raw_bytes(element: Any) -> bytes:
    if isinstance(element, bytes):
        return element
    if isinstance(element, str):
        return element.encode("utf-8", "surrogatepass")
    try:
        return canonical(element)
    except RecordError:  # nested too deep for any text: parsing it says whether that matters
        return b""


class _WriteRuns(beam.DoFn):
    """Sequences -> Run, some of a bundle's at a time."""

    def __init__(self, schema: Schema, seed: int, folder: str) -> None:
        self._schema = schema
        self._seed = seed
        self._folder = folder

    def start_bundle(self) -> None:
        self._records: list[Encoded] = []
        self._num_bytes = 0

    def process(self, element: Any) -> Iterator[Run]:
        batch = [(element, Origin(None, 0, 0, 0, b"", None))] if isinstance(element, Sequence) else element
        for sequence, origin in batch:
            encoded = encode(sequence, origin, self._schema, seed=self._seed)
            self._records.append(encoded)
            self._num_bytes += len(encoded.example) + len(origin.raw or b"")
            if self._num_bytes >= RUN_BYTES or len(self._records) >= RUN_RECORDS:
                yield self._write()

    def finish_bundle(self) -> Iterator[Any]:
        if self._records:
            yield beam.transforms.window.GlobalWindows.windowed_value(self._write())

    def _write(self) -> Run:
        run = write_run(self._records, self._folder)
        self.start_bundle()
        return run


def _number_shards(num_shards: int | None, runs: list[Run]) -> Iterator[tuple[int, int]]:
    """(number, number of shards) of every shard."""
    if num_shards is None:
        num_bytes = collections.Counter[str]()
        for run in runs:
            num_bytes.update(run.split_bytes)
        num_shards = max(1, round(max(num_bytes.values(), default=0) / SHARD_BYTES))
    return ((number, num_shards) for number in range(num_shards))


class _WriteShard(beam.DoFn):
    def __init__(self, writer: ShardWriter) -> None:
        self._writer = writer

    def process(self, element: tuple[int, int], runs: list[Run]) -> Iterable[Any]:
        number, num_shards = element
        records = merge_runs(runs, *shard_range(number, num_shards=num_shards))
        summaries, rejects = self._writer.write(number, records, num_shards=num_shards)
        yield from summaries
        for reject in rejects:
            yield beam.pvalue.TaggedOutput(_REJECTS, reject)


class _WriteRejects(beam.DoFn):
    def __init__(self, output: str, generation: str) -> None:
        self._output = output
        self._generation = generation

    def process(self, element: tuple[str, Iterable[Reject]], chunks: list[ReadChunk]) -> Iterator[RejectsFile]:
        source, rejects = element
        yield write_rejects(source, rejects, chunks, output=self._output, generation=self._generation)
