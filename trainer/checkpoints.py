"""Keeps what a run needs to go on: weights, optimizer, random states and counts, the last of them and the best."""

import hashlib
import math
from typing import Any

import keras
import tensorflow as tf

from pipeline.errors import UserError
from trainer.run import CHECKPOINTS, Run

LAST, BEST = "last", "best"
# What TensorFlow raises for a checkpoint that is cut off, or of another model.
_RESTORE_ERRORS = (AssertionError, IndexError, RuntimeError, ValueError, tf.errors.OpError)


class Checkpoints:
    """Saves and restores the state of a run. `tf.train.CheckpointManager` writes beside and renames, so a checkpoint
    is whole or not there (Keras's own files are not: a kill while one is written leaves a broken one)."""

    def __init__(self, run: Run, model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
        optimizer.build(model.trainable_variables)
        self.epoch = tf.Variable(0, dtype=tf.int64)
        self.update = tf.Variable(0, dtype=tf.int64)
        self.steps = tf.Variable(0, dtype=tf.int64)
        self.padded_steps = tf.Variable(0, dtype=tf.int64)
        self.best_epoch = tf.Variable(0, dtype=tf.int64)
        self.best_loss = tf.Variable(math.inf, dtype=tf.float64)
        self._checkpoint = tf.train.Checkpoint(
            weights=_weights(model),
            # What model.weights leaves out: the states of the random generators, without which dropout would replay.
            states=[v.value for v in model.variables if all(v is not w for w in model.weights)],
            optimizer=[variable.value for variable in optimizer.variables],
            epoch=self.epoch,
            update=self.update,
            steps=self.steps,
            padded_steps=self.padded_steps,
            best_epoch=self.best_epoch,
            best_loss=self.best_loss,
        )
        self._last = tf.train.CheckpointManager(self._checkpoint, _folder(run, LAST), max_to_keep=2)
        self._best = tf.train.CheckpointManager(self._checkpoint, _folder(run, BEST), max_to_keep=1)

    def restore(self) -> bool:
        """Takes up the last checkpoint; False where there is none.

        Raises:
            UserError: it is damaged, or not of this model.
        """
        path = self._last.latest_checkpoint
        if path is None:
            return False
        try:
            self._checkpoint.restore(path).assert_existing_objects_matched()
        except _RESTORE_ERRORS as error:
            raise UserError(f"{path}: cannot be taken up: {_line(error)}. Begin anew with --overwrite.") from None
        return True

    def save(self, *, validation_loss: float | None) -> None:
        """Saves the state at the end of an epoch, as the best too if its validation loss is."""
        epoch = int(self.epoch.numpy())
        if validation_loss is not None and validation_loss < float(self.best_loss.numpy()):
            self.best_loss.assign(validation_loss)
            self.best_epoch.assign(epoch)
            self._best.save(checkpoint_number=epoch)
        self._last.save(checkpoint_number=epoch)


def restore_weights(run: Run, model: keras.Model, which: str | None) -> str:
    """Gives `model` the weights of a checkpoint and returns which: the best where there is one, unless told.

    Raises:
        UserError: there is no such checkpoint.
    """
    for name in [which] if which else [BEST, LAST]:
        # Not latest_checkpoint: it takes the folder's name for a pattern.
        state = tf.train.get_checkpoint_state(_folder(run, name))
        if state is not None:
            path = state.model_checkpoint_path
            try:
                status = tf.train.Checkpoint(weights=_weights(model)).restore(path)
                status.assert_existing_objects_matched().expect_partial()
            except _RESTORE_ERRORS as error:
                raise UserError(f"{path}: not a checkpoint of this run's model: {_line(error)}.") from None
            return name
    raise UserError(
        f"{run.path}: has no {which or LAST} checkpoint yet. Train it to the end of an epoch first"
        + (", with a validation split for a best one." if which == BEST else ".")
    )


def weights_sha256(model: keras.Model) -> str:
    """SHA-256 of the weights' bytes in the order of `model.weights`."""
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()


def _weights(model: keras.Model) -> list[Any]:
    return [weight.value for weight in model.weights]


def _line(error: Exception) -> str:
    return str(getattr(error, "message", error)).splitlines()[0].rstrip(".")


def _folder(run: Run, name: str) -> str:
    return run.file(f"{CHECKPOINTS}/{name}")
