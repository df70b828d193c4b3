"""Loss and metrics over real steps and records only, as sums that can be added: whole, and by band of length."""

import dataclasses
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]

# Bands of length in a report: as many records in each as can be.
MAX_BANDS = 8


@dataclasses.dataclass
class Sums:
    """What is added up over records of one length (or more).

    Attributes:
        weight: Records, or labelled steps where labels are per step.
        hits, predicted, actual: float64[classes]: right predictions, predictions and labels of each class.
        absolute, squared: Sums of errors of a regression.
    """

    records: int
    steps: int
    weight: float
    loss: float
    hits: Array
    predicted: Array
    actual: Array
    absolute: float
    squared: float

    @classmethod
    def zero(cls, num_classes: int) -> "Sums":
        hits, predicted, actual = np.zeros((3, num_classes))
        return cls(0, 0, 0.0, 0.0, hits, predicted, actual, 0.0, 0.0)

    def __add__(self, other: "Sums") -> "Sums":
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in dataclasses.fields(self))
        return Sums(*(mine + theirs for mine, theirs in pairs))


class Metrics:
    """Gathers outputs of a model batch by batch.

    Args:
        kind: The schema's kind of label.
        num_classes: 0 for a regression.
    """

    def __init__(self, kind: str, num_classes: int) -> None:
        self._kind = kind
        self._num_classes = num_classes
        self._by_length: dict[int, Sums] = {}

    def update(self, outputs: Array, label: Array, weight: Array, loss: Array, length: Array) -> None:
        """Adds a batch: model outputs, label, weight and loss [batch] or [batch, time], and length int[batch]."""
        for steps in np.unique(length).tolist():
            rows = length == steps
            sums = self._by_length.setdefault(steps, Sums.zero(self._num_classes))
            self._by_length[steps] = sums + self._sums(steps, outputs[rows], label[rows], weight[rows], loss[rows])

    def _sums(self, steps: int, outputs: Array, label: Array, weight: Array, loss: Array) -> Sums:
        real = weight > 0
        weight = weight[real].astype(np.float64)
        sums = Sums.zero(self._num_classes)
        sums.records, sums.steps = len(real), steps * len(real)
        sums.weight = float(weight.sum())
        sums.loss = float((weight * loss[real]).sum())
        if self._kind == "regression":
            error = outputs[real].astype(np.float64) - label[real]
            sums.absolute, sums.squared = float((weight * abs(error)).sum()), float((weight * error**2).sum())
            return sums
        predicted = outputs[real].argmax(-1)
        actual = label[real].argmax(-1) if self._kind == "distribution" else label[real]
        count = self._num_classes
        sums.predicted = np.bincount(predicted, weight, count)
        sums.actual = np.bincount(actual, weight, count)
        sums.hits = np.bincount(actual, weight * (predicted == actual), count)
        return sums

    def result(self) -> dict[str, Any]:
        """{"records", "steps", "loss", "metrics"} over everything."""
        return self._summary(sum(self._by_length.values(), Sums.zero(self._num_classes)))

    def by_length(self) -> list[dict[str, Any]]:
        """The same for bands of length, each with "min_steps" and "max_steps"."""
        bands: list[dict[str, Any]] = []
        band, records = Sums.zero(self._num_classes), 0
        first: int | None = None
        total = sum(sums.records for sums in self._by_length.values())
        for steps in sorted(self._by_length):
            first = steps if first is None else first
            band = band + self._by_length[steps]
            records += self._by_length[steps].records
            if records >= total * (len(bands) + 1) / MAX_BANDS:
                bands.append({"min_steps": first, "max_steps": steps, **self._summary(band)})
                band, first = Sums.zero(self._num_classes), None
        return bands

    def _summary(self, sums: Sums) -> dict[str, Any]:
        mean = sums.loss / sums.weight if sums.weight else None
        return {"records": sums.records, "steps": sums.steps, "loss": mean, "metrics": self._metrics(sums)}

    def _metrics(self, sums: Sums) -> dict[str, float | None]:
        if not sums.weight:
            names = ("mae", "rmse") if self._kind == "regression" else ("accuracy", "macro_f1", "cross_entropy")
            return dict.fromkeys(names)
        if self._kind == "regression":
            return {"mae": sums.absolute / sums.weight, "rmse": (sums.squared / sums.weight) ** 0.5}
        return {
            "accuracy": float(sums.hits.sum() / sums.weight),
            "macro_f1": _macro_f1(sums),
            "cross_entropy": sums.loss / sums.weight,
        }


def _macro_f1(sums: Sums) -> float:
    """The mean of F1 = 2 TP / (2 TP + FP + FN) over the classes that are a label or a prediction."""
    both = sums.predicted + sums.actual
    return float(np.mean(2 * sums.hits[both > 0] / both[both > 0]))
