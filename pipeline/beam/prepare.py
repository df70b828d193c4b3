"""Runs the job that turns raw files into a dataset: files -> lines -> sequences -> shards -> manifest."""

import dataclasses
import os
import shutil
from collections.abc import Sequence
from typing import Any

from pipeline.beam import workers
from pipeline.beam.options import runs_in_this_process
from pipeline.build.paths import new_generation
from pipeline.build.publish import DEFAULT_MAX_REJECTED, check_output, discard_generation
from pipeline.errors import UserError
from pipeline.files import absolute, exists, is_local, join, read_bytes
from pipeline.format.manifest import FILE_NAME, Manifest
from pipeline.format.tfrecord import FRAME_BYTES
from pipeline.raw.find_files import RawFile, find_files
from pipeline.raw.json_lines import LineBatch, parse_lines, read_chunk, split_file
from pipeline.raw.records import LIMITS, Limits
from pipeline.raw.rejects import Reject
from pipeline.schema.schema import Schema
from pipeline.shuffle.encoded_records import encode_for_shuffle

# Input that is done before other processes have started.
_SMALL_BYTES = 16 * 2**20
# Each process holds 150 MB, and 250 MB with the largest records: more of them, only who asks for them gets.
_MOST_WORKERS = 2


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What `lengthwise prepare` is told; WriteDataset says what each means.

    Attributes:
        processes: That parse and write beside this one; 0 does all in this one. None chooses.
    """

    raw: tuple[str, ...]
    schema: str
    output: str
    num_shards: int | None = None
    seed: int = 0
    max_rejected: float = DEFAULT_MAX_REJECTED
    overwrite: bool = False
    keep_raw: bool = False
    max_record_bytes: int = LIMITS.record_bytes
    max_record_steps: int = LIMITS.record_steps
    processes: int | None = None


def prepare(options: PrepareOptions, beam_options: dict[str, Any] | None = None) -> Manifest:
    """Makes a dataset of raw files and returns its manifest.

    Args:
        beam_options: Beam's pipeline options by name, `runner` among them.

    Raises:
        UserError: what was wrong; the dataset that was there before is still there then.
    """
    beam_options = beam_options or {}
    schema = Schema.read(options.schema)
    output = absolute(options.output)
    check_output(output, overwrite=options.overwrite)
    files = find_files([absolute(path) for path in options.raw])
    check_room(files, schema, output)
    total_bytes = sum(file.num_bytes for file in files)
    count = _count_workers(total_bytes, beam_options) if options.processes is None else options.processes
    with workers.started(count, "pipeline.build.stages"):
        # Beam takes a second to import, in which the workers start.
        from pipeline.beam.prepare_files import PrepareFiles
        from pipeline.beam.runners import make_pipeline, run_job
        from pipeline.beam.write_dataset import WriteDataset

        generation = new_generation()
        limits = Limits(options.max_record_bytes, options.max_record_steps)
        pipeline = make_pipeline(beam_options)
        write = WriteDataset(
            schema,
            output,
            num_shards=options.num_shards,
            seed=options.seed,
            max_rejected=options.max_rejected,
            overwrite=options.overwrite,
            generation=generation,
        )

        manifest: Manifest | None = None

        def is_published() -> bool:
            nonlocal manifest
            manifest = _read_published(output, generation)
            return manifest is not None

        def discard() -> None:
            workers.stop()
            discard_generation(output, generation)

        _ = pipeline | "PrepareFiles" >> PrepareFiles(files, write, options.keep_raw, limits)
        run_job(
            pipeline,
            "prepare",
            total_bytes=total_bytes,
            written=True,
            output=output,
            is_published=is_published,
            discard=discard,
        )
    assert manifest is not None  # what `run_job` has asked
    return manifest


def _count_workers(total_bytes: int, beam_options: dict[str, Any]) -> int:
    """Processes to start: one for each core, if Beam starts none itself and the job takes longer than their start."""
    if total_bytes < _SMALL_BYTES or not runs_in_this_process(beam_options):
        return 0
    return min(workers.count_cores(), _MOST_WORKERS)


def _read_published(output: str, generation: str) -> Manifest | None:
    """The manifest, if it is there and has the generation.

    Raises:
        UserError: it is there, but cannot be read.
    """
    path = join(output, FILE_NAME)
    if not exists(path) or os.path.isdir(path):  # a folder of that name is someone else's
        return None
    data = read_bytes(path)
    try:
        manifest = Manifest.parse(data, origin=path)
    except UserError:  # what was there before, and no manifest of this job
        return None
    return manifest if generation in manifest.generations else None


# Bytes of the first file that say how large the rest becomes.
_SAMPLE_BYTES = 2**18

# Compressed text has at least so many bytes.
_GZIP_EXPANDS = 3


def check_room(files: Sequence[RawFile], schema: Schema, output: str) -> None:
    """Raises a UserError if records like the first take more than is free where `output` is to be.

    Each is written twice, to a run and to its shard. What cannot be measured is no reason to refuse.
    """
    if not is_local(output):
        return
    folder = output
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    needed = 2 * _estimate_bytes(files, schema)
    if needed > free:
        raise UserError(
            f"{output}: about {needed / 1e6:,.0f} MB will be written there, but {free / 1e6:,.0f} MB are free. "
            "Free some, or choose another --output. (Half of it is for sorting, and free again in the end.)"
        )


def _estimate_bytes(files: Sequence[RawFile], schema: Schema) -> float:
    """Of all TFRecords, by the first records of the first file that has any."""
    for file in files:
        chunk = next(split_file(file), None)
        if chunk is None:
            continue
        if not chunk.compressed:
            chunk = chunk._replace(stop=min(chunk.stop, _SAMPLE_BYTES))
        lines = next(read_chunk(chunk, batch_bytes=_SAMPLE_BYTES, record_bytes=_SAMPLE_BYTES))
        if isinstance(lines, LineBatch):
            raw_bytes = sum(map(len, lines.lines)) * (1 if not chunk.compressed else 1 / _GZIP_EXPANDS)
            limits = LIMITS._replace(record_bytes=_SAMPLE_BYTES)  # of a large one, no more was read
            parsed = [result for result in parse_lines(lines, schema, limits=limits) if not isinstance(result, Reject)]
            encoded = sum(len(encode_for_shuffle(*result, schema, seed=0).example) + FRAME_BYTES for result in parsed)
            return sum(file.num_bytes for file in files) * encoded / raw_bytes
    return 0.0
