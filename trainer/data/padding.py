"""Pads the tensors of a batch: steps to a length, and rows to a number of records."""

from typing import Any

import tensorflow as tf

from pipeline.format.stored_fields import stored_fields
from pipeline.schema.schema import Schema
from trainer.data.examples import Values


def pad_steps(values: Values, time: tf.Tensor, schema: Schema) -> Values:
    """Returns the stored values with all step fields padded to `time` steps: [batch, time, *shape]."""
    fields = {field.name: field for field in stored_fields(schema)}
    return {n: _pad(value, time, fields[n].padding) if fields[n].per_step else value for n, value in values.items()}


def _pad(value: tf.Tensor, time: tf.Tensor, padding: float | str) -> tf.Tensor:
    missing = time - tf.shape(value)[1]
    paddings = [[0, 0], [0, missing], *([[0, 0]] * (value.shape.rank - 2))]
    padded = tf.pad(value, paddings, constant_values=tf.constant(padding, value.dtype))
    return tf.ensure_shape(padded, [None, None, *value.shape[2:]])


def add_filler_rows(batch: Any, rows: tf.Tensor) -> Any:
    """Returns a batch (features, label, weight, row) with filler rows at its end.

    A filler row has one step of padding, weight 0 and `row` -1.

    Args:
        rows: Number of rows of the result.
    """
    features, label, weight, row = batch
    missing = rows - tf.shape(row)[0]

    def add(value: tf.Tensor, filler: float | str = 0) -> tf.Tensor:
        blank = "" if value.dtype == tf.string else filler
        paddings = [[0, missing], *([[0, 0]] * (value.shape.rank - 1))]
        return tf.pad(value, paddings, constant_values=tf.constant(blank, value.dtype))

    features = {name: add(value, 1 if name == "length" else 0) for name, value in features.items()}
    return features, add(label), add(weight), add(row, -1)
