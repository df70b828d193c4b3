"""The training loop: resumes or starts a run, trains its epochs and writes its result."""

import contextlib
import functools
import gc
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from pipeline.errors import UserError, counted
from pipeline.format.models import TRAIN
from trainer.batching.plan import Plan
from trainer.config import TrainConfig
from trainer.data.dataset import Dataset
from trainer.data.newer_commits import PinnedCommit, has_files
from trainer.data.target import make_target
from trainer.devices.environment import describe_differences, describe_environment
from trainer.devices.replicas import Replicas
from trainer.devices.signals import Preempted, StopSignal
from trainer.devices.tensorflow_errors import explain_out_of_memory
from trainer.model.build import build_model, count_parameters
from trainer.model.largest_weight import describe_largest_weight
from trainer.model.losses import column_scales
from trainer.reading.batches import planned_batches
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
from trainer.training.checkpoint_policy import CheckpointPolicy, raise_if_stopped
from trainer.training.deal import BatchDealer
from trainer.training.epoch_runner import EpochData, EpochRunner, plan_next_epoch
from trainer.training.followed import FollowedDataset
from trainer.training.memory_probe import probe_largest
from trainer.training.reporter import Reporter
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
        # With `follow`, the features and the label are those of the first commit, and `_start` opens another one.
        self._dataset = Dataset(dataset.path, run.manifest()) if config.follow else dataset
        self._log = MetricsLog(run)
        self._environment = describe_environment(replicas, deterministic=deterministic)
        keras.utils.set_random_seed(config.seed)
        dataset = self._dataset
        with replicas.strategy.scope(), explain_out_of_memory(self._explain_model):
            # The run's own, not the dataset's: the weights depend on them.
            self._statistics, self._vocabularies = run.statistics(), run.vocabularies()
            self._target = make_target(dataset.schema, self._vocabularies)
            self._model = build_model(dataset.schema, self._statistics, config, vocabularies=self._vocabularies)
            self._optimizer = make_optimizer(config)
            # For callbacks that use model.optimizer; `fit` is never called.
            self._model.compile(optimizer=self._optimizer, jit_compile=False)
            self._optimizer.build(self._model.trainable_variables)
        self._model.stop_training = False
        self._checkpoints = Checkpoints(run, self._model, self._optimizer, keep=config.keep_checkpoints)
        self._dealer = BatchDealer(dataset, replicas, seed=config.seed, vocabularies=self._vocabularies)
        built_with: dict[str, Any] = {"statistics": self._statistics, "vocabularies": self._vocabularies}
        validation = run.validation() if config.follow else dataset
        self._validation = Validation(self._model, validation, replicas, stop, **built_with)
        self._reporter = Reporter(epochs=config.epochs, quiet=not replicas.is_chief)
        self._followed: FollowedDataset | None = None
        if config.follow:
            self._followed = FollowedDataset(dataset.path, run, config, replicas, self._reporter.note)
        self._user_callbacks = callbacks
        self._is_resumed = False
        self._planned: tuple[Any, Plan] | None = None
        self._total: tuple[Dataset, float] | None = None
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
        has_epoch = config.has_epoch(state.epoch + 1)
        if state.batch and not has_epoch:
            raise UserError(
                f"{self._run.path}: stopped within epoch {state.epoch + 1}, but epochs is {config.epochs}: expected at "
                f"least {state.epoch + 1}, to finish that epoch."
            )
        if self._followed is not None and has_epoch:
            self._dataset = self._followed.start(state)
            self._reporter.note(f"train: follows {self._dataset.path}, now at commit {self._dataset.manifest.commit}")
        # No variable holds the plan here: it would stay in memory as long as the run.
        self._reporter.describe_run(
            self._model,
            self._replicas,
            self._plan() if self._may_plan() else None,
            has_validation=self._validation.has_labels,
        )
        callbacks = self._make_callbacks(past_lines)
        update = self._make_update()
        policy = CheckpointPolicy(self._checkpoints, self._model, config, self._replicas, callbacks, self._log)
        runner = self._make_runner(update, callbacks, policy) if has_epoch else None
        if not past_lines and not state.update:
            policy.save()  # so that a run without an epoch can be evaluated
        last_line = past_lines[-1] if past_lines else None
        if runner is not None:
            if self._replicas.any_worker(self._stop.received):  # the probe may take as long as an update
                policy.save_and_stop()
            self._reporter.describe_slow_updates(
                self._update_seconds, saving_seconds=policy.saving_seconds, largest_batch=self._plan().largest_batch
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

    def _plan(self) -> Plan:
        """Returns the plan of the epoch that the run is in or trains next; it is computed once."""
        state = self._checkpoints.state
        key = (self._dataset.manifest.commit, state.epoch, state.batch and (state.batch_steps, state.batch_size))
        if self._planned is None or self._planned[0] != key:
            self._planned = key, plan_next_epoch(self._dataset, self._config, state)
        return self._planned[1]

    def _may_plan(self) -> bool:
        """Returns whether the dataset can be planned: with `follow`, none is open if there is no epoch to train."""
        return self._followed is None or self._config.has_epoch(self._checkpoints.state.epoch + 1)

    def _make_callbacks(self, past_lines: list[dict[str, Any]]) -> Callbacks:
        callbacks = Callbacks(
            self._user_callbacks,
            model=self._model,
            epochs=self._config.epochs,
            steps=self._plan().num_batches if self._may_plan() else None,
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
        return Update(
            self._model,
            self._optimizer,
            kind=self._dataset.schema.label.kind,
            element_spec=self._dealer.element_spec,
            by_epoch=self._config.loss_scale == "epoch",
            replicas=self._replicas,
            clip_norm=self._config.clip_norm,
            column_scale=column_scales(self._target, self._statistics),
        )

    def _make_runner(self, update: Update, callbacks: Callbacks, policy: CheckpointPolicy) -> EpochRunner:
        self._epoch_data()
        self._probe_memory(update, self._plan())
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

    def _epoch_data(self) -> EpochData:
        """Returns what the next epoch reads. The total weight is computed once for each commit."""
        dataset = self._dataset
        if self._total is None or self._total[0] is not dataset:
            self._total = dataset, self._total_weight(self._plan())
        pinned = None if self._followed is None else PinnedCommit.of(dataset.manifest, origin=dataset.path)
        return EpochData(dataset, self._total[1], pinned)

    def _total_weight(self, plan: Plan) -> float:
        """Returns the number of labels of an epoch: records, or labelled steps.

        Labels per step are counted by reading an epoch if `truncate` cuts off steps and their labels.
        """
        if self._config.truncate is None or not self._dataset.schema.label.per_step:
            return max(float(self._dataset.split(TRAIN).labels), 1.0)
        total = 0.0
        for _, _, weight, _ in planned_batches(self._dataset, TRAIN, plan, vocabularies=self._vocabularies):
            total += float(tf.reduce_sum(weight))
            if self._replicas.num_workers == 1:  # several workers would not all stop here
                raise_if_stopped(self._stop)
        return max(total, 1.0)

    def _probe_memory(self, update: Update, plan: Plan) -> None:
        """Computes the largest batch of the plan, and of the next epoch's plan if that has another budget.

        Sets `_update_seconds` to the time that the slower one took; it is the same on all workers.
        """
        plans, state, config = [plan], self._checkpoints.state, self._config
        is_other_budget = (state.batch_steps, state.batch_size) != (config.batch_steps, config.batch_size)
        if state.batch and is_other_budget and config.has_epoch(state.epoch + 2):
            plans.append(plan_next_epoch(self._dataset, config, State(epoch=state.epoch + 1)))
        random_states = self._checkpoints.random_states()
        for each in plans:
            announce = functools.partial(self._reporter.announce_probe, each.largest_batch)
            self._largest_probed = max(self._largest_probed, math.prod(each.largest_batch))
            seconds = probe_largest(update, each, self._replicas, self._explain_model, announce)
            self._update_seconds = max(self._update_seconds, seconds)
        self._update_seconds = self._replicas.broadcast(self._update_seconds)
        self._checkpoints.set_random_states(random_states)

    def _explain_model(self) -> str:
        return describe_largest_weight(self._model, self._dataset.schema)

    def _run_epochs(
        self, runner: EpochRunner, update: Update, policy: CheckpointPolicy, callbacks: Callbacks
    ) -> dict[str, Any] | None:
        """Trains until the last epoch or until a callback stops, and returns the line of the last epoch trained."""
        line, state, model = None, self._checkpoints.state, self._model
        with _frozen_objects():
            while self._config.has_epoch(state.epoch + 1) and not model.stop_training:
                if not self._follow(update, policy, callbacks):
                    break
                with self._explain_removed():
                    line = runner.run_epoch(self._plan(), self._epoch_data())
                model.stop_training = self._replicas.broadcast(bool(model.stop_training))
                is_last = not self._config.has_epoch(state.epoch + 1) or model.stop_training
                if self._replicas.any_worker(self._stop.received) and not is_last:
                    policy.save_and_stop()
                gc.collect()
        return line

    def _follow(self, update: Update, policy: CheckpointPolicy, callbacks: Callbacks) -> bool:
        """With `follow`, opens the commit that the next epoch reads. Returns whether there is a next epoch.

        Raises:
            Preempted: A worker was asked to stop while the run waited for a commit; the run is saved.
        """
        if self._followed is None or self._checkpoints.state.batch:
            return True

        def check_stop() -> None:
            if self._replicas.any_worker(self._stop.received):
                policy.save_and_stop()

        started_at = time.monotonic()
        found = self._followed.next(check_stop)
        self._reporter.skip(time.monotonic() - started_at)
        if found is None:
            return False
        if found is not self._dataset:
            self._dataset, self._planned = found, None
            callbacks.set_steps(self._plan().num_batches)
            assert found.manifest.commit is not None
            self._reporter.describe_commit(found.manifest.commit, self._plan())
            if math.prod(self._plan().largest_batch) > self._largest_probed:
                self._probe_memory(update, self._plan())
        return True

    @contextlib.contextmanager
    def _explain_removed(self) -> Iterator[None]:
        """Raises a UserError that says so if the files of the epoch's commit are removed inside the block."""
        try:
            yield
        except (UserError, tf.errors.OpError) as error:
            if self._followed is None or isinstance(error, Preempted) or has_files(self._dataset):
                raise
            raise UserError(
                f"{self._dataset.path}: the files of commit {self._dataset.manifest.commit} were removed while an "
                "epoch read them. Let `prepare` and `compact` keep replaced files for longer than an epoch takes "
                "(--retain); the same command trains on."
            ) from None

    def _write_result(self, validation: dict[str, Any] | None) -> dict[str, Any]:
        """Writes result.json and returns its contents on all workers."""
        state, result = self._checkpoints.state, None
        if self._replicas.is_chief:
            self._log.compact()
            result = {
                "epochs": state.epoch,
                "updates": state.update,
                "parameters": count_parameters(self._model),
                "useful_share": state.steps / state.padded_steps if state.padded_steps else self._useful_share(),
                "commit": self._run.commit(),
                **self._followed_commits(),
                INPUTS_SHA256: self._run.inputs_sha256(),
                WEIGHTS_SHA256[LAST]: weights_sha256(self._model),
                WEIGHTS_SHA256[BEST]: checkpoint_sha256(self._run, self._model, BEST),
                "validation": validation,
                "best_epoch": state.best_epoch,
                "stopped_early": bool(self._model.stop_training),
            }
            self._run.write_json(RESULT, result)
        return dict(self._replicas.broadcast(result))

    def _useful_share(self) -> float:
        """Returns the useful share of a run that has made no update."""
        return self._plan().useful_share if self._may_plan() else 1.0

    def _followed_commits(self) -> dict[str, Any]:
        """Returns the entries of result.json that a run with `follow` has in addition or with another value."""
        if self._followed is None:
            return {}
        manifest, pinned = self._run.manifest(), self._checkpoints.state.pinned
        pinned = pinned or PinnedCommit.of(manifest, origin=self._run.path)
        return {"commit": pinned.number, "fingerprint": pinned.fingerprint, "first_commit": manifest.commit}


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
