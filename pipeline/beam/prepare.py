"""Runs the job of `lengthwise prepare`: raw files -> lines -> sequences -> shards -> manifest."""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Sequence
from typing import Any, Literal

from pipeline import progress
from pipeline.beam.early_workers import STAGES
from pipeline.beam.memory_budget import check_memory, workers_for
from pipeline.beam.options import runs_in_this_process, runs_on_engine
from pipeline.beam.parse_ahead import parse_ahead, parse_options
from pipeline.beam.workers import WorkerPool, start_workers
from pipeline.beam_files import set_store_options
from pipeline.errors import NothingNew, TryAgain, UserError, counted, file_errors
from pipeline.files import absolute
from pipeline.format.manifest import Manifest
from pipeline.format.summary import LeftOut
from pipeline.raw.estimate_size import estimate_memory
from pipeline.raw.file_kind import check_kinds
from pipeline.raw.find_files import RawFile, RawFiles, describe_left_out, find_all_files
from pipeline.raw.records import LIMITS, Limits
from pipeline.raw.refuse_output import refuse_output
from pipeline.schema.auto_classes import read_schema
from pipeline.schema.schema import FIELD_SPLITS, Schema
from pipeline.schema.windows import EventWindows
from pipeline.writing.base import Base, Mode, choose_mode
from pipeline.writing.classify_inputs import classify_inputs, describe_taken
from pipeline.writing.commit_log import find_published, read_summaries, recover_if_behind
from pipeline.writing.free_space import check_free_space
from pipeline.writing.job import DatasetJob, name_files
from pipeline.writing.lock import DEFAULT_LOCK_TIMEOUT
from pipeline.writing.marker import mark_writer
from pipeline.writing.open_base import open_base, take_classes, take_inputs
from pipeline.writing.open_replay import Replay, open_replay
from pipeline.writing.paths import is_of_dataset
from pipeline.writing.publish import DEFAULT_MAX_REJECTED, discard_generation
from pipeline.writing.retention import DEFAULT_RETAIN

# How often a job is done before it gives up because others added the same records meanwhile.
_ATTEMPTS = 4


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """The options of `lengthwise prepare`. WriteDataset and ParseRecords describe those that are not listed here.

    Attributes:
        raw: Paths, globs or folders of raw files.
        train, validation, test: The same for each split, instead of `raw`. The input of a file names its split.
        schema: Path of the schema file.
        replay: Files of rejects of the dataset, or the folder of all of them, whose records are tried again. The schema
            may then accept more than that of the dataset, which gets this schema. Only for `append`.
        changed_inputs: What to do with a raw file that the dataset has taken with other content: `refuse` is an error,
            `add` adds all records of the file. Only for `append`.
        max_record_bytes: Largest raw record in bytes. A larger record is rejected as `too_large`.
        max_record_steps: Largest number of steps of a record. A longer record is rejected as `too_large`.
        processes: Number of worker processes that parse and write. 0 does all work in this process. None starts one per
            core within `memory`, and none if the input is small or Beam has its own workers.
        memory: Bytes that all processes of the job may take together: about 300 MB for this process, and 150 MB for
            each worker process. None is half of the free memory, at least 600 MB, and 600 MB on two cores or fewer.
            Beam's own workers do not count.
        windows: The windows to label the shards with. None takes those of the dataset that is added to, if it has any.
        shuffle: See WriteDataset.
    """

    raw: tuple[str, ...]
    schema: str
    output: str
    num_shards: int | None = None
    seed: int | None = None
    max_rejected: float = DEFAULT_MAX_REJECTED
    overwrite: bool = False
    append: bool = False
    replay: tuple[str, ...] = ()
    changed_inputs: Literal["refuse", "add"] = "refuse"
    retain: float = DEFAULT_RETAIN
    lock_timeout: float = DEFAULT_LOCK_TIMEOUT
    keep_raw: bool = False
    max_record_bytes: int = LIMITS.record_bytes
    max_record_steps: int = LIMITS.record_steps
    processes: int | None = None
    memory: int | None = None
    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    windows: EventWindows | None = None
    shuffle: Literal["files", "engine"] | None = None

    def __post_init__(self) -> None:
        """Raises a UserError if `memory` is too small for `processes`."""
        check_memory(self.processes, self.memory)

    @property
    def inputs(self) -> RawFiles:
        """The patterns of the raw files, or those of each split."""
        named = {name: patterns for name in FIELD_SPLITS if (patterns := getattr(self, name))}
        if named and self.raw:
            raise UserError(
                f"raw files are given both by split ({', '.join(named)}) and without; expected one of both."
            )
        return named or self.raw


