"""Evaluates a model on a split: loss and metrics, of the whole split and by length, group and source."""

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import keras
import tensorflow as tf

from pipeline import progress
from pipeline.errors import UserError, show
from pipeline.files import join, replace
from pipeline.format.models import FeatureStatistics, Vocabulary
from trainer.batching.cut import DEFAULT_BATCH_STEPS, check_limits
from trainer.batching.plan_epoch import plan_epoch
from trainer.batching.stateful import chunk_options, make_stateful_plan
from trainer.config import Parts, TrainConfig
from trainer.data.dataset import Dataset, open_dataset
from trainer.data.parts import choose_parts
from trainer.data.target import Vocabularies, make_target
from trainer.devices.tensorflow_errors import explain_out_of_memory
from trainer.devices.tensorflow_setup import allow_tf32
from trainer.evaluation.baseline import Baseline, make_baseline, measure_baseline
from trainer.evaluation.breakdown import Breakdown, break_down
from trainer.evaluation.metrics import Metrics, has_confusion, metric_names
from trainer.evaluation.worse_lengths import WorseLengths
from trainer.model.build import build_model, head_model
from trainer.model.chunks import check_forward, chunk_model, find_stack
from trainer.model.losses import column_scales, compute_losses
from trainer.reading.batches import planned_batches
from trainer.reading.chunk_reader import ChunkReader
from trainer.runs.checkpoints import read_state, restore_weights
from trainer.runs.local_copy import local_copy
from trainer.runs.run import Run


class _Measured(NamedTuple):
    """The measures of a batch.

    Attributes:
        values: The arguments of `Metrics.update`.
        records: Number of records that end in the batch.
        shape: Rows and padded steps.
    """

    values: tuple[Any, ...]
    records: int
    shape: tuple[int, ...]


