"""Writes sequences as a dataset and publishes it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows

from pipeline.beam.begin_run import begin_run
from pipeline.beam.engine_shuffle import EngineShuffle
from pipeline.beam.fenced import publish_if_wanted
from pipeline.beam.file_shuffle import FileShuffle
from pipeline.beam.parse_records import REJECTS
from pipeline.beam.read_lines import CHUNKS
from pipeline.beam.shuffle import Shuffle, ShuffleName, Written, choose_shuffle
from pipeline.beam.workers import WorkerPool
from pipeline.beam.write_lists import WrittenLists
from pipeline.beam.write_panes import check_panes, write_panes
from pipeline.files import absolute
from pipeline.format.manifest import Manifest
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows
from pipeline.shuffle.spooled_blocks import SPOOL_BYTES
from pipeline.writing.base import choose_mode
from pipeline.writing.job import DatasetJob, begin_job
from pipeline.writing.lock import DEFAULT_LOCK_TIMEOUT
from pipeline.writing.open_shard import ShardSummary
from pipeline.writing.publish import DEFAULT_MAX_REJECTED, Publisher
from pipeline.writing.publish_pane import PanePublisher
from pipeline.writing.retention import DEFAULT_RETAIN


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
        shuffle: How the records are sorted: through `files`, or by the shuffle of the `engine`. By default, a pipeline
            in this process sorts through files, and any other runner by its own shuffle. Both give the same bytes.
        spool_bytes: With the engine's shuffle, the bytes of a shard that a worker holds in memory. More of them go to
            its local disk.
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
    shuffle: ShuffleName | None = None
    spool_bytes: int = SPOOL_BYTES

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
        shuffle = self.make_shuffle(pipeline, job, files)
        parsed = shuffle.encode(inputs["sequences"], inputs.get(REJECTS, nothing), inputs.get(CHUNKS, nothing))
        return self.publish(job, shuffle.write(parsed, self.num_shards))

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

    def make_shuffle(self, pipeline: Any, job: Any, files: Any, pool: WorkerPool | None = None) -> Shuffle:
        """Returns what sorts the records of the pipeline.

        Args:
            job, files: The results of `begin`.
            pool: Worker processes that parse and write. None parses and writes in the workers of Beam.
        """
        if (self.shuffle or choose_shuffle(pipeline)) == "files":
            return FileShuffle(self.schema, job, files, pool)
        return EngineShuffle(self.schema, job, files, spool_bytes=self.spool_bytes)

    def publish(self, job: Any, written: Written) -> Any:
        """Publishes the dataset: one Manifest, or none if the job was ended.

        Args:
            job: The first result of `begin`.
        """
        make_publisher = functools.partial(
            Publisher,
            self.schema,
            self.output,
            max_rejected=self.max_rejected,
            retain=self.retain,
            lock_timeout=self.lock_timeout,
        )
        return (
            written.shards.pipeline
            | "Once" >> beam.Create([make_publisher], reshuffle=False)
            | "Publish"
            >> beam.FlatMap(_publish, job, beam.pvalue.AsList(written.shards), beam.pvalue.AsList(written.lists))
        )


def _in_one_window(values: Any, name: str) -> Any:
    """Returns the elements of a bounded PCollection in the global window, in which the dataset is written once."""
    default = values.windowing.windowfn == GlobalWindows() and values.windowing.is_default()
    return values if default else values | f"OneWindow {name}" >> beam.WindowInto(GlobalWindows())


def _publish(
    make_publisher: Callable[..., Publisher], job: DatasetJob, shards: list[ShardSummary], lists: list[WrittenLists]
) -> Iterator[Manifest]:
    more = {name: getattr(job, name) for name in ("replayed", "left_out", "recent", "keep_vocabularies")}
    publisher = make_publisher(job.files.generation, job.base, **more)
    rejects = [each.rejects for each in lists if each.rejects is not None]
    sources = [each.sources for each in lists if each.sources is not None]
    return publish_if_wanted(job.files, lambda: publisher.publish(shards, rejects, sources))