def prepare(options: PrepareOptions, beam_options: dict[str, Any] | None = None) -> Manifest:
    """Makes a dataset from raw files, or adds them to it, and returns its manifest.

    Args:
        beam_options: Beam's pipeline options by name, including `runner`.

    Raises:
        UserError: Input, options or file system are wrong. A dataset that existed before still exists.
        NothingNew: With `append`, the dataset has all raw files already, and no reject was accepted.
        TryAgain: With `append`, other jobs added the same records again and again.
        LockTimeout: The lock of the dataset could not be had in time.
    """
    set_store_options(beam_options or {})
    warn_of_local_files(options, beam_options or {})
    for attempt in range(2, _ATTEMPTS + 1):
        try:
            return _prepare_once(options, beam_options or {})
        except TryAgain as error:
            print(f"prepare: {error} This is done now (attempt {attempt} of {_ATTEMPTS}).", file=sys.stderr)
    return _prepare_once(options, beam_options or {})


def _prepare_once(options: PrepareOptions, beam_options: dict[str, Any]) -> Manifest:
    _check_for_engine(options, beam_options)
    schema = read_schema(options.schema)
    output = absolute(options.output)
    mode = choose_mode(append=options.append, overwrite=options.overwrite)
    recover_if_behind(output, lock_timeout=options.lock_timeout)
    schema = take_inputs(output, mode, schema, options.inputs, origin=options.schema)
    schema = take_classes(output, mode, schema)
    base, replay = _open(output, mode, schema, options)
    announce_windows(base, options.output, options.windows)
    found, left_out = find_all_files(options.inputs)
    refuse_output(options.inputs, found, output, is_written=is_of_dataset)
    if left_out:
        print(f"prepare: {describe_left_out(left_out)}", file=sys.stderr)
    files = _select_new(found, output, base, options)
    if not files and not replay.files:
        files_of_it = "the raw file" if len(found) == 1 else f"all {len(found):,} raw files"
        raise NothingNew(f"{output}: has {files_of_it} already. Nothing was added.")
    check_kinds(files)
    if not schema.label.is_open:
        check_free_space(files, schema, output)
    total_bytes = sum(file.num_bytes for file in (*files, *replay.files))
    with _start_workers(options, (*files, *replay.files), beam_options) as pool:
        if schema.label.is_open:
            schema = _find_classes(files, schema, output, base, options, pool, beam_options)
            check_free_space(files, schema, output)
        job = DatasetJob(
            name_files(output, is_fenced=runs_on_engine(beam_options)), base, replay.rejects, LeftOut.of(left_out)
        )
        return _run_job(options, schema, files, total_bytes, job, replay, pool, beam_options)


def _check_for_engine(options: PrepareOptions, beam_options: dict[str, Any]) -> None:
    """Raises a UserError if options are set that a job on an engine does not have."""
    for name in ("processes", "memory"):
        if runs_on_engine(beam_options) and getattr(options, name) is not None:
            raise UserError(
                f"--{name} belongs to jobs in this process. The workers of --runner {beam_options['runner']} parse and "
                "write here: set their number and their memory on the engine, for example with --parallelism."
            )


def prepare_parts_with_beam(
    options: PrepareOptions,
    schema: Schema,
    files: Sequence[RawFile],
    job: DatasetJob,
    beam_options: dict[str, Any],
    *,
    announce: bool = True,
) -> Manifest:
    """Adds parts of files that a stream follows to a dataset, in one commit, and returns its manifest.

    Args:
        job: The names of the files, and the dataset as it is.
        announce: Whether a line on stderr says where a local pipeline runs.

    Raises:
        UserError: As `prepare`.
        NothingNew: There is no dataset yet, and no record was accepted.
        TryAgain: A file was changed while it was read, or another job took the same part.
    """
    check_kinds([file for file in files if file.spool is None and not file.start])
    check_free_space(files, schema, job.files.output)
    total_bytes = sum(file.num_bytes for file in files)
    with _start_workers(options, files, beam_options) as pool:
        return _run_job(options, schema, files, total_bytes, job, Replay(), pool, beam_options, announce)


def warn_of_local_files(options: PrepareOptions, beam_options: dict[str, Any]) -> None:
    """Prints a line if a job of an engine reads or writes local files."""
    if not runs_on_engine(beam_options):
        return
    from pipeline.beam.local_paths import warn_of_local_paths  # imports Beam

    paths = {"RAW": options.raw, "--output": [options.output]}
    paths |= {f"--{name}": getattr(options, name) for name in (*FIELD_SPLITS, "replay")}
    warn_of_local_paths("prepare", beam_options, paths)


def announce_windows(base: Base, output: str, windows: EventWindows | None) -> None:
    """Prints a line if the new shards get windows that were not asked for: those of the dataset."""
    if base.windows is not None and windows is None:
        print(f"prepare: {output} has {base.windows.describe()}, which the new shards get, too.", file=sys.stderr)


