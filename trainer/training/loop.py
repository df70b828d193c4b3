"""The training loop: resumes or starts a run, trains its epochs and writes its result."""

import contextlib
import functools
import gc
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from pipeline.errors import UserError, counted
from trainer.batching.plan import Plan
from trainer.batching.stateful import chunk_options
from trainer.config import STATEFUL, TrainConfig
from trainer.data.dataset import Dataset
from trainer.data.target import make_target
from trainer.devices.environment import describe_differences, describe_environment
from trainer.devices.replicas import Replicas
from trainer.devices.signals import StopSignal
from trainer.devices.tensorflow_errors import explain_out_of_memory
from trainer.model.build import build_model, count_parameters
from trainer.model.chunks import find_stack
from trainer.model.largest_weight import describe_largest_weight
from trainer.model.losses import column_scales
from trainer.runs.checkpoints import (
    BEST,
    INPUTS_SHA256,
    LAST,
    WEIGHTS_SHA256,
    Checkpoints,
    checkpoint_sha256,
    weights_sha256,
)
from trainer.runs.contents import ENVIRONMENT, LOGS, RESULT
from trainer.runs.metrics_log import MetricsLog
from trainer.runs.run import Run
from trainer.runs.state import State
from trainer.runs.warm_start import warm_start
from trainer.training.callbacks import Callbacks
from trainer.training.checkpoint_policy import CheckpointPolicy
from trainer.training.deal import BatchDealer
from trainer.training.epoch_runner import EpochRunner
from trainer.training.epoch_source import EpochSource, plan_next_epoch
from trainer.training.memory_probe import probe_largest
from trainer.training.reporter import Reporter
from trainer.training.stateful_update import StatefulUpdate
from trainer.training.update import Update, make_optimizer
from trainer.training.validation import Validation

# Each update that takes longer is awaited: a GPU would get many more to compute before the process sees a SIGTERM.
_WAIT_SECONDS = 1.0


