"""Builds the stacked LSTM: raw values and `length` in, probabilities or numbers out, exact under any padding."""

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

# A name for a layer -> that name, or one like it that no feature has: in Keras all names differ, inputs' too.
Namer = Callable[[str], str]
Statistics = Mapping[str, FeatureStatistics]

_POOLING: dict[str, type[keras.layers.Layer]] = {"last": LastStep, "mean": MeanStep, "max": MaxStep}


def build_model(
    schema: Schema,
    statistics: Statistics,
    config: TrainConfig | None = None,
    *,
    vocabularies: Vocabularies | None = None,
) -> keras.Model:
    """A Keras model of a dict of inputs: the features of a batch as `batches` gives them, and `length`.

    Its output is float32[batch, classes] for class, distribution and multilabel, [batch] for regression,
    [batch, time, classes] for step_class and step_multilabel, [batch, time] for step_regression (or
    [batch, time, width] where a vector comes next). Normalization, lookup, filling and embedding are inside. No weight
    depends on a length.

    Args:
        vocabularies: As the dataset or the run has them; needed where the schema has a vocabulary.

    Raises:
        UserError: the configuration does not go with the label.
    """
    config = config or TrainConfig()
    vocabularies = vocabularies or {}
    target = make_target(schema, vocabularies)
    check_config(config, target)
    named = _make_namer(schema)
    inputs: dict[str, Any] = {
        name: keras.Input((*((None,) if name in schema.steps else ()), *feature.shape), name=name, dtype=feature.dtype)
        for name, feature in schema.features.items()
    }
    length = inputs["length"] = keras.Input((), name="length", dtype="int32")
    steps, context = [], []
    for number, (name, feature) in enumerate(schema.features.items()):
        # Numbered, for a feature's name may hold what TensorFlow takes in no name of an operation.
        encode = _Encoder(feature, statistics.get(name), vocabularies.get(name), number, named)
        if name in schema.steps:
            steps.append(encode(ZeroPadding(name=named(f"steps_{number}"))(inputs[name], length), FlattenSteps))
        else:
            context.append(encode(inputs[name], keras.layers.Flatten))
    hidden = _join(steps, named("features"))
    for number, units in enumerate(config.units):
        last = number == len(config.units) - 1 and not target.per_step
        hidden = _recur(hidden, length, units, config, number, named, last=last)
        if config.dropout:
            hidden = Dropout(config.dropout, name=named(f"dropout_{number}"))(hidden)
    if context:
        known = _join(context, named("context"))
        known = RepeatLike(name=named("context_steps"))(known, hidden) if target.per_step else known
        hidden = _join([hidden, known], named("with_context"))
    found = statistics.get(schema.label.next_of or schema.label.name or "")
    return keras.Model(inputs, _head(hidden, target, found, named), name="lengthwise")


def check_config(config: TrainConfig, target: Target) -> None:
    """Raises a UserError if a model so configured cannot learn, or would learn nothing from, what is asked of it."""
    if target.per_step and config.pooling != "last":
        raise UserError(f"pooling {config.pooling}: each step has its own label ({target.kind}); leave pooling out.")
    if target.next_of is not None and config.bidirectional:
        raise UserError(
            f"bidirectional: reads each next step, and so the label (next_of {target.next_of}); leave it out."
        )


def head_model(model: keras.Model) -> keras.Model:
    """The same weights, with the output before softmax or sigmoid: a probability rounded to 0 has no gradient."""
    last = model.layers[-1]
    is_probability = isinstance(last, keras.layers.Softmax | keras.layers.Activation)
    return keras.Model(model.input, last.input if is_probability else model.output, name="lengthwise_head")


def embedding_units(num_values: int) -> int:
    """Width of an embedding, by a rule of thumb that is common in practice: it grows with the root of the categories.

    >>> [embedding_units(n) for n in (2, 9, 600, 20_000)]
    [2, 5, 58, 100]
    """
    return min(100, round(1.6 * num_values**0.56))


def _make_namer(schema: Schema) -> Namer:
    def named(name: str) -> str:
        return next(free for free in (name + "_" * n for n in itertools.count()) if free not in schema.features)

    return named


