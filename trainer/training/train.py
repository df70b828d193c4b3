"""Trains a model on a dataset and writes a run's folder; the same call resumes an interrupted run."""

import contextlib
import functools
import os
import sys
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from pipeline.errors import UserError
from pipeline.format.models import TRAIN
from pipeline.schema.schema import VALIDATION
from trainer.config import TrainConfig
from trainer.data.dataset import Dataset, open_dataset
from trainer.data.newer_commits import PinnedCommit
from trainer.data.parts import choose_parts
from trainer.data.select_windows import select_newest
from trainer.data.target import make_target
from trainer.devices.replicas import TF_CONFIG, Replicas, find_replicas
from trainer.devices.signals import StopSignal
from trainer.devices.tensorflow_setup import allow_tf32, make_deterministic
from trainer.evaluation.evaluate import check_schemas
from trainer.model.build import check_config
from trainer.runs.checkpoints import read_state
from trainer.runs.contents import refuse_unwritable_store
from trainer.runs.lock import lock_run
from trainer.runs.run import Run
from trainer.runs.state import CLIP_RULE, State
from trainer.training.epoch_source import plan_next_epoch
from trainer.training.followed import wait_for_dataset
from trainer.training.loop import Training

# Keys that may differ when a run is resumed. Another budget applies from the next epoch on.
_MAY_CHANGE = {"epochs", "batch_steps", "batch_size", "strategy", "local_workers", "deterministic"}
_MAY_CHANGE |= {"checkpoint_minutes", "checkpoint_updates", "keep_checkpoints", "idle"}


def train(
    dataset: str | os.PathLike[str] | Dataset,
    output: str | os.PathLike[str],
    config: TrainConfig | None = None,
    *,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    overwrite: bool = False,
    commit: int | None = None,
) -> dict[str, Any]:
    """Trains a model, writes the run to the folder `output` and returns the contents of result.json.

    An unfinished run in `output` resumes from its last checkpoint; for a finished one, the call only returns its
    result. Training uses one process, or all processes that TF_CONFIG lists. Each of these calls this function; the
    first one, the chief, writes the run.

    Args:
        dataset: An opened dataset, or its path.
        output: Folder of the run, on a local disk or on any file system that TensorFlow supports.
        config: Model, batches and optimizer. Default: TrainConfig().
        callbacks: Keras's or your own callbacks. They get the logs that `model.fit` passes: loss, val_loss,
            val_accuracy, …; `on_train_batch_end` gets the loss of the update alone, where `fit` passes a mean over the
            epoch so far. With several workers, they are called on each of them. When a run resumes, Keras's callbacks
            (EarlyStopping, ReduceLROnPlateau, …) and those with the methods `get_state() -> value` and
            `set_state(value)`, with a value that is serializable as JSON, continue with the state that the checkpoint
            stores; the others start anew, and a note names them. `set_state` is called after `on_train_begin`.
        overwrite: Start over, also if `output` holds a run.
        commit: Number of the dataset's commit to train on, if `dataset` is a path. By default the commit that the run
            in `output` started on, or the newest one for a new run. Not with `follow`, which also ignores the commit of
            an opened dataset: it reads the newest one.

    Raises:
        UserError: There is no dataset (with `follow`, none came for the time of `idle`), the train split has no label,
            the run in `output` was started with another configuration or dataset, or a loss, a gradient or a weight is
            non-finite.
        Preempted: A UserError; SIGTERM came and the run is saved.
        RunLocked: A UserError; another process trains into `output`.
    """
    config = config or TrainConfig()
    refuse_unwritable_store(os.fspath(output))
    if config.warm_start is not None:
        refuse_unwritable_store(config.warm_start)
    if config.local_workers > 1 and not os.environ.get(TF_CONFIG):
        raise UserError(
            f"local_workers is {config.local_workers}: only the command `lengthwise train` starts workers. In Python, "
            f"call train in each of several processes, with {TF_CONFIG}."
        )
    for callback in callbacks:
        if not isinstance(callback, keras.callbacks.Callback):
            raise UserError(f"callbacks: {callback!r}: expected a list of instances of keras.callbacks.Callback.")
    deterministic = make_deterministic(config.deterministic)
    allow_tf32(config.tf32)
    if config.follow and commit is not None:
        raise UserError(f"commit is {commit}, but a run with follow reads the newest commit. Leave one of the two out.")
    replicas = find_replicas(config.strategy)
    run = Run(os.fspath(output).rstrip("/"))
    if config.follow and isinstance(dataset, Dataset):
        dataset = dataset.path
    if not isinstance(dataset, Dataset):
        dataset = _open_on_chief(dataset, run, commit, replicas, config, overwrite=overwrite)
    if config.follow:
        PinnedCommit.of(dataset.manifest, origin=dataset.path)  # raises if the format has no commits
    selected = select_newest(choose_parts(dataset, config.parts), TRAIN, config.newest)
    if not selected.split(TRAIN).labels:
        raise UserError(f"{dataset.path}: the split {TRAIN!r} has no label, so there is nothing to train on.")
    check_config(config, make_target(dataset.schema, dataset.vocabularies()))
    plan_next_epoch(selected, config, State())
    if config.early_stopping is not None and not dataset.has_labels(VALIDATION):
        raise UserError(f"early_stopping needs labels in the split {VALIDATION!r} of {dataset.path}, which has none.")
    with contextlib.ExitStack() as stack:
        finished = _open_on_all_workers(run, config, dataset, replicas, stack, overwrite=overwrite)
        if finished is not None:
            return finished
        stop = stack.enter_context(StopSignal())
        return Training(run, dataset, config, replicas, stop, callbacks, deterministic=deterministic).run()


