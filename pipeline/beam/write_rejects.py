"""Writes the rejects of a job to files, sorted by their place in the raw files."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows

from pipeline.build.rejects import RejectsFile, write_rejects
from pipeline.raw.json_lines import ChunkSummary
from pipeline.raw.rejects import Reject
from pipeline.shuffle.reject_runs import RejectBuffer, RejectRun

SPILLS = "spills"


class SpillRejects(beam.DoFn):
    """Reject -> RejectRun, files in a folder of some of a bundle's rejects."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def start_bundle(self) -> None:
        self._gathered = RejectBuffer(self._folder)

    def process(self, reject: Reject) -> Iterator[RejectRun]:
        yield from self._gathered.add(reject)

    def finish_bundle(self) -> Iterator[Any]:
        yield from map(GlobalWindows.windowed_value, self._gathered.flush())


@dataclasses.dataclass
class WriteRejects(beam.PTransform):
    """{"spills": RejectRun, "chunks": ChunkSummary} -> RejectsFile, one for each raw file that has any."""

    output: str
    generation: str

    def expand(self, inputs: Any) -> Any:
        output, generation = self.output, self.generation

        def write(_: Any, spills: list[RejectRun], chunks: list[ChunkSummary]) -> list[RejectsFile]:
            return write_rejects(spills, chunks, output=output, generation=generation)

        return (
            inputs["spills"].pipeline
            | "OnceForRejects" >> beam.Create([None], reshuffle=False)
            | "WriteRejects"
            >> beam.FlatMap(write, beam.pvalue.AsList(inputs["spills"]), beam.pvalue.AsList(inputs["chunks"]))
        )
