"""Keeps the lines of an epoch's updates: what each cost and its loss, into metrics.jsonl, once a second."""

import math
import time
from collections.abc import Callable
from typing import Any

from pipeline.schema.record import Array
from trainer.runs.run import Run
from trainer.runs.state import Totals
from trainer.training.deal import Batch
from trainer.training.update import Sums

# A loss stays on the device until its line is written: fetching each would stop the device at every update.
_WRITE_SECONDS = 1.0


class NotFinite(Exception):
    """The loss or the gradient of an update is no finite number.

    Attributes:
        line: Of the update, with its gradient's norm.
        rows: Of the records of its batch in the index of the split.
    """

    def __init__(self, line: dict[str, Any], rows: Array) -> None:
        super().__init__(line, rows)
        self.line, self.rows = line, rows


class EpochJournal:
    """The lines of an epoch's updates; written once a second, for then the losses are fetched.

    Args:
        run: Where they are written; None only adds them up.
        totals: To which every update is added when its line is written.
    """

    def __init__(self, run: Run | None, totals: Totals) -> None:
        self._run, self._totals = run, totals
        self._waiting: list[tuple[dict[str, Any], Sums, Callable[[], Any]]] = []
        self._written = time.monotonic()

    def add(self, epoch: int, update: int, sums: Sums, batch: Batch) -> dict[str, Any]:
        """Adds an update, and gives its line, in which the loss comes only when it is written.

        Raises:
            NotFinite: of this update, or one before.
        """
        line: dict[str, Any] = {
            "epoch": epoch,
            "update": update,
            "loss": None,
            "records": batch.records,
            "steps": batch.steps,
            "padded_steps": batch.padded_steps,
        }
        self._waiting.append((line, sums, batch.rows))
        if time.monotonic() - self._written >= _WRITE_SECONDS:
            self.flush()
        return line

    def flush(self) -> None:
        """Writes the lines that wait.

        Raises:
            NotFinite: one of them has no finite loss or gradient; those before it are written.
        """
        lines, totals = [], self._totals
        try:
            for line, sums, rows in self._waiting:
                loss, weight, norm = float(sums.loss), float(sums.weight), float(sums.norm)
                line["loss"] = loss / weight if weight else 0.0
                if not math.isfinite(line["loss"] + norm):
                    raise NotFinite(line | {"gradient_norm": norm}, rows())
                totals.loss += loss
                totals.weight += weight
                totals.records += line["records"]
                totals.steps += line["steps"]
                totals.padded_steps += line["padded_steps"]
                lines.append(line)
        finally:
            if self._run is not None:
                self._run.append_metrics(lines)
            self._waiting = []
            self._written = time.monotonic()