def _open(output: str, mode: Mode, schema: Schema, options: PrepareOptions) -> tuple[Base, Replay]:
    """Returns the dataset to add to or replace, and its rejects to try again."""
    if not options.replay:
        return open_base(output, mode, schema, options.seed, windows=options.windows), Replay()
    if mode != "append":
        raise UserError(
            "--replay adds the accepted records to the dataset that rejected them: use it with --append. To make the "
            "dataset again from its raw files, use --overwrite without --replay."
        )
    base = open_base(output, mode, schema, options.seed, windows=options.windows, may_widen=True)
    replay = open_replay(output, base, options.replay)
    if not replay.files:
        if not options.inputs:
            raise NothingNew(f"{output}: has no rejects to replay. Nothing was added.")
        # A job without --replay, which needs the schema of the dataset.
        return open_base(output, mode, schema, options.seed, windows=options.windows), replay
    rejects, files = counted(replay.rejects.total, "reject"), counted(len(replay.files), "file")
    print(f"prepare: trying {rejects} of {files} again.", file=sys.stderr)
    return base, replay


def _select_new(files: list[RawFile], output: str, base: Base, options: PrepareOptions) -> list[RawFile]:
    """Returns the files that are not in the dataset yet, after a line on stderr for each of the others.

    Raises:
        UserError: The dataset has a file with other content.
    """
    if not base.summaries or not files:
        return files
    sources = [summary.sources for summary in read_summaries(output, base.summaries)]
    classified = classify_inputs(files, output, sources, record_bytes=options.max_record_bytes)
    new = classified.to_add(add_changed=options.changed_inputs == "add")
    for line in describe_taken(classified.taken):
        print(line, file=sys.stderr)
    return new


def _find_classes(
    files: Sequence[RawFile],
    schema: Schema,
    output: str,
    base: Base,
    options: PrepareOptions,
    pool: WorkerPool | None,
    beam_options: dict[str, Any],
) -> Schema:
    """Returns the schema with the classes of the train split, which a job of its own collects."""
    from pipeline.beam.collect_classes import find_classes  # imports Beam

    limits = Limits(options.max_record_bytes, options.max_record_steps)
    more: dict[str, Any] = {"max_rejected": options.max_rejected, "pool": pool, "beam_options": beam_options}
    return find_classes(files, schema, output, seed=base.seed, limits=limits, windows=base.windows, **more)


def _run_job(
    options: PrepareOptions,
    schema: Schema,
    files: Sequence[RawFile],
    total_bytes: int,
    job: DatasetJob,
    replay: Replay,
    pool: WorkerPool | None,
    beam_options: dict[str, Any],
    announce: bool = True,
) -> Manifest:
    output, generation = job.files.output, job.files.generation
    limits, since = Limits(options.max_record_bytes, options.max_record_steps), progress.read_counts()

    def build() -> Any:
        # Importing Beam takes a second. The workers start meanwhile.
        from pipeline.beam.prepare_files import PrepareFiles
        from pipeline.beam.runners import make_pipeline
        from pipeline.beam.write_dataset import WriteDataset

        pipeline = make_pipeline(beam_options, announce=announce)
        write = WriteDataset(
            schema,
            output,
            num_shards=options.num_shards,
            max_rejected=options.max_rejected,
            overwrite=options.overwrite,
            append=options.append,
            retain=options.retain,
            lock_timeout=options.lock_timeout,
            job=job,
            shuffle=options.shuffle,
        )
        _ = pipeline | "PrepareFiles" >> PrepareFiles(files, write, options.keep_raw, limits, pool, replay.files)
        return pipeline

    def discard() -> None:
        if pool is not None:
            pool.close()  # before the files that its workers write are removed
        discard_generation(output, generation)

    pipeline = build() if pool is None else None
    with file_errors(), mark_writer(output, generation, command="prepare"):
        if pool is not None:
            try:
                of_job = parse_options(
                    files, schema, keep_raw=options.keep_raw, limits=limits, max_rejected=options.max_rejected
                )
                parse_ahead(pool, files, job, of_job)
                pipeline = build()
            except BaseException:
                discard()
                raise
        from pipeline.beam.run_job import run_job

        return run_job(
            pipeline,
            "prepare",
            job.files,
            total_bytes=total_bytes,
            second_pass=True,
            read_published=functools.partial(find_published, output, generation, after=job.base.number),
            discard=discard,
            since=since,
        )


def _start_workers(
    options: PrepareOptions, files: Sequence[RawFile], beam_options: dict[str, Any]
) -> contextlib.AbstractContextManager[WorkerPool | None]:
    """Starts the processes that parse and write."""
    return start_workers(_count_workers(options, files, beam_options), STAGES)


def _count_workers(options: PrepareOptions, files: Sequence[RawFile], beam_options: dict[str, Any]) -> int:
    """Returns the number of processes to start: by default 0 if Beam starts its own or the input is small."""
    if options.processes is not None:
        return options.processes
    return workers_for(estimate_memory(files), options.memory) if runs_in_this_process(beam_options) else 0
