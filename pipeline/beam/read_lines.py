"""Reads raw files as batches of lines."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipeline.raw.find_files import RawFile, RawFiles, find_files
from pipeline.raw.json_lines import Chunk, ChunkSummary, read_chunk
from pipeline.raw.records import LIMITS, Limits
from pipeline.raw.spooled_messages import MessageChunk, split_input

CHUNKS = "chunks"


@dataclasses.dataclass
class ReadLines(beam.PTransform):
    """Reads raw files: Begin -> {"lines": batches of lines, "chunks": ChunkSummary, one for each chunk that was read}.

    Attributes:
        files: A path, a glob or a folder, or a list of them. Also takes the files that `find_files` found. With a dict
            of these for train, validation and test, each record gets the split of its input, if the schema has
            `splits: {inputs: true}`.
        limits: Largest record. A larger line may be truncated, so that a step that parses it with larger limits would
            find invalid JSON.

    Raises:
        UserError: A path matches no file. Raised when the transform is applied.
    """

    files: RawFiles
    limits: Limits = LIMITS

    def expand(self, pipeline: Any) -> Any:
        read = beam.ParDo(_ReadChunks(self.limits)).with_outputs(CHUNKS, main="lines")
        outputs = split_files(pipeline, find_files(self.files)) | "Read" >> read
        return {"lines": outputs["lines"], "chunks": outputs[CHUNKS]}


def split_files(pipeline: Any, files: Sequence[RawFile]) -> Any:
    """Returns a PCollection of the chunks of raw files, distributed over the workers of the runner."""
    return (
        pipeline
        | "Files" >> beam.Create(files)
        | "Split" >> beam.FlatMap(split_input)
        | "SpreadChunks" >> beam.Reshuffle()
    )


class _ReadChunks(beam.DoFn):
    """Chunk -> batches of lines, and a ChunkSummary under the tag CHUNKS."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lines = Metrics.counter("lengthwise", "lines_read")

    def process(self, chunk: Chunk | MessageChunk) -> Iterable[Any]:
        assert isinstance(chunk, Chunk)  # only a round of a stream has messages; Beam compares the types of both steps
        for item in read_chunk(chunk, record_bytes=self._limits.record_bytes):
            if isinstance(item, ChunkSummary):
                yield beam.pvalue.TaggedOutput(CHUNKS, item)
            else:
                self._lines.inc(len(item.offsets))
                yield item
