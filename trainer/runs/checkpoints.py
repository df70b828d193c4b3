"""Keeps what a run needs to go on: weights, optimizer, random states and counts, the last of them and the best."""

import hashlib
import os
import re
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from pipeline.errors import UserError
from pipeline.schema.record import Array
from trainer.devices.tensorflow_setup import first_line
from trainer.runs.run import CHECKPOINTS, RESULT, Run
from trainer.runs.state import State

LAST, BEST = "last", "best"
# Where result.json keeps the digest of what the model is built from, and of each checkpoint's weights.
INPUTS_SHA256 = "inputs_sha256"
WEIGHTS_SHA256 = {LAST: "weights_sha256", BEST: "best_weights_sha256"}

# What TensorFlow raises for a checkpoint that is cut off, or of another model.
_RESTORE_ERRORS = (AssertionError, IndexError, RuntimeError, ValueError, tf.errors.OpError)


class Checkpoints:
    """Saves and restores a run: weights, optimizer, random states and where it stands.

    `tf.train.CheckpointManager` writes beside and renames, so a checkpoint is whole or not there (Keras's own files are
    not: a kill while one is written leaves a broken one). A number is never used twice, for two files make a checkpoint
    and only one of them can be replaced at once.

    Args:
        optimizer: Built. Not in the scope of a strategy: it would send what is text to other devices.
    """

    def __init__(self, run: Run, model: keras.Model, optimizer: keras.optimizers.Optimizer, *, keep: int) -> None:
        self.state = State()
        self._number = -1
        self._text = tf.Variable("", dtype=tf.string)
        weights = {id(weight) for weight in model.weights}
        # What model.weights leaves out: the states of the random generators, without which dropout would replay.
        self._random = [variable.value for variable in model.variables if id(variable) not in weights]
        self._checkpoint = tf.train.Checkpoint(
            weights=[weight.value for weight in model.weights],
            states=self._random,
            optimizer=[variable.value for variable in optimizer.variables],
            state=self._text,
        )
        self._last = tf.train.CheckpointManager(self._checkpoint, _folder(run, LAST), max_to_keep=keep)
        self._best = tf.train.CheckpointManager(self._checkpoint, _folder(run, BEST), max_to_keep=1)

    @property
    def latest(self) -> str | None:
        """The path of the last checkpoint."""
        return self._last.latest_checkpoint

    def restore(self, path: str) -> None:
        """Takes up a checkpoint.

        Raises:
            UserError: it is damaged, or not of this model.
        """
        try:
            self._checkpoint.restore(path).assert_existing_objects_matched()
            self.state = State.model_validate_json(self._text.numpy())
        except _RESTORE_ERRORS as error:
            raise UserError(f"{path}: cannot be taken up: {first_line(error)}. Begin anew with --overwrite.") from None

    def clean(self) -> None:
        """Removes what a kill left of a checkpoint that was being written or removed."""
        for manager in (self._last, self._best):
            known = {os.path.basename(path) for path in manager.checkpoints}
            folder = manager.directory
            for name in tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []:
                name = name.rstrip("/")
                if name != "checkpoint" and name.split(".")[0] not in known:
                    path = f"{folder}/{name}"
                    (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)

    def save(self, *, best: bool = False) -> None:
        """Saves the run as it stands; as the best, too, if told."""
        self._text.assign(self.state.model_dump_json())
        for manager in [self._best, self._last] if best else [self._last]:
            self._number = 1 + max(self._number, *map(_number, self._last.checkpoints + self._best.checkpoints), -1)
            manager.save(checkpoint_number=self._number)

    def random_states(self) -> list[Array]:
        return [variable.numpy() for variable in self._random]

    def set_random_states(self, values: list[Array]) -> None:
        for variable, value in zip(self._random, values, strict=True):
            variable.assign(value)


def restore_weights(run: Run, model: keras.Model, which: str | None) -> str:
    """Gives `model` the weights of a checkpoint and returns which: the best where there is one, unless told.

    Raises:
        UserError: there is no such checkpoint, it is damaged or of another model, or its weights are not those that a
            finished run says it ended with.
    """
    name, path = _choose(run, which)
    values = _read_weights(path, model)
    _check_digest(run, name, path, values)
    for weight, value in zip(model.weights, values, strict=True):
        weight.assign(value)
    return name


def check_shapes(run: Run, model: keras.Model, which: str | None) -> None:
    """Compares the shapes in a checkpoint with those of `model`, whose weights need not be in memory.

    Raises:
        UserError: as `restore_weights` does.
    """
    _open_weights(_choose(run, which)[1], model)


