"""The loop of training: update by update, from where the run stands, with a checkpoint wherever it may end."""

import gc
import math
import time
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.errors import UserError
from pipeline.format.manifest import TRAIN
from trainer.batching.plan import Plan
from trainer.config import TrainConfig
from trainer.data.dataset import Dataset
from trainer.data.target import make_target
from trainer.devices.environment import describe_differences, describe_environment, describe_kernel
from trainer.devices.replicas import Replicas
from trainer.devices.signals import Preempted, StopSignal
from trainer.evaluation.evaluate import Evaluator
from trainer.model.build import build_model, count_parameters
from trainer.model.losses import column_scales
from trainer.reading.batches import numbered_batches
from trainer.runs.checkpoints import (
    BEST,
    INPUTS_SHA256,
    LAST,
    WEIGHTS_SHA256,
    Checkpoints,
    checkpoint_sha256,
    weights_sha256,
)
from trainer.runs.run import ENVIRONMENT, LOGS, RESULT, Run
from trainer.runs.state import State, Totals
from trainer.runs.warm_start import warm_start
from trainer.training.callbacks import Callbacks
from trainer.training.deal import Feed
from trainer.training.epoch_plan import plan_limited
from trainer.training.failure import diverged, spoiled, unmeasurable
from trainer.training.garbage import little_garbage
from trainer.training.journal import EpochJournal, NotFinite
from trainer.training.probe import probe_largest
from trainer.training.progress import Progress
from trainer.training.update import Sums, Update, make_optimizer

VALIDATION = "validation"
# A checkpoint takes no more than this share of the time, however often it is asked for by the minute.
_MOST_SAVING = 0.02


