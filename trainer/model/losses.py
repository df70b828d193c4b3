"""The loss of each record or step, from the output of the model before softmax or sigmoid."""

from collections.abc import Mapping, Sequence

import tensorflow as tf

from pipeline.format.manifest import FeatureStatistics
from pipeline.schema.labels import MULTILABEL, REGRESSION
from trainer.data.target import Target


def compute_losses(outputs: tf.Tensor, label: tf.Tensor, kind: str, column_scale: Sequence[float] = ()) -> tf.Tensor:
    """The loss of each record [batch], or of each step [batch, time], from the output of `head_model`.

    In nats: cross-entropy for class, step_class and distribution, the sum of all classes' binary cross-entropies for
    multilabel and step_multilabel. The squared error for a regression; for one of vectors the mean over the columns.

    Args:
        column_scale: As `column_scales` gives it.
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
    """What the squared errors of a vector's columns are multiplied by, so that no unit outweighs another."""
    if target.kind not in REGRESSION or not target.is_vector:
        return ()
    found = statistics.get(target.next_of or "")
    return tuple(1 / v if v > 0 else 1.0 for v in found.variance) if found else (1.0,) * target.size
