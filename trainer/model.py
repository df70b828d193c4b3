"""Builds the stacked LSTM: raw values and `length` in, probabilities or numbers out, exact under any padding."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.manifest import FeatureStatistics
from pipeline.schema import Feature, Label, Schema
from trainer.config import TrainConfig
from trainer.layers import (
    DropLastAxis,
    FlattenSteps,
    LastStep,
    ReverseSteps,
    Standardize,
    Unstandardize,
    ZeroPadding,
)

# The layer whose output the loss is taken of: probabilities that were rounded to 0 have no gradient.
HEAD = "head"


def build_model(
    schema: Schema, statistics: Mapping[str, FeatureStatistics], config: TrainConfig | None = None
) -> keras.Model:
    """A Keras model of a dict of inputs: each step feature [batch, time, *shape], and `length` int32[batch].

    Its output is float32[batch, classes] for class and distribution, [batch] for regression, [batch, time, classes]
    for step_class. Normalization and embedding are inside. No weight depends on a length.
    """
    config = config or TrainConfig()
    inputs: dict[str, Any] = {
        name: keras.Input((None, *feature.shape), name=name, dtype=feature.dtype)
        for name, feature in schema.steps.items()
    }
    length = inputs["length"] = keras.Input((), name="length", dtype="int32")
    encoded = [
        _encode(name, feature, ZeroPadding(name=f"{name}_steps")(inputs[name], length), statistics.get(name))
        for name, feature in schema.steps.items()
    ]
    hidden = keras.layers.Concatenate(name="features")(encoded) if len(encoded) > 1 else encoded[0]
    for number, units in enumerate(config.units):
        last = number == len(config.units) - 1 and not schema.label.per_step
        hidden = _recur(hidden, length, units, config, number=number, last=last)
        if config.dropout:
            hidden = keras.layers.Dropout(config.dropout, name=f"dropout_{number}")(hidden)
    return keras.Model(inputs, _head(hidden, schema.label, statistics), name="lengthwise")


def head_model(model: keras.Model) -> keras.Model:
    """The same weights, with the output before the softmax: what the loss is computed from."""
    return keras.Model(model.input, model.get_layer(HEAD).output, name="lengthwise_head")


def embedding_units(num_values: int) -> int:
    """Width of an embedding, by a rule of thumb that is common in practice: it grows with the root of the categories.

    >>> [embedding_units(n) for n in (2, 9, 600, 20_000)]
    [2, 5, 57, 100]
    """
    return min(100, round(1.6 * num_values**0.56))


def _encode(name: str, feature: Feature, values: Any, statistics: FeatureStatistics | None) -> Any:
    """A step feature as float32[batch, time, width]."""
    if feature.dtype == "float32":
        flat = FlattenSteps(name=f"{name}_flat")(values)
        if statistics is None:
            return flat
        return Standardize(list(statistics.mean), list(statistics.variance), name=f"{name}_standard")(flat)
    assert feature.num_values is not None
    if feature.dtype == "string":
        values = keras.layers.Hashing(feature.num_values, name=f"{name}_hash")(values)
    embedded = keras.layers.Embedding(
        feature.num_values, embedding_units(feature.num_values), name=f"{name}_embedding"
    )(values)
    return FlattenSteps(name=f"{name}_flat")(embedded)


def _recur(hidden: Any, length: Any, units: int, config: TrainConfig, *, number: int, last: bool) -> Any:
    """One layer, in one direction or both; of the last layer only the last step is read where `last`."""
    cell = keras.layers.LSTM if config.cell == "lstm" else keras.layers.GRU

    def run(values: Any, name: str) -> Any:
        # Never recurrent_dropout: it rules the cuDNN kernel out.
        return cell(units, return_sequences=True, name=name)(values)

    forward = run(hidden, f"{config.cell}_{number}")
    read = LastStep(name=f"last_{number}") if last else None
    if not config.bidirectional:
        return read(forward, length) if read else forward
    reverse = ReverseSteps(name=f"reverse_{number}")
    backward = run(reverse(hidden, length), f"{config.cell}_{number}_backward")
    # Read from the end, the last step is the record's first.
    both = [read(forward, length), read(backward, length)] if read else [forward, reverse(backward, length)]
    return keras.layers.Concatenate(name=f"both_{number}")(both)


def _head(hidden: Any, label: Label, statistics: Mapping[str, FeatureStatistics]) -> Any:
    if label.kind != "regression":
        logits = keras.layers.Dense(len(label.classes), name=HEAD)(hidden)
        return keras.layers.Softmax(name="probabilities")(logits)
    value = DropLastAxis(name="value")(keras.layers.Dense(1, name="unit")(hidden))
    found = statistics.get(label.name)
    mean, variance = (found.mean[0], found.variance[0]) if found else (0.0, 1.0)
    return Unstandardize(mean, variance, name=HEAD)(value)


def losses(outputs: tf.Tensor, label: tf.Tensor, kind: str) -> tf.Tensor:
    """The loss of each record [batch], or of each step [batch, time], from the output of `head_model`.

    Cross-entropy in nats for class, step_class and distribution; the squared error for regression.
    """
    if kind == "regression":
        return tf.square(outputs - label)
    if kind == "distribution":
        return tf.nn.softmax_cross_entropy_with_logits(label, outputs)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(label, outputs)


def count_parameters(model: keras.Model) -> int:
    return int(sum(np.prod(weight.shape) for weight in model.weights))
