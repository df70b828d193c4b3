"""Computes the losses of a batch from the model's output before softmax or sigmoid."""

from collections.abc import Mapping, Sequence

import tensorflow as tf

from pipeline.format.models import FeatureStatistics
from pipeline.schema.labels import MULTILABEL, REGRESSION
from trainer.data.target import Target


def compute_losses(outputs: tf.Tensor, label: tf.Tensor, kind: str, column_scale: Sequence[float] = ()) -> tf.Tensor:
    """Returns the loss of each record, float32[batch], or of each step, float32[batch, time].

    class, step_class, distribution: Cross-entropy, in nats.
    multilabel, step_multilabel: Sum of the binary cross-entropies of all classes, in nats.
    regression, step_regression: Squared error, in squared units of the label. For a label that is a vector, the mean
        over its columns of `column_scale` times the squared error.

    Args:
        outputs: Output of `head_model`.
        label: Label of a batch, as the reader yields it.
        kind: Kind of the label.
        column_scale: Result of `column_scales`.
    """
    if kind in MULTILABEL:
        return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(label, outputs), axis=-1)
    if kind in REGRESSION:
        error = tf.square(outputs - label)
        return tf.reduce_mean(error * tf.constant(column_scale, tf.float32), axis=-1) if column_scale else error
    if kind == "distribution":
        return tf.nn.softmax_cross_entropy_with_logits(label, outputs)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(label, outputs)


def column_scales(target: Target, statistics: Mapping[str, FeatureStatistics]) -> tuple[float, ...]:
    """Returns the factor of each column's squared error in the loss of a vector, or () for other labels.

    The factor is 1 ÷ variance, so that the unit of a column does not determine its share of the loss.
    """
    if target.kind not in REGRESSION or not target.is_vector:
        return ()
    found = statistics.get(target.next_of or "")
    return tuple(1 / v if v > 0 else 1.0 for v in found.variance) if found else (1.0,) * target.size
