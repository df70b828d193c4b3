"""Parses serialized TFRecord Examples into tensors of stored values."""

import math
from typing import Any

import tensorflow as tf

from pipeline.format.stored_fields import StoredField, stored_fields
from pipeline.schema.features import Feature
from pipeline.schema.record import MISSING_INTEGER, MISSING_STRING
from pipeline.schema.schema import Schema

DTYPES = {"float32": tf.float32, "int64": tf.int64, "string": tf.string}
# Stored values for a missing value.
MISSING: dict[str, Any] = {"float32": math.nan, "int64": MISSING_INTEGER, "string": MISSING_STRING}

# The values of each stored field by its name: [batch, time, *shape] per step, or [batch, *shape] per record.
Values = dict[str, tf.Tensor]


def parse_examples(serialized: tf.Tensor, length: tf.Tensor, schema: Schema) -> Values:
    """Returns all fields of serialized Examples except the length, with steps padded to the longest record.

    Args:
        serialized: string[batch], Examples as the pipeline writes them.
        length: int32[batch], steps of each record by the index. The records must have the same lengths.
    """
    parsed = tf.io.parse_example(serialized, example_spec(schema))
    same = tf.debugging.assert_equal(
        tf.cast(length, tf.int64), parsed.pop("length"), "A record has another length than its index says: run verify."
    )
    with tf.control_dependencies([same]):
        return {name: tf.identity(value) for name, value in parsed.items()}


def example_spec(schema: Schema, *, labelled: bool = True) -> dict[str, Any]:
    """Returns the features argument of tf.io.parse_example for the records of this schema.

    Step features are padded to the longest record of the batch.

    Args:
        labelled: Whether the records have their label.
    """

    def spec(field: StoredField) -> Any:
        shape, dtype = list(field.shape), DTYPES[field.dtype]
        if not field.per_step:
            return tf.io.FixedLenFeature(shape, dtype)
        return tf.io.FixedLenSequenceFeature(shape, dtype, allow_missing=True, default_value=field.padding)

    return {field.name: spec(field) for field in stored_fields(schema, labelled=labelled)}


def step_spec(feature: Feature) -> Any:
    """Returns how TensorFlow parses a step feature: [time, *shape]."""
    return tf.io.FixedLenSequenceFeature(list(feature.shape), DTYPES[feature.dtype], allow_missing=True)


def context_spec(feature: Feature) -> Any:
    """Returns how TensorFlow parses a context feature: [*shape]. An absent one is missing, if the schema allows it."""
    default = [MISSING[feature.dtype]] * feature.width if feature.allows_nulls else None
    return tf.io.FixedLenFeature(list(feature.shape), DTYPES[feature.dtype], default)


def is_missing(values: tf.Tensor) -> tf.Tensor:
    """Returns which stored values stand for a missing value: bool of the shape of `values`."""
    if values.dtype == tf.string:
        return values == MISSING_STRING
    return values < 0 if values.dtype == tf.int64 else tf.math.is_nan(values)
