"""Loss and metrics over real steps and records only, as sums that can be added: whole, and by parts of the records."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.schema.labels import MULTILABEL, REGRESSION
from pipeline.schema.record import Array
from trainer.data.target import Target
from trainer.evaluation.breakdown import Breakdown
from trainer.evaluation.comparison import TOP, Comparison, compare
from trainer.evaluation.ranking import Ranking

# Of equal width, as in Guo et al., "On Calibration of Modern Neural Networks", 2017.
CALIBRATION_BINS = 15
# Above that a table of classes × classes is nothing to look at, and large.
MAX_CONFUSION_CLASSES = 256
# Outputs that are compared at once: so few that, in float64, they stay in the processor's cache.
_SLICE = 2**18


def metric_names(target: Target, *, ranked: bool = True) -> tuple[str, ...]:
    """The metrics of a kind of label, the most telling first.

    One class (and `distribution`, whose class is its most probable one): accuracy; macro_f1, the mean over the classes
    that occur as a label or a prediction; cross_entropy in nats a record or step, which of steps is called nll, the
    negative log-likelihood, too; top_3_accuracy and top_5_accuracy where there are more classes; micro_f1, which here
    is the accuracy; expected_calibration_error of the probability of the class that is predicted.

    Several classes, each predicted from a probability above 0.5: nll, of all classes of a record or step together;
    micro_f1; where `ranked` auc and average_precision, the means over the classes that have both positives and
    negatives; macro_f1; accuracy, over the decisions class by class; exact_match, of all classes of a record or step;
    expected_calibration_error, of all probabilities.

    Numbers: mae and rmse over all numbers.

    Any of them is None where nothing defines it: F1 where no class is a label or predicted, auc of no negatives; and
    auc and average_precision where memory did not suffice (see trainer/ranking.py).
    """
    if target.kind in REGRESSION:
        return "mae", "rmse"
    calibration = "expected_calibration_error"
    if target.kind in MULTILABEL:
        ranking = ("auc", "average_precision") if ranked else ()
        return "nll", "micro_f1", *ranking, "macro_f1", "accuracy", "exact_match", calibration
    nll = ("nll",) if target.per_step else ()
    top = (f"top_{k}_accuracy" for k in TOP if k < target.size)
    return "accuracy", "macro_f1", "cross_entropy", *nll, *top, "micro_f1", calibration


class Metrics:
    """Gathers outputs of a model batch by batch; neither the order of records nor how they were batched matters.

    Args:
        breakdowns: In which ways the records are divided, so that each part is measured alone too.
        ranked: Measure how labels of several classes rank, which takes the longest.
    """

    def __init__(self, target: Target, breakdowns: Sequence[Breakdown] = (), *, ranked: bool = True) -> None:
        self._target = target
        self._whole = _Sums(target, 1, ranked=ranked)
        self._parts = [(breakdown, _Sums(target, len(breakdown.titles), ranked=ranked)) for breakdown in breakdowns]
        self._has_confusion = has_confusion(target) and target.size <= MAX_CONFUSION_CLASSES
        self._confusion = np.zeros((target.size, target.size) if self._has_confusion else (0, 0), np.int64)

    def update(
        self, outputs: Array, label: Array, weight: Array, loss: Array, length: Array, row: Array | None = None
    ) -> None:
        """Adds a batch.

        Args:
            outputs: Of `head_model`: float32 [batch, …] or [batch, time, …].
            label, loss: As the reader and `compute_losses` give them.
            weight: 1 for a label; 0 for padding and a step without a label, whose outputs, label and loss may be
                anything, and for a filler row: where labels are per record, such a row is no record.
            length: int[batch].
            row: int64[batch], the record's place in the split; needed for breakdowns.
        """
        real = weight > 0
        counted = np.ones(len(real), bool) if self._target.per_step else real
        record = np.nonzero(real)[0]
        outputs, label, loss = outputs[real], label[real], loss[real].astype(np.float64)
        divided = [(self._whole, np.zeros(len(real), np.int64))]
        divided += [(sums, breakdown.part[row]) for breakdown, sums in self._parts]
        for sums, part in divided:
            sums.add_records(length[counted], part[counted])
        for few in _slices(len(record), max(1, _SLICE // self._target.size)):
            compared = compare(self._target, outputs[few], label[few])
            compared.means["loss"] = loss[few]
            self._count_confusions(compared)
            for sums, part in divided:
                sums.add(compared, part[record[few]])

    def _count_confusions(self, compared: Comparison) -> None:
        if self._has_confusion:
            (_, actual), (_, predicted) = compared.classes["actual"], compared.classes["predicted"]
            np.add.at(self._confusion, (actual, predicted), 1)

    def result(self) -> dict[str, Any]:
        """{"records", "steps", "loss", "metrics"} over everything."""
        return self._whole.summaries()[0]

    def by_part(self) -> list[tuple[Breakdown, list[dict[str, Any]]]]:
        """For each breakdown the same of every part, beside its title."""
        return [
            (breakdown, [title | summary for title, summary in zip(breakdown.titles, sums.summaries(), strict=True)])
            for breakdown, sums in self._parts
        ]

    def confusion(self) -> dict[str, Any] | None:
        """{"classes": names, "counts": [[int]]}, a row for each class as a label, a column for each as predicted.

        None where there are more than 256 classes, and where a label is not one class.
        """
        if not self._has_confusion:
            return None
        return {"classes": list(self._target.names), "counts": self._confusion.tolist()}


def has_confusion(target: Target) -> bool:
    """Whether a label is one class, which may be taken for another."""
    return target.kind not in (*MULTILABEL, *REGRESSION)


def _slices(total: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, total, size))


class _Sums:
    """What is added up over the records and labels of each part; the last place is for what is in no part."""

    def __init__(self, target: Target, num_parts: int, *, ranked: bool) -> None:
        self._names, self._num_parts, self._num_classes = metric_names(target, ranked=ranked), num_parts, target.size
        self._records, self._steps, self._labels = np.zeros((3, num_parts + 1), np.int64)
        self._means = {name: np.zeros(num_parts + 1) for name in ("loss", *self._names)}
        size = 0 if target.kind in REGRESSION else target.size
        self._classes = {name: np.zeros((num_parts + 1, size), np.int64) for name in ("actual", "predicted", "right")}
        # Over what was said with a probability in each bin: Σ probability - (1 where it is so).
        self._gaps = np.zeros((num_parts + 1, CALIBRATION_BINS))
        self._said_of_each = 0
        self._ranking = Ranking(num_parts * size) if "auc" in self._names else None

    def add_records(self, length: Array, part: Array) -> None:
        np.add.at(self._records, part, 1)
        np.add.at(self._steps, part, length)

    def add(self, compared: Comparison, part: Array) -> None:
        """Adds labels, of the part int64[rows] each."""
        np.add.at(self._labels, part, 1)
        for name, values in compared.means.items():
            self._means[name] += np.bincount(part, values, self._num_parts + 1)
        for name, (row, number) in compared.classes.items():
            # Flat, for which NumPy is several times as fast.
            np.add.at(self._classes[name].reshape(-1), part[row] * self._num_classes + number, 1)
        if compared.said is not None:
            self._add_gaps(*compared.said, part)
        if compared.said is not None and compared.scores is not None and self._ranking is not None:
            inside = part < self._num_parts
            ranking = part[inside, None] * self._num_classes + np.arange(self._num_classes)
            scores, is_so = compared.scores[inside], compared.said[1][inside]
            self._ranking.add(ranking.ravel(), scores.ravel(), is_so.ravel())

    def _add_gaps(self, probability: Array, is_so: Array, part: Array) -> None:
        with np.errstate(invalid="ignore"):
            bins = np.clip(np.ceil(probability * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
        place = part[:, None] * CALIBRATION_BINS + bins
        gaps = np.bincount(place.ravel(), (probability - is_so).ravel(), self._gaps.size)
        self._gaps += gaps.reshape(self._gaps.shape)
        self._said_of_each = probability.shape[1]

    def summaries(self) -> list[dict[str, Any]]:
        """{"records", "steps", "loss", "metrics"} of each part."""
        ranked = self._ranked()
        return [self._summary(part, {n: v[part] for n, v in ranked.items()}) for part in range(self._num_parts)]

    def _summary(self, part: int, ranked: dict[str, float | None]) -> dict[str, Any]:
        labels = int(self._labels[part])
        found: dict[str, float | None] = dict.fromkeys(self._means)
        if labels:
            found |= {name: float(sums[part] / labels) for name, sums in self._means.items()}
            found |= self._of_classes(part) | ranked
            if "rmse" in found:
                found["rmse"] = float(np.sqrt(self._means["rmse"][part] / labels))
        return {
            "records": int(self._records[part]),
            "steps": int(self._steps[part]),
            "loss": found["loss"],
            "metrics": {name: found[name] for name in self._names},
        }

    def _of_classes(self, part: int) -> dict[str, float | None]:
        if not self._said_of_each:
            return {}
        # F1 = 2 TP / (2 TP + FP + FN)
        twice = 2 * self._classes["right"][part]
        both = self._classes["actual"][part] + self._classes["predicted"][part]
        occurs = both > 0
        said = self._labels[part] * self._said_of_each
        return {
            "macro_f1": float(np.mean(twice[occurs] / both[occurs])) if occurs.any() else None,
            "micro_f1": float(twice.sum() / both.sum()) if occurs.any() else None,
            "expected_calibration_error": float(abs(self._gaps[part]).sum() / said),
        }

    def _ranked(self) -> dict[str, list[float | None]]:
        """AUC and average precision of each part."""
        if self._ranking is None:
            return {}
        measures = {"auc": self._ranking.auc(), "average_precision": self._ranking.average_precision()}
        return {name: [_mean(v) for v in values.reshape(self._num_parts, -1)] for name, values in measures.items()}


def _mean(values: Array) -> float | None:
    """The mean of the numbers among the values."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if len(numbers) else None