class Evaluator:
    """Measures a model on the splits of a dataset. The model is compiled once for all measurements.

    Args:
        statistics, vocabularies: Those that the model was built with; the dataset's own may differ.
        chunk_steps: Reads records in chunks of this number of steps, with the state carried from chunk to chunk. The
            memory then does not depend on the length of records. None reads whole records.
        reset_state: `chunk` sets the state to zero at each chunk, for comparison.

    Raises:
        UserError: The model is bidirectional, so it cannot read records in chunks.
        ValueError: chunk_steps is below 1.
    """

    def __init__(
        self,
        model: keras.Model,
        dataset: Dataset,
        *,
        statistics: Mapping[str, FeatureStatistics],
        vocabularies: Vocabularies,
        chunk_steps: int | None = None,
        reset_state: str = "record",
    ) -> None:
        check_limits(chunk_steps=chunk_steps)
        if chunk_steps is not None:
            check_forward(model)
        self._dataset, self._vocabularies = dataset, vocabularies
        self._model, self._chunk_steps, self._reset_state = model, chunk_steps, reset_state
        self._column_scale = column_scales(make_target(dataset.schema, vocabularies), statistics)
        self.target = make_target(dataset.schema, vocabularies)
        self._some_feature = next(iter(dataset.schema.steps))
        self._numbered: dict[str, tf.data.Dataset] = {}
        head, kind = head_model(model), self.target.kind
        column_scale = self._column_scale

        @tf.function(autograph=False, jit_compile=False)
        def forward(features: Any, label: Any) -> tuple[tf.Tensor, tf.Tensor]:
            outputs = head(features, training=False)
            return outputs, compute_losses(outputs, label, kind, column_scale)

        self._forward = forward

    def measure(
        self,
        split: str,
        breakdowns: Sequence[Breakdown] = (),
        *,
        ranked: bool = False,
        baseline: Baseline | None = None,
        lengths: WorseLengths | None = None,
        after_batch: Callable[[], None] = lambda: None,
    ) -> Metrics:
        """Returns the metrics of a split and of the parts in the breakdowns.

        Args:
            ranked: Compute auc and average_precision too, which may take as long as the model itself.
            baseline, lengths: Get the labels of the split, and the values of a metric, too.
            after_batch: Called after each batch; may raise an exception to stop.
        """
        metrics = Metrics(self.target, breakdowns, ranked=ranked, baseline=baseline, lengths=lengths)
        shape: Any = ()

        def explain() -> str:
            return (
                f"a batch of the split {split!r}, {' x '.join(map(str, shape))} steps, does not fit beside the weights "
                "of the model. End other processes that use the memory, or train a model with fewer --units."
            )

        with explain_out_of_memory(explain):
            for measured in self._measure_whole(split) if self._chunk_steps is None else self._measure_chunks(split):
                shape = measured.shape
                metrics.update(*measured.values)
                progress.add_records(measured.records)
                after_batch()
        return metrics

    def _measure_whole(self, split: str) -> Iterator["_Measured"]:
        """Yields the measures of batches of whole records."""
        numbered = self._batches(split)
        # Traced once with open sizes and lengths, instead of for the shapes of the first batches.
        self._forward.get_concrete_function(*numbered.element_spec[:2])
        for features, label, weight, row in numbered:
            outputs, loss = self._forward(features, label)
            found = tuple(value.numpy() for value in (outputs, label, weight, loss, features["length"], row))
            yield _Measured(found, len(label), tuple(features[self._some_feature].shape[:2]))

    def _measure_chunks(self, split: str) -> Iterator["_Measured"]:
        """Yields the measures of chunks of several records, each of which is read in a lane."""
        assert self._chunk_steps is not None
        dataset, chunk_steps = self._dataset, self._chunk_steps
        lanes = max(1, DEFAULT_BATCH_STEPS // chunk_steps)
        if self._reset_state == "record":
            # Longer chunks change no result. With few records, a batch has few rows and takes as long for fewer steps.
            chunk_steps = max(chunk_steps, DEFAULT_BATCH_STEPS // max(1, min(lanes, dataset.split(split).records)))
        plan = make_stateful_plan(dataset.lengths(split), chunk_steps=chunk_steps, lanes=lanes)
        reader = ChunkReader(dataset, split, vocabularies=self._vocabularies)
        state = [tf.zeros((plan.lanes, width)) for width in find_stack(self._model).state_widths]
        for batch in reader.batches(plan):
            fresh = batch.fresh if self._reset_state == "record" else tf.ones_like(batch.fresh)
            outputs, loss, state = self._read_chunk(batch.features, batch.label, fresh, state)
            row, ends = batch.chunks.record, batch.chunks.ends
            values = [value.numpy() for value in (outputs, batch.label, batch.weight, loss)]
            shape = tuple(batch.features[self._some_feature].shape[:2])
            yield _Measured((*values, plan.lengths[row], row, ends), int(ends.sum()), shape)

    @functools.cached_property
    def _read_chunk(self) -> Any:
        """The compiled forward pass of a chunk: (features, label, fresh, state) -> (outputs, losses, new state)."""
        model = chunk_model(self._model, self._dataset.schema, full_rows=True)
        kind, column_scale = self.target.kind, self._column_scale

        @tf.function(autograph=False, jit_compile=False, reduce_retracing=True)
        def read(features: Any, label: Any, fresh: Any, state: Any) -> tuple[tf.Tensor, tf.Tensor, Any]:
            state = [tf.where(fresh[:, None], 0.0, value[: tf.size(fresh)]) for value in state]
            outputs, state = model((features, state), training=False)
            return outputs, compute_losses(outputs, label, kind, column_scale), state

        return read

    def _batches(self, split: str) -> tf.data.Dataset:
        if split not in self._numbered:
            # The order of records does not matter here, so the fastest budget is used instead of that of training.
            plan = plan_epoch(self._dataset, split, batch_steps=DEFAULT_BATCH_STEPS)
            self._numbered[split] = planned_batches(self._dataset, split, plan, vocabularies=self._vocabularies)
        return self._numbered[split]


def evaluate(
    run: str | os.PathLike[str],
    dataset: str | os.PathLike[str] | Dataset,
    *,
    split: str = "test",
    checkpoint: str | None = None,
    chunk_steps: int | None = None,
    reset_state: Literal["record", "chunk"] | None = None,
    parts: Parts | None = None,
) -> dict[str, Any]:
    """Evaluates a run on a split, writes RUN/evaluation-<split>.json and returns its contents.

    The contents are {"split", "records", "steps", "loss", "metrics", …}. The last four of these are also given for each
    part of the split in `by_length` and, if records have a group or come from several raw files, in `by_group` and
    `by_source`. These two list the largest parts first, at most 1,000; `groups_left_out` and `sources_left_out` count
    the others. For labels per step, the number of `labelled_steps` is given too, here and for each part.
    `worse_lengths` lists the parts of `by_length` on which the model is clearly worse than on all records (see
    `WorseLengths.result`). `baseline` has the metrics of always predicting the most frequent class or the mean (see
    `make_baseline`). `by_class` gives the precision, recall, F1 and support of each class. If a label is one class,
    `confusion` counts the labels by actual and predicted class; it is None for more than 256 classes. `confused_pairs`
    lists the 100 most frequent pairs of different classes for any number of classes (see `ConfusedPairs`). See
    `metric_names` for the metrics.

    Args:
        run: Folder of the run.
        dataset: An opened dataset, or its path.
        split: Name of the split.
        checkpoint: `best` (by validation loss) or `last`; by default the best if there is one.
        chunk_steps: Reads records in chunks of this number of steps and carries the state from chunk to chunk, so that
            memory does not depend on the length of records. The metrics are those of whole records. By default, the
            `chunk_steps` of a run that was trained with batching `stateful`; other runs read whole records.
        reset_state: Where the state is set to zero if records are read in chunks: at the start of each `record`, or of
            each `chunk`, for comparison. By default, as the run was trained.
        parts: `independent` reads each part of a record as a record of its own. By default, as the run was trained.

    Raises:
        UserError: There is no run or no dataset, the split has no record, or the data does not fit the model; or
            `chunk_steps` is given and the model is bidirectional, or `reset_state` is `chunk` without chunks.
        ValueError: chunk_steps is below 1.
    """
    opened = dataset if isinstance(dataset, Dataset) else open_dataset(dataset)
    path = os.fspath(run).rstrip("/")
    with local_copy(path) as folder:
        opened_run = Run(folder)
        config = opened_run.config()
        chunks = chunk_options(config, chunk_steps, reset_state)
        if reset_state == "chunk" and chunks["chunk_steps"] is None:
            raise UserError(
                f"{path}: reset_state chunk sets the state to zero at each chunk, but the records of this run are read "
                "whole. Give --chunk_steps too, or leave --reset_state out."
            )
        with_parts = choose_parts(opened, parts or config.parts)
        evaluation = _evaluate(opened_run, config, with_parts, split, checkpoint, chunks)
        if folder != path:
            name = f"evaluation-{split}.json"
            with replace(join(path, name)) as file:
                file.write(opened_run.read(name))
    return evaluation


def _evaluate(
    run: Run, config: TrainConfig, dataset: Dataset, split: str, checkpoint: str | None, chunks: dict[str, Any]
) -> dict[str, Any]:
    trained_on, own = run.manifest(), run.own_statistics()
    check_schemas(trained_on.record_schema.canonical(), dataset.schema.canonical(), run.path, dataset.path)
    if not dataset.split(split).records:
        raise UserError(f"{dataset.path}: the split {split!r} has no record. Splits with records: {_sizes(dataset)}.")
    allow_tf32(config.tf32)
    built_with: dict[str, Any] = {"statistics": own.statistics, "vocabularies": run.vocabularies()}
    model = build_model(trained_on.record_schema, config=config, **built_with)
    used = restore_weights(run, model, checkpoint)
    evaluator = Evaluator(model, dataset, **built_with, **chunks)
    baseline = make_baseline(evaluator.target, trained_on)
    breakdowns = break_down(dataset.index(split), num_classes=evaluator.target.size)
    lengths = WorseLengths(metric_names(evaluator.target)[0], breakdowns[0])
    with progress.report("evaluate", total_records=dataset.split(split).records):
        metrics = evaluator.measure(split, breakdowns, ranked=True, baseline=baseline, lengths=lengths)
    whole = metrics.result()
    evaluation = {
        "split": split,
        **whole,
        "baseline": None if baseline is None else measure_baseline(baseline, split, whole["metrics"]),
        **_parts(metrics),
        "worse_lengths": lengths.result(),
        **({"by_class": metrics.by_class()} if evaluator.target.names else {}),
        **({"confusion": metrics.confusion()} | metrics.confused_pairs() if has_confusion(evaluator.target) else {}),
        "checkpoint": used,
        "dataset_fingerprint": dataset.manifest.fingerprint,
        "dataset_changed": dataset.manifest.fingerprint != _trained_fingerprint(run),
        "vocabularies_changed": _changed_vocabularies(own.vocabularies, dataset.manifest.vocabularies),
    }
    run.write_json(f"evaluation-{split}.json", evaluation)
    return evaluation


def _trained_fingerprint(run: Run) -> str:
    """Returns the fingerprint of the dataset that a run was trained on; with `follow`, as of the last commit."""
    state = read_state(run) if run.config().follow else None
    return state.pinned.fingerprint if state is not None and state.pinned else run.manifest().fingerprint


def _parts(metrics: Metrics) -> dict[str, Any]:
    """Returns the results of the breakdowns by their keys in the evaluation."""
    found: dict[str, Any] = {}
    for breakdown, parts in metrics.by_part():
        found[f"by_{breakdown.name}"] = parts
        if breakdown.name != "length":
            found[f"{breakdown.name}s_left_out"] = breakdown.left_out
    return found


def check_schemas(trained: dict[str, Any], found: dict[str, Any], run: str, dataset: str) -> None:
    """Raises a UserError if the features or the label differ between a run's schema and a dataset's.

    Other parts of the schemas may differ: splits, length limits, and the fields of raw records (`from`).

    Args:
        trained, found: The canonical schemas of the run and of the dataset.
        run, dataset: Their paths.
    """
    for key in ("steps", "context", "label"):
        names = (trained[key].keys() | found[key].keys()) - ({"from"} if key == "label" else set())
        for name in sorted(names):
            theirs, ours = (_without_source(schema[key].get(name)) for schema in (found, trained))
            if theirs != ours:
                raise UserError(
                    f"{dataset}: its schema has {key}.{name} {_format(theirs)}, but {run} was trained on "
                    f"{_format(ours)}. Prepare the data with the schema of the run, or train a run on this data."
                )


def _without_source(value: Any) -> Any:
    return {key: inner for key, inner in value.items() if key != "from"} if isinstance(value, dict) else value


def _format(value: Any) -> str:
    return "missing" if value is None else show(value)


def _changed_vocabularies(own: Mapping[str, Vocabulary], found: Mapping[str, Vocabulary]) -> list[str]:
    """Returns the features for which the dataset has another vocabulary than the run, whose own the model uses."""
    known = {name: vocabulary.sha256 for name, vocabulary in found.items()}
    return [name for name, vocabulary in own.items() if known.get(name) != vocabulary.sha256]


def _sizes(dataset: Dataset) -> str:
    """Returns the splits that have records, with their number of records."""
    return ", ".join(f"{name} ({split.records:,})" for name, split in dataset.manifest.splits.items() if split.records)
