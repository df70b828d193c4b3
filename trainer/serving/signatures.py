"""What a SavedModel answers to: inputs by the names of the features, or serialized Examples; without Lengthwise."""

import itertools
import keyword
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

from pipeline.schema.labels import REGRESSION
from pipeline.schema.schema import Schema
from trainer.data.examples import DTYPES, context_spec
from trainer.data.target import Target

SERVING, SERIALIZED = "serving_default", "serialized"
LENGTH, EXAMPLES = "length", "examples"

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# What TensorFlow calls the first argument of a function itself.
_TAKEN = ("self", LENGTH)

Tensors = dict[str, tf.Tensor]


def input_names(features: Iterable[str]) -> dict[str, str]:
    """A name that a signature may have, for each feature: its own where that is a plain one.

    TensorFlow wants identifiers there that differ by more than case, and fails on others or renames them unasked.

    >>> input_names(["x", "a b", "ü.y", "X", "速", "class"])
    {'x': 'x', 'a b': 'a_b', 'ü.y': 'u_y', 'X': 'X_1', '速': 'feature', 'class': 'class_1'}
    """
    features = list(features)
    names: dict[str, str] = {}
    taken = set(_TAKEN)
    # Names that may stay come first, so that no other takes one from them.
    for name in sorted(features, key=lambda name: _PLAIN.fullmatch(name) is None):
        plain = _make_plain(name)
        candidates = itertools.chain([plain], (f"{plain}_{n}" for n in itertools.count(1)))
        names[name] = next(c for c in candidates if c.lower() not in taken and not keyword.iskeyword(c))
        taken.add(names[name].lower())
    return {name: names[name] for name in features}


def output_name(target: Target) -> str:
    if target.kind not in REGRESSION:
        return "probabilities"
    return "values" if target.per_step else "value"


def make_signatures(model: keras.Model, schema: Schema, target: Target) -> dict[str, Callable[..., Tensors]]:
    """The functions of a SavedModel, traced.

    Both give float32 under the name that `output_name` says, and `length` int32[batch] where there is an output for
    each step: those at and after it are padding.
    """
    names = input_names(schema.features)

    def answer(features: Tensors) -> Tensors:
        features = features | {LENGTH: _check_length(features, schema)}
        outputs = {output_name(target): model(features, training=False)}
        return outputs | ({LENGTH: features[LENGTH]} if target.per_step else {})

    @tf.function(autograph=False)
    def serve(**inputs: tf.Tensor) -> Tensors:
        return answer({name: inputs[names.get(name, name)] for name in (*names, LENGTH)})

    @tf.function(autograph=False)
    def serve_examples(examples: tf.Tensor) -> Tensors:
        return answer(_parse(examples, schema))

    return {
        SERVING: serve.get_concrete_function(**_specs(model, names)),
        SERIALIZED: serve_examples.get_concrete_function(tf.TensorSpec([None], tf.string, EXAMPLES)),
    }


def _specs(model: keras.Model, names: dict[str, str]) -> dict[str, tf.TensorSpec]:
    return {
        names.get(name, name): tf.TensorSpec(tensor.shape, tensor.dtype, names.get(name, name))
        for name, tensor in model.input.items()
    }


def _make_plain(name: str) -> str:
    if _PLAIN.fullmatch(name):
        return name
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9_]", "_", ascii_name)
    return plain if _PLAIN.fullmatch(plain) else "_".join(filter(None, ["feature", plain.strip("_")]))


def _check_length(features: Tensors, schema: Schema) -> tf.Tensor:
    """`length`, once it is known to be of records with at least one step, and none that is not there."""
    length = features[LENGTH]
    checks = [tf.debugging.assert_positive(length, "length: a record has no step, expected at least one.")]
    for name in schema.steps:
        message = f"length: larger than the number of steps of {name!r} in this batch."
        checks.append(tf.debugging.assert_less_equal(length, tf.shape(features[name])[1], message))
    with tf.control_dependencies(checks):
        return tf.identity(length)


def _parse(examples: tf.Tensor, schema: Schema) -> Tensors:
    """Examples as `prepare` writes them, string[batch] -> the features and `length`, padded to the longest."""
    # Not as the reader parses a dataset, whose every record was checked: a step that is missing would be a zero.
    spec: dict[str, Any] = {
        name: tf.io.RaggedFeature(DTYPES[feature.dtype], row_splits_dtype=tf.int64)
        for name, feature in schema.steps.items()
    }
    spec |= {name: context_spec(feature) for name, feature in schema.context.items()}
    parsed = tf.io.parse_example(examples, spec | {LENGTH: tf.io.FixedLenFeature([], tf.int64)})
    length = parsed[LENGTH]
    longest = tf.reduce_max(tf.concat([[1], length], 0))  # an LSTM cannot read no step, even of no record
    features = {name: parsed[name] for name in schema.context}
    for name, feature in schema.steps.items():
        message = f"{name}: the number of values is not length x {feature.width}."
        fits = tf.debugging.assert_equal(parsed[name].row_lengths(), length * feature.width, message)
        with tf.control_dependencies([fits]):
            padded = parsed[name].to_tensor(shape=[None, None])
        shape = tf.concat([[tf.shape(padded, tf.int64)[0], longest], tf.constant(feature.shape, tf.int64)], 0)
        features[name] = tf.ensure_shape(tf.reshape(padded, shape), [None, None, *feature.shape])
    return features | {LENGTH: tf.cast(length, tf.int32)}
