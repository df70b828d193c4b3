"""Runs the first of two passes over the raw files for a schema with `classes: auto`: it collects the classes."""

import functools
import json
import sys
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam

from pipeline.beam.call_on_chunks import CallOnChunks
from pipeline.beam.fenced import while_wanted
from pipeline.beam.options import runs_on_engine
from pipeline.beam.read_lines import split_files
from pipeline.beam.run_job import run_job
from pipeline.beam.runners import make_pipeline
from pipeline.beam.workers import WorkerPool
from pipeline.errors import UserError, counted, file_errors, show
from pipeline.files import exists, join, read_bytes, replace
from pipeline.raw.early_stop import stop_early
from pipeline.raw.find_files import RawFile
from pipeline.raw.json_lines import ChunkSummary
from pipeline.raw.records import Limits
from pipeline.schema.auto_classes import fix_classes
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows
from pipeline.writing.collect_classes import FoundClasses, collect_classes, merge_classes
from pipeline.writing.job import DatasetJob, JobFiles, name_files
from pipeline.writing.marker import mark_writer
from pipeline.writing.paths import CLASSES_ENDING
from pipeline.writing.publish import discard_generation

_HINT = "no accepted record of the train split has this class (classes: auto)"


def find_classes(
    files: Sequence[RawFile],
    schema: Schema,
    output: str,
    *,
    seed: int,
    limits: Limits,
    windows: EventWindows | None,
    max_rejected: float,
    pool: WorkerPool | None,
    beam_options: dict[str, Any],
) -> Schema:
    """Returns the schema with the classes that the accepted records of the train split have.

    The files are parsed as they will be in the job itself, on the same runner.

    Args:
        schema: Its label is open.
        output: Folder of the dataset. A temporary file there holds the result.
        seed: Seed of the splits.
        windows: The windows of the dataset: a record without an event time is rejected.

    Raises:
        UserError: There is no class, there are too many, or the files cannot be read.
    """
    job = name_files(output, is_fenced=runs_on_engine(beam_options))
    path = join(job.folder, f"{uuid.uuid4().hex}{CLASSES_ENDING}")
    options: dict[str, Any] = {"schema": schema, "seed": seed, "limits": limits, "windows": windows}
    options |= {"stop": stop_early(files, max_rejected)}
    pipeline = make_pipeline(beam_options, announce=False)
    _ = (
        split_files(pipeline, files)
        | "CollectClasses" >> beam.ParDo(_CollectClasses(collect_classes, options, pool, job))
        | "MergeClasses" >> beam.CombineGlobally(merge_classes)
        | "WriteClasses" >> beam.FlatMap(_write, path, job)
    )
    with file_errors(), mark_writer(output, job.generation, command="prepare"):
        try:
            found = run_job(
                pipeline,
                "prepare: collecting classes (pass 1 of 2)",
                job,
                total_bytes=sum(file.num_bytes for file in files),
                read_published=functools.partial(_read, path),
                discard=lambda: None,
            )
        finally:
            discard_generation(output, job.generation)
    label = schema.label.title
    if not found["classes"]:
        total = found["records"] + found["rejected"]
        were = "was" if found["rejected"] == 1 else "were"
        example = f", for example because of {found['example']}" if found["example"] else ""
        raise UserError(
            f"{output}: no record of the train split has a class in the label {label}: {found['rejected']:,} of "
            f"{counted(total, 'record')} {were} rejected{example}. Correct the records, the splits or the schema."
        )
    count = len(found["classes"])
    names = f"1 class of the label {label}: {show(found['classes'])}" if count == 1 else f"{count:,} classes of {label}"
    print(f"prepare: the train split has {names}.", file=sys.stderr)
    return fix_classes(schema, found["classes"], hint=_HINT)


class _CollectClasses(CallOnChunks):
    """Collects classes: Chunk -> FoundClasses."""

    def __init__(self, function: Any, options: dict[str, Any], pool: WorkerPool | None, files: JobFiles) -> None:
        super().__init__(function, options, pool)
        self._files = files

    def process(self, chunk: Any, job: DatasetJob | None = None) -> Iterator[Any]:
        yield from while_wanted(self._files, super().process(chunk, job))

    def finish_bundle(self) -> Iterator[Any]:
        yield from while_wanted(self._files, super().finish_bundle())

    def outputs(self, result: FoundClasses | ChunkSummary) -> Iterator[FoundClasses]:
        if isinstance(result, FoundClasses):
            yield result


def _write(found: FoundClasses, path: str, files: JobFiles) -> Iterator[None]:
    return while_wanted(files, _write_now(found, path))


def _write_now(found: FoundClasses, path: str) -> Iterator[None]:
    values = {
        "classes": found.ordered(),
        "records": found.records,
        "rejected": found.rejected,
        "example": found.example,
    }
    with replace(path) as file:
        file.write(json.dumps(values).encode())
    yield None


def _read(path: str) -> dict[str, Any] | None:
    return json.loads(read_bytes(path)) if exists(path) else None
