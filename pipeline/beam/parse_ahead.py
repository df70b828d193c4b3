"""Lets worker processes parse the first chunks of a job while this process imports Beam and builds the pipeline.

This takes a second, which a job over a gigabyte spends in three seconds of parsing.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pipeline.beam.workers import WorkerPool
from pipeline.errors import UserError
from pipeline.raw.early_stop import stop_early
from pipeline.raw.find_files import RawFile
from pipeline.raw.json_lines import CHUNK_BYTES, Chunk, split_file
from pipeline.raw.records import Limits
from pipeline.schema.schema import Schema
from pipeline.writing.job import DatasetJob
from pipeline.writing.stages import parse_into_runs

# Chunks that each worker process parses before the pipeline runs, if the pipeline needs so long.
_CHUNKS_PER_WORKER = 3


def parse_options(
    files: Sequence[RawFile], schema: Schema, *, keep_raw: bool, limits: Limits, max_rejected: float
) -> dict[str, Any]:
    """Returns the arguments of `parse_into_runs` that are known before the job begins."""
    return {"keep_raw": keep_raw, "limits": limits, "stop": stop_early(files, max_rejected), "schema": schema}


def job_options(job: DatasetJob) -> dict[str, Any]:
    """Returns the arguments of `parse_into_runs` that the job gives: equal ones make the calls of a step equal, too."""
    return {"seed": job.base.seed, "folder": job.files.folder, "windows": job.base.windows}


def parse_ahead(pool: WorkerPool, files: Sequence[RawFile], job: DatasetJob, options: dict[str, Any]) -> None:
    """Starts calls of `parse_into_runs`, whose results the step that makes the same calls takes.

    Args:
        options: The result of `parse_options`.
    """
    options = options | job_options(job)
    for chunk in itertools.islice(_full_chunks(files), _CHUNKS_PER_WORKER * pool.num_workers):
        pool.start(parse_into_runs, [chunk], **options)


def _full_chunks(files: Iterable[RawFile]) -> Iterator[Chunk]:
    """Yields the chunks that are parsed in a call of their own, whatever the other chunks are."""
    try:
        for file in files:
            for chunk in split_file(file) if file.spool is None else ():
                if chunk.compressed:
                    break
                if chunk.stop - chunk.start == CHUNK_BYTES:
                    yield chunk
    except (OSError, UserError):  # the job finds the same error, and reports it
        return
