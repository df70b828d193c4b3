"""Calls Keras's callbacks as `model.fit` does, with the measures of each epoch and update as their logs."""

from collections.abc import Iterable
from typing import Any

import keras

from trainer.runs.state import CallbackState
from trainer.training.callback_states import read_states, restore_states
from trainer.training.update import Sums


class Callbacks(keras.callbacks.CallbackList):
    """Early stopping, TensorBoard and the user's callbacks.

    Args:
        callbacks: The user's callbacks.
        early_stopping: Number of epochs without a lower validation loss after which training stops; None: never.
        logs: TensorBoard's folder; None: no TensorBoard.
        epochs: Number of the last epoch; None if there is no last one.
        steps: Updates of an epoch; None if there is no epoch.
    """

    def __init__(
        self,
        callbacks: Iterable[keras.callbacks.Callback],
        *,
        model: keras.Model,
        epochs: int | None,
        steps: int | None,
        early_stopping: int | None,
        logs: str | None,
    ) -> None:
        self._early_stopping: list[keras.callbacks.Callback] = []
        if early_stopping is not None:
            self._early_stopping = [keras.callbacks.EarlyStopping("val_loss", patience=early_stopping, mode="min")]
        callbacks = self._own = list(callbacks)
        # To read the loss of an update stalls the device until it is computed, so it is done only for those who ask.
        self._wants_batch_logs = any(map(_has_batch_end, callbacks))
        board = [] if logs is None else [keras.callbacks.TensorBoard(logs, write_graph=False)]
        all_callbacks = [*self._early_stopping, *board, *callbacks]
        super().__init__(all_callbacks, model=model, epochs=epochs, steps=steps, verbose=0)

    def set_steps(self, steps: int) -> None:
        """Tells the callbacks the number of updates of the next epoch."""
        self.set_params(self.params | {"steps": steps})

    def replay(self, lines: Iterable[dict[str, Any]]) -> None:
        """Passes the epochs before a resume to early stopping, which keeps its count only in memory.

        Args:
            lines: The epochs' lines in metrics.jsonl.
        """
        for line in lines:
            for callback in self._early_stopping:
                callback.on_epoch_end(line["epoch"] - 1, _logs(line))

    def states(self) -> tuple[CallbackState, ...]:
        """Returns the states of the user's callbacks that the next checkpoint stores."""
        return read_states(self._own)

    def restore(self, states: Iterable[CallbackState]) -> str | None:
        """Gives the user's callbacks their states in a checkpoint; returns a line about those that start anew."""
        return restore_states(self._own, states)

    def end_update(self, batch: int, sums: Sums) -> None:
        """Calls `on_train_batch_end` with the loss of an update: the weighted mean over its records or steps.

        Args:
            batch: Number of the update within its epoch, from 0.
        """
        logs = None
        if self._wants_batch_logs:
            weight = float(sums.weight)
            logs = {"loss": float(sums.loss) / weight if weight else 0.0}
        self.on_train_batch_end(batch, logs)

    def end_epoch(self, line: dict[str, Any]) -> None:
        """Calls `on_epoch_end` with the measures of the epoch's line in metrics.jsonl."""
        self.on_epoch_end(line["epoch"] - 1, _logs(line))


def _has_batch_end(callback: keras.callbacks.Callback) -> bool:
    """Returns whether a callback does something at the end of an update."""
    names = ("on_train_batch_end", "on_batch_end")
    return any(getattr(type(callback), name) is not getattr(keras.callbacks.Callback, name) for name in names)


def _logs(line: dict[str, Any]) -> dict[str, float]:
    """Converts an epoch's line to the logs that `model.fit` passes to callbacks."""
    logs = {"loss": line["train"]["loss"]}
    if line["validation"] is not None:
        measured = {"loss": line["validation"]["loss"], **line["validation"]["metrics"]}
        # An undefined metric has no log: callbacks expect numbers.
        logs |= {f"val_{name}": value for name, value in measured.items() if value is not None}
    return logs
