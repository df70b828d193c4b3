"""Makes the label and the weight of a batch from its stored values."""

import tensorflow as tf

from pipeline.schema.record import NO_LABEL
from pipeline.schema.schema import NEXT_STEP, Schema
from trainer.data.examples import Values, is_missing
from trainer.data.lookup import LookupFn, make_lookup
from trainer.data.target import Vocabularies


def split_label(
    values: Values, length: tf.Tensor, schema: Schema, lookup: LookupFn | None
) -> tuple[Values, tf.Tensor, tf.Tensor]:
    """Returns the (features, label, weight) of a batch, as the model takes them.

    Args:
        values: The stored values of the batch.
        length: int32[batch], steps of each record.
        lookup: As for `label_and_weight`.
    """
    features = {name: values[name] for name in schema.features} | {"length": length}
    label = None if schema.label.name is None else values[schema.label.name]
    return features, *label_and_weight(label, features, schema, lookup, values.get(NEXT_STEP))


def label_and_weight(
    label: tf.Tensor | None,
    features: dict[str, tf.Tensor],
    schema: Schema,
    lookup: LookupFn | None = None,
    next_step: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the label and its float32 weight.

    A missing label becomes some valid value with weight 0.

    Args:
        label: The stored label. None if the label is the next value of a step feature (`next_of`).
        features: The features of the batch, `length` included.
        lookup: Returns the indexes of the strings of a step feature. Needed for `next_of` a string.
        next_step: [batch, *shape], the value after the last step of each row, for `next_of`. By default, it is missing.
    """
    kind = schema.label.kind
    if schema.label.next_of is not None:
        return _next_values(features[schema.label.next_of], features["length"], lookup, next_step)
    assert label is not None
    if kind == "step_regression":
        known = tf.math.is_finite(label)
        return tf.where(known, label, 0.0), tf.cast(known, tf.float32)
    if kind == "step_class":
        return tf.maximum(label, 0), tf.cast(label != NO_LABEL, tf.float32)
    if kind == "step_multilabel":
        return tf.cast(tf.maximum(label, 0), tf.float32), tf.cast(label[:, :, 0] != NO_LABEL, tf.float32)
    if kind == "multilabel":
        label = tf.cast(label, tf.float32)
    return label, tf.ones(tf.shape(label)[:1])


def _next_values(
    values: tf.Tensor, length: tf.Tensor, lookup: LookupFn | None, next_step: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the value of the next step at every step, and weight 1 where it exists and no part of it is missing."""
    following = tf.concat([values[:, 1:], values[:, :1]], axis=1)
    real = tf.sequence_mask(length, tf.shape(values)[1])
    has_next = tf.concat([real[:, 1:], tf.zeros_like(real[:, :1])], axis=1)
    if next_step is not None:
        is_last = real & ~has_next
        shape = tf.concat([tf.shape(is_last), tf.ones([values.shape.rank - 2], tf.int32)], axis=0)
        following = tf.where(tf.reshape(is_last, shape), next_step[:, None], following)
        has_next = real
    present = ~is_missing(following)
    if present.shape.rank > 2:
        present = tf.reduce_all(present, axis=2)
    known = has_next & present
    if following.dtype == tf.string:
        assert lookup is not None
        following = lookup(following)
    elif following.dtype == tf.int64:
        following = tf.maximum(following, 0)
    else:
        following = tf.where(tf.math.is_nan(following), 0.0, following)
    return following, tf.cast(known, tf.float32)


def make_label_lookup(schema: Schema, vocabularies: Vocabularies) -> LookupFn | None:
    """Returns the lookup of the step feature whose next value is the label, or None if there is no vocabulary."""
    name = schema.label.next_of
    return make_lookup(tuple(vocabularies[name])) if name is not None and name in vocabularies else None
