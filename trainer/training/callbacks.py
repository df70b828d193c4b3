"""Calls Keras's callbacks as `model.fit` does, with what a run measured as their logs."""

from collections.abc import Iterable
from typing import Any

import keras


class Callbacks(keras.callbacks.CallbackList):
    """Early stopping, TensorBoard and what the user passed.

    Args:
        early_stopping: Epochs without a lower validation loss, after which training stops.
        logs: The folder for TensorBoard.
        steps: Updates of an epoch.
    """

    def __init__(
        self,
        passed: Iterable[keras.callbacks.Callback],
        *,
        model: keras.Model,
        epochs: int,
        steps: int,
        early_stopping: int | None,
        logs: str | None,
    ) -> None:
        self._with_memory: list[keras.callbacks.Callback] = []
        if early_stopping is not None:
            self._with_memory = [keras.callbacks.EarlyStopping("val_loss", patience=early_stopping, mode="min")]
        board = [] if logs is None else [keras.callbacks.TensorBoard(logs, write_graph=False)]
        super().__init__([*self._with_memory, *board, *passed], model=model, epochs=epochs, steps=steps, verbose=0)

    def replay(self, past: Iterable[dict[str, Any]]) -> None:
        """Tells early stopping, which keeps its count in memory, what it saw before the run was taken up again."""
        for line in past:
            for callback in self._with_memory:
                callback.on_epoch_end(line["epoch"] - 1, _logs(line))

    def end_epoch(self, line: dict[str, Any]) -> None:
        """Calls `on_epoch_end` by the epoch's line in metrics.jsonl."""
        self.on_epoch_end(line["epoch"] - 1, _logs(line))


def _logs(line: dict[str, Any]) -> dict[str, float]:
    """An epoch's line as the logs that Keras's callbacks know."""
    logs = {"loss": line["train"]["loss"]}
    if line["validation"] is not None:
        measured = {"loss": line["validation"]["loss"], **line["validation"]["metrics"]}
        # Of what cannot be measured there is no log: callbacks take numbers only.
        logs |= {f"val_{name}": value for name, value in measured.items() if value is not None}
    return logs
