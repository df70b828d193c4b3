"""Keeps the lines of an epoch's updates: what each cost and its loss, into metrics.jsonl, once a second."""

import math
import time
from typing import Any

import tensorflow as tf

from pipeline.errors import UserError
from trainer.run import Run

# A loss stays on the device until its line is written: fetching each would stop the device at every update.
_WRITE_SECONDS = 1.0


class EpochJournal:
    """The lines of an epoch's updates; written once a second, for then the losses are fetched."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._waiting: list[dict[str, Any]] = []
        self._written = time.monotonic()
        self._loss = self._weight = 0.0
        self._records = self._steps = self._padded = 0

    def add(
        self, epoch: int, update: int, loss: Any, total: Any, *, records: int, steps: int, padded: int
    ) -> dict[str, Any]:
        line = {
            "epoch": epoch,
            "update": update,
            "loss": tf.math.divide_no_nan(loss, total),
            "records": records,
            "steps": steps,
            "padded_steps": padded,
        }
        self._waiting.append(line | {"sums": (loss, total)})
        self._records += records
        self._steps += steps
        self._padded += padded
        if time.monotonic() - self._written >= _WRITE_SECONDS:
            self.flush()
        return line

    def close(self, *, seconds: float) -> dict[str, Any]:
        """Writes what waits, and returns the epoch's summary; its loss is over all records (or labelled steps)."""
        self.flush()
        return {
            "loss": self._loss / self._weight if self._weight else 0.0,
            "records": self._records,
            "steps": self._steps,
            "padded_steps": self._padded,
            "seconds": round(seconds, 3),
        }

    def flush(self) -> None:
        """Writes the lines that wait.

        Raises:
            UserError: a loss is not finite.
        """
        for line in self._waiting:
            loss, total = (float(value) for value in line.pop("sums"))
            line["loss"] = loss / total if total else 0.0
            if not math.isfinite(line["loss"]):
                raise diverged(f"The loss of update {line['update']} (epoch {line['epoch']}) is {line['loss']}")
            self._loss += loss
            self._weight += total
        self._run.append_metrics(self._waiting)
        self._waiting = []
        self._written = time.monotonic()


def diverged(what: str) -> UserError:
    """The error that ends a run whose numbers are no numbers any more."""
    return UserError(
        f"{what}. The last checkpoint is of the epoch before. Try a smaller --learning_rate, or --clip_norm 1."
    )
