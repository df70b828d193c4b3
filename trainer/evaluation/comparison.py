"""Compares the outputs of a model with their labels, label by label; `metrics` sums the results."""

import dataclasses

import numpy as np

from pipeline.schema.labels import MULTILABEL, REGRESSION
from pipeline.schema.record import Array
from trainer.data.target import Target

# The k of the top-k accuracies.
TOP_K = (3, 5)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The comparison of a batch of labels with their outputs; a row for each label.

    Attributes:
        means: By metric, float64[rows], whose mean is the metric; for rmse, the metric is the root of the mean.
        classes: The (row, class) pairs, int64[pairs] each, where a class is `actual`, `predicted`, or both: `right`.
        confidence: float64[rows, n], the probabilities that the model gives to n claims about each label. One class:
            that it is the predicted class (n = 1). Several classes: for each class, that it is in the label. None for
            numbers.
        correct: bool[rows, n], whether each claim is true.
        scores: float32[rows, classes], the outputs that rank the rows for each class. None unless a label has several
            classes.
    """

    means: dict[str, Array]
    classes: dict[str, tuple[Array, Array]] = dataclasses.field(default_factory=dict)
    confidence: Array | None = None
    correct: Array | None = None
    scores: Array | None = None


def compare(target: Target, outputs: Array, label: Array) -> Comparison:
    """Returns the comparison of the outputs of `head_model` (logits, for classes) with labels.

    Args:
        outputs: float32[rows, classes]; for a regression, [rows] or [rows, width].
        label: int64[rows] if a label is one class, else the shape of `outputs`. Without padding or missing labels.
    """
    # Non-finite outputs appear in the loss; they must not fail here.
    with np.errstate(invalid="ignore"):
        if target.kind in REGRESSION:
            return _compare_numbers(outputs, label)
        if target.kind in MULTILABEL:
            return _compare_several_classes(outputs, label)
        return _compare_one_class(target, outputs, label)


def _compare_numbers(outputs: Array, label: Array) -> Comparison:
    error = (outputs.astype(np.float64) - label).reshape(len(outputs), -1)
    return Comparison({"mae": abs(error).mean(-1), "rmse": (error**2).mean(-1)})


def _compare_one_class(target: Target, outputs: Array, label: Array) -> Comparison:
    rows = np.arange(len(outputs))
    actual = label.argmax(-1) if target.kind == "distribution" else label
    predicted = outputs.argmax(-1)
    shifted = outputs.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    total = np.exp(shifted).sum(-1)
    log_total = np.log(total)
    if target.kind == "distribution":
        entropy = (label * (log_total[:, None] - shifted)).sum(-1)
    else:
        entropy = log_total - shifted[rows, actual]
    place = _place(outputs, actual)
    right = place == 0
    return Comparison(
        {
            "accuracy": right.astype(np.float64),
            "cross_entropy": entropy,
            **({"nll": entropy} if target.per_step else {}),
            **{f"top_{k}_accuracy": (place < k).astype(np.float64) for k in TOP_K if k < target.size},
        },
        {"actual": (rows, actual), "predicted": (rows, predicted), "right": (rows[right], actual[right])},
        confidence=1 / total[:, None],
        correct=right[:, None],
    )


def _place(outputs: Array, actual: Array) -> Array:
    """Returns int64[rows], the number of classes ranked before the actual one. As in argmax, ties go to the first."""
    own = np.take_along_axis(outputs, actual[:, None], -1)
    # Not `outputs > own`: a NaN must never count as right.
    place = np.count_nonzero(~(outputs < own), axis=-1) - 1
    tied = np.flatnonzero(np.count_nonzero(outputs == own, axis=-1) > 1)
    after = np.arange(outputs.shape[1]) > actual[tied, None]
    place[tied] -= np.count_nonzero((outputs[tied] == own[tied]) & after, axis=-1)
    return place


def _compare_several_classes(outputs: Array, label: Array) -> Comparison:
    logits = outputs.astype(np.float64)
    actual, predicted = label > 0.5, logits > 0
    right = actual == predicted
    # Cannot overflow: the exponent is at most 0.
    small = np.exp(-abs(logits))
    entropy = np.maximum(logits, 0) - logits * label + np.log1p(small)
    return Comparison(
        {
            "nll": entropy.sum(-1),
            "accuracy": right.mean(-1),
            "exact_match": right.all(-1).astype(np.float64),
        },
        {"actual": _pairs(actual), "predicted": _pairs(predicted), "right": _pairs(actual & predicted)},
        confidence=np.where(predicted, 1, small) / (1 + small),
        correct=actual,
        scores=outputs,
    )


def _pairs(chosen: Array) -> tuple[Array, Array]:
    """Returns the (row, class) pairs that are true in bool[rows, classes]. NumPy is several times faster in 1-D."""
    rows, classes = np.divmod(np.flatnonzero(chosen), chosen.shape[1])
    return rows, classes
