"""Trains a model on a dataset, epoch by epoch, into a run's folder that the same call takes up again."""

import math
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.errors import UserError
from pipeline.manifest import TRAIN
from trainer.checkpoints import (
    BEST,
    INPUTS_SHA256,
    LAST,
    WEIGHTS_SHA256,
    Checkpoints,
    checkpoint_sha256,
    weights_sha256,
)
from trainer.config import TrainConfig
from trainer.dataset import Dataset, open_dataset
from trainer.epoch import plan_epoch
from trainer.evaluate import Evaluator
from trainer.journal import EpochJournal, diverged
from trainer.model import build_model, check_config, count_parameters, loss_scale
from trainer.plan import Plan
from trainer.progress import Progress
from trainer.reader import numbered_batches
from trainer.run import LOGS, RESULT, Run
from trainer.target import make_target
from trainer.update import Update, make_optimizer, make_update

VALIDATION = "validation"
# What may differ when a run is taken up again.
_MAY_CHANGE = ("epochs",)


def train(
    dataset: str | os.PathLike[str] | Dataset,
    output: str | os.PathLike[str],
    config: TrainConfig | None = None,
    *,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Trains into the folder `output` and returns what result.json holds.

    A run that is there and not finished goes on after its last whole epoch; a finished one only returns its result.

    Args:
        callbacks: Keras's or your own; they get the logs of `model.fit`: loss, val_loss, val_accuracy, ….
        overwrite: Begin anew whatever is there.

    Raises:
        UserError: no dataset, no record to train on, a run that was begun otherwise, or a loss that is not finite.
    """
    dataset = dataset if isinstance(dataset, Dataset) else open_dataset(dataset)
    config = config or TrainConfig()
    if not dataset.split(TRAIN).labels:
        raise UserError(f"{dataset.path}: the split {TRAIN!r} holds no label, so there is nothing to train on.")
    check_config(config, make_target(dataset.schema, dataset.vocabularies()))
    plan = _plan(dataset, config, epoch=1)
    run = Run(os.fspath(output).rstrip("/"))
    finished = _open(run, config, dataset, overwrite=overwrite)
    if finished is not None:
        return finished
    return _Training(run, dataset, config, plan, callbacks).run()


def _plan(dataset: Dataset, config: TrainConfig, *, epoch: int) -> Plan:
    keys = {"batching", "batch_steps", "batch_size", "pad_to_multiple", "pad_length", "truncate", "seed"}
    try:
        return plan_epoch(dataset, TRAIN, epoch=epoch, **config.model_dump(include=keys))
    except ValueError as error:
        raise UserError(str(error)) from None


def _open(run: Run, config: TrainConfig, dataset: Dataset, *, overwrite: bool) -> dict[str, Any] | None:
    """Makes the folder ready. Returns the result of a run that is finished already."""
    if set(run.path) & set("*?[]\\"):
        raise UserError(
            f"{run.path}: TensorFlow finds no checkpoint again below * ? [ ] or \\. Choose another --output."
        )
    if run.is_strange():
        raise UserError(f"{run.path}: is there and is no run. Choose another --output.")
    if overwrite:
        run.clear()
    if not run.exists():
        run.begin(config, dataset)
        return None
    begun, result = run.config(), run.result()
    _refuse_difference(run, begun, config)
    if result is not None and (result["epochs"] >= config.epochs or result["stopped_early"]):
        return result
    theirs = run.manifest().fingerprint
    if theirs != dataset.manifest.fingerprint:
        raise UserError(
            f"{run.path}: was begun on a dataset with fingerprint {theirs}, but {dataset.path} has "
            f"{dataset.manifest.fingerprint}. Go on with the same data, or begin anew with --overwrite."
        )
    run.go_on(config)
    return None


def _refuse_difference(run: Run, begun: TrainConfig, config: TrainConfig) -> None:
    before, now = begun.model_dump(mode="json"), config.model_dump(mode="json")
    different = [name for name in before if before[name] != now[name] and name not in _MAY_CHANGE]
    if different:
        listed = ", ".join(f"{name} {before[name]}, now {now[name]}" for name in different)
        raise UserError(f"{run.path}: was begun with {listed}. Say the same, or begin anew with --overwrite.")


class _Training:
    """The state of a run while it trains."""

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        config: TrainConfig,
        plan: Plan,
        callbacks: Iterable[keras.callbacks.Callback],
    ) -> None:
        self._run, self._dataset, self._config, self._plan = run, dataset, config, plan
        keras.utils.set_random_seed(config.seed)
        self._strategy = tf.distribute.get_strategy()
        with self._strategy.scope():
            statistics, vocabularies = dataset.manifest.statistics, dataset.vocabularies()
            self._target = make_target(dataset.schema, vocabularies)
            self._model = build_model(dataset.schema, statistics, config, vocabularies=vocabularies)
            self._optimizer = make_optimizer(config)
            # For callbacks that look at model.optimizer; the loop is ours.
            self._model.compile(optimizer=self._optimizer, jit_compile=False)
            self._checkpoints = Checkpoints(run, self._model, self._optimizer)
        self._evaluator = Evaluator(self._model, dataset) if dataset.has_labels(VALIDATION) else None
        self._progress = Progress(epochs=config.epochs)
        self._early_stopping = self._make_early_stopping()
        own = [keras.callbacks.TensorBoard(run.file(LOGS), write_graph=False)]
        own += [self._early_stopping] if self._early_stopping else []
        self._callbacks = keras.callbacks.CallbackList(
            [*own, *callbacks], model=self._model, epochs=config.epochs, steps=plan.num_batches, verbose=0
        )
        self._model.stop_training = False
        self._last_line: dict[str, Any] | None = None

    def run(self) -> dict[str, Any]:
        self._introduce()
        resumed = self._checkpoints.restore()
        past = self._run.cut_metrics(epoch=int(self._checkpoints.epoch.numpy()))
        if resumed:
            self._progress.say(f"Going on after epoch {int(self._checkpoints.epoch.numpy())}.")
        self._callbacks.on_train_begin()
        self._replay(past)
        if not resumed:
            # Something to evaluate, also with no epoch at all.
            self._checkpoints.save(validation_loss=None)
        update = self._make_update()
        self._weight = self._total_weight()
        for epoch in range(int(self._checkpoints.epoch.numpy()) + 1, self._config.epochs + 1):
            if self._model.stop_training:
                break
            self._train_epoch(epoch, update)
        self._callbacks.on_train_end()
        return self._finish()

    def _introduce(self) -> None:
        """Says what is about to happen, a line each."""
        plan, (rows, steps) = self._plan, self._plan.largest_batch
        devices = ", ".join(device.device_type for device in tf.config.list_logical_devices())
        self._progress.say(f"Devices: {devices}. Parameters: {count_parameters(self._model):,}.")
        self._progress.say(
            f"An epoch: {plan.num_batches:,} updates, {plan.records:,} records, {plan.steps:,} steps, "
            f"{plan.useful_share:.1%} of what is computed is useful; the largest batch is {rows} x {steps} steps."
        )
        if self._evaluator is None:
            self._progress.say("No validation split: the last checkpoint is kept, none is the best.")

    def _make_early_stopping(self) -> keras.callbacks.EarlyStopping | None:
        if self._config.early_stopping is None:
            return None
        if self._evaluator is None:
            raise UserError(f"early_stopping needs labels in the split {VALIDATION!r} of {self._dataset.path}.")
        return keras.callbacks.EarlyStopping("val_loss", patience=self._config.early_stopping, mode="min")

    def _replay(self, past: list[dict[str, Any]]) -> None:
        """Tells early stopping, which keeps its count in memory, what it saw before the run was taken up again."""
        for line in past:
            self._last_line = line
            if self._early_stopping is not None:
                self._early_stopping.on_epoch_end(line["epoch"] - 1, _logs(line))

    def _make_update(self) -> Update:
        return make_update(
            self._model,
            self._optimizer,
            kind=self._dataset.schema.label.kind,
            element_spec=self._batches(self._plan, epoch=0).element_spec[:3],
            by_epoch=self._config.loss_scale == "epoch",
            strategy=self._strategy,
            column_scale=loss_scale(self._target, self._dataset.manifest.statistics),
        )

    def _total_weight(self) -> float:
        """Records, or labelled steps, of an epoch; counted where steps are cut off, which takes their labels along."""
        if self._config.truncate is None or not self._dataset.schema.label.per_step:
            return max(float(self._dataset.split(TRAIN).labels), 1.0)
        return max(sum(float(tf.reduce_sum(weight)) for _, _, weight, _ in self._batches(self._plan, epoch=0)), 1.0)

    def _batches(self, plan: Plan, *, epoch: int) -> tf.data.Dataset:
        return numbered_batches(self._dataset, TRAIN, plan, seed=self._config.seed, epoch=epoch)

    def _train_epoch(self, epoch: int, update: Update) -> None:
        self._callbacks.on_epoch_begin(epoch - 1)
        state, begin = self._checkpoints, time.monotonic()
        journal = EpochJournal(self._run)
        number = int(state.update.numpy())
        some_feature = next(iter(self._dataset.schema.steps))
        plan = self._plan if epoch == 1 else _plan(self._dataset, self._config, epoch=epoch)
        scale = tf.constant(plan.num_batches / self._weight, tf.float32)
        self._progress.begin_epoch(epoch, updates=plan.num_batches)
        try:
            for position, (features, label, weight, _) in enumerate(self._batches(plan, epoch=epoch)):
                self._callbacks.on_train_batch_begin(position)
                loss, total = update(features, label, weight, scale)
                number += 1
                length = features["length"].numpy()
                padded = len(length) * int(features[some_feature].shape[1])
                line = journal.add(
                    epoch, number, loss, total, records=len(length), steps=int(length.sum()), padded=padded
                )
                self._progress.update(
                    epoch=epoch, update=number, steps=line["steps"], padded_steps=padded, loss=line["loss"]
                )
                self._callbacks.on_train_batch_end(position)
        except tf.errors.OpError:
            # Weights that are no numbers may fail in some operation before their loss is looked at.
            journal.flush()
            if self._finite_weights():
                raise
            raise diverged(f"A weight is not finite after update {number} (epoch {epoch})") from None
        summary = journal.close(seconds=time.monotonic() - begin)
        if not self._finite_weights():
            raise diverged(f"A weight is not finite after epoch {epoch}")
        state.epoch.assign(epoch)
        state.update.assign(number)
        state.steps.assign_add(summary["steps"])
        state.padded_steps.assign_add(summary["padded_steps"])
        self._last_line = line = self._epoch_line(epoch, summary)
        if line["validation"] and not math.isfinite(line["validation"]["loss"]):
            raise diverged(f"The validation loss of epoch {epoch} is {line['validation']['loss']}")
        # Lines before the checkpoint: those of an epoch whose checkpoint is missing are cut when the run goes on.
        self._run.append_metrics([line])
        state.save(validation_loss=line["validation"]["loss"] if line["validation"] else None)
        self._progress.epoch(line)
        self._callbacks.on_epoch_end(epoch - 1, _logs(line))

    def _finite_weights(self) -> bool:
        return all(np.isfinite(weight.numpy()).all() for weight in self._model.weights)

    def _epoch_line(self, epoch: int, summary: dict[str, Any] | None) -> dict[str, Any]:
        """The line of an epoch, measured on the validation split where there is one."""
        validation = None
        if self._evaluator is not None:
            measured = self._evaluator.measure(VALIDATION).result()
            validation = {"loss": measured["loss"], "metrics": measured["metrics"]}
        return {"epoch": epoch, "train": summary, "validation": validation}

    def _finish(self) -> dict[str, Any]:
        state = self._checkpoints
        line = self._last_line or self._epoch_line(0, None)
        padded = int(state.padded_steps.numpy())
        result = {
            "epochs": int(state.epoch.numpy()),
            "updates": int(state.update.numpy()),
            "parameters": count_parameters(self._model),
            "useful_share": int(state.steps.numpy()) / padded if padded else self._plan.useful_share,
            INPUTS_SHA256: self._run.inputs_sha256(),
            WEIGHTS_SHA256[LAST]: weights_sha256(self._model),
            WEIGHTS_SHA256[BEST]: checkpoint_sha256(self._run, self._model, BEST),
            "validation": line["validation"],
            "best_epoch": int(state.best_epoch.numpy()) or None,
            "stopped_early": bool(self._model.stop_training),
        }
        self._run.write_json(RESULT, result)
        return result


def _logs(line: dict[str, Any]) -> dict[str, float]:
    """An epoch's line as the logs that Keras's callbacks know."""
    logs = {"loss": line["train"]["loss"]}
    if line["validation"] is not None:
        measured = {"loss": line["validation"]["loss"], **line["validation"]["metrics"]}
        # Of what cannot be measured there is no log: callbacks take numbers only.
        logs |= {f"val_{name}": value for name, value in measured.items() if value is not None}
    return logs