def _join(parts: list[Any], name: str) -> Any:
    return keras.layers.Concatenate(name=name)(parts) if len(parts) > 1 else parts[0]


class _Encoder:
    """Turns a feature into numbers that a network can read, float32[batch, time, width] or [batch, width]."""

    def __init__(
        self,
        feature: Feature,
        statistics: FeatureStatistics | None,
        terms: Sequence[bytes] | None,
        number: int,
        named: Namer,
    ) -> None:
        self._feature, self._statistics, self._terms = feature, statistics, terms
        self._name: Callable[[str], str] = lambda name: named(f"{name}_{number}")

    def __call__(self, values: Any, flatten: type[keras.layers.Layer]) -> Any:
        """Of values[batch, time, *shape] or [batch, *shape], flattened by such a layer."""
        flat = flatten(name=self._name("flat"))(values)
        encode = self._encode_numbers if self._feature.dtype == "float32" else self._encode_categories
        encoded = encode(flat, flatten)
        if self._feature.missing != "indicator":
            return encoded
        return _join([encoded, Indicator(name=self._name("missing"))(flat)], self._name("with_missing"))

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
        # A string that is missing needs no other: it is in no vocabulary, and its hash is one of its own.
        fill = 0 if feature.dtype == "int64" and feature.missing == "indicator" else feature.fill_value
        if fill is not None:
            flat = Fill(fill, name=self._name("fill"))(flat)
        num_values = feature.num_values
        if self._terms is not None:
            flat = Lookup([term.decode() for term in self._terms], name=self._name("lookup"))(flat)
            num_values = len(self._terms) + 1
        elif feature.vocabulary is not None:
            raise ValueError("The schema has a vocabulary: pass vocabularies, as Dataset and Run have them.")
        elif feature.dtype == "string":
            flat = keras.layers.Hashing(num_values, name=self._name("hash"))(flat)
        assert num_values is not None
        embed = keras.layers.Embedding(num_values, embedding_units(num_values), name=self._name("embedding"))
        return flatten(name=self._name("embedded"))(embed(flat))


def _recur(hidden: Any, length: Any, units: int, config: TrainConfig, number: int, named: Namer, *, last: bool) -> Any:
    """One layer, in one direction or both; of the last layer only what pooling leaves of the steps, where `last`."""
    cell = keras.layers.LSTM if config.cell == "lstm" else keras.layers.GRU

    def run(values: Any, name: str) -> Any:
        # Never recurrent_dropout: it rules the cuDNN kernel out.
        return cell(units, return_sequences=True, name=named(name))(values)

    forward = run(hidden, f"{config.cell}_{number}")
    read = _POOLING[config.pooling](name=named(f"{config.pooling}_{number}")) if last else None
    if not config.bidirectional:
        return read(forward, length) if read else forward
    reverse = ReverseSteps(name=named(f"reverse_{number}"))
    backward = run(reverse(hidden, length), f"{config.cell}_{number}_backward")
    # Read from the end, the last step is the record's first; to mean and max the order is all one.
    both = [read(forward, length), read(backward, length)] if read else [forward, reverse(backward, length)]
    return keras.layers.Concatenate(name=named(f"both_{number}"))(both)


def _head(hidden: Any, target: Target, statistics: FeatureStatistics | None, named: Namer) -> Any:
    """The output; `statistics` are those of the numbers that a regression is to give."""
    outputs = keras.layers.Dense(target.size, name=named("head"))(hidden)
    if target.kind in MULTILABEL:
        return keras.layers.Activation("sigmoid", name=named("probabilities"))(outputs)
    if target.kind not in REGRESSION:
        return keras.layers.Softmax(name=named("probabilities"))(outputs)
    if not target.is_vector:
        outputs = DropLastAxis(name=named("number"))(outputs)
    mean = list(statistics.mean) if statistics else [0.0] * target.size
    variance = list(statistics.variance) if statistics else [1.0] * target.size
    return Unstandardize(mean, variance, name=named("value"))(outputs)


def count_parameters(model: keras.Model) -> int:
    return int(sum(np.prod(weight.shape) for weight in model.weights))
