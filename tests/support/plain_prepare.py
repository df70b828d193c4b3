"""Makes datasets without Beam, for the tests that need a dataset but do not test the job that makes it.

Beam takes half a second of processor time to build and run even the smallest pipeline.
"""

from collections.abc import Sequence

from pipeline.beam.prepare import PrepareOptions
from pipeline.files import absolute
from pipeline.format.manifest import Manifest
from pipeline.raw.find_files import RawFile, find_files
from pipeline.raw.records import Limits
from pipeline.raw.spooled_messages import split_input
from pipeline.schema.schema import Schema
from pipeline.shuffle.chunk_runs import ChunkBuffer
from pipeline.shuffle.encoded_records import RECORDS
from pipeline.shuffle.reduce_runs import reduce_runs
from pipeline.writing.base import choose_mode
from pipeline.writing.job import DatasetJob, begin_job
from pipeline.writing.open_base import take_inputs
from pipeline.writing.publish import Publisher
from pipeline.writing.rejects import write_rejects
from pipeline.writing.shards import ShardWriter
from pipeline.writing.stages import merge_into_shards, parse_into_runs
from pipeline.writing.write_sources import list_sources


def prepare(options: PrepareOptions) -> Manifest:
    """Calls the functions that the job of `prepare` connects, one after the other. It makes the same dataset.

    Supports neither `processes` nor `replay`, and takes all inputs as new.
    """
    schema, output = Schema.read(options.schema), absolute(options.output)
    mode = choose_mode(append=options.append, overwrite=options.overwrite)
    schema = take_inputs(output, mode, schema, options.inputs)
    job = begin_job(output, mode, schema, options.seed, options.windows)
    return run_job(options, schema, find_files(options.inputs), job)


def run_job(options: PrepareOptions, schema: Schema, raw: Sequence[RawFile], job: DatasetJob) -> Manifest:
    """Does the work of a job that has begun: that of `prepare`, or a round of a stream."""
    files, base = job.files, job.base
    chunks = [chunk for file in raw for chunk in split_input(file)]
    limits = Limits(options.max_record_bytes, options.max_record_steps)
    place = {"seed": base.seed, "folder": files.folder}
    more = {"keep_raw": options.keep_raw, "limits": limits, "windows": base.windows}
    parsed = parse_into_runs(chunks, schema, **place, **more)
    writer = ShardWriter(schema, files.output, files.generation, base.published, base.windows)
    num_shards = options.num_shards or 1
    runs = reduce_runs(parsed.runs, files.folder, RECORDS)
    written = [merge_into_shards(number, num_shards, runs, writer, folder=files.folder) for number in range(num_shards)]
    buffer = ChunkBuffer(files.folder)
    chunk_runs = [run for chunk in parsed.chunks for run in buffer.add(chunk)] + buffer.flush()
    reject_runs = parsed.reject_runs + [run for shards in written for run in shards.reject_runs]
    names = {"output": files.output, "generation": files.generation}
    rejects = write_rejects(reject_runs, chunk_runs, **names)
    publisher = Publisher(
        schema,
        files.output,
        files.generation,
        base,
        max_rejected=options.max_rejected,
        retain=options.retain,
        lock_timeout=options.lock_timeout,
        recent=job.recent,
    )
    return publisher.publish(
        [shard for shards in written for shard in shards.shards],
        [] if rejects is None else [rejects],
        [list_sources(chunk_runs, **names)],
    )
