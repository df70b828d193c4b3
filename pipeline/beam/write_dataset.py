"""Writes sequences as a dataset and publishes it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.window import GlobalWindows

from pipeline.beam.begin_run import begin_run
from pipeline.beam.parse_records import REJECTS
from pipeline.beam.read_lines import CHUNKS
from pipeline.beam.sort_rows import SortRows
from pipeline.beam.workers import PendingCalls, WorkerPool
from pipeline.beam.write_lists import REJECT_RUNS, WriteRejects, WriteSources
from pipeline.beam.write_panes import check_panes, write_panes
from pipeline.files import absolute
from pipeline.format.manifest import Manifest
from pipeline.format.sources import SourcesFile
from pipeline.raw.rejects import Origin
from pipeline.schema.record import ParsedRecord
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows
from pipeline.shuffle.chunk_runs import ChunkBuffer
from pipeline.shuffle.encoded_records import RECORDS, encode_for_shuffle
from pipeline.shuffle.record_runs import RunBuffer
from pipeline.shuffle.reduce_runs import group_runs, merge_group, reduce_runs
from pipeline.shuffle.reject_runs import RejectBuffer
from pipeline.shuffle.runs import Run
from pipeline.writing.base import choose_mode
from pipeline.writing.job import DatasetJob, JobFiles, begin_job
from pipeline.writing.lock import DEFAULT_LOCK_TIMEOUT
from pipeline.writing.open_shard import ShardSummary
from pipeline.writing.publish import DEFAULT_MAX_REJECTED, Publisher
from pipeline.writing.publish_pane import PanePublisher
from pipeline.writing.rejects import RejectsFile
from pipeline.writing.retention import DEFAULT_RETAIN
from pipeline.writing.shards import ShardWriter
from pipeline.writing.stages import WrittenShards, choose_num_shards, merge_into_shards

# The tag of an output of runs.
RUNS = "runs"


@dataclasses.dataclass
class WriteDataset(beam.PTransform):
    """Writes and publishes a dataset: sequences, or the outputs of `ParseRecords` -> one Manifest.

    The input is a PCollection of ParsedRecord or of lists of (ParsedRecord, Origin), or the dict that `ParseRecords`
    returns. With the dict, the rejects are written and counted too. The windows of a bounded input have no effect. The
    dataset is published only after all of it was written and only if the share of rejects is at most `max_rejected`.

    An unbounded input needs `append`, and windows or a trigger. Each pane of each window is published in a commit of
    its own, once, also if the runner repeats a step; late panes are further commits, and an empty pane is none. The
    output is then one Manifest for each pane. `max_rejected` applies to the newest commits that have at least 1,000
    records. Use `lengthwise compact` to merge the many small generations.

    Attributes:
        schema: Features and label of a record.
        output: Folder of the dataset, on any file system that Beam knows.
        num_shards: Number of TFRecord files of each split. By default the shards of the largest split have about 64 MB.
        seed: Seed of the splits and of the order of the records. By default 0, or that of the dataset that is added to.
        max_rejected: Largest share of rejected records, from 0 to 1. Above it nothing is published.
        overwrite: Replaces an existing dataset. Without it, an existing dataset is an error.
        append: Adds to an existing dataset, or creates it if there is none. Excludes `overwrite`.
        retain: How long the generations of a replaced dataset are kept, in seconds.
        lock_timeout: Longest time to wait for the lock of the dataset, in seconds.
        windows: The windows of event time to label the shards with. Each record then needs an event time, which
            `ParseRecords` reads if it gets the same windows. By default those of the dataset that is added to, if it
            has any.
        job: The names of the files, and the dataset as it was when the job began. By default each run of the pipeline
            begins with new names and looks at the dataset. With a job, the pipeline may run only once.

    Raises:
        ValueError: `num_shards` or `max_rejected` is out of range, or both `overwrite` and `append` are set.
        UserError: There is a dataset already, or one that nothing can be added to, raised when the transform is
            applied and when the pipeline runs. The input is unbounded, and cannot be divided into panes, raised when
            the transform is applied. Or too many records were rejected, raised by the job.
    """

    schema: Schema
    output: str
    num_shards: int | None = None
    seed: int | None = None
    max_rejected: float = DEFAULT_MAX_REJECTED
    overwrite: bool = False
    append: bool = False
    retain: float = DEFAULT_RETAIN
    lock_timeout: float = DEFAULT_LOCK_TIMEOUT
    job: DatasetJob | None = None
    windows: EventWindows | None = None

    def __post_init__(self) -> None:
        super().__init__()
        if self.num_shards is not None and self.num_shards < 1:
            raise ValueError(f"num_shards is {self.num_shards}, expected at least 1.")
        if not 0 <= self.max_rejected <= 1:
            raise ValueError(f"max_rejected is {self.max_rejected}, expected a share from 0 to 1.")
        if self.overwrite and self.append:
            raise ValueError("overwrite and append exclude each other: choose one.")
        # The working folder of a Beam worker is a different one.
        self.output = absolute(self.output)

    def expand(self, inputs: Any) -> Any:
        inputs = inputs if isinstance(inputs, Mapping) else {"sequences": inputs}
        if not all(values.is_bounded for values in inputs.values()):
            return self._write_panes(inputs)
        inputs = {name: _in_one_window(values, name) for name, values in inputs.items()}
        pipeline = inputs["sequences"].pipeline
        job, files = self.begin(pipeline)
        nothing = pipeline | "Nothing" >> beam.Create([], reshuffle=False)
        runs = inputs["sequences"] | "WriteRuns" >> beam.ParDo(_WriteRuns(self.schema), job)
        reject_runs = inputs.get(REJECTS, nothing) | "Spill" >> beam.ParDo(SortRows(RejectBuffer), files)
        return self.publish(job, files, runs, reject_runs, inputs.get(CHUNKS, nothing))

    def _write_panes(self, inputs: Mapping[str, Any]) -> Any:
        check_panes(inputs, self.output, append=self.append)
        begin = functools.partial(begin_job, self.output, "append", self.schema, self.seed, self.windows)
        begin()  # an error is better now than when the pipeline runs
        publisher = functools.partial(
            PanePublisher,
            self.schema,
            self.output,
            num_shards=self.num_shards,
            max_rejected=self.max_rejected,
            retain=self.retain,
            lock_timeout=self.lock_timeout,
        )
        return write_panes(inputs["sequences"].pipeline, inputs, self.schema, begin, publisher)

    def begin(self, pipeline: Any) -> tuple[Any, Any]:
        """Returns the DatasetJob and its JobFiles as arguments for steps: values if they are known, else side inputs.

        Raises:
            UserError: There is a dataset already, or one that nothing can be added to.
        """
        if self.job is not None:
            return self.job, self.job.files
        mode = choose_mode(append=self.append, overwrite=self.overwrite)
        begin = functools.partial(begin_job, self.output, mode, self.schema, self.seed, self.windows)
        begin()  # an error is better now than when the pipeline runs
        return begin_run(pipeline, begin)

    def publish(
        self, job: Any, files: Any, runs: Any, reject_runs: Any, chunks: Any, pool: WorkerPool | None = None
    ) -> Any:
        """Merges sorted runs into shards and publishes the dataset.

        Args:
            job, files: The results of `begin`.
            runs, reject_runs, chunks: PCollections of Run, RejectRun and ChunkSummary.
            pool: Worker processes that write the shards. None writes them in the workers of Beam.

        Returns:
            A PCollection of one Manifest.
        """
        pipeline = runs.pipeline
        if not isinstance(pipeline.runner, FnApiRunner):  # which has the pool, and which a shuffle takes 0.1 s
            runs = (
                pipeline
                | "OnceForRuns" >> beam.Create([None], reshuffle=False)
                | "GroupRuns" >> beam.FlatMap(lambda _, runs: group_runs(runs), beam.pvalue.AsList(runs))
                | "SpreadGroups" >> beam.Reshuffle()
                | "MergeGroups" >> beam.Map(lambda group, files: merge_group(group, files.folder, RECORDS), files)
            )
        planned = (
            pipeline
            | "OnceForAll" >> beam.Create([self.num_shards], reshuffle=False)
            | "Shards"
            >> beam.ParDo(_PlanShards(pool), beam.pvalue.AsList(runs), files).with_outputs(RUNS, main="numbers")
        )
        all_runs = beam.pvalue.AsList(copy_output(planned[RUNS], "Reduced"))
        write = beam.ParDo(_WriteShards(self.schema, pool), all_runs, job)
        written = (
            planned["numbers"]
            | "SpreadShards" >> beam.Reshuffle()
            | "WriteShards" >> write.with_outputs(REJECT_RUNS, main="shards")
        )
        shards = copy_output(written["shards"], "Written")
        chunk_runs = chunks | "SortChunks" >> beam.ParDo(SortRows(ChunkBuffer), files)
        all_reject_runs = (reject_runs, written[REJECT_RUNS]) | "Flatten" >> beam.Flatten()
        rejects_files = {"reject_runs": all_reject_runs, "chunk_runs": chunk_runs} | WriteRejects(files)
        sources_files = chunk_runs | WriteSources(files)
        make_publisher = functools.partial(
            Publisher,
            self.schema,
            self.output,
            max_rejected=self.max_rejected,
            retain=self.retain,
            lock_timeout=self.lock_timeout,
        )
        return (
            pipeline
            | "Once" >> beam.Create([make_publisher], reshuffle=False)
            | "Publish"
            >> beam.Map(
                _publish,
                job,
                beam.pvalue.AsList(shards),
                beam.pvalue.AsList(rejects_files),
                beam.pvalue.AsList(sources_files),
            )
        )


def _in_one_window(values: Any, name: str) -> Any:
    """Returns the elements of a bounded PCollection in the global window, in which the dataset is written once."""
    default = values.windowing.windowfn == GlobalWindows() and values.windowing.is_default()
    return values if default else values | f"OneWindow {name}" >> beam.WindowInto(GlobalWindows())


def _publish(
    make_publisher: Callable[..., Publisher],
    job: DatasetJob,
    shards: list[ShardSummary],
    rejects: list[RejectsFile],
    sources: list[SourcesFile],
) -> Manifest:
    more = {name: getattr(job, name) for name in ("replayed", "left_out", "recent", "keep_vocabularies")}
    publisher = make_publisher(job.files.generation, job.base, **more)
    return publisher.publish(shards, rejects, sources)


def copy_output(output: Any, label: str) -> Any:
    """Returns a copy of one of several outputs of a step, for use as a side input.

    Beam's older direct runner (BundleBasedDirectRunner) takes one output of a step for another when the output itself
    is the side input.
    """
    return output | label >> beam.Map(lambda element: element)


class _WriteRuns(beam.DoFn):
    """Sorts the sequences of a bundle: ParsedRecord or lists of (ParsedRecord, Origin) -> Run."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def start_bundle(self) -> None:
        self._buffer: RunBuffer | None = None

    def process(self, element: Any, job: DatasetJob) -> Iterator[Run]:
        if self._buffer is None:
            self._buffer = RunBuffer(job.files.folder, job.base.windows)
        batch = [(element, Origin(None, 0, 0, 0, b"", None))] if isinstance(element, ParsedRecord) else element
        for sequence, origin in batch:
            yield from self._buffer.add(encode_for_shuffle(sequence, origin, self._schema, seed=job.base.seed))

    def finish_bundle(self) -> Iterator[Any]:
        if self._buffer is not None:
            yield from map(GlobalWindows.windowed_value, self._buffer.flush())


