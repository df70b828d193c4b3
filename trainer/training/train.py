"""Trains a model on a dataset into a run's folder, which the same call takes up again wherever it ended."""

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from pipeline.errors import UserError
from pipeline.format.manifest import TRAIN
from trainer.config import TrainConfig
from trainer.data.dataset import Dataset, open_dataset
from trainer.data.target import make_target
from trainer.devices.replicas import TF_CONFIG, Replicas, find_replicas
from trainer.devices.signals import StopSignal
from trainer.devices.tensorflow_setup import make_deterministic
from trainer.evaluation.evaluate import compare_schemas
from trainer.model.build import check_config
from trainer.runs.lock import lock_run
from trainer.runs.run import CHECKPOINTS, Run
from trainer.runs.state import State
from trainer.training.epoch_plan import plan_limited
from trainer.training.loop import VALIDATION, Training

# What may differ when a run is taken up again; another budget holds from the next epoch on.
_MAY_CHANGE = {"epochs", "batch_steps", "batch_size", "strategy", "local_workers", "deterministic"}
_MAY_CHANGE |= {"checkpoint_minutes", "checkpoint_updates", "keep_checkpoints"}


def train(
    dataset: str | os.PathLike[str] | Dataset,
    output: str | os.PathLike[str],
    config: TrainConfig | None = None,
    *,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Trains into the folder `output` and returns what result.json holds.

    A run that is there and not finished goes on where its last checkpoint is; a finished one only returns its result.
    One process trains, or several that TF_CONFIG tells of, of which each calls this and the first one writes.

    Args:
        callbacks: Keras's or your own; they get the logs of `model.fit`: loss, val_loss, val_accuracy, …. With several
            workers, they are called on each.
        overwrite: Begin anew whatever is there.

    Raises:
        UserError: no dataset, no record to train on, a run that was begun otherwise, or a loss that is not finite.
        Preempted, RunLocked: kinds of it: SIGTERM came, or another process trains into `output`.
    """
    config = config or TrainConfig()
    if config.local_workers > 1 and not os.environ.get(TF_CONFIG):
        raise UserError(
            f"local_workers is {config.local_workers}: the command `lengthwise train` starts them. In Python, call "
            f"train in each of several processes, with {TF_CONFIG}."
        )
    deterministic = make_deterministic(config.deterministic)
    team = find_replicas(config.strategy)
    dataset = dataset if isinstance(dataset, Dataset) else open_dataset(dataset)
    if not dataset.split(TRAIN).labels:
        raise UserError(f"{dataset.path}: the split {TRAIN!r} holds no label, so there is nothing to train on.")
    check_config(config, make_target(dataset.schema, dataset.vocabularies()))
    plan_limited(dataset, config, State())
    if config.early_stopping is not None and not dataset.has_labels(VALIDATION):
        raise UserError(f"early_stopping needs labels in the split {VALIDATION!r} of {dataset.path}.")
    run = Run(os.fspath(output).rstrip("/"))
    with contextlib.ExitStack() as stack:
        finished = _open_together(run, config, dataset, team, stack, overwrite=overwrite)
        if finished is not None:
            return finished
        stop = stack.enter_context(StopSignal())
        return Training(run, dataset, config, team, stop, callbacks, deterministic=deterministic).run()


def _open_together(
    run: Run, config: TrainConfig, dataset: Dataset, team: Replicas, stack: contextlib.ExitStack, *, overwrite: bool
) -> dict[str, Any] | None:
    """`_open` by the chief; the others learn what came of it."""
    finished, error = None, None
    if team.is_chief:
        try:
            finished = _open(run, config, dataset, stack, overwrite=overwrite)
        except UserError as raised:
            error = raised
    finished, told = team.broadcast([finished, error and str(error)])
    if told is not None:
        raise error or UserError(f"The chief did not begin: {told}")
    return finished


def _open(
    run: Run, config: TrainConfig, dataset: Dataset, stack: contextlib.ExitStack, *, overwrite: bool
) -> dict[str, Any] | None:
    """Makes the folder ready, and locks it. Returns the result of a run that is finished already."""
    if set(run.path) & set("*?[]\\"):
        raise UserError(
            f"{run.path}: TensorFlow finds no checkpoint again below * ? [ ] or \\. Choose another --output."
        )
    if run.is_foreign():
        raise UserError(f"{run.path}: is there and is no run. Choose another --output.")
    if not overwrite and run.exists():
        _refuse_difference(run, config)
        _refuse_other_data(run, dataset)
        result = run.result()
        if result is not None and (result["epochs"] >= config.epochs or result.get("stopped_early")):
            return result
    if config.warm_start is not None and (overwrite or not run.exists()):
        source = Run(config.warm_start.rstrip("/"))
        if os.path.realpath(source.path) == os.path.realpath(run.path):
            raise UserError(f"warm_start is {source.path}, the run that is to begin. Choose another --output.")
        source.manifest()  # that it is there
    tf.io.gfile.makedirs(run.path)
    stack.enter_context(lock_run(run.path))
    if overwrite:
        run.clear()
    if not run.exists():
        run.create(config, dataset)
    else:
        run.resume(config)
    return None


def _refuse_difference(run: Run, config: TrainConfig) -> None:
    before, now = run.config().model_dump(mode="json"), config.model_dump(mode="json")
    # With what weights a run begins is of no matter before it has.
    may_change = _MAY_CHANGE if tf.io.gfile.exists(run.file(CHECKPOINTS)) else _MAY_CHANGE | {"warm_start"}
    different = [name for name in before if before[name] != now[name] and name not in may_change]
    if different:
        listed = ", ".join(f"{name} {before[name]}, now {now[name]}" for name in different)
        raise UserError(f"{run.path}: was begun with {listed}. Say the same, or begin anew with --overwrite.")


def _refuse_other_data(run: Run, dataset: Dataset) -> None:
    begun = run.manifest()
    if begun.fingerprint != dataset.manifest.fingerprint:
        compare_schemas(begun.record_schema.canonical(), dataset.schema.canonical(), run.path, dataset.path)
        raise UserError(
            f"{run.path}: was begun on a dataset with fingerprint {begun.fingerprint}, but {dataset.path} has "
            f"{dataset.manifest.fingerprint}. Go on with the same data, or begin anew with --overwrite."
        )
