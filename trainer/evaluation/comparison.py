"""Compares outputs of a model with their labels, by the kind of label: numbers to be added up, a row for each label."""

import dataclasses

import numpy as np

from pipeline.schema.labels import MULTILABEL, REGRESSION
from pipeline.schema.record import Array
from trainer.data.target import Target

# Whether the label is among the k classes with the largest outputs.
TOP = (3, 5)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What comes of each label.

    Attributes:
        means: By the name of a metric float64[rows], whose mean it is (of rmse: the root of the mean).
        classes: (row, class) int64 each, wherever a class is `actual`, `predicted`, and both: `right`.
        said: The probability float64[rows, n] of n things that were said of each label, that it is the class which was
            predicted, or of every class that it is there; and bool[rows, n], whether that is so. None for numbers.
        scores: float32[rows, classes], by which each class ranks the rows. None where a label is not several classes.
    """

    means: dict[str, Array]
    classes: dict[str, tuple[Array, Array]] = dataclasses.field(default_factory=dict)
    said: tuple[Array, Array] | None = None
    scores: Array | None = None


def compare(target: Target, outputs: Array, label: Array) -> Comparison:
    """Outputs of `head_model`, so logits where there are classes, against labels that are all real.

    Args:
        outputs: float32[rows, classes]; [rows] or [rows, width] of a regression.
        label: int64[rows] of one class, else as outputs.
    """
    # Weights that are no numbers show in the loss; nothing here should stop at them.
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
            **{f"top_{k}_accuracy": (place < k).astype(np.float64) for k in TOP if k < target.size},
        },
        {"actual": (rows, actual), "predicted": (rows, predicted), "right": (rows[right], actual[right])},
        said=(1 / total[:, None], right[:, None]),
    )


def _place(outputs: Array, actual: Array) -> Array:
    """int64[rows]: how many classes lead the actual one. Of equal outputs the first leads, as it does for argmax."""
    own = np.take_along_axis(outputs, actual[:, None], -1)
    # Not "larger": what is no number is never right.
    place = np.count_nonzero(~(outputs < own), axis=-1) - 1
    tied = np.flatnonzero(np.count_nonzero(outputs == own, axis=-1) > 1)
    after = np.arange(outputs.shape[1]) > actual[tied, None]
    place[tied] -= np.count_nonzero((outputs[tied] == own[tied]) & after, axis=-1)
    return place


def _compare_several_classes(outputs: Array, label: Array) -> Comparison:
    logits = outputs.astype(np.float64)
    is_so, predicted = label > 0.5, logits > 0
    right = is_so == predicted
    # Neither of the two overflows: exp of nothing above 0.
    small = np.exp(-abs(logits))
    entropy = np.maximum(logits, 0) - logits * label + np.log1p(small)
    return Comparison(
        {
            "nll": entropy.sum(-1),
            "accuracy": right.mean(-1),
            "exact_match": right.all(-1).astype(np.float64),
        },
        {"actual": _pairs(is_so), "predicted": _pairs(predicted), "right": _pairs(is_so & predicted)},
        said=(np.where(predicted, 1, small) / (1 + small), is_so),
        scores=outputs,
    )


def _pairs(chosen: Array) -> tuple[Array, Array]:
    """(row, class) wherever bool[rows, classes] is so. Of one dimension, NumPy is several times as fast."""
    rows, classes = np.divmod(np.flatnonzero(chosen), chosen.shape[1])
    return rows, classes
