"""Builds the stacked LSTM, which maps raw features and `length` to predictions that no padding changes."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from pipeline.errors import UserError
from pipeline.format.manifest import FeatureStatistics
from pipeline.schema.features import Feature
from pipeline.schema.labels import MULTILABEL, REGRESSION
from pipeline.schema.schema import Schema
from trainer.config import TrainConfig
from trainer.data.target import Target, Vocabularies, make_target
from trainer.model.layers import (
    DropLastAxis,
    Dropout,
    Fill,
    FlattenSteps,
    Indicator,
    LastStep,
    Lookup,
    MaxStep,
    MeanStep,
    RepeatLike,
    ReverseSteps,
    Standardize,
    Unstandardize,
    ZeroPadding,
)

# Returns the name itself, or a variant that no feature has: all names in a Keras model differ, including its inputs'.
UniqueName = Callable[[str], str]
Statistics = Mapping[str, FeatureStatistics]

_POOLING: dict[str, type[keras.layers.Layer]] = {"last": LastStep, "mean": MeanStep, "max": MaxStep}


def build_model(
    schema: Schema,
    statistics: Statistics,
    config: TrainConfig | None = None,
    *,
    vocabularies: Vocabularies | None = None,
) -> keras.Model:
    """Returns an untrained Keras model that takes raw features and ignores padding.

    The input is a dict: each step feature as [batch, time, *shape] and each context feature as [batch, *shape], with
    the dtype in the schema, and `length` as int32[batch]. The output is float32, by label kind:

    class, distribution, multilabel: Probabilities[batch, classes].
    regression: Values[batch], in units of the label.
    step_class, step_multilabel: Probabilities[batch, time, classes].
    step_regression: Values[batch, time], or [batch, time, width] for the next value of a vector.

    Lookup, filling of missing values, embedding and normalization are layers of the model. No weight depends on the
    length of a record. The output at steps at and after `length` has no meaning.

    Args:
        statistics: Statistics of the train split by feature name, as the manifest stores them. A feature without
            statistics is not normalized.
        config: Layers, units, cell, direction, pooling and dropout. Default: TrainConfig().
        vocabularies: Strings of each feature with a vocabulary, from `Dataset.vocabularies` or `Run.vocabularies`.

    Raises:
        UserError: The configuration does not fit the label.
        ValueError: The schema has a vocabulary, and `vocabularies` is not passed.
    """
    config = config or TrainConfig()
    vocabularies = vocabularies or {}
    target = make_target(schema, vocabularies)
    check_config(config, target)
    unique = _make_unique_name(schema)
    inputs: dict[str, Any] = {
        name: keras.Input((*((None,) if name in schema.steps else ()), *feature.shape), name=name, dtype=feature.dtype)
        for name, feature in schema.features.items()
    }
    length = inputs["length"] = keras.Input((), name="length", dtype="int32")
    steps, context = _encode_features(schema, statistics, vocabularies, inputs, unique)
    hidden = _concatenate(steps, unique("features"))
    for number, units in enumerate(config.units):
        pool = number == len(config.units) - 1 and not target.per_step
        hidden = _recurrent_layer(hidden, length, units, config, number, unique, pool=pool)
        if config.dropout:
            hidden = Dropout(config.dropout, name=unique(f"dropout_{number}"))(hidden)
    if context:
        joined = _concatenate(context, unique("context"))
        joined = RepeatLike(name=unique("context_steps"))(joined, hidden) if target.per_step else joined
        hidden = _concatenate([hidden, joined], unique("with_context"))
    label_statistics = statistics.get(schema.label.next_of or schema.label.name or "")
    return keras.Model(inputs, _head(hidden, target, label_statistics, unique), name="lengthwise")


def check_config(config: TrainConfig, target: Target) -> None:
    """Checks that the model options fit the label.

    Raises:
        UserError: An option has no effect with this label, or gives the model access to the label.
    """
    if target.per_step and config.pooling != "last":
        raise UserError(f"pooling {config.pooling}: each step has its own label ({target.kind}); leave pooling out.")
    if target.next_of is not None and config.bidirectional:
        raise UserError(
            f"bidirectional: such a model reads the next step, which is the label (next_of {target.next_of}); leave it "
            "out."
        )


def head_model(model: keras.Model) -> keras.Model:
    """Returns a model with the same weights whose output is the one before softmax or sigmoid.

    Losses are computed from that output: a probability that is rounded to 0 has no gradient.
    """
    last = model.layers[-1]
    is_probability = isinstance(last, keras.layers.Softmax | keras.layers.Activation)
    return keras.Model(model.input, last.input if is_probability else model.output, name="lengthwise_head")


def embedding_units(num_values: int) -> int:
    """Returns the width of the embedding of a feature with `num_values` categories.

    This is a common rule of thumb: 1.6 times the number of categories to the power of 0.56, at most 100.

    >>> [embedding_units(n) for n in (2, 9, 600, 20_000)]
    [2, 5, 58, 100]
    """
    return min(100, round(1.6 * num_values**0.56))


def count_parameters(model: keras.Model) -> int:
    """Returns the number of values in all weights of the model."""
    return int(sum(np.prod(weight.shape) for weight in model.weights))


def _make_unique_name(schema: Schema) -> UniqueName:
    def unique_name(name: str) -> str:
        return next(free for free in (name + "_" * n for n in itertools.count()) if free not in schema.features)

    return unique_name


def _concatenate(parts: list[Any], name: str) -> Any:
    return keras.layers.Concatenate(name=name)(parts) if len(parts) > 1 else parts[0]


def _encode_features(
    schema: Schema, statistics: Statistics, vocabularies: Vocabularies, inputs: dict[str, Any], unique: UniqueName
) -> tuple[list[Any], list[Any]]:
    """Returns the encoded step features, float32[batch, time, width] each, and context features, [batch, width]."""
    steps, context = [], []
    for number, (name, feature) in enumerate(schema.features.items()):
        # Layers are named by number, because TensorFlow does not accept every feature name as a name of an operation.
        encode = _Encoder(feature, statistics.get(name), vocabularies.get(name), number, unique)
        if name in schema.steps:
            zero_padding = ZeroPadding(name=unique(f"steps_{number}"))
            steps.append(encode(zero_padding(inputs[name], inputs["length"]), FlattenSteps))
        else:
            context.append(encode(inputs[name], keras.layers.Flatten))
    return steps, context


class _Encoder:
    """Turns a feature into numbers that a network can read, float32[batch, time, width] or [batch, width]."""

    def __init__(
        self,
        feature: Feature,
        statistics: FeatureStatistics | None,
        terms: Sequence[bytes] | None,
        number: int,
        unique: UniqueName,
    ) -> None:
        self._feature, self._statistics, self._terms = feature, statistics, terms
        self._name: Callable[[str], str] = lambda name: unique(f"{name}_{number}")

    def __call__(self, values: Any, flatten: type[keras.layers.Layer]) -> Any:
        """Encodes values[batch, time, *shape] or [batch, *shape]; a `flatten` layer merges the axes of the shape."""
        flat = flatten(name=self._name("flat"))(values)
        encode = self._encode_numbers if self._feature.dtype == "float32" else self._encode_categories
        encoded = encode(flat, flatten)
        if self._feature.missing != "indicator":
            return encoded
        return _concatenate([encoded, Indicator(name=self._name("missing"))(flat)], self._name("with_missing"))

    def _encode_numbers(self, flat: Any, _: type[keras.layers.Layer]) -> Any:
        width, statistics = self._feature.width, self._statistics
        mean = list(statistics.mean) if statistics else [0.0] * width
        if self._feature.allows_nulls:
            fill = self._feature.fill_value
            flat = Fill(mean if fill in (None, "mean") else [fill] * width, name=self._name("fill"))(flat)
        if statistics is None:
            return flat
        return Standardize(mean, list(statistics.variance), name=self._name("standard"))(flat)

    def _encode_categories(self, flat: Any, flatten: type[keras.layers.Layer]) -> Any:
        feature = self._feature
        # A missing string needs no fill value: it is not in any vocabulary, and it has a hash of its own.
        fill = 0 if feature.dtype == "int64" and feature.missing == "indicator" else feature.fill_value
        if fill is not None:
            flat = Fill(fill, name=self._name("fill"))(flat)
        num_values = feature.num_values
        if self._terms is not None:
            flat = Lookup([term.decode() for term in self._terms], name=self._name("lookup"))(flat)
            num_values = len(self._terms) + 1
        elif feature.vocabulary is not None:
            raise ValueError("The schema has a vocabulary: pass vocabularies, from Dataset.vocabularies().")
        elif feature.dtype == "string":
            flat = keras.layers.Hashing(num_values, name=self._name("hash"))(flat)
        assert num_values is not None
        embed = keras.layers.Embedding(num_values, embedding_units(num_values), name=self._name("embedding"))
        return flatten(name=self._name("embedded"))(embed(flat))


def _recurrent_layer(
    hidden: Any, length: Any, units: int, config: TrainConfig, number: int, unique: UniqueName, *, pool: bool
) -> Any:
    """Returns the output of one layer, in one or both directions: of each step, or pooled over the steps."""
    cell = keras.layers.LSTM if config.cell == "lstm" else keras.layers.GRU

    def run(values: Any, name: str) -> Any:
        # Not recurrent_dropout: with it, Keras does not use the cuDNN kernel.
        return cell(units, return_sequences=True, name=unique(name))(values)

    forward = run(hidden, f"{config.cell}_{number}")
    pooling = _POOLING[config.pooling](name=unique(f"{config.pooling}_{number}")) if pool else None
    if not config.bidirectional:
        return pooling(forward, length) if pooling else forward
    reverse = ReverseSteps(name=unique(f"reverse_{number}"))
    backward = run(reverse(hidden, length), f"{config.cell}_{number}_backward")
    # In reverse order, the last step is the first step of the record. The mean and the maximum do not depend on order.
    both = [pooling(forward, length), pooling(backward, length)] if pooling else [forward, reverse(backward, length)]
    return keras.layers.Concatenate(name=unique(f"both_{number}"))(both)


def _head(hidden: Any, target: Target, statistics: FeatureStatistics | None, unique: UniqueName) -> Any:
    """Returns the output of the model. `statistics` are those of the label of a regression."""
    outputs = keras.layers.Dense(target.size, name=unique("head"))(hidden)
    if target.kind in MULTILABEL:
        return keras.layers.Activation("sigmoid", name=unique("probabilities"))(outputs)
    if target.kind not in REGRESSION:
        return keras.layers.Softmax(name=unique("probabilities"))(outputs)
    if not target.is_vector:
        outputs = DropLastAxis(name=unique("number"))(outputs)
    mean = list(statistics.mean) if statistics else [0.0] * target.size
    variance = list(statistics.variance) if statistics else [1.0] * target.size
    return Unstandardize(mean, variance, name=unique("value"))(outputs)
