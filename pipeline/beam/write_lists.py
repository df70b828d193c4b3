"""Writes the two lists of a job, each to one file sorted by place: the rejects, and the raw files."""

import dataclasses
from typing import Any

import apache_beam as beam

from pipeline.format.sources import SourcesFile
from pipeline.shuffle.chunk_runs import ChunkRun
from pipeline.shuffle.reject_runs import RejectRun
from pipeline.writing.rejects import RejectsFile, write_rejects
from pipeline.writing.write_sources import list_sources

REJECT_RUNS = "reject_runs"


@dataclasses.dataclass
class WriteRejects(beam.PTransform):
    """Merges sorted rejects: {"reject_runs": RejectRun, "chunk_runs": ChunkRun} -> one RejectsFile, or none.

    Attributes:
        output: Folder of the dataset.
        generation: Name of the generation, a part of the file's name.
    """

    output: str
    generation: str

    def expand(self, inputs: Any) -> Any:
        output, generation = self.output, self.generation

        def write(_: Any, reject_runs: list[RejectRun], chunk_runs: list[ChunkRun]) -> list[RejectsFile]:
            file = write_rejects(reject_runs, chunk_runs, output=output, generation=generation)
            return [] if file is None else [file]

        return (
            inputs["reject_runs"].pipeline
            | "OnceForRejects" >> beam.Create([None], reshuffle=False)
            | "WriteRejects"
            >> beam.FlatMap(write, beam.pvalue.AsList(inputs["reject_runs"]), beam.pvalue.AsList(inputs["chunk_runs"]))
        )


@dataclasses.dataclass
class WriteSources(beam.PTransform):
    """Lists the raw files: ChunkRun -> one SourcesFile.

    Attributes:
        output: Folder of the dataset.
        generation: Name of the generation, a part of the file's path.
    """

    output: str
    generation: str

    def expand(self, chunk_runs: Any) -> Any:
        output, generation = self.output, self.generation

        def write(_: Any, chunk_runs: list[ChunkRun]) -> SourcesFile:
            return list_sources(chunk_runs, output=output, generation=generation)

        return (
            chunk_runs.pipeline
            | "OnceForSources" >> beam.Create([None], reshuffle=False)
            | "WriteSources" >> beam.Map(write, beam.pvalue.AsList(chunk_runs))
        )
