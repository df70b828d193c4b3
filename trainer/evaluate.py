"""Measures a model on a split: loss and metrics over real steps and records, whole and by band of length."""

import os
from typing import Any

import keras
import tensorflow as tf

from pipeline import progress
from pipeline.errors import UserError
from trainer.checkpoints import restore_weights
from trainer.dataset import Dataset, open_dataset
from trainer.metrics import Metrics
from trainer.model import build_model, head_model, losses
from trainer.plan import DEFAULT_BATCH_STEPS
from trainer.reader import batches
from trainer.run import Run


class Evaluator:
    """Measures one model as often as it is asked to; compiled once."""

    def __init__(self, model: keras.Model, dataset: Dataset) -> None:
        self._dataset = dataset
        head = head_model(model)
        kind = dataset.schema.label.kind

        @tf.function(reduce_retracing=True, autograph=False, jit_compile=False)
        def forward(features: Any, label: Any) -> tuple[tf.Tensor, tf.Tensor]:
            outputs = head(features, training=False)
            return outputs, losses(outputs, label, kind)

        self._forward = forward

    def measure(self, split: str) -> Metrics:
        """The metrics of a split; of none where it holds no record."""
        label = self._dataset.schema.label
        metrics = Metrics(label.kind, len(label.classes))
        # The order is of no matter here, so the budget is not that of training: what is quick is best.
        for features, target, weight in batches(self._dataset, split, batch_steps=DEFAULT_BATCH_STEPS):
            outputs, loss = self._forward(features, target)
            metrics.update(outputs.numpy(), target.numpy(), weight.numpy(), loss.numpy(), features["length"].numpy())
            progress.add_records(len(target))
        return metrics


def evaluate(
    run_path: str | os.PathLike[str],
    dataset_path: str | os.PathLike[str],
    *,
    split: str = "test",
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """Measures a run on a split, writes RUN/evaluation-<split>.json, and returns what it wrote.

    Args:
        checkpoint: `best` by validation loss, or `last`; by default the best where there is one.

    Raises:
        UserError: no run, no dataset, a split without a record, or data that this model cannot read.
    """
    run, dataset = Run(os.fspath(run_path).rstrip("/")), open_dataset(dataset_path)
    config, trained_on = run.config(), run.manifest()
    _compare_schemas(trained_on.record_schema.canonical(), dataset.schema.canonical(), run.path, dataset.path)
    if not dataset.split(split).records:
        raise UserError(f"{dataset.path}: the split {split!r} holds no record. It has {_filled(dataset)}.")
    model = build_model(trained_on.record_schema, trained_on.statistics, config)
    used = restore_weights(run, model, checkpoint)
    with progress.shown("evaluate", total_records=dataset.split(split).records):
        metrics = Evaluator(model, dataset).measure(split)
    evaluation = {
        "split": split,
        **metrics.result(),
        "by_length": metrics.by_length(),
        "checkpoint": used,
        "dataset_fingerprint": dataset.manifest.fingerprint,
        "dataset_changed": dataset.manifest.fingerprint != trained_on.fingerprint,
    }
    run.write_json(f"evaluation-{split}.json", evaluation)
    return evaluation


def _compare_schemas(trained: dict[str, Any], found: dict[str, Any], run: str, dataset: str) -> None:
    """Refuses data whose features or label are not those of the model; how it was split and cut is of no matter."""
    for key in ("steps", "label"):
        if trained[key] != found[key]:
            raise UserError(
                f"{dataset}: its schema has {key} {found[key]}, but {run} was trained on {trained[key]}. "
                "Prepare the data with the schema of the run, or train a run on this data."
            )


def _filled(dataset: Dataset) -> str:
    return ", ".join(f"{name} ({split.records:,})" for name, split in dataset.manifest.splits.items() if split.records)
