"""Writes rejects to a file, sorted by their place in the raw files."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows

from pipeline.raw.json_lines import ChunkSummary
from pipeline.raw.rejects import Reject
from pipeline.shuffle.reject_runs import RejectBuffer, RejectRun
from pipeline.writing.rejects import RejectsFile, write_rejects

REJECT_RUNS = "reject_runs"


class SortRejects(beam.DoFn):
    """Sorts the rejects of a bundle: Reject -> RejectRun, a sorted file in `folder`."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def start_bundle(self) -> None:
        self._buffer = RejectBuffer(self._folder)

    def process(self, reject: Reject) -> Iterator[RejectRun]:
        yield from self._buffer.add(reject)

    def finish_bundle(self) -> Iterator[Any]:
        yield from map(GlobalWindows.windowed_value, self._buffer.flush())


@dataclasses.dataclass
class WriteRejects(beam.PTransform):
    """Merges sorted rejects: {"reject_runs": RejectRun, "chunks": ChunkSummary} -> one RejectsFile, or none.

    Attributes:
        output: Folder of the dataset.
        generation: Name of the generation, a part of the file's name.
    """

    output: str
    generation: str

    def expand(self, inputs: Any) -> Any:
        output, generation = self.output, self.generation

        def write(_: Any, reject_runs: list[RejectRun], chunks: list[ChunkSummary]) -> list[RejectsFile]:
            file = write_rejects(reject_runs, chunks, output=output, generation=generation)
            return [] if file is None else [file]

        return (
            inputs["reject_runs"].pipeline
            | "OnceForRejects" >> beam.Create([None], reshuffle=False)
            | "WriteRejects"
            >> beam.FlatMap(write, beam.pvalue.AsList(inputs["reject_runs"]), beam.pvalue.AsList(inputs["chunks"]))
        )
