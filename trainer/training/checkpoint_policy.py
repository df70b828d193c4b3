"""Decides when a run saves a checkpoint, and refuses to save non-finite weights."""

import time
from collections.abc import Callable
from typing import NoReturn

import keras
import numpy as np

from pipeline.schema.record import Array
from trainer.config import TrainConfig
from trainer.devices.replicas import Replicas
from trainer.devices.signals import Preempted, StopSignal
from trainer.runs.checkpoints import Checkpoints
from trainer.runs.metrics_log import MetricsLog
from trainer.runs.state import State
from trainer.training.callbacks import Callbacks
from trainer.training.non_finite import non_finite_weights

# Largest share of the time spent on checkpoints by the minute: if saving takes longer, checkpoints are less frequent.
_MAX_SAVING_SHARE = 0.02


class CheckpointPolicy:
    """Saves the checkpoints of a run while it trains.

    Every worker decides when to save and checks the weights; only the chief writes.

    Args:
        checkpoints: Already restored if the run is resumed.
        callbacks: Their states are saved too.
        log: Its lines are written before each checkpoint.
        carried: Returns the state of the lanes, for batching `stateful`.

    Attributes:
        saving_seconds: Time that the last save took; 0 before the first one.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        model: keras.Model,
        config: TrainConfig,
        replicas: Replicas,
        callbacks: Callbacks,
        log: MetricsLog,
        carried: Callable[[], list[Array]] | None = None,
    ) -> None:
        self._callbacks, self._log, self._carried = callbacks, log, carried
        self._checkpoints, self._model, self._config, self._replicas = checkpoints, model, config, replicas
        self._saved_at, self._saved_update, self.saving_seconds = time.monotonic(), self.state.update, 0.0

    @property
    def state(self) -> State:
        """The training state that the next checkpoint stores."""
        return self._checkpoints.state

    @property
    def lanes(self) -> list[Array]:
        """The state of the lanes in the checkpoint that was restored."""
        return self._checkpoints.lanes

    @property
    def saved_update(self) -> int | None:
        """The update of the last checkpoint; None for workers other than the chief."""
        return self._saved_update if self._replicas.is_chief else None

    def is_due(self) -> bool:
        """Returns whether a checkpoint is due, by the number of updates or by the time since the last one."""
        config, seconds = self._config, time.monotonic() - self._saved_at
        if config.checkpoint_updates and self.state.update - self._saved_update >= config.checkpoint_updates:
            return True
        return seconds >= max(60 * config.checkpoint_minutes, self.saving_seconds / _MAX_SAVING_SHARE)

    def save(self, *, best: bool = False) -> None:
        """Saves a checkpoint, and if `best` also as the best one.

        Raises:
            UserError: A weight is non-finite; the last checkpoint stays.
        """
        started_at = time.monotonic()
        self.check_weights()
        # Between two epochs, no lane holds a record.
        lanes = self._carried() if self._carried is not None and self.state.batch else None
        if self._replicas.is_chief:
            if lanes is not None:
                self._checkpoints.lanes = lanes
            self._log.flush()
            self.state.callbacks = self._callbacks.states()
            self._checkpoints.save(best=best)
        self._saved_at, self._saved_update = time.monotonic(), self.state.update
        self.saving_seconds = self._saved_at - started_at

    def save_and_stop(self) -> NoReturn:
        """Saves a checkpoint on SIGTERM and raises Preempted, when all workers have come here."""
        self.save()
        self._replicas.broadcast()
        raise Preempted(
            f"SIGTERM: saved after update {self.state.update} (epoch {self.state.epoch + 1}) and stopped. The same "
            "command resumes from there."
        )

    def check_weights(self) -> None:
        """Raises a UserError if a weight is non-finite."""
        if not all(np.isfinite(weight.numpy()).all() for weight in self._model.weights):
            raise non_finite_weights(self.state.update, saved_update=self.saved_update)


def raise_if_stopped(stop: StopSignal) -> None:
    """Raises Preempted if the process was asked to stop. For a loop that has nothing to save."""
    if stop.received:
        raise Preempted("SIGTERM: stopped before there was anything to save. The same command resumes.")
