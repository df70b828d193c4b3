"""Finds the lengths of records on which a model is worse than on all records."""

from typing import Any

import numpy as np

from pipeline.schema.record import Array
from trainer.evaluation.breakdown import Breakdown

# With fewer records, the standard error of a band is itself uncertain.
MIN_RECORDS = 30
# One of eight bands is this far from the whole by chance in one evaluation of a hundred.
STANDARD_ERRORS = 3.0
# A smaller difference can be significant in a large split, but hardly matters.
LEAST_RATIO = 1.25


class WorseLengths:
    """Compares the error in each band of length with that on all records.

    The error of a label is 1 - accuracy for classes, the nll for several classes, and the absolute error for numbers. A
    band with x errors and m labels in a record, summed over its records, has the error R = Σx / Σm. Steps of one record
    are not independent, so the standard error of R is that of a ratio over records, √Σ(x - Rm)² / Σm (Cochran, Sampling
    Techniques, 1977, chapter 6), here with the R of all records.

    Args:
        metric: "accuracy", "nll" or "mae".
        breakdown: The split's records by length.
    """

    def __init__(self, metric: str, breakdown: Breakdown) -> None:
        self.metric, self._breakdown, self._is_accuracy = metric, breakdown, metric == "accuracy"
        # By band: records with a label, Σx, Σm, Σx², Σxm, Σm².
        self._sums = np.zeros((6, len(breakdown.titles)))

    def add(self, values: Array, record: Array, row: Array) -> None:
        """Adds a batch of whole records.

        Args:
            values: float64[labels], of the metric.
            record: int64[labels], the place of each label's record in the batch.
            row: int64[batch], the place of each record in the split.
        """
        labels = np.bincount(record, minlength=len(row)).astype(np.float64)
        errors = np.bincount(record, 1 - values if self._is_accuracy else values, len(row))
        has_label = labels > 0
        labels, errors, band = labels[has_label], errors[has_label], self._breakdown.part[row[has_label]]
        with np.errstate(invalid="ignore"):  # a non-finite output appears in the loss
            sums = (np.ones_like(labels), errors, labels, errors**2, errors * labels, labels**2)
        for total, values_of_records in zip(self._sums, sums, strict=True):
            np.add.at(total, band, values_of_records)

    def result(self) -> list[dict[str, Any]]:
        """Returns the bands that are worse than all records, the worst first.

        Each has its "min_steps" and "max_steps", "records" with a label, "metric" and its "value", the value on "all"
        records, and its "standard_error". It has at least 30 records, its error is at least a quarter larger, and the
        difference is more than three standard errors.
        """
        records, errors, labels, *squares = self._sums
        found, total = [], labels.sum()
        overall = errors.sum() / total if total else 0.0
        for band in np.flatnonzero(records >= MIN_RECORDS):
            error = errors[band] / labels[band]
            xx, xm, mm = (values[band] for values in squares)
            with np.errstate(invalid="ignore"):
                variance = max(xx - 2 * overall * xm + overall**2 * mm, 0.0) / labels[band] ** 2
            deviation = float(np.sqrt(variance))
            if error >= LEAST_RATIO * overall and error - overall > STANDARD_ERRORS * deviation:
                value, whole = (1 - error, 1 - overall) if self._is_accuracy else (error, overall)
                measures = {"metric": self.metric, "value": float(value), "all": float(whole)}
                row = {"records": int(records[band]), **measures, "standard_error": deviation}
                found.append((error, self._breakdown.titles[band] | row))
        return [row for _, row in sorted(found, key=lambda pair: -pair[0])]
