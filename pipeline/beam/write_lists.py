"""Writes the two lists of a job, each to one file sorted by place: the rejects, and the raw files."""

import dataclasses
from typing import Any

import apache_beam as beam

from pipeline.format.sources import SourcesFile
from pipeline.shuffle.chunk_runs import ChunkRun
from pipeline.shuffle.reject_runs import RejectRun
from pipeline.writing.job import JobFiles
from pipeline.writing.rejects import RejectsFile, write_rejects
from pipeline.writing.write_sources import list_sources

REJECT_RUNS = "reject_runs"


@dataclasses.dataclass
class WriteRejects(beam.PTransform):
    """Merges sorted rejects: {"reject_runs": RejectRun, "chunk_runs": ChunkRun} -> one RejectsFile, or none.

    Attributes:
        files: The JobFiles of the run, or a side input of them.
    """

    files: Any

    def expand(self, inputs: Any) -> Any:
        runs = (beam.pvalue.AsList(inputs[name]) for name in ("reject_runs", "chunk_runs"))
        return (
            inputs["reject_runs"].pipeline
            | "OnceForRejects" >> beam.Create([None], reshuffle=False)
            | "WriteRejects" >> beam.FlatMap(_write_rejects, self.files, *runs)
        )


def _write_rejects(
    _: None, files: JobFiles, reject_runs: list[RejectRun], chunk_runs: list[ChunkRun]
) -> list[RejectsFile]:
    file = write_rejects(reject_runs, chunk_runs, output=files.output, generation=files.generation)
    return [] if file is None else [file]


@dataclasses.dataclass
class WriteSources(beam.PTransform):
    """Lists the raw files: ChunkRun -> one SourcesFile.

    Attributes:
        files: The JobFiles of the run, or a side input of them.
    """

    files: Any

    def expand(self, chunk_runs: Any) -> Any:
        return (
            chunk_runs.pipeline
            | "OnceForSources" >> beam.Create([None], reshuffle=False)
            | "WriteSources" >> beam.Map(_write_sources, self.files, beam.pvalue.AsList(chunk_runs))
        )


def _write_sources(_: None, files: JobFiles, chunk_runs: list[ChunkRun]) -> SourcesFile:
    return list_sources(chunk_runs, output=files.output, generation=files.generation)