class _PlanShards(beam.DoFn):
    """Merges runs until few enough are left for a merge to keep all of them open, and numbers the shards.

    The number of shards of a split or None -> (shard number, number of shards) of each shard, and under a tag each Run.
    """

    def __init__(self, pool: WorkerPool | None) -> None:
        self._pool = pool

    def process(self, num_shards: int | None, runs: list[Run], files: JobFiles) -> Iterator[Any]:
        calls = PendingCalls(self._pool)

        def call(function: Callable[[list[Run]], Run], groups: list[list[Run]]) -> Iterator[Run]:
            for group in groups:
                yield from calls.call(function, group)
            yield from calls.finish()

        for run in reduce_runs(runs, files.folder, RECORDS, call=call):
            yield beam.pvalue.TaggedOutput(RUNS, run)
        num_shards = choose_num_shards(run.totals for run in runs) if num_shards is None else num_shards
        yield from ((number, num_shards) for number in range(num_shards))


class _WriteShards(beam.DoFn):
    """Merges runs: (shard number, number of shards) -> ShardSummary, and under a tag the RejectRun of duplicates."""

    def __init__(self, schema: Schema, pool: WorkerPool | None) -> None:
        self._schema = schema
        self._pool = pool

    def start_bundle(self) -> None:
        self._calls = PendingCalls(self._pool)

    def process(self, element: tuple[int, int], runs: list[Run], job: DatasetJob) -> Iterator[Any]:
        output, generation, folder = job.files
        writer = ShardWriter(self._schema, output, generation, job.base.published, job.base.windows)
        for written in self._calls.call(merge_into_shards, *element, runs, writer, folder=folder):
            yield from _outputs(written)

    def finish_bundle(self) -> Iterator[Any]:
        for written in self._calls.finish():
            yield from map(in_global_window, _outputs(written))


def _outputs(written: WrittenShards) -> Iterator[Any]:
    yield from written.shards
    for reject_run in written.reject_runs:
        yield beam.pvalue.TaggedOutput(REJECT_RUNS, reject_run)


def in_global_window(output: Any) -> Any:
    """Returns an output in the form in which `finish_bundle` must yield it."""
    if isinstance(output, beam.pvalue.TaggedOutput):
        return beam.pvalue.TaggedOutput(output.tag, GlobalWindows.windowed_value(output.value))
    return GlobalWindows.windowed_value(output)
