"""Builds the stacked LSTM: raw values and `length` in, probabilities or numbers out, exact under any padding."""

import itertools
from collections.abc import Callable, Mapping
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

# A name for a layer -> that name, or one like it that no feature has: in Keras all names differ, inputs' too.
Namer = Callable[[str], str]


def build_model(
    schema: Schema, statistics: Mapping[str, FeatureStatistics], config: TrainConfig | None = None
) -> keras.Model:
    """A Keras model of a dict of inputs: each step feature [batch, time, *shape], and `length` int32[batch].

    Its output is float32[batch, classes] for class and distribution, [batch] for regression, [batch, time, classes]
    for step_class. Normalization and embedding are inside. No weight depends on a length.
    """
    config = config or TrainConfig()
    named = _make_namer(schema)
    inputs: dict[str, Any] = {
        name: keras.Input((None, *feature.shape), name=name, dtype=feature.dtype)
        for name, feature in schema.steps.items()
    }
    length = inputs["length"] = keras.Input((), name="length", dtype="int32")
    encoded = []
    for number, (name, feature) in enumerate(schema.steps.items()):
        # Numbered, for a feature's name may hold what TensorFlow takes in no name of an operation.
        real = ZeroPadding(name=named(f"steps_{number}"))(inputs[name], length)
        encoded.append(_encode(real, feature, statistics.get(name), number, named))
    hidden = keras.layers.Concatenate(name=named("features"))(encoded) if len(encoded) > 1 else encoded[0]
    for number, units in enumerate(config.units):
        last = number == len(config.units) - 1 and not schema.label.per_step
        hidden = _recur(hidden, length, units, config, number, named, last=last)
        if config.dropout:
            hidden = keras.layers.Dropout(config.dropout, name=named(f"dropout_{number}"))(hidden)
    return keras.Model(inputs, _head(hidden, schema.label, statistics, named), name="lengthwise")


def head_model(model: keras.Model) -> keras.Model:
    """The same weights, with the output before the softmax: probabilities that were rounded to 0 have no gradient."""
    last = model.layers[-1]
    head = last.input if isinstance(last, keras.layers.Softmax) else model.output
    return keras.Model(model.input, head, name="lengthwise_head")


def embedding_units(num_values: int) -> int:
    """Width of an embedding, by a rule of thumb that is common in practice: it grows with the root of the categories.

    >>> [embedding_units(n) for n in (2, 9, 600, 20_000)]
    [2, 5, 58, 100]
    """
    return min(100, round(1.6 * num_values**0.56))


def _make_namer(schema: Schema) -> Namer:
    def named(name: str) -> str:
        return next(free for free in (name + "_" * n for n in itertools.count()) if free not in schema.steps)

    return named


def _encode(values: Any, feature: Feature, statistics: FeatureStatistics | None, number: int, named: Namer) -> Any:
    """A step feature as float32[batch, time, width]."""
    flatten = FlattenSteps(name=named(f"flat_{number}"))
    if feature.dtype == "float32":
        if statistics is None:
            return flatten(values)
        standardize = Standardize(list(statistics.mean), list(statistics.variance), name=named(f"standard_{number}"))
        return standardize(flatten(values))
    assert feature.num_values is not None
    if feature.dtype == "string":
        values = keras.layers.Hashing(feature.num_values, name=named(f"hash_{number}"))(values)
    embed = keras.layers.Embedding(
        feature.num_values, embedding_units(feature.num_values), name=named(f"embedding_{number}")
    )
    return flatten(embed(values))


def _recur(hidden: Any, length: Any, units: int, config: TrainConfig, number: int, named: Namer, *, last: bool) -> Any:
    """One layer, in one direction or both; of the last layer only the last step is read where `last`."""
    cell = keras.layers.LSTM if config.cell == "lstm" else keras.layers.GRU

    def run(values: Any, name: str) -> Any:
        # Never recurrent_dropout: it rules the cuDNN kernel out.
        return cell(units, return_sequences=True, name=named(name))(values)

    forward = run(hidden, f"{config.cell}_{number}")
    read = LastStep(name=named(f"last_{number}")) if last else None
    if not config.bidirectional:
        return read(forward, length) if read else forward
    reverse = ReverseSteps(name=named(f"reverse_{number}"))
    backward = run(reverse(hidden, length), f"{config.cell}_{number}_backward")
    # Read from the end, the last step is the record's first.
    both = [read(forward, length), read(backward, length)] if read else [forward, reverse(backward, length)]
    return keras.layers.Concatenate(name=named(f"both_{number}"))(both)


def _head(hidden: Any, label: Label, statistics: Mapping[str, FeatureStatistics], named: Namer) -> Any:
    if label.kind != "regression":
        logits = keras.layers.Dense(len(label.classes), name=named("head"))(hidden)
        return keras.layers.Softmax(name=named("probabilities"))(logits)
    value = DropLastAxis(name=named("number"))(keras.layers.Dense(1, name=named("head"))(hidden))
    found = statistics.get(label.name)
    mean, variance = (found.mean[0], found.variance[0]) if found else (0.0, 1.0)
    return Unstandardize(mean, variance, name=named("value"))(value)


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
