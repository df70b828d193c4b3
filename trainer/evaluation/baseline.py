"""Measures the best prediction that is the same for every label: the baseline that a model must beat."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from pipeline.format.manifest import Manifest
from pipeline.format.models import TRAIN
from pipeline.schema.labels import MULTILABEL, ONE_CLASS, REGRESSION, class_name
from pipeline.schema.record import Array
from trainer.data.target import Target
from trainer.evaluation.comparison import TOP_K

# A model that avoids less than this share of the baseline's error is not better than the baseline.
_LEAST_GAIN = 0.01


class Baseline(Protocol):
    """The measures of a constant prediction.

    Attributes:
        metric: The metric that decides whether a model is better.
        source: The split that the prediction comes from; None stands for the evaluated split.
    """

    metric: str
    source: str | None

    def add(self, label: Array) -> None:
        """Adds labels in the form that `compare` takes."""

    def answer(self) -> Any:
        """Returns the prediction: the name of a class, a list of names, a number, or a list of numbers."""

    def metrics(self) -> dict[str, float | None]:
        """Returns some of the metrics of `metric_names`, each None without labels."""


def make_baseline(target: Target, manifest: Manifest) -> Baseline | None:
    """Returns the baseline for a kind of label; None if the manifest lacks the statistics.

    One class: always the most frequent class of the train split; cross_entropy and nll are those of always predicting
        the shares of the classes. For `distribution`, and for the next value of a category, the manifest has no counts,
        so the prediction comes from the evaluated split.
    Several classes: always the classes that more than half of the train labels have, often none; nll is that of always
        predicting the share of each class.
    Numbers: always the mean of the train split.

    The shares are (count + 0.5) / (labels + 0.5 × outcomes), so that none is 0.

    Args:
        manifest: That of the dataset that the model was trained on.
    """
    label, train = manifest.record_schema.label, manifest.splits.get(TRAIN)
    statistics = manifest.statistics.get(label.name or label.next_of or "")
    if target.kind in REGRESSION:
        return None if statistics is None else ConstantNumber(np.array(statistics.mean))
    counts = None
    if train is not None and label.name is not None and label.kind != "distribution":
        counts = np.array([train.label_counts.get(class_name(name), 0) for name in target.names], np.int64)
    if target.kind not in MULTILABEL:
        return ConstantClass(target, counts if counts is not None and counts.any() else None)
    if counts is not None and train is not None:
        return ConstantClasses(target, counts, train.labels)
    if statistics is None:
        return None
    # The next vector is one of 0 and 1.
    present = statistics.count - np.array(statistics.missing or 0)
    return ConstantClasses(target, np.array(statistics.mean) * present, present)


def measure_baseline(baseline: Baseline, split: str, metrics: Mapping[str, float | None]) -> dict[str, Any]:
    """Returns {"answer", "source", "metrics", "metric", "is_beaten"}.

    `is_beaten` says whether a model avoids at least 1 % of the baseline's error in `metric`: of the wrong labels, of
    the nll, or of the root mean squared error. It is None without labels.

    Args:
        split: Name of the evaluated split.
        metrics: The metrics of the model.
    """
    found, name = baseline.metrics(), baseline.metric
    ours, theirs = metrics[name], found[name]
    is_beaten = None
    if ours is not None and theirs is not None:
        error, largest = (1 - ours, 1 - theirs) if name == "accuracy" else (ours, theirs)
        is_beaten = error < largest * (1 - _LEAST_GAIN)
    return {
        "answer": baseline.answer(),
        "source": baseline.source or split,
        "metrics": found,
        "metric": name,
        "is_beaten": is_beaten,
    }


def _shares(counts: Array, labels: Array | float, *, outcomes: int) -> Array:
    return (counts + 0.5) / (labels + 0.5 * outcomes)


class ConstantClass:
    """The most frequent class.

    Args:
        counts: int64[classes], the labels of each class in the train split; None counts those of the evaluated split.
    """

    metric = "accuracy"

    def __init__(self, target: Target, counts: Array | None) -> None:
        self._target, self._train_counts = target, counts
        self.source = None if counts is None else TRAIN
        # Of the evaluated split: the labels by their (most probable) class, and the sum of the probabilities.
        self._counts, self._sums = np.zeros(target.size, np.int64), np.zeros(target.size)

    def add(self, label: Array) -> None:
        classes = label if self._target.kind in ONE_CLASS else label.argmax(-1)
        counts = np.bincount(classes, minlength=self._target.size)
        self._counts += counts
        self._sums += counts if self._target.kind in ONE_CLASS else label.sum(0, dtype=np.float64)

    def answer(self) -> Any:
        return self._target.names[self._order()[0]]

    def metrics(self) -> dict[str, float | None]:
        order, total = self._order(), int(self._counts.sum())
        labels, right = max(total, 1), int(self._counts[order[0]])
        accuracy = right / labels
        known = self._sums if self._train_counts is None else self._train_counts
        shares = _shares(known, known.sum(), outcomes=self._target.size)
        entropy = float((self._sums * -np.log(shares)).sum() / labels) + 0.0  # not -0.0 for one class
        # F1 is 0 for all other classes that occur. The predicted class occurs in any case.
        occurring = np.count_nonzero(self._counts) + (right == 0)
        found = {
            "accuracy": accuracy,
            "macro_f1": 2 * right / (right + labels) / occurring,
            "cross_entropy": entropy,
            **({"nll": entropy} if self._target.per_step else {}),
            **{
                f"top_{k}_accuracy": int(self._counts[order[:k]].sum()) / labels for k in TOP_K if k < self._target.size
            },
            "micro_f1": accuracy,
        }
        return {name: value if total else None for name, value in found.items()}

    def _order(self) -> Array:
        """Returns the numbers of the classes, the most frequent first; ties are in the order of the classes."""
        return np.argsort(-(self._counts if self._train_counts is None else self._train_counts), kind="stable")


class ConstantClasses:
    """The classes that more than half of the labels have.

    Args:
        counts: [classes], the number of labels of the train split that have each class.
        labels: The number of labels of the train split; an array if it differs by class.
    """

    metric = "nll"
    source: str | None = TRAIN

    def __init__(self, target: Target, counts: Array, labels: Array | int) -> None:
        self._target = target
        self._shares = _shares(counts, labels, outcomes=2)
        self._answer = self._shares > 0.5
        # Of the evaluated split.
        self._counts = np.zeros(target.size, np.int64)
        self._labels, self._equal = 0, 0

    def add(self, label: Array) -> None:
        actual = label > 0.5
        self._counts += np.count_nonzero(actual, axis=0)
        self._labels += len(actual)
        self._equal += int(np.count_nonzero((actual == self._answer).all(-1)))

    def answer(self) -> Any:
        return [self._target.names[number] for number in np.flatnonzero(self._answer).tolist()]

    def metrics(self) -> dict[str, float | None]:
        labels, counts = max(self._labels, 1), self._counts
        predicted = self._answer * self._labels
        right = self._answer * counts
        both, occurs = counts + predicted, counts + predicted > 0
        logs = counts * np.log(self._shares) + (self._labels - counts) * np.log1p(-self._shares)
        has_f1 = bool(occurs.any())
        found = {
            "nll": float(-logs.sum() / labels),
            "micro_f1": float(2 * right.sum() / both.sum()) if has_f1 else None,
            "macro_f1": float(np.mean(2 * right[occurs] / both[occurs])) if has_f1 else None,
            "accuracy": float(np.where(self._answer, counts, self._labels - counts).mean() / labels),
            "exact_match": self._equal / labels,
        }
        return {name: value if self._labels else None for name, value in found.items()}


class ConstantNumber:
    """The mean.

    Args:
        mean: float64[columns], of the train split.
    """

    metric = "rmse"
    source: str | None = TRAIN

    def __init__(self, mean: Array) -> None:
        self._mean = mean
        # Of the evaluated split.
        self._numbers, self._absolute, self._squared = 0, 0.0, 0.0

    def add(self, label: Array) -> None:
        error = label.reshape(-1, len(self._mean)) - self._mean
        self._numbers += error.size
        self._absolute += float(abs(error).sum())
        self._squared += float((error**2).sum())

    def answer(self) -> Any:
        return self._mean.tolist() if len(self._mean) > 1 else float(self._mean[0])

    def metrics(self) -> dict[str, float | None]:
        if not self._numbers:
            return {"mae": None, "rmse": None}
        return {"mae": self._absolute / self._numbers, "rmse": float(np.sqrt(self._squared / self._numbers))}
