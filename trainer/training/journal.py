"""Writes a line for each update of an epoch to metrics.jsonl, once a second."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from trainer.runs.metrics_log import MetricsLog
from trainer.runs.state import Totals
from trainer.training.deal import GlobalBatch
from trainer.training.non_finite import NonFiniteUpdate
from trainer.training.update import Sums

# Sums stay on the device until their line is written: reading them after each update would stall the device.
_WRITE_SECONDS = 1.0


class EpochJournal:
    """Collects the updates of an epoch and writes their lines once a second, when it reads their sums.

    Args:
        log: Gets the lines; None: they are not written.
        totals: Get the sums and the counts of each update when its line is written, and the seconds since the epoch
            started.
        more: Entries at the end of each line.
    """

    def __init__(self, log: MetricsLog | None, totals: Totals, more: Mapping[str, Any]) -> None:
        self._log, self._totals, self._more = log, totals, dict(more)
        # (line without its loss, sums, rows) of each update.
        self._pending: list[tuple[dict[str, Any], Sums, Callable[[], Any]]] = []
        self._written_at = time.monotonic()
        self._started_at = self._written_at - totals.seconds

    def add(self, epoch: int, update: int, sums: Sums, batch: GlobalBatch) -> None:
        """Adds an update.

        Raises:
            NonFiniteUpdate: The loss or the gradient of this update or an earlier one is non-finite.
        """
        counts = {"records": batch.records, "steps": batch.steps, "padded_steps": batch.padded_steps}
        # The loss comes at its place in the line when `flush` reads it.
        self._pending.append(({"epoch": epoch, "update": update, "loss": None} | counts | self._more, sums, batch.rows))
        if time.monotonic() - self._written_at >= _WRITE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Reads the pending sums, writes their lines and adds them to the totals.

        Raises:
            NonFiniteUpdate: A loss or a gradient is non-finite; the lines before it are written.
        """
        lines, totals = [], self._totals
        try:
            for pending, sums, rows in self._pending:
                loss, weight, norm = float(sums.loss), float(sums.weight), float(sums.norm)
                line = pending | {"loss": loss / weight if weight else 0.0}
                if not math.isfinite(line["loss"] + norm):
                    raise NonFiniteUpdate(line | {"gradient_norm": norm}, rows())
                totals.loss += loss
                totals.weight += weight
                totals.records += line["records"]
                totals.steps += line["steps"]
                totals.padded_steps += line["padded_steps"]
                lines.append(line)
        finally:
            if self._log is not None:
                self._log.append(lines)
            self._pending = []
            self._written_at = time.monotonic()
            totals.seconds = self._written_at - self._started_at
