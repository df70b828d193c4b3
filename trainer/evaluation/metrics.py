"""Computes loss and metrics over real records and steps, without padding: of a whole split and of its parts."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.schema.labels import MULTILABEL, REGRESSION
from pipeline.schema.record import Array
from trainer.data.target import Target
from trainer.evaluation.baseline import Baseline
from trainer.evaluation.breakdown import Breakdown
from trainer.evaluation.comparison import TOP_K, Comparison, compare
from trainer.evaluation.confused_pairs import ConfusedPairs
from trainer.evaluation.ranking import Ranking
from trainer.evaluation.worse_lengths import WorseLengths

# Of equal width, as in Guo et al., "On Calibration of Modern Neural Networks", 2017.
CALIBRATION_BINS = 15
# A larger table of classes × classes is unreadable.
MAX_CONFUSION_CLASSES = 256
# Number of outputs compared at once; in float64, they fit into the processor's cache.
_SLICE = 2**18


def metric_names(target: Target, *, ranked: bool = True) -> tuple[str, ...]:
    """Returns the names of the metrics for a kind of label, the most important first.

    One class (for `distribution`, the most probable one):
        accuracy; macro_f1, the mean over the classes that occur as a label or a prediction; cross_entropy in nats per
        record or step; for labels per step also nll, the negative log-likelihood, which is the same number;
        top_3_accuracy and top_5_accuracy if there are more classes than that; micro_f1, which equals the accuracy;
        expected_calibration_error of the predicted class's probability.

    Several classes, each predicted if its probability is above 0.5:
        nll in nats, summed over the classes of a record or step; micro_f1; if `ranked`, auc and average_precision, the
        means over the classes that have both positives and negatives; macro_f1; accuracy over all classes of all
        labels; exact_match, the share of labels with every class right; expected_calibration_error of all
        probabilities.

    Numbers: mae and rmse over all numbers.

    A metric is None if it is undefined: F1 if no class is a label or predicted, auc and average_precision without
    positives or negatives or if memory does not suffice (see `ranking`).
    """
    if target.kind in REGRESSION:
        return "mae", "rmse"
    calibration = "expected_calibration_error"
    if target.kind in MULTILABEL:
        ranking = ("auc", "average_precision") if ranked else ()
        return "nll", "micro_f1", *ranking, "macro_f1", "accuracy", "exact_match", calibration
    nll = ("nll",) if target.per_step else ()
    top = (f"top_{k}_accuracy" for k in TOP_K if k < target.size)
    return "accuracy", "macro_f1", "cross_entropy", *nll, *top, "micro_f1", calibration


class Metrics:
    """Sums the metrics batch by batch; the result depends neither on the order of the records nor on the batches.

    Args:
        breakdowns: Divisions of the records into parts that are measured alone too.
        ranked: Compute auc and average_precision for labels of several classes, which take the longest.
        baseline: Gets the same labels.
        lengths: Gets the values of its metric.
    """

    def __init__(
        self,
        target: Target,
        breakdowns: Sequence[Breakdown] = (),
        *,
        ranked: bool = True,
        baseline: Baseline | None = None,
        lengths: WorseLengths | None = None,
    ) -> None:
        self._target, self._baseline, self._lengths = target, baseline, lengths
        self._whole = _Sums(target, 1, ranked=ranked)
        self._parts = [(breakdown, _Sums(target, len(breakdown.titles), ranked=ranked)) for breakdown in breakdowns]
        self._has_confusion = has_confusion(target) and target.size <= MAX_CONFUSION_CLASSES
        self._confusion = np.zeros((target.size, target.size) if self._has_confusion else (0, 0), np.int64)
        self._pairs = ConfusedPairs(target.size)

    def update(
        self,
        outputs: Array,
        label: Array,
        weight: Array,
        loss: Array,
        length: Array,
        row: Array | None = None,
        ends: Array | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            outputs: float32[batch, …] or [batch, time, …], of `head_model`.
            label, loss: As returned by the reader and `compute_losses`.
            weight: 1 for a label; 0 for padding, a step without a label and a filler row, for which outputs, label and
                loss are ignored. With labels per record, a row of weight 0 is not counted as a record.
            length: int[batch], the steps of each record.
            row: int64[batch], the place of each record in the split; required for breakdowns.
            ends: bool[batch], whether the record of a row ends with the row, so that it is counted. None: all do.
        """
        real = weight > 0
        counted = real
        if self._target.per_step:
            counted = np.ones(len(real), bool) if ends is None else ends
        record = np.nonzero(real)[0]
        outputs, label, loss = outputs[real], label[real], loss[real].astype(np.float64)
        if self._baseline is not None:
            self._baseline.add(label)
        divided = [(self._whole, np.zeros(len(real), np.int64))]
        divided += [(sums, breakdown.part[row]) for breakdown, sums in self._parts]
        for sums, part in divided:
            sums.add_records(length[counted], part[counted])
        values = np.zeros(len(record))
        for few in _slices(len(record), max(1, _SLICE // self._target.size)):
            compared = compare(self._target, outputs[few], label[few])
            compared.means["loss"] = loss[few]
            if self._lengths is not None:
                values[few] = compared.means[self._lengths.metric]
            self._count_confusions(compared)
            for sums, part in divided:
                sums.add(compared, part[record[few]])
        if self._lengths is not None and row is not None:
            self._lengths.add(values, record, row)

    def _count_confusions(self, compared: Comparison) -> None:
        if not has_confusion(self._target):
            return
        (_, actual), (_, predicted) = compared.classes["actual"], compared.classes["predicted"]
        self._pairs.add(actual, predicted)
        if self._has_confusion:
            np.add.at(self._confusion, (actual, predicted), 1)

    def result(self) -> dict[str, Any]:
        """Returns {"records", "steps", "labelled_steps" for labels per step, "loss", "metrics"} over all records."""
        return self._whole.summaries()[0]

    def by_part(self) -> list[tuple[Breakdown, list[dict[str, Any]]]]:
        """Returns for each breakdown the result of every part, with the part's title."""
        return [
            (breakdown, [title | summary for title, summary in zip(breakdown.titles, sums.summaries(), strict=True)])
            for breakdown, sums in self._parts
        ]

    def by_class(self) -> list[dict[str, Any]]:
        """Returns {"class", "precision", "recall", "f1", "support"} of every class, in the order of the model's output.

        `support` is the number of labels that are, or include, the class. If there is none, the recall is None. The
        precision of a class that is never predicted is None, and so is the F1 of one that is neither.
        """
        actual, predicted, right = self._whole.class_counts()
        columns = {
            "precision": _ratios(right, predicted),
            "recall": _ratios(right, actual),
            "f1": _ratios(2 * right, actual + predicted),
            "support": actual.tolist(),
        }
        return [
            {"class": name} | dict(zip(columns, row, strict=True))
            for name, row in zip(self._target.names, zip(*columns.values(), strict=True), strict=True)
        ]

    def confusion(self) -> dict[str, Any] | None:
        """Returns {"classes": names, "counts": [[int]]}: a row for each actual class, a column for each predicted one.

        None if there are more than 256 classes or a label is not one class.
        """
        if not self._has_confusion:
            return None
        return {"classes": list(self._target.names), "counts": self._confusion.tolist()}

    def confused_pairs(self) -> dict[str, Any]:
        """Returns the most confused pairs of classes if a label is one class; see `ConfusedPairs.result`."""
        return self._pairs.result(self._target.names, self._whole.class_counts()[0])


def has_confusion(target: Target) -> bool:
    """Returns whether a label is one class, so that there is a confusion table."""
    return target.kind not in (*MULTILABEL, *REGRESSION)


def _ratios(part: Array, whole: Array) -> list[float | None]:
    """Returns part / whole for each class; None where `whole` is 0."""
    return [p / w if w else None for p, w in zip(part.tolist(), whole.tolist(), strict=True)]


def _slices(total: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, total, size))


class _Sums:
    """Sums over the records and labels of each part. The last index is for records in no part."""

    def __init__(self, target: Target, num_parts: int, *, ranked: bool) -> None:
        self._names, self._num_parts, self._num_classes = metric_names(target, ranked=ranked), num_parts, target.size
        self._per_step = target.per_step
        self._records, self._steps, self._labels = np.zeros((3, num_parts + 1), np.int64)
        self._means = {name: np.zeros(num_parts + 1) for name in ("loss", *self._names)}
        size = 0 if target.kind in REGRESSION else target.size
        self._classes = {name: np.zeros((num_parts + 1, size), np.int64) for name in ("actual", "predicted", "right")}
        # For each bin of confidence: Σ (confidence - correct).
        self._gaps = np.zeros((num_parts + 1, CALIBRATION_BINS))
        self._claims_per_label = 0
        self._ranking = Ranking(num_parts * size) if "auc" in self._names else None

    def add_records(self, length: Array, part: Array) -> None:
        np.add.at(self._records, part, 1)
        np.add.at(self._steps, part, length)

    def add(self, compared: Comparison, part: Array) -> None:
        """Adds labels to the parts int64[rows]."""
        np.add.at(self._labels, part, 1)
        for name, values in compared.means.items():
            self._means[name] += np.bincount(part, values, self._num_parts + 1)
        for name, (row, number) in compared.classes.items():
            # NumPy is several times faster in one dimension.
            np.add.at(self._classes[name].reshape(-1), part[row] * self._num_classes + number, 1)
        if compared.confidence is None or compared.correct is None:
            return
        self._add_gaps(compared.confidence, compared.correct, part)
        if compared.scores is not None and self._ranking is not None:
            inside = part < self._num_parts
            ranking = part[inside, None] * self._num_classes + np.arange(self._num_classes)
            scores, positive = compared.scores[inside], compared.correct[inside]
            self._ranking.add(ranking.ravel(), scores.ravel(), positive.ravel())

    def _add_gaps(self, confidence: Array, correct: Array, part: Array) -> None:
        with np.errstate(invalid="ignore"):
            bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
        place = part[:, None] * CALIBRATION_BINS + bins
        gaps = np.bincount(place.ravel(), (confidence - correct).ravel(), self._gaps.size)
        self._gaps += gaps.reshape(self._gaps.shape)
        self._claims_per_label = confidence.shape[1]

    def class_counts(self) -> tuple[Array, Array, Array]:
        """Returns (actual, predicted, right), int64[classes] each: the labels of the first part."""
        return self._classes["actual"][0], self._classes["predicted"][0], self._classes["right"][0]

    def summaries(self) -> list[dict[str, Any]]:
        """Returns {"records", "steps", "labelled_steps" for labels per step, "loss", "metrics"} of each part."""
        ranked = self._ranked()
        return [self._summary(part, {n: v[part] for n, v in ranked.items()}) for part in range(self._num_parts)]

    def _summary(self, part: int, ranked: dict[str, float | None]) -> dict[str, Any]:
        labels = int(self._labels[part])
        found: dict[str, float | None] = dict.fromkeys(self._means)
        if labels:
            found |= {name: float(sums[part] / labels) for name, sums in self._means.items()}
            found |= self._class_metrics(part) | ranked
            if "rmse" in found:
                found["rmse"] = float(np.sqrt(self._means["rmse"][part] / labels))
        return {
            "records": int(self._records[part]),
            "steps": int(self._steps[part]),
            **({"labelled_steps": labels} if self._per_step else {}),
            "loss": found["loss"],
            "metrics": {name: found[name] for name in self._names},
        }

    def _class_metrics(self, part: int) -> dict[str, float | None]:
        """Returns the F1 scores and the calibration error of a part; empty for numbers."""
        if not self._claims_per_label:
            return {}
        # F1 = 2 TP / (2 TP + FP + FN)
        twice = 2 * self._classes["right"][part]
        both = self._classes["actual"][part] + self._classes["predicted"][part]
        occurs = both > 0
        claims = self._labels[part] * self._claims_per_label
        return {
            "macro_f1": float(np.mean(twice[occurs] / both[occurs])) if occurs.any() else None,
            "micro_f1": float(twice.sum() / both.sum()) if occurs.any() else None,
            "expected_calibration_error": float(abs(self._gaps[part]).sum() / claims),
        }

    def _ranked(self) -> dict[str, list[float | None]]:
        """Returns the auc and average_precision of each part, if they are computed."""
        if self._ranking is None:
            return {}
        measures = {"auc": self._ranking.auc(), "average_precision": self._ranking.average_precision()}
        return {name: [_mean(v) for v in values.reshape(self._num_parts, -1)] for name, values in measures.items()}


def _mean(values: Array) -> float | None:
    """Returns the mean of the values that are not NaN; None if there is none."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if len(numbers) else None
