"""Trains one epoch: its updates, the checkpoints among them, its validation and its line in metrics.jsonl."""

import dataclasses
import itertools
import math
from typing import Any

import tensorflow as tf

from pipeline.errors import UserError, counted
from trainer.batching.plan import Plan
from trainer.config import TrainConfig
from trainer.data.dataset import Dataset
from trainer.devices.replicas import Replicas
from trainer.devices.signals import StopSignal
from trainer.devices.tensorflow_errors import explain_out_of_memory
from trainer.runs.metrics_log import MetricsLog
from trainer.runs.run import Run
from trainer.runs.state import State, Totals
from trainer.training.callbacks import Callbacks
from trainer.training.checkpoint_policy import CheckpointPolicy
from trainer.training.deal import BatchDealer, GlobalBatch
from trainer.training.epoch_source import EpochData
from trainer.training.journal import EpochJournal
from trainer.training.non_finite import NonFiniteUpdate, non_finite_update, non_finite_validation
from trainer.training.reporter import Reporter
from trainer.training.stateful_update import StatefulUpdate
from trainer.training.update import Sums, Update
from trainer.training.validation import Validation


@dataclasses.dataclass(frozen=True)
class EpochRunner:
    """Trains the epochs of a run one by one. Every worker runs all of them; only the chief writes.

    Attributes:
        waits: Whether to wait until an update is computed before the next one starts, so that a signal stops the run
            after the update under way. The same on all workers.
    """

    run: Run
    log: MetricsLog
    config: TrainConfig
    replicas: Replicas
    stop: StopSignal
    dealer: BatchDealer
    update: Update
    callbacks: Callbacks
    checkpoints: CheckpointPolicy
    reporter: Reporter
    validation: Validation
    waits: bool = False

    @property
    def _state(self) -> State:
        return self.checkpoints.state

    def run_epoch(self, plan: Plan, data: EpochData) -> dict[str, Any]:
        """Trains the next epoch, or the rest of the one that was interrupted, and returns its line in metrics.jsonl.

        Raises:
            Preempted: A worker was asked to stop; the run is saved.
            UserError: A loss, a gradient or a weight is non-finite.
        """
        state, config, epoch = self._state, self.config, self._state.epoch + 1
        if not state.batch:
            state.totals, state.batch_steps, state.batch_size = Totals(), config.batch_steps, config.batch_size
            state.pinned = data.pinned
        self.callbacks.on_epoch_begin(epoch - 1)
        self.reporter.begin_epoch(epoch, updates=plan.num_batches, done=state.batch)
        commit = {} if data.pinned is None else {"commit": data.pinned.number}
        journal = EpochJournal(self.log if self.replicas.is_chief else None, state.totals, commit)
        try:
            self._run_updates(plan, data, epoch, journal)
            journal.flush()
        except (NonFiniteUpdate, tf.errors.OpError) as error:
            raise self._find_cause(error, journal, data.dataset) from None
        return self._end_epoch(epoch)

    def _run_updates(self, plan: Plan, data: EpochData, epoch: int, journal: EpochJournal) -> None:
        state, scale = self._state, tf.constant(plan.num_batches / data.total_weight, tf.float32)
        if isinstance(self.update, StatefulUpdate):
            self._carry_on(plan, data, epoch, self.update)
        previous: Sums | None = None
        for batch in self.dealer.batches(plan, epoch=epoch, first_batch=state.batch, dataset=data.dataset):
            self.callbacks.on_train_batch_begin(state.batch)
            sums = self._compute(batch, scale, plan)
            state.batch += 1
            state.update += 1
            journal.add(epoch, state.update, sums, batch)
            self.reporter.end_update(epoch, state.update, sums, batch)
            self.callbacks.end_update(state.batch - 1, sums)
            if self._should_stop(sums, previous):
                journal.flush()
                self.checkpoints.save_and_stop()
            previous = sums
            if self.checkpoints.is_due():
                journal.flush()
                self.checkpoints.save()

    def _carry_on(self, plan: Plan, data: EpochData, epoch: int, update: StatefulUpdate) -> None:
        """Sets the state of the lanes to that before the next update."""
        done = self._state.batch
        if not done:
            update.begin_epoch(-(-plan.largest_batch[0] // self.replicas.num_replicas))
            return
        first = max(0, done + 1 - self.config.backprop_chunks)
        earlier = self.dealer.batches(plan, epoch=epoch, first_batch=first, dataset=data.dataset)
        update.resume(self.checkpoints.lanes, [batch.parts for batch in itertools.islice(earlier, done - first)])

    def _compute(self, batch: GlobalBatch, scale: tf.Tensor, plan: Plan) -> Sums:
        """Computes an update and returns its sums. Raises a UserError that names the batch if memory runs out."""

        def explain() -> str:
            return (
                f"the batch of update {self._state.update + 1}, {counted(batch.records, 'record')} with "
                f"{counted(batch.padded_steps, 'padded step')}, does not fit. "
                f"Choose {plan.describe_smaller(batch.padded_steps)}."
            )

        with explain_out_of_memory(explain):
            return self.update(batch.parts, scale, float(self.stop.received))

    def _should_stop(self, sums: Sums, previous: Sums | None) -> bool:
        """Returns whether a worker was asked to stop; the answer is the same on all workers after the same update.

        Several workers read it from the sums of the previous update, which do not delay a device that already computes
        this one. So two more updates follow the one at which the signal came, unless each is awaited.
        """
        if self.waits:
            float(sums.loss)
            return self.replicas.any_worker(self.stop.received)
        if self.replicas.num_workers == 1:
            return self.stop.received
        return previous is not None and float(previous.stop_requests) > 0

    def _find_cause(
        self, error: NonFiniteUpdate | tf.errors.OpError, journal: EpochJournal, dataset: Dataset
    ) -> Exception:
        """Returns the error to raise for one that ended the updates.

        A TensorFlow error may follow from an earlier non-finite update: another worker may have found it first and
        ended, and an operation may fail on non-finite weights before the journal reads the loss.
        """
        found: Exception = error
        if isinstance(error, tf.errors.OpError):
            try:
                journal.flush()
                self.checkpoints.check_weights()
            except (NonFiniteUpdate, UserError) as cause:
                found = cause
        if isinstance(found, NonFiniteUpdate):
            return non_finite_update(found, dataset, self.run, saved_update=self.checkpoints.saved_update)
        return found

    def _end_epoch(self, epoch: int) -> dict[str, Any]:
        """Measures the epoch, writes its line, calls the callbacks and saves a checkpoint."""
        state, totals = self._state, self._state.totals
        self.checkpoints.check_weights()
        summary = totals.summary()
        line: dict[str, Any] = {
            "epoch": epoch,
            **({"commit": state.pinned.number, "fingerprint": state.pinned.fingerprint} if state.pinned else {}),
            "train": summary,
            "validation": self.validation.measure(self.checkpoints),
        }
        loss = line["validation"]["loss"] if line["validation"] else None
        if loss is not None and not math.isfinite(loss):
            raise non_finite_validation(epoch, loss, saved_update=self.checkpoints.saved_update)
        if self.replicas.is_chief:
            # Before the checkpoint: a resume removes the line of an epoch whose checkpoint is missing.
            self.log.append([line])
        state.epoch, state.batch = epoch, 0
        state.steps += totals.steps
        state.padded_steps += totals.padded_steps
        is_best = loss is not None and (state.best_loss is None or loss < state.best_loss)
        if is_best:
            state.best_epoch, state.best_loss = epoch, loss
        # Before the checkpoint: a callback may change the optimizer's learning rate.
        self.callbacks.end_epoch(line)
        self.checkpoints.save(best=is_best)
        self.reporter.end_epoch(line)
        return line