class Training:
    """A run while it trains, as one worker of a team sees it.

    Only the chief writes, and says anything: on the others the same things happen without.
    """

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        config: TrainConfig,
        team: Replicas,
        stop: StopSignal,
        callbacks: Iterable[keras.callbacks.Callback] = (),
        *,
        deterministic: bool = False,
    ) -> None:
        self._run, self._dataset, self._config, self._team, self._stop = run, dataset, config, team, stop
        self._environment = describe_environment(team, deterministic=deterministic)
        keras.utils.set_random_seed(config.seed)
        with team.strategy.scope():
            statistics, vocabularies = dataset.manifest.statistics, dataset.vocabularies()
            self._target = make_target(dataset.schema, vocabularies)
            self._model = build_model(dataset.schema, statistics, config, vocabularies=vocabularies)
            self._optimizer = make_optimizer(config)
            # For callbacks that look at model.optimizer; the loop is ours.
            self._model.compile(optimizer=self._optimizer, jit_compile=False)
            self._optimizer.build(self._model.trainable_variables)
        self._checkpoints = Checkpoints(run, self._model, self._optimizer, keep=config.keep_checkpoints)
        self._feed = Feed(dataset, team, seed=config.seed)
        self._has_validation = dataset.has_labels(VALIDATION)
        self._evaluator = Evaluator(self._model, dataset) if self._has_validation and team.is_chief else None
        self._progress = Progress(epochs=config.epochs, quiet=not team.is_chief)
        self._passed = callbacks
        self._planned: tuple[Any, Plan] | None = None
        self._model.stop_training = False
        self._last_line: dict[str, Any] | None = None
        self._saved_at, self._saved_update, self._saving_seconds = time.monotonic(), 0, 0.0

    @property
    def _state(self) -> State:
        return self._checkpoints.state

    def run(self) -> dict[str, Any]:
        """Trains to the end and returns what result.json holds then.

        Raises:
            Preempted: SIGTERM came; the run is saved.
            UserError: a loss or a gradient is not finite, or memory does not suffice.
        """
        past = self._take_up()
        state, config = self._state, self._config
        if state.batch and state.epoch >= config.epochs:
            raise UserError(
                f"{self._run.path}: stands amid epoch {state.epoch + 1}, and epochs is {config.epochs}: expected at "
                f"least {state.epoch + 1}, to end what was begun."
            )
        # Not kept in a name: it would stay as long as the run.
        self._introduce(self._plan())
        callbacks = Callbacks(
            self._passed,
            model=self._model,
            epochs=config.epochs,
            steps=self._plan().num_batches,
            early_stopping=config.early_stopping,
            logs=self._run.file(LOGS) if self._team.is_chief else None,
        )
        callbacks.on_train_begin()
        callbacks.replay(past)
        self._last_line = past[-1] if past else None
        update = self._make_update()
        if state.epoch < config.epochs:
            self._weight = self._total_weight(self._plan())
            self._probe(update, self._plan())
        if not past and not state.update:
            self._save()  # something to evaluate, also with no epoch at all
        with little_garbage():
            while state.epoch < config.epochs and not self._model.stop_training:
                self._train_epoch(update, callbacks)
                gc.collect()
        callbacks.on_train_end()
        return self._finish(update)

    def _take_up(self) -> list[dict[str, Any]]:
        """Goes to where the run stands, and returns the lines of the epochs behind."""
        team, state_of = self._team, self._checkpoints
        path = team.broadcast(state_of.latest)
        if path is not None:
            state_of.restore(path)
        elif self._config.warm_start is not None:
            vocabularies = self._dataset.vocabularies()
            self._progress.say(warm_start(self._config.warm_start, self._model, self._dataset.schema, vocabularies))
        state, past = self._state, []
        if team.is_chief:
            state_of.clean()
            past = self._run.truncate_metrics(epoch=state.epoch, update=state.update)
            begun = self._run.environment()
            changed = describe_differences(begun, self._environment) if begun else None
            if path is not None and changed is not None:
                self._progress.say(changed)
            self._run.write_json(ENVIRONMENT, self._environment)
        if path is not None:
            self._progress.say(
                f"Going on after update {state.update} (epoch {state.epoch}, and {state.batch} updates)."
            )
        self._saved_update = state.update
        return list(team.broadcast(past))

    def _introduce(self, plan: Plan) -> None:
        """Says what is about to happen, a line each."""
        say, rows_and_steps, team = self._progress.say, plan.largest_batch, self._team
        devices = ", ".join(device.device_type for device in tf.config.list_logical_devices())
        parameters = count_parameters(self._model)
        who = f" Workers: {team.num_workers}. Replicas: {team.num_replicas}." if team.num_replicas > 1 else ""
        say(f"Devices: {devices}.{who} Parameters: {parameters:,}.")
        say(describe_kernel(self._model))
        say(
            f"An epoch: {plan.num_batches:,} updates, {plan.records:,} records, {plan.steps:,} steps, "
            f"{plan.useful_share:.1%} of what is computed is useful; the largest batch is {rows_and_steps[0]} x "
            f"{rows_and_steps[1]} steps."
        )
        if not self._has_validation:
            say("No validation split: the last checkpoint is kept, none is the best.")

    def _plan(self) -> Plan:
        """That of the epoch that the run is in or comes to; made once."""
        state, config = self._state, self._config
        key = (state.epoch, state.batch and (state.batch_steps, state.batch_size))
        if self._planned is None or self._planned[0] != key:
            self._planned = key, plan_limited(self._dataset, config, state)
        return self._planned[1]

    def _make_update(self) -> Update:
        return Update(
            self._model,
            self._optimizer,
            kind=self._dataset.schema.label.kind,
            element_spec=self._feed.element_spec,
            by_epoch=self._config.loss_scale == "epoch",
            team=self._team,
            clip_norm=self._config.clip_norm,
            column_scale=column_scales(self._target, self._dataset.manifest.statistics),
        )

    def _total_weight(self, plan: Plan) -> float:
        """Records, or labelled steps, of an epoch; counted where steps are cut off, which takes their labels along."""
        if self._config.truncate is None or not self._dataset.schema.label.per_step:
            return max(float(self._dataset.split(TRAIN).labels), 1.0)
        total = 0.0
        for _, _, weight, _ in numbered_batches(self._dataset, TRAIN, plan):
            total += float(tf.reduce_sum(weight))
            if self._team.num_workers == 1:  # several would not all hear of it now
                self._raise_if_asked()
        return max(total, 1.0)

    def _probe(self, update: Update, plan: Plan) -> None:
        team, before, plans = self._team, self._checkpoints.random_states(), [plan]
        state, config = self._state, self._config
        begun_with, next_epoch = (state.batch_steps, state.batch_size), state.epoch + 1
        if state.batch and begun_with != (config.batch_steps, config.batch_size) and next_epoch < config.epochs:
            plans.append(plan_limited(self._dataset, config, State(epoch=next_epoch)))
        for one in plans:
            probe_largest(update, one, num_replicas=team.num_replicas, num_local_replicas=team.num_local_replicas)
        self._checkpoints.set_random_states(before)

    def _train_epoch(self, update: Update, callbacks: Callbacks) -> None:
        state, config, epoch = self._state, self._config, self._state.epoch + 1
        plan = self._plan()
        if not state.batch:
            state.totals, state.batch_steps, state.batch_size = Totals(), config.batch_steps, config.batch_size
        callbacks.on_epoch_begin(epoch - 1)
        scale = tf.constant(plan.num_batches / self._weight, tf.float32)
        self._progress.begin_epoch(epoch, updates=plan.num_batches, done=state.batch)
        self._journal = EpochJournal(self._run if self._team.is_chief else None, state.totals)
        self._begin = time.monotonic() - state.totals.seconds
        before: Sums | None = None
        try:
            for batch in self._feed.batches(plan, epoch=epoch, first_batch=state.batch):
                callbacks.on_train_batch_begin(state.batch)
                sums = update(batch.parts, scale, float(self._stop.received))
                state.batch += 1
                state.update += 1
                line = self._journal.add(epoch, state.update, sums, batch)
                self._progress.update(line, sums)
                callbacks.on_train_batch_end(state.batch - 1)
                if self._told_to_leave(before):
                    self._leave()
                before = sums
                if self._is_due():
                    self._save()
            self._journal.flush()
        except (NotFinite, tf.errors.OpError) as error:
            raise self._find_cause(error) from None
        self._end_epoch(epoch, callbacks)

    def _find_cause(self, error: NotFinite | tf.errors.OpError) -> Exception:
        """What stopped an epoch. Another worker may have seen first that an update gave no number, and be gone; weights
        that are no numbers may fail in some operation before their loss is looked at."""
        if isinstance(error, tf.errors.OpError):
            try:
                self._journal.flush()
            except NotFinite as found:
                error = found
        if isinstance(error, NotFinite):
            return diverged(error, self._dataset, self._run, saved=self._saved)
        return error if self._finite_weights() else spoiled(self._state.update, saved=self._saved)

    @property
    def _saved(self) -> int | None:
        """The update of the last checkpoint, of which only the chief knows."""
        return self._saved_update if self._team.is_chief else None

    def _end_epoch(self, epoch: int, callbacks: Callbacks) -> None:
        state, totals = self._state, self._state.totals
        if not self._finite_weights():
            raise spoiled(state.update, saved=self._saved)
        totals.seconds = time.monotonic() - self._begin
        self._last_line = line = self._epoch_line(epoch, totals.summary())
        loss = line["validation"]["loss"] if line["validation"] else None
        if loss is not None and not math.isfinite(loss):
            raise unmeasurable(epoch, loss, saved=self._saved)
        if self._team.is_chief:
            # Before the checkpoint: the line of an epoch whose checkpoint is missing is cut when the run goes on.
            self._run.append_metrics([line])
        state.epoch, state.batch = epoch, 0
        state.steps += totals.steps
        state.padded_steps += totals.padded_steps
        is_best = loss is not None and (state.best_loss is None or loss < state.best_loss)
        if is_best:
            state.best_epoch, state.best_loss = epoch, loss
        # Before the checkpoint too: a callback may change the optimizer's learning rate.
        callbacks.end_epoch(line)
        self._save(best=is_best)
        self._progress.epoch(line)
        self._model.stop_training = self._team.broadcast(bool(self._model.stop_training))
        if self._team.any_worker(self._stop.received) and epoch < self._config.epochs and not self._model.stop_training:
            self._leave()

    def _epoch_line(self, epoch: int, summary: dict[str, Any] | None) -> dict[str, Any]:
        """The line of an epoch, measured by the chief on the validation split where there is one."""
        validation, leaves = None, False
        if self._evaluator is not None:
            try:
                measured = self._evaluator.measure(VALIDATION, between=self._raise_if_asked).result()
                validation = {"loss": measured["loss"], "metrics": measured["metrics"]}
            except Preempted:
                leaves = True
        validation, leaves = self._team.broadcast([validation, leaves])
        if leaves:
            self._leave()
        return {"epoch": epoch, "train": summary, "validation": validation}

    def _told_to_leave(self, before: Sums | None) -> bool:
        """Whether a worker was told to stop; all of them hear of it after the same update.

        By the sums of the update before, for which a device that is at the next one need not be waited for.
        """
        if self._team.num_workers == 1:
            return self._stop.received
        return before is not None and float(before.leaving) > 0

    def _raise_if_asked(self) -> None:
        if self._stop.received:
            raise Preempted("SIGTERM: stopped where there was nothing to save. The same command goes on.")

    def _leave(self) -> None:
        self._save()
        self._team.broadcast()  # nobody is gone before all are done
        state = self._state
        raise Preempted(
            f"SIGTERM: saved after update {state.update} (epoch {state.epoch + 1}) and stopped. The same command goes "
            "on from there."
        )

    def _is_due(self) -> bool:
        config, since = self._config, time.monotonic() - self._saved_at
        if config.checkpoint_updates and self._state.update - self._saved_update >= config.checkpoint_updates:
            return True
        return since >= max(60 * config.checkpoint_minutes, self._saving_seconds / _MOST_SAVING)

    def _save(self, *, best: bool = False) -> None:
        """Saves the run as it stands.

        Raises:
            NotFinite, UserError: it stands on what is no number; the checkpoint before stays.
        """
        state, begin = self._state, time.monotonic()
        if state.batch:
            self._journal.flush()
            state.totals.seconds = begin - self._begin
        if not self._finite_weights():
            raise spoiled(state.update, saved=self._saved)
        if self._team.is_chief:
            self._checkpoints.save(best=best)
        self._saved_at, self._saved_update = time.monotonic(), state.update
        self._saving_seconds = self._saved_at - begin

    def _finite_weights(self) -> bool:
        return all(np.isfinite(weight.numpy()).all() for weight in self._model.weights)

    def _finish(self, update: Update) -> dict[str, Any]:
        state, result = self._state, None
        if update.num_traces:
            self._progress.say(f"Traces of the update: {update.num_traces}, for batches of all shapes.")
        line = self._last_line or self._epoch_line(0, None)
        if self._team.is_chief:
            result = {
                "epochs": state.epoch,
                "updates": state.update,
                "parameters": count_parameters(self._model),
                "useful_share": state.steps / state.padded_steps if state.padded_steps else self._plan().useful_share,
                INPUTS_SHA256: self._run.inputs_sha256(),
                WEIGHTS_SHA256[LAST]: weights_sha256(self._model),
                WEIGHTS_SHA256[BEST]: checkpoint_sha256(self._run, self._model, BEST),
                "validation": line["validation"],
                "best_epoch": state.best_epoch,
                "stopped_early": bool(self._model.stop_training),
            }
            self._run.write_json(RESULT, result)
        return dict(self._team.broadcast(result))
