"""Publishes each pane of each window of an unbounded PCollection in a commit of its own."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.transforms.trigger import AccumulationMode, DefaultTrigger
from apache_beam.transforms.window import GlobalWindows, SlidingWindows

from pipeline.beam.parse_records import REJECTS
from pipeline.create_once import supports_create_once
from pipeline.errors import NothingNew, UserError
from pipeline.files import join
from pipeline.format.commit import commit_path
from pipeline.raw.rejects import Origin, Reject
from pipeline.schema.record import ParsedRecord
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows
from pipeline.shuffle.encoded_records import EncodedRecord, encode_for_shuffle
from pipeline.writing.job import DatasetJob
from pipeline.writing.publish_pane import PanePublisher

_log = logging.getLogger(__name__)


class PipelineRun(NamedTuple):
    """One run of a pipeline.

    Attributes:
        name: A name that no other run has.
        number: Number of the newest commit when it began.
        seed: Seed of the splits and of the order of the records.
        windows: The windows of event time that the shards are labelled with.
    """

    name: str
    number: int
    seed: int
    windows: EventWindows | None


def check_panes(inputs: Mapping[str, Any], output: str, *, append: bool) -> None:
    """Raises a UserError if unbounded PCollections cannot be written pane by pane.

    Args:
        inputs: The PCollections, by name.
        output: Folder of the dataset.
        append: Whether a dataset that exists may be added to.
    """
    for name in inputs.keys() - {"sequences", REJECTS}:
        raise UserError(
            f"WriteDataset: its input {name} belongs to raw files, but another input is unbounded. To follow files, "
            "use `lengthwise prepare --streaming`."
        )
    if not append:
        raise UserError(
            "WriteDataset: its input is unbounded, so that it adds a commit for each window and pane to the dataset: "
            "set append=True."
        )
    if not supports_create_once(join(output, commit_path(1))):
        raise UserError(
            f"{output}: an unbounded input needs an output folder in which a file is created only if it does not "
            "exist, as every commit after the first one must be. Write to a local folder, to s3:// or to gs://."
        )
    for name, values in inputs.items():
        windowing = values.windowing
        if windowing.windowfn == GlobalWindows() and windowing.triggerfn == DefaultTrigger():
            raise UserError(
                f"WriteDataset: its input {name} is unbounded and has no windows, so that no commit would ever be "
                "complete. Give it windows or a trigger, for example beam.WindowInto(FixedWindows(60))."
            )
        if windowing.accumulation_mode != AccumulationMode.DISCARDING:
            raise UserError(
                f"WriteDataset: its input {name} has accumulation_mode=ACCUMULATING, so that a late pane would have "
                "the records of the panes before it again. Set accumulation_mode=AccumulationMode.DISCARDING."
            )
        if isinstance(windowing.windowfn, SlidingWindows):
            raise UserError(
                f"WriteDataset: its input {name} has sliding windows, so that a record would be in several commits. "
                "Use windows that do not overlap, such as FixedWindows or Sessions."
            )


def write_panes(
    pipeline: Any,
    inputs: Mapping[str, Any],
    schema: Schema,
    begin: Callable[[], DatasetJob],
    publisher: Callable[..., PanePublisher],
) -> Any:
    """Writes unbounded PCollections: sequences and rejects -> one Manifest for each pane.

    A runner hands a pane over as the values of one key, so one worker publishes it. Parsing and encoding are spread.

    Args:
        begin: Returns the job. It is called when the pipeline runs.
        publisher: Makes the publisher from `seed`, `after` and `windows`.
    """
    runs = (
        pipeline
        | "OnceForRun" >> beam.Create([None], reshuffle=False)
        | "BeginRun" >> beam.Map(lambda _: _name_run(begin()))
        # Fixes the run: all panes must get the same one.
        | "FixRun" >> beam.Reshuffle()
    )
    run = beam.pvalue.AsSingleton(runs)
    elements = inputs["sequences"] | "Encode" >> beam.FlatMap(_encode, run, schema)
    if REJECTS in inputs:
        elements = (elements, inputs[REJECTS]) | "WithRejects" >> beam.Flatten()
    return (
        elements
        | "OneKey" >> beam.Map(lambda element: (b"", element))
        | "Panes" >> beam.GroupByKey()
        | "PublishPane" >> beam.ParDo(_PublishPane(publisher), run)
    )


def _name_run(job: DatasetJob) -> PipelineRun:
    return PipelineRun(job.files.generation, job.base.number, job.base.seed, job.base.windows)


def _encode(element: Any, run: PipelineRun, schema: Schema) -> Iterator[EncodedRecord]:
    """ParsedRecord, or a list of (ParsedRecord, Origin) -> EncodedRecord."""
    batch = [(element, Origin(None, 0, 0, 0, b"", None))] if isinstance(element, ParsedRecord) else element
    return (encode_for_shuffle(record, origin, schema, seed=run.seed) for record, origin in batch)


class _PublishPane(beam.DoFn):
    """(key, all elements of a pane) -> the Manifest of its commit."""

    def __init__(self, make_publisher: Callable[..., PanePublisher]) -> None:
        self._make_publisher = make_publisher

    def setup(self) -> None:
        self._publisher: PanePublisher | None = None

    def process(
        self,
        element: tuple[bytes, Iterable[EncodedRecord | Reject]],
        run: PipelineRun,
        window: Any = beam.DoFn.WindowParam,
        pane: Any = beam.DoFn.PaneInfoParam,
    ) -> Iterator[Any]:
        if self._publisher is None or self._publisher.after != run.number:
            self._publisher = self._make_publisher(seed=run.seed, after=run.number, windows=run.windows)
        name = f"{run.name}/{_describe(window)}/{pane.index}"
        try:
            yield self._publisher.publish(name, element[1])
        except NothingNew as error:
            _log.warning("WriteDataset: %s (window %s)", error, _describe(window))


def _describe(window: Any) -> str:
    """Returns a name of a window that no other window of the same WindowFn has."""
    start = getattr(window, "start", None)
    return "global" if start is None else f"{start.micros}-{window.end.micros}"
