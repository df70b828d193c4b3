"""Turns serialized records, and arrays of stored values, into the (features, label, weight) of a batch."""

from typing import Any

import tensorflow as tf

from pipeline.format.stored_fields import StoredField, stored_fields
from pipeline.schema.features import Feature
from pipeline.schema.record import NO_LABEL
from pipeline.schema.schema import Schema
from trainer.data.lookup import Lookup, is_missing, make_lookup
from trainer.data.target import Vocabularies

DTYPES = {"float32": tf.float32, "int64": tf.int64, "string": tf.string}

# Of each stored field its values: [batch, time, *shape], or [batch, *shape] of one a record.
Values = dict[str, tf.Tensor]


def parse_records(serialized: tf.Tensor, length: tf.Tensor, schema: Schema) -> Values:
    """Serialized Examples string[batch] -> all fields but the length, steps padded to the longest record.

    Args:
        length: int32[batch], steps by the index, which the records themselves must confirm.
    """
    parsed = tf.io.parse_example(serialized, example_spec(schema))
    same = tf.debugging.assert_equal(
        tf.cast(length, tf.int64), parsed.pop("length"), "A record has another length than its index says: run verify."
    )
    with tf.control_dependencies([same]):
        return {name: tf.identity(value) for name, value in parsed.items()}


def pad_steps(values: Values, time: tf.Tensor, schema: Schema) -> Values:
    """The same with steps [batch, time, …] made `time`."""
    fields = {field.name: field for field in stored_fields(schema)}
    return {n: _pad(value, time, fields[n].padding) if fields[n].per_step else value for n, value in values.items()}


def assemble(
    values: Values, length: tf.Tensor, schema: Schema, lookup: Lookup | None
) -> tuple[Values, tf.Tensor, tf.Tensor]:
    """Stored values as the (features, label, weight) that a model takes."""
    features = {name: values[name] for name in schema.features} | {"length": length}
    label = None if schema.label.name is None else values[schema.label.name]
    return features, *label_and_weight(label, features, schema, lookup)


def label_and_weight(
    label: tf.Tensor | None, features: dict[str, tf.Tensor], schema: Schema, lookup: Lookup | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """A label as it was stored -> the label, with some valid value where there is none, and its float32 weight.

    Args:
        label: None where it is the next value of a step feature.
        lookup: Numbers the strings of such a feature.
    """
    kind = schema.label.kind
    if schema.label.next_of is not None:
        return _next_values(features[schema.label.next_of], features["length"], lookup)
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


def _next_values(values: tf.Tensor, length: tf.Tensor, lookup: Lookup | None) -> tuple[tf.Tensor, tf.Tensor]:
    """The value of the next step, at every step, and 1 where there is one and nothing of it is missing."""
    following = tf.concat([values[:, 1:], values[:, :1]], axis=1)
    present = ~is_missing(following)
    if present.shape.rank > 2:
        present = tf.reduce_all(present, axis=2)
    real = tf.sequence_mask(length, tf.shape(values)[1])
    known = tf.concat([real[:, 1:], tf.zeros_like(real[:, :1])], axis=1) & present
    if following.dtype == tf.string:
        assert lookup is not None
        following = lookup(following)
    elif following.dtype == tf.int64:
        following = tf.maximum(following, 0)
    else:
        following = tf.where(tf.math.is_nan(following), 0.0, following)
    return following, tf.cast(known, tf.float32)


def label_lookup(schema: Schema, vocabularies: Vocabularies) -> Lookup | None:
    """What numbers the strings of the feature whose next value is the label; None where there are none."""
    name = schema.label.next_of
    return make_lookup(tuple(vocabularies[name])) if name is not None and name in vocabularies else None


def example_spec(schema: Schema, *, labelled: bool = True) -> dict[str, Any]:
    """How tf.io.parse_example reads a record of this schema: step features come out padded to the longest."""

    def spec(field: StoredField) -> Any:
        shape, dtype = list(field.shape), DTYPES[field.dtype]
        if not field.per_step:
            return tf.io.FixedLenFeature(shape, dtype)
        return tf.io.FixedLenSequenceFeature(shape, dtype, allow_missing=True, default_value=field.padding)

    return {field.name: spec(field) for field in stored_fields(schema, labelled=labelled)}


def step_spec(feature: Feature) -> Any:
    return tf.io.FixedLenSequenceFeature(list(feature.shape), DTYPES[feature.dtype], allow_missing=True)


def context_spec(feature: Feature) -> Any:
    return tf.io.FixedLenFeature(list(feature.shape), DTYPES[feature.dtype])


def _pad(value: tf.Tensor, length: tf.Tensor, padding: float | str) -> tf.Tensor:
    """value[batch, time, …] with time made `length`."""
    missing = length - tf.shape(value)[1]
    paddings = [[0, 0], [0, missing], *([[0, 0]] * (value.shape.rank - 2))]
    padded = tf.pad(value, paddings, constant_values=tf.constant(padding, value.dtype))
    return tf.ensure_shape(padded, [None, None, *value.shape[2:]])


def fill_rows(batch: Any, rows: tf.Tensor) -> Any:
    """A batch (features, label, weight, row) with rows of one step, of weight 0, so that there are `rows`."""
    features, label, weight, row = batch
    missing = rows - tf.shape(row)[0]

    def add(value: tf.Tensor, filler: float | str = 0) -> tf.Tensor:
        blank = "" if value.dtype == tf.string else filler
        paddings = [[0, missing], *([[0, 0]] * (value.shape.rank - 1))]
        return tf.pad(value, paddings, constant_values=tf.constant(blank, value.dtype))

    features = {name: add(value, 1 if name == "length" else 0) for name, value in features.items()}
    return features, add(label), add(weight), add(row, -1)
