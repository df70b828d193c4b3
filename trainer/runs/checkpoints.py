"""Saves and restores checkpoints: weights, optimizer, states of random generators, and the training state."""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from pipeline.errors import UserError
from pipeline.schema.record import Array
from trainer.devices.tensorflow_errors import explain_out_of_memory, first_line, is_out_of_memory
from trainer.model.largest_weight import describe_largest_weight
from trainer.runs.contents import CHECKPOINTS, RESULT
from trainer.runs.run import Run
from trainer.runs.state import CLIP_RULE, State

LAST, BEST = "last", "best"
# Keys in result.json: the SHA-256 of everything that the model is built from, and of each checkpoint's weights.
INPUTS_SHA256 = "inputs_sha256"
WEIGHTS_SHA256 = {LAST: "weights_sha256", BEST: "best_weights_sha256"}

# Errors that TensorFlow raises for a checkpoint that is damaged or belongs to another model.
_RESTORE_ERRORS = (AssertionError, IndexError, RuntimeError, ValueError, tf.errors.OpError)


class Checkpoints:
    """The checkpoints of a run: the last ones, and the best by validation loss.

    `tf.train.CheckpointManager` writes a checkpoint under another name and renames it, so a checkpoint is never
    incomplete. (If a process is killed while Keras writes one of its own files, that file is damaged.) Each checkpoint
    has a new number: it consists of two files, and only one file can be replaced atomically.

    Create this outside of the scope of a strategy, which would copy the variable that holds text to other devices.

    Args:
        optimizer: An optimizer that is built.
        keep: Number of last checkpoints to keep.
        state_widths: For batching `stateful`, the columns of each tensor of the state of the lanes.

    Attributes:
        state: The training state that is saved next and that was restored last.
        lanes: The state of the lanes, the same: float32[lanes, width] for each of `state_widths`.
    """

    def __init__(
        self,
        run: Run,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        *,
        keep: int,
        state_widths: Sequence[int] = (),
    ) -> None:
        self.state = State(clip_rule=CLIP_RULE)
        self._number = -1
        self._text = tf.Variable("", dtype=tf.string)
        weights = {id(weight) for weight in model.weights}
        # States of the random generators, which are not in model.weights. Without them, a resumed run would draw the
        # same dropout masks again.
        self._random = [variable.value for variable in model.variables if id(variable) not in weights]
        self._lanes = [tf.Variable(tf.zeros((0, width)), shape=tf.TensorShape([None, width])) for width in state_widths]
        lanes: dict[str, Any] = {"lanes": self._lanes} if self._lanes else {}
        self._checkpoint = tf.train.Checkpoint(
            weights=[weight.value for weight in model.weights],
            states=self._random,
            optimizer=[variable.value for variable in optimizer.variables],
            state=self._text,
            **lanes,
        )
        self._last = tf.train.CheckpointManager(self._checkpoint, _folder(run, LAST), max_to_keep=keep)
        self._best = tf.train.CheckpointManager(self._checkpoint, _folder(run, BEST), max_to_keep=1)

    @property
    def latest(self) -> str | None:
        """Path of the last checkpoint, or None."""
        return self._last.latest_checkpoint

    @property
    def lanes(self) -> list[Array]:
        return [variable.numpy() for variable in self._lanes]

    @lanes.setter
    def lanes(self, values: list[Array]) -> None:
        for variable, value in zip(self._lanes, values, strict=True):
            variable.assign(value)

    def restore(self, path: str) -> None:
        """Restores a checkpoint.

        Raises:
            UserError: The checkpoint is damaged or belongs to another model.
        """
        try:
            self._checkpoint.restore(path).assert_existing_objects_matched()
            self.state = State.model_validate_json(self._text.numpy())
        except _RESTORE_ERRORS as error:
            if is_out_of_memory(error):
                raise
            raise UserError(f"{path}: cannot be restored: {first_line(error)}. Train again with --overwrite.") from None

    def clean(self) -> None:
        """Removes the incomplete files that a killed process left while it wrote or removed a checkpoint."""
        for manager in (self._last, self._best):
            known = {os.path.basename(path) for path in manager.checkpoints}
            folder = manager.directory
            for name in tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []:
                name = name.rstrip("/")
                if name != "checkpoint" and name.split(".")[0] not in known:
                    path = f"{folder}/{name}"
                    (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)

    def save(self, *, best: bool = False) -> None:
        """Saves a last checkpoint, and with `best` also a best one."""
        self._text.assign(self.state.model_dump_json())
        for manager in [self._best, self._last] if best else [self._last]:
            self._number = 1 + max(self._number, *map(_number, self._last.checkpoints + self._best.checkpoints), -1)
            manager.save(checkpoint_number=self._number)

    def random_states(self) -> list[Array]:
        """Returns the states of the model's random generators."""
        return [variable.numpy() for variable in self._random]

    def set_random_states(self, values: list[Array]) -> None:
        for variable, value in zip(self._random, values, strict=True):
            variable.assign(value)