def checkpoint_sha256(run: Run, model: keras.Model, which: str) -> str | None:
    """`weights_sha256` of what a checkpoint holds; None where there is none.

    Raises:
        UserError: it is damaged or of another model.
    """
    path = _find(run, which)
    return None if path is None else sha256(_read_weights(path, model))


def weights_sha256(model: keras.Model) -> str:
    """SHA-256 of the weights' bytes in the order of `model.weights`."""
    return sha256(weight.numpy() for weight in model.weights)


def sha256(values: Iterable[Array]) -> str:
    """SHA-256 of the bytes of arrays, as hexadecimal digits."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.tobytes())
    return digest.hexdigest()


def _choose(run: Run, which: str | None) -> tuple[str, str]:
    """Which checkpoint, and its path."""
    for name in [which] if which else [BEST, LAST]:
        path = _find(run, name)
        if path is not None:
            return name, path
    raise UserError(
        f"{run.path}: has no {which or LAST} checkpoint yet. Train it to the end of an epoch first"
        + (", with a validation split for a best one." if which == BEST else ".")
    )


def _find(run: Run, name: str) -> str | None:
    """The path of a checkpoint, without the endings of its files."""
    folder = _folder(run, name)
    # Not latest_checkpoint: it takes the folder's name for a pattern.
    state = tf.train.get_checkpoint_state(folder)
    if state is None:
        if tf.io.gfile.exists(f"{folder}/checkpoint"):
            raise UserError(f"{folder}/checkpoint: names no checkpoint. Is this file damaged?")
        return None
    path = str(state.model_checkpoint_path)
    # The file may name any path: only what a run writes is opened.
    if os.path.dirname(path) != folder or not re.fullmatch(r"ckpt-\d+", os.path.basename(path)):
        raise UserError(f"{folder}/checkpoint: names {path!r}, expected a checkpoint beside it. Was this file edited?")
    return path


def _read_weights(path: str, model: keras.Model) -> list[Array]:
    """The weights in a checkpoint, in the order of `model.weights`."""
    reader, keys = _open_weights(path, model)
    try:
        return [reader.get_tensor(key) for key in keys]
    except _RESTORE_ERRORS as error:
        raise _damaged(path, first_line(error)) from None


def _open_weights(path: str, model: keras.Model) -> tuple[Any, list[str]]:
    """What reads a checkpoint, and the keys of the weights there, once their shapes are those of `model`.

    Not `tf.train.Checkpoint.restore`: it reads what the checkpoint names, however large, before anyone looks at it.
    """
    try:
        reader = tf.train.load_checkpoint(path)
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    except _RESTORE_ERRORS as error:
        raise _damaged(path, first_line(error)) from None
    num_found = sum(key.startswith("weights/") for key in shapes)
    if num_found != len(model.weights):
        raise _damaged(path, f"it holds {num_found} weights, expected {len(model.weights)}")
    keys = [f"weights/{number}/.ATTRIBUTES/VARIABLE_VALUE" for number in range(num_found)]
    for key, weight in zip(keys, model.weights, strict=True):
        found = f"{dtypes[key].name}{shapes[key]}" if key in shapes else "missing"
        expected = f"{weight.dtype}{list(weight.shape)}"
        if found != expected:
            raise _damaged(path, f"the weight {weight.path} is {found}, expected {expected}")
    return reader, keys


def _damaged(path: str, what: str) -> UserError:
    return UserError(f"{path}: not a checkpoint of this run's model: {what}.")


def _check_digest(run: Run, name: str, path: str, values: list[Array]) -> None:
    result = run.result()
    if result is None:  # the run goes on, and its weights change
        return
    if run.inputs_sha256() != result.get(INPUTS_SHA256):
        raise UserError(
            f"{run.path}: its manifest.json or config.yaml are not those that the run ended with: was one edited? "
            "Train anew with --overwrite."
        )
    found, expected = sha256(values), result.get(WEIGHTS_SHA256[name])
    if found != expected:
        raise UserError(
            f"{path}: its weights have the SHA-256 {found}, but {run.file(RESULT)} says {expected}: they are not those "
            "that the run ended with. Train anew with --overwrite."
        )


def _number(path: str) -> int:
    return int(path.rpartition("-")[2])


def _folder(run: Run, name: str) -> str:
    return run.file(f"{CHECKPOINTS}/{name}")
