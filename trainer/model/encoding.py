"""Encodes the features of a batch as numbers: lookup, filling of missing values, normalization and embedding."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from pipeline.format.models import FeatureStatistics
from pipeline.format.scaling import ScaledStatistics
from pipeline.schema.features import Feature
from pipeline.schema.schema import Schema
from trainer.data.target import Vocabularies
from trainer.model.layers import Fill, FlattenSteps, Indicator, Lookup, Standardize, ZeroPadding
from trainer.model.unique_names import UniqueName

Statistics = Mapping[str, FeatureStatistics]


def encode_features(
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
        return concatenate([encoded, Indicator(name=self._name("missing"))(flat)], self._name("with_missing"))

    def _encode_numbers(self, flat: Any, _: type[keras.layers.Layer]) -> Any:
        width, statistics = self._feature.width, self._statistics
        mean = list(statistics.mean) if statistics else [0.0] * width
        if self._feature.allows_nulls:
            fill = self._feature.fill_value
            flat = Fill(mean if fill in (None, "mean") else [fill] * width, name=self._name("fill"))(flat)
        if statistics is None:
            return flat
        scaled = statistics if isinstance(statistics, ScaledStatistics) else ScaledStatistics.of(statistics)
        return Standardize(mean, scale=scaled.divisors(), bound=scaled.bound, name=self._name("standard"))(flat)

    def _encode_categories(self, flat: Any, flatten: type[keras.layers.Layer]) -> Any:
        feature = self._feature
        # A missing string needs no fill value: it is not in any vocabulary, and it has a hash of its own.
        fill = 0 if feature.dtype == "int64" and feature.missing == "indicator" else feature.fill_value
        if fill is not None:
            flat = Fill(fill, name=self._name("fill"))(flat)
        num_values = feature.num_values
        if self._terms is not None:
            terms = [term.decode() for term in self._terms]
            flat = Lookup(terms, bool(feature.lowercase), name=self._name("lookup"))(flat)
            num_values = len(self._terms) + 1
        elif feature.vocabulary is not None:
            raise ValueError("The schema has a vocabulary: pass vocabularies, from Dataset.vocabularies().")
        elif feature.dtype == "string":
            flat = keras.layers.Hashing(num_values, name=self._name("hash"))(flat)
        assert num_values is not None
        embed = keras.layers.Embedding(num_values, embedding_units(num_values), name=self._name("embedding"))
        return flatten(name=self._name("embedded"))(embed(flat))


def concatenate(parts: list[Any], name: str) -> Any:
    """Joins tensors along their last axis. A single tensor needs no layer."""
    return keras.layers.Concatenate(name=name)(parts) if len(parts) > 1 else parts[0]


def embedding_units(num_values: int) -> int:
    """Returns the width of the embedding of a feature with `num_values` categories.

    This is a common rule of thumb: 1.6 times the number of categories to the power of 0.56, at most 100.

    >>> [embedding_units(n) for n in (2, 9, 600, 20_000)]
    [2, 5, 58, 100]
    """
    return min(100, round(1.6 * num_values**0.56))