def read_state(run: Run) -> State | None:
    """Returns the training state in the last checkpoint, or None if there is none or it cannot be read."""
    path = _find(run, LAST)
    if path is None:
        return None
    try:
        text = tf.train.load_checkpoint(path).get_tensor("state/.ATTRIBUTES/VARIABLE_VALUE")
        return State.model_validate_json(text)
    except _RESTORE_ERRORS:  # `Checkpoints.restore` reports it
        return None


def restore_weights(run: Run, model: keras.Model, checkpoint: str | None) -> str:
    """Assigns the weights in a checkpoint to `model`, and returns "best" or "last".

    Args:
        checkpoint: "best" or "last". By default the best one, or the last one if there is no best one.

    Raises:
        UserError: There is no such checkpoint, it is damaged or belongs to another model, or its weights differ from
            those in the result of a finished run.
    """
    name, path = _choose(run, checkpoint)
    with explain_out_of_memory(lambda: describe_largest_weight(model, run.manifest().record_schema)):
        values = _read_weights(path, model)
        _check_digest(run, name, path, values)
        for weight, value in zip(model.weights, values, strict=True):
            weight.assign(value)
    return name


def check_shapes(run: Run, model: keras.Model, checkpoint: str | None) -> None:
    """Checks that the weights in a checkpoint have the shapes of those of `model`, which may not be in memory.

    Raises:
        UserError: There is no such checkpoint, it is damaged or belongs to another model.
    """
    _open_weights(_choose(run, checkpoint)[1], model)


def checkpoint_sha256(run: Run, model: keras.Model, checkpoint: str) -> str | None:
    """Returns the SHA-256 of the weights in a checkpoint, or None if there is no such checkpoint.

    Raises:
        UserError: The checkpoint is damaged or belongs to another model.
    """
    path = _find(run, checkpoint)
    return None if path is None else sha256(_read_weights(path, model))


def weights_sha256(model: keras.Model) -> str:
    """Returns the SHA-256 of the bytes of all weights in the order of `model.weights`, in hexadecimal."""
    return sha256(weight.numpy() for weight in model.weights)


def sha256(values: Iterable[Array]) -> str:
    """Returns the SHA-256 of the bytes of arrays, in hexadecimal."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.tobytes())
    return digest.hexdigest()


def _choose(run: Run, checkpoint: str | None) -> tuple[str, str]:
    """Returns "best" or "last", and the path of that checkpoint."""
    for name in [checkpoint] if checkpoint else [BEST, LAST]:
        path = _find(run, name)
        if path is not None:
            return name, path
    raise UserError(
        f"{run.path}: has no {checkpoint or LAST} checkpoint yet. Train it for at least one epoch"
        + (", on a dataset with a validation split." if checkpoint == BEST else ".")
    )


def _find(run: Run, name: str) -> str | None:
    """Returns the path of a checkpoint without the suffixes of its files, or None if there is none."""
    folder = _folder(run, name)
    # Not latest_checkpoint, which interprets the name of the folder as a pattern.
    state = tf.train.get_checkpoint_state(folder)
    if state is None:
        if tf.io.gfile.exists(f"{folder}/checkpoint"):
            raise UserError(f"{folder}/checkpoint: names no checkpoint. Is this file damaged?")
        return None
    path = str(state.model_checkpoint_path)
    # The file could name any path, so only one that a run writes is opened.
    if os.path.dirname(path) != folder or not re.fullmatch(r"ckpt-\d+", os.path.basename(path)):
        raise UserError(
            f"{folder}/checkpoint: names {path!r}, expected a checkpoint in the same folder. Was this file edited?"
        )
    return path


def _read_weights(path: str, model: keras.Model) -> list[Array]:
    """Returns the weights in a checkpoint, in the order of `model.weights`."""
    reader, keys = _open_weights(path, model)
    try:
        return [reader.get_tensor(key) for key in keys]
    except _RESTORE_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise _damaged(path, first_line(error)) from None


def _open_weights(path: str, model: keras.Model) -> tuple[Any, list[str]]:
    """Returns a reader of a checkpoint and the keys of its weights, after their shapes were checked.

    `tf.train.Checkpoint.restore` would read the arrays, of any size, before their shapes can be checked.
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


def _damaged(path: str, reason: str) -> UserError:
    return UserError(f"{path}: not a checkpoint of this run's model: {reason}.")


def _check_digest(run: Run, name: str, path: str, values: list[Array]) -> None:
    result = run.result()
    if result is None:  # the run is not finished, so its weights still change
        return
    if run.inputs_sha256() != result.get(INPUTS_SHA256):
        raise UserError(
            f"{run.path}: its manifest.json, statistics.json or config.yaml has changed since the run ended. Was one "
            "of them edited? "
            "Train again with --overwrite."
        )
    found, expected = sha256(values), result.get(WEIGHTS_SHA256[name])
    if found != expected:
        raise UserError(
            f"{path}: its weights have the SHA-256 {found}, but {run.file(RESULT)} says {expected}: they are not those "
            "that the run ended with. Train again with --overwrite."
        )


def _number(path: str) -> int:
    return int(path.rpartition("-")[2])


def _folder(run: Run, name: str) -> str:
    return run.file(f"{CHECKPOINTS}/{name}")