class Training:
    """The training of a run on one worker. All workers do the same; only the chief writes and reports."""

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        config: TrainConfig,
        replicas: Replicas,
        stop: StopSignal,
        callbacks: Iterable[keras.callbacks.Callback] = (),
        *,
        deterministic: bool = False,
    ) -> None:
        self._run, self._config, self._replicas, self._stop = run, config, replicas, stop
        self._reporter = Reporter(epochs=config.epochs, quiet=not replicas.is_chief)
        self._source = EpochSource(run, dataset, config, replicas, stop, self._reporter.note)
        dataset, self._schema = self._source.dataset, self._source.dataset.schema
        self._log = MetricsLog(run)
        self._environment = describe_environment(replicas, deterministic=deterministic)
        keras.utils.set_random_seed(config.seed)
        with replicas.strategy.scope(), explain_out_of_memory(self._explain_model):
            # The run's own, not the dataset's: the weights depend on them.
            self._statistics, self._vocabularies = run.statistics(), run.vocabularies()
            self._target = make_target(self._schema, self._vocabularies)
            self._model = build_model(self._schema, self._statistics, config, vocabularies=self._vocabularies)
            self._optimizer = make_optimizer(config)
            # For callbacks that use model.optimizer; `fit` is never called.
            self._model.compile(optimizer=self._optimizer, jit_compile=False)
            self._optimizer.build(self._model.trainable_variables)
        self._model.stop_training = False
        widths = find_stack(self._model).state_widths if config.batching == STATEFUL else ()
        keep = config.keep_checkpoints
        self._checkpoints = Checkpoints(run, self._model, self._optimizer, keep=keep, state_widths=widths)
        self._dealer = BatchDealer(
            dataset,
            replicas,
            seed=config.seed,
            vocabularies=self._vocabularies,
            label_every_chunk=config.label_every_chunk,
            reset_state=config.reset_state,
        )
        built_with: dict[str, Any] = {"statistics": self._statistics, "vocabularies": self._vocabularies}
        built_with |= chunk_options(config)
        self._validation = Validation(self._model, self._source.validation, replicas, stop, **built_with)
        self._user_callbacks = callbacks
        self._is_resumed = False
        self._update_seconds = 0.0
        self._largest_probed = 0

    def run(self) -> dict[str, Any]:
        """Trains to the end and returns the contents of result.json.

        Raises:
            Preempted: SIGTERM; the run is saved.
            UserError: A loss, a gradient or a weight is non-finite, or memory runs out.
        """
        past_lines = self._resume()
        state, config = self._checkpoints.state, self._config
        has_epoch = self._source.has_epoch(state)
        if state.batch and not has_epoch:
            raise UserError(
                f"{self._run.path}: stopped within epoch {state.epoch + 1}, but epochs is {config.epochs}: expected at "
                f"least {state.epoch + 1}, to finish that epoch."
            )
        self._source.start(state)
        # No variable holds the plan here: it would stay in memory as long as the run.
        self._reporter.describe_run(
            self._model,
            self._replicas,
            self._source.known_plan(state),
            has_validation=self._validation.has_labels,
        )
        callbacks = self._make_callbacks(past_lines)
        update = self._make_update()
        carried = update.carried if isinstance(update, StatefulUpdate) else None
        policy = CheckpointPolicy(self._checkpoints, self._model, config, self._replicas, callbacks, self._log, carried)
        runner = self._make_runner(update, callbacks, policy) if has_epoch else None
        if not past_lines and not state.update:
            policy.save()  # so that a run without an epoch can be evaluated
        last_line = past_lines[-1] if past_lines else None
        if runner is not None:
            if self._replicas.any_worker(self._stop.received):  # the probe may take as long as an update
                policy.save_and_stop()
            self._reporter.describe_slow_updates(
                self._update_seconds,
                saving_seconds=policy.saving_seconds,
                plan=self._source.plan(state),
            )
            try:
                last_line = self._run_epochs(runner, update, policy, callbacks) or last_line
            finally:
                self._log.flush()
        callbacks.on_train_end()
        if update.num_traces:
            self._reporter.note(f"Traces of the update: {update.num_traces}, for batches of all shapes.")
        return self._write_result(last_line["validation"] if last_line else self._validation.measure(policy))

    def _resume(self) -> list[dict[str, Any]]:
        """Restores the last checkpoint, if there is one, and returns the lines of the epochs before it."""
        replicas, checkpoints, state, past_lines = self._replicas, self._checkpoints, self._checkpoints.state, []
        path = replicas.broadcast(checkpoints.latest)
        self._is_resumed = path is not None
        if path is not None:
            with explain_out_of_memory(self._explain_model):
                checkpoints.restore(path)
            state = checkpoints.state
        elif self._config.warm_start is not None:
            for line in warm_start(self._run, self._model, self._config):
                self._reporter.note(line)
        if replicas.is_chief:
            checkpoints.clean()
            past_lines = self._log.truncate(epoch=state.epoch, update=state.update)
            before = self._run.environment()
            changed = describe_differences(before, self._environment) if before else None
            if path is not None and changed is not None:
                self._reporter.note(changed)
            self._run.write_json(ENVIRONMENT, self._environment)
        if path is not None:
            self._reporter.note(
                f"Resuming after update {state.update} (epoch {state.epoch}, and {counted(state.batch, 'update')})."
            )
        return list(replicas.broadcast(past_lines))

    def _make_callbacks(self, past_lines: list[dict[str, Any]]) -> Callbacks:
        plan = self._source.known_plan(self._checkpoints.state)
        callbacks = Callbacks(
            self._user_callbacks,
            model=self._model,
            epochs=self._config.epochs,
            steps=None if plan is None else plan.num_batches,
            early_stopping=self._config.early_stopping,
            logs=self._run.file(LOGS) if self._replicas.is_chief else None,
        )
        callbacks.on_train_begin()
        callbacks.replay(past_lines)
        if self._is_resumed:
            anew = callbacks.restore(self._checkpoints.state.callbacks)
            if anew is not None:
                self._reporter.note(anew)
        return callbacks

    def _make_update(self) -> Update:
        config = self._config
        options: dict[str, Any] = {
            "kind": self._schema.label.kind,
            "element_spec": self._dealer.element_spec,
            "by_epoch": config.loss_scale == "epoch",
            "replicas": self._replicas,
            "clip_norm": config.clip_norm,
            "column_scale": column_scales(self._target, self._statistics),
        }
        if config.batching == STATEFUL:
            options |= {"schema": self._schema, "backprop_chunks": config.backprop_chunks}
            return StatefulUpdate(self._model, self._optimizer, **options)
        return Update(self._model, self._optimizer, **options)

    def _make_runner(self, update: Update, callbacks: Callbacks, policy: CheckpointPolicy) -> EpochRunner:
        state = self._checkpoints.state
        self._source.data(state)
        self._probe_memory(update, self._source.plan(state))
        return EpochRunner(
            run=self._run,
            log=self._log,
            config=self._config,
            replicas=self._replicas,
            stop=self._stop,
            dealer=self._dealer,
            update=update,
            callbacks=callbacks,
            checkpoints=policy,
            reporter=self._reporter,
            validation=self._validation,
            waits=self._update_seconds >= _WAIT_SECONDS,
        )

    def _probe_memory(self, update: Update, plan: Plan) -> None:
        """Computes the largest batch of the plan, and of the next epoch's plan if that has another budget.

        Sets `_update_seconds` to the time that the slower one took; it is the same on all workers.
        """
        plans, state, config = [plan], self._checkpoints.state, self._config
        is_other_budget = (state.batch_steps, state.batch_size) != (config.batch_steps, config.batch_size)
        if state.batch and is_other_budget and config.has_epoch(state.epoch + 2):
            plans.append(plan_next_epoch(self._source.dataset, config, State(epoch=state.epoch + 1)))
        random_states = self._checkpoints.random_states()
        for each in plans:
            announce = functools.partial(self._reporter.announce_probe, each.largest_batch)
            self._largest_probed = max(self._largest_probed, math.prod(each.largest_batch))
            seconds = probe_largest(update, each, self._replicas, self._explain_model, announce)
            self._update_seconds = max(self._update_seconds, seconds)
        self._update_seconds = self._replicas.broadcast(self._update_seconds)
        self._checkpoints.set_random_states(random_states)

    def _explain_model(self) -> str:
        return describe_largest_weight(self._model, self._schema)

    def _run_epochs(
        self, runner: EpochRunner, update: Update, policy: CheckpointPolicy, callbacks: Callbacks
    ) -> dict[str, Any] | None:
        """Trains until the last epoch or until a callback stops, and returns the line of the last epoch trained."""
        line, state, model = None, self._checkpoints.state, self._model
        with _frozen_objects():
            while not model.stop_training and self._open_next(update, policy, callbacks):
                with self._source.explain_removed():
                    line = runner.run_epoch(self._source.plan(state), self._source.data(state))
                model.stop_training = self._replicas.broadcast(bool(model.stop_training))
                is_last = not self._source.has_epoch(state) or model.stop_training
                if self._replicas.any_worker(self._stop.received) and not is_last:
                    policy.save_and_stop()
                gc.collect()
        return line

    def _open_next(self, update: Update, policy: CheckpointPolicy, callbacks: Callbacks) -> bool:
        """Opens what the next epoch reads. Returns whether there is a next epoch.

        Raises:
            Preempted: A worker was asked to stop while the run waited for a commit; the run is saved.
        """

        def check_stop() -> None:
            if self._replicas.any_worker(self._stop.received):
                policy.save_and_stop()

        state, before, started_at = self._checkpoints.state, self._source.dataset, time.monotonic()
        has_next = self._source.next(state, check_stop)
        self._reporter.skip(time.monotonic() - started_at)
        if self._source.dataset is not before:
            callbacks.set_steps(self._source.plan(state).num_batches)
            self._reporter.describe_commit(self._source.dataset.manifest.commit, self._source.plan(state))
            if math.prod(self._source.plan(state).largest_batch) > self._largest_probed:
                self._probe_memory(update, self._source.plan(state))
        return has_next

    def _write_result(self, validation: dict[str, Any] | None) -> dict[str, Any]:
        """Writes result.json and returns its contents on all workers."""
        state, result = self._checkpoints.state, None
        if self._replicas.is_chief:
            self._log.compact()
            plan = self._source.known_plan(state)
            useful_share = plan.useful_share if plan is not None else 1.0
            result = {
                "epochs": state.epoch,
                "updates": state.update,
                "parameters": count_parameters(self._model),
                "useful_share": state.steps / state.padded_steps if state.padded_steps else useful_share,
                **self._source.commits(state),
                INPUTS_SHA256: self._run.inputs_sha256(),
                WEIGHTS_SHA256[LAST]: weights_sha256(self._model),
                WEIGHTS_SHA256[BEST]: checkpoint_sha256(self._run, self._model, BEST),
                "validation": validation,
                "best_epoch": state.best_epoch,
                "stopped_early": bool(self._model.stop_training),
            }
            self._run.write_json(RESULT, result)
        return dict(self._replicas.broadcast(result))


@contextlib.contextmanager
def _frozen_objects() -> Iterator[None]:
    """Keeps the garbage collector from scanning the objects that exist now, so that `gc.collect` is fast.

    Call `gc.collect` after each epoch: a way of batching other than `window` makes a new reader for each epoch, whose
    graphs contain reference cycles. Python would look for cycles only after the number of objects has grown by a
    quarter, and TensorFlow alone has 300,000 objects: memory was measured to grow by 0.15 MB an epoch for a long time.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
