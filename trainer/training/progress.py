"""Shows how a training run moves: useful steps a second, padding, loss, time left."""

import sys
import time
from typing import Any

from trainer.training.update import Sums

# Seconds between two lines where nobody looks at a terminal.
_INTERVAL_SECONDS = 2.0
# Of an epoch's measures, the first, which tell most; all of them are in metrics.jsonl.
_NUM_MEASURES = 4


class Progress:
    """Writes to stderr one line that changes on a terminal, a line every two seconds elsewhere; nothing if `quiet`."""

    def __init__(self, *, epochs: int, quiet: bool = False) -> None:
        self._stream, self._quiet = sys.stderr, quiet
        self._terminal = self._stream.isatty()
        self._epochs = epochs
        self._begin = self._told = time.monotonic()
        self._steps = self._padded = self._updates = self._left = 0

    def begin_epoch(self, epoch: int, *, updates: int, done: int) -> None:
        """Says how many updates the epoch has, of which some are done; those that follow have about as many."""
        self._left = updates * (self._epochs - epoch + 1) - done

    def update(self, line: dict[str, Any], sums: Sums) -> None:
        """Counts an update by its line, and shows it if it is time; only then its loss is fetched from the device."""
        self._steps += line["steps"]
        self._padded += line["padded_steps"]
        self._updates += 1
        self._left -= 1
        if time.monotonic() - self._told >= (0.2 if self._terminal else _INTERVAL_SECONDS):
            where = f"epoch {line['epoch']}/{self._epochs}, update {line['update']}"
            weight = float(sums.weight)
            loss = float(sums.loss) / weight if weight else 0.0
            self._show(f"{where}, loss {loss:.4f}")

    def epoch(self, line: dict[str, Any]) -> None:
        """Shows an epoch's end: each on a terminal, else one every two seconds, and the last."""
        last = line["epoch"] == self._epochs
        if not (self._terminal or last or time.monotonic() - self._told >= _INTERVAL_SECONDS):
            return
        text = f"epoch {line['epoch']}/{self._epochs}, loss {line['train']['loss']:.4f}"
        if line["validation"] is not None:
            measured = {"loss": line["validation"]["loss"], **line["validation"]["metrics"]}
            told = [f"{name} {value:.4f}" for name, value in measured.items() if value is not None]
            text += ", validation " + ", ".join(told[:_NUM_MEASURES])
        self._show(text, keep=True)

    def say(self, text: str) -> None:
        if not self._quiet:
            print(text, file=self._stream, flush=True)

    def _show(self, text: str, *, keep: bool = False) -> None:
        now = time.monotonic()
        self._told = now
        if self._quiet:
            return
        seconds = max(now - self._begin, 1e-9)
        left = self._left * seconds / max(self._updates, 1)
        padding = 1 - self._steps / max(self._padded, 1)
        text += f", {self._steps / seconds:,.0f} steps/s, {padding:.1%} padding, {left:,.0f} s left"
        end = "\n" if keep or not self._terminal else ""
        print(f"\r\x1b[2K{text}" if self._terminal else text, end=end, file=self._stream, flush=True)
