"""Reports on stderr how a training run proceeds: its setup, useful steps per second, padding, loss, time left."""

import math
import sys
import time
from typing import Any

import keras
import tensorflow as tf

from pipeline.errors import counted, rate
from trainer.batching.plan import Plan
from trainer.devices.environment import describe_kernel
from trainer.devices.replicas import Replicas
from trainer.model.build import count_parameters
from trainer.training.deal import GlobalBatch
from trainer.training.memory_probe import SLOW_SECONDS
from trainer.training.update import Sums

# Seconds between two progress lines: on a terminal, where a line replaces the one before, and elsewhere.
_TERMINAL_SECONDS, _INTERVAL_SECONDS = 0.2, 2.0
# Validation measures shown after each epoch: the first ones, which matter most. metrics.jsonl has all of them.
_NUM_MEASURES = 4
# The time to end after SIGTERM, as it is said at the start: an update may take twice as long on a busy machine.
_UPDATES_PER_NOTICE, _END_SECONDS = 2, 5


class Reporter:
    """Writes notes and progress lines to stderr.

    On a terminal, one progress line is updated in place. Elsewhere, a progress line is written every two seconds.

    Args:
        epochs: Number of the last epoch. None if there is no last one; then the time left is that of the epoch.
        quiet: Write nothing.
    """

    def __init__(self, *, epochs: int | None, quiet: bool = False) -> None:
        self._stream, self._quiet = sys.stderr, quiet
        self._terminal = self._stream.isatty()
        self._epochs = epochs
        self._started_at = self._shown_at = time.monotonic()
        self._steps = self._padded_steps = self._updates = self._updates_left = 0

    def note(self, text: str) -> None:
        """Writes a line."""
        if not self._quiet:
            print(text, file=self._stream, flush=True)

    def describe_run(self, model: keras.Model, replicas: Replicas, plan: Plan | None, *, has_validation: bool) -> None:
        """Writes a line each about the devices, the recurrent kernel and the next epoch, if there is one."""
        devices = ", ".join(device.device_type for device in tf.config.list_logical_devices())
        workers = ""
        if replicas.num_replicas > 1:
            workers = f" Workers: {replicas.num_workers}. Replicas: {replicas.num_replicas}."
        self.note(f"Devices: {devices}.{workers} Parameters: {count_parameters(model):,}.")
        self.note(describe_kernel(model))
        if plan is not None:
            rows, steps = plan.largest_batch
            self.note(
                f"An epoch: {counted(plan.num_batches, 'update')}, {counted(plan.records, 'record')}, "
                f"{counted(plan.steps, 'step')}, {plan.useful_share:.1%} of what is computed is useful; the "
                f"largest batch is {rows} x {steps} steps."
            )
        if not has_validation:
            self.note("No validation split: the last checkpoint is kept, none is the best.")

    def announce_probe(self, largest_batch: tuple[int, int], seconds: float) -> None:
        """Writes a line before the largest batch is computed, if that takes long."""
        rows, steps = largest_batch
        self.note(
            f"train: computing the largest batch, {rows:,} x {steps:,} steps, to see whether it fits into memory; this "
            f"takes about {seconds:,.0f} s"
        )

    def describe_slow_updates(self, seconds: float, *, saving_seconds: float, plan: Plan) -> None:
        """Writes a line about updates that take long, because the process cannot end within one.

        Args:
            seconds: Time that the gradients of the largest batch of the plan took.
        """
        if seconds < SLOW_SECONDS:
            return
        rows, steps = plan.largest_batch
        notice = math.ceil(_UPDATES_PER_NOTICE * seconds + saving_seconds) + _END_SECONDS
        shorter = (
            f"Updates get shorter with {plan.describe_smaller(rows * steps)}."
            if rows > 1
            else "That batch is one record, so only shorter records make updates shorter."
        )
        self.note(
            f"train: an update takes up to about {seconds:,.0f} s ({rows:,} x {steps:,} steps); progress is shown "
            f"after each. SIGTERM takes effect after the update under way: give the process {notice:,} s to save and "
            f"end. {shorter}"
        )

    def begin_epoch(self, epoch: int, *, updates: int, done: int) -> None:
        """Estimates the updates left, from the updates of this epoch, of which `done` are done."""
        epochs_left = 1 if self._epochs is None else self._epochs - epoch + 1
        self._updates_left = updates * epochs_left - done

    def describe_commit(self, commit: int | None, plan: Plan) -> None:
        """Writes a line about another commit that the next epochs read."""
        self.note(
            f"train: reads commit {commit}: {counted(plan.records, 'record')}, {counted(plan.steps, 'step')}, "
            f"{counted(plan.num_batches, 'update')} an epoch"
        )

    def skip(self, seconds: float) -> None:
        """Leaves a time out of the rates."""
        self._started_at += seconds

    def end_update(self, epoch: int, update: int, sums: Sums, batch: GlobalBatch) -> None:
        """Counts an update and, if a progress line is due, shows it; only then reads its sums from the device."""
        self._steps += batch.steps
        self._padded_steps += batch.padded_steps
        self._updates += 1
        self._updates_left -= 1
        if self._is_due(_TERMINAL_SECONDS if self._terminal else _INTERVAL_SECONDS):
            weight = float(sums.weight)
            # A batch may hold no label, as one of chunks in which no record ends.
            loss = f", loss {float(sums.loss) / weight:.4f}" if weight else ""
            self._show(f"epoch {self._title(epoch)}, update {update}{loss}")

    def end_epoch(self, line: dict[str, Any]) -> None:
        """Shows an epoch by its line in metrics.jsonl: on a terminal each, elsewhere every two seconds and the last.

        If any epoch may be the last one, it shows each.
        """
        may_be_last = self._epochs is None or line["epoch"] == self._epochs
        if not (self._terminal or may_be_last or self._is_due(_INTERVAL_SECONDS)):
            return
        text = f"epoch {self._title(line['epoch'])}, loss {line['train']['loss']:.4f}"
        if line["validation"] is not None:
            measures = {"loss": line["validation"]["loss"], **line["validation"]["metrics"]}
            shown = [f"{name} {value:.4f}" for name, value in measures.items() if value is not None]
            text += ", validation " + ", ".join(shown[:_NUM_MEASURES])
        self._show(text, keep=True)

    def _title(self, epoch: int) -> str:
        return str(epoch) if self._epochs is None else f"{epoch}/{self._epochs}"

    def _is_due(self, seconds: float) -> bool:
        return time.monotonic() - self._shown_at >= seconds

    def _show(self, text: str, *, keep: bool = False) -> None:
        self._shown_at = time.monotonic()
        if self._quiet:
            return
        seconds = max(self._shown_at - self._started_at, 1e-9)
        left = self._updates_left * seconds / max(self._updates, 1)
        padding = 1 - self._steps / max(self._padded_steps, 1)
        text = f"train: {text}, {rate(self._steps, 'step', seconds)}, {padding:.1%} padding, {left:,.0f} s left"
        end = "\n" if keep or not self._terminal else ""
        print(f"\r\x1b[2K{text}" if self._terminal else text, end=end, file=self._stream, flush=True)
