"""Runs the job that turns raw files into a dataset: files -> lines -> sequences -> shards -> manifest."""

import dataclasses
from typing import Any

from pipeline.errors import UserError
from pipeline.lines import ReadLines, find_files
from pipeline.manifest import FILE_NAME, Manifest
from pipeline.publish import check_output, discard_generation, new_generation
from pipeline.runners import make_pipeline, run_job
from pipeline.schema import Schema
from pipeline.storage import absolute, join, read_bytes
from pipeline.transforms import DEFAULT_MAX_REJECTED, ParseRecords, WriteDataset


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What `lengthwise prepare` is told; WriteDataset says what each means."""

    raw: tuple[str, ...]
    schema: str
    output: str
    num_shards: int | None = None
    seed: int = 0
    max_rejected: float = DEFAULT_MAX_REJECTED
    overwrite: bool = False
    keep_raw: bool = False


def prepare(options: PrepareOptions, beam_options: dict[str, Any] | None = None) -> Manifest:
    """Makes a dataset of raw files and returns its manifest.

    Args:
        beam_options: Beam's pipeline options by name, `runner` among them.

    Raises:
        UserError: what was wrong; the dataset that was there before is still there then.
    """
    schema = Schema.read(options.schema)
    output = absolute(options.output)
    check_output(output, overwrite=options.overwrite)
    files = find_files([absolute(path) for path in options.raw])
    generation = new_generation()
    pipeline = make_pipeline(beam_options or {})
    read = pipeline | "ReadLines" >> ReadLines(files)
    parsed = read["lines"] | "ParseRecords" >> ParseRecords(schema, keep_raw=options.keep_raw)
    _ = {**parsed, "chunks": read["chunks"]} | "WriteDataset" >> WriteDataset(
        schema,
        output,
        num_shards=options.num_shards,
        seed=options.seed,
        max_rejected=options.max_rejected,
        overwrite=options.overwrite,
        generation=generation,
    )
    run_job(
        pipeline,
        "prepare",
        total_bytes=sum(file.num_bytes for file in files),
        output=output,
        is_published=lambda: _published(output, generation),
        discard=lambda: discard_generation(output, generation),
    )
    return Manifest.parse(read_bytes(join(output, FILE_NAME)), origin=join(output, FILE_NAME))


def _published(output: str, generation: str) -> bool:
    try:
        path = join(output, FILE_NAME)
        return generation in Manifest.parse(read_bytes(path), origin=path).generations
    except UserError:
        return False