def _open_on_chief(
    path: str | os.PathLike[str],
    run: Run,
    commit: int | None,
    replicas: Replicas,
    config: TrainConfig,
    *,
    overwrite: bool,
) -> Dataset:
    """Returns `_open_dataset` of the chief on all workers: another job may publish a commit meanwhile.

    With `follow`, the chief waits until there is a dataset.
    """
    opened: list[Dataset] = []

    def open_on_chief() -> int | None:
        if config.follow:
            wait_for_dataset(
                os.fspath(path), idle=config.idle, note=functools.partial(print, file=sys.stderr, flush=True)
            )
        opened.append(_open_dataset(path, run, commit, overwrite=overwrite or config.follow))
        return opened[0].manifest.commit

    number = replicas.from_chief(open_on_chief)
    return opened[0] if opened else open_dataset(path, commit=number)


def _open_dataset(path: str | os.PathLike[str], run: Run, commit: int | None, *, overwrite: bool) -> Dataset:
    """Returns the dataset as of a commit: by default the one that an existing run started on, else the newest one."""
    newest = open_dataset(path, commit=commit)
    if commit is not None or overwrite or not run.exists():
        return newest
    started_on, now = run.commit(), newest.manifest.commit
    if started_on is None or now is None or started_on >= now:
        return newest
    text = f"train: {run.path} resumes on commit {started_on} of {newest.path}, where the newest is {now}."
    print(text, file=sys.stderr, flush=True)
    return open_dataset(path, commit=started_on)


def _open_on_all_workers(
    run: Run, config: TrainConfig, dataset: Dataset, replicas: Replicas, stack: contextlib.ExitStack, *, overwrite: bool
) -> dict[str, Any] | None:
    """Calls `_open` on the chief, and returns its result or raises its error on all workers."""
    return replicas.from_chief(lambda: _open(run, config, dataset, stack, overwrite=overwrite))


def _open(
    run: Run, config: TrainConfig, dataset: Dataset, stack: contextlib.ExitStack, *, overwrite: bool
) -> dict[str, Any] | None:
    """Makes the run's folder ready and locks it; returns the result of a finished run, else None."""
    if set(run.path) & set("*?[]\\"):
        raise UserError(
            f"{run.path}: TensorFlow cannot find checkpoints in a path with * ? [ ] or \\. Choose another --output."
        )
    if tf.io.gfile.exists(run.path) and not tf.io.gfile.isdir(run.path):
        raise UserError(f"{run.path}: a file is in the way, expected a folder or nothing. Choose another --output.")
    if run.is_foreign():
        raise UserError(f"{run.path}: exists and is not a run. Choose another --output.")
    if not overwrite and run.exists():
        _refuse_difference(run, config)
        if not config.follow:  # otherwise `FollowedDataset` checks the log of commits
            _refuse_other_data(run, dataset)
        result = run.result()
        is_complete = result is not None and not config.has_epoch(result["epochs"] + 1)
        if result is not None and (is_complete or result.get("stopped_early")):
            return result
        _refuse_other_clipping(run, config)
    if config.warm_start is not None and (overwrite or not run.has_checkpoints()):
        _open_source(run, config)  # raises before anything is written
    tf.io.gfile.makedirs(run.path)
    stack.enter_context(lock_run(run.path))
    if overwrite:
        run.clear()
    if run.has_checkpoints():
        run.resume(config)
    else:
        keeps = config.warm_start is not None and config.statistics == "run"
        run.create(config, dataset, source=_open_source(run, config) if keeps else None)
    return None


def _open_source(run: Run, config: TrainConfig) -> Run:
    """Returns the run of a warm start. Raises a UserError if it cannot be read."""
    assert config.warm_start is not None
    source = Run(config.warm_start.rstrip("/"))
    if os.path.realpath(source.path) == os.path.realpath(run.path):
        raise UserError(f"warm_start is {source.path}, the same run as --output. Choose another --output.")
    source.vocabularies()
    return source


def _refuse_difference(run: Run, config: TrainConfig) -> None:
    """Raises a UserError if the run was started with another configuration."""
    before, now = run.config().model_dump(mode="json"), config.model_dump(mode="json")
    # Before the first checkpoint, no weight depends on the other run or on the statistics.
    may_change = _MAY_CHANGE if run.has_checkpoints() else _MAY_CHANGE | {"warm_start", "statistics"}
    different = [name for name in before if before[name] != now[name] and name not in may_change]
    if different:
        listed = ", ".join(f"{name} {before[name]}, now {now[name]}" for name in different)
        raise UserError(f"{run.path}: was started with {listed}. Use the same values, or start over with --overwrite.")


def _refuse_other_clipping(run: Run, config: TrainConfig) -> None:
    """Raises a UserError if the updates so far were clipped by another rule, because the run would follow two rules."""
    if config.clip_norm is None or config.loss_scale != "epoch":
        return
    state = read_state(run)
    if state is not None and state.update and state.clip_rule != CLIP_RULE:
        raise UserError(
            f"{run.path}: its {state.update:,} updates were made by a version that compared clip_norm with the norm of "
            "the gradient times the batch's share of the epoch; now it is the norm of the gradient of the batch's mean "
            "loss. Start over with --overwrite, or resume with the version that started the run."
        )


def _refuse_other_data(run: Run, dataset: Dataset) -> None:
    """Raises a UserError if the run was started on another dataset."""
    before = run.manifest()
    if before.fingerprint != dataset.manifest.fingerprint:
        check_schemas(before.record_schema.canonical(), dataset.schema.canonical(), run.path, dataset.path)
        raise UserError(
            f"{run.path}: was started on a dataset with fingerprint {before.fingerprint}, but {dataset.path} has "
            f"{dataset.manifest.fingerprint}. Resume with the same data, or start over with --overwrite."
        )
