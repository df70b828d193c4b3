"""Measures the validation split while a run trains."""

from collections.abc import Mapping
from typing import Any

import keras

from pipeline.format.models import FeatureStatistics
from pipeline.schema.schema import VALIDATION
from trainer.data.dataset import Dataset
from trainer.data.target import Vocabularies
from trainer.devices.replicas import Replicas
from trainer.devices.signals import Preempted, StopSignal
from trainer.evaluation.evaluate import Evaluator
from trainer.training.checkpoint_policy import CheckpointPolicy, raise_if_stopped


class Validation:
    """Measures the validation split on the chief, for all workers.

    Args:
        statistics, vocabularies: Those that the model was built with.
        options: Further options of the Evaluator.

    Attributes:
        has_labels: Whether there is anything to measure.
    """

    def __init__(
        self,
        model: keras.Model,
        dataset: Dataset,
        replicas: Replicas,
        stop: StopSignal,
        *,
        statistics: Mapping[str, FeatureStatistics],
        vocabularies: Vocabularies,
        **options: Any,
    ) -> None:
        self._replicas, self._stop = replicas, stop
        self.has_labels = dataset.has_labels(VALIDATION)
        self._evaluator = None
        if self.has_labels and replicas.is_chief:
            self._evaluator = Evaluator(model, dataset, statistics=statistics, vocabularies=vocabularies, **options)

    def measure(self, checkpoints: CheckpointPolicy) -> dict[str, Any] | None:
        """Returns {"loss", "metrics"} on all workers; None if the split has no label.

        Raises:
            Preempted: The chief was asked to stop; the run is saved.
        """
        measures, is_stopped = None, False
        if self._evaluator is not None:
            try:
                result = self._evaluator.measure(VALIDATION, after_batch=lambda: raise_if_stopped(self._stop)).result()
                measures = {"loss": result["loss"], "metrics": result["metrics"]}
            except Preempted:
                is_stopped = True
        measures, is_stopped = self._replicas.broadcast([measures, is_stopped])
        if is_stopped:
            checkpoints.save_and_stop()
        return measures
