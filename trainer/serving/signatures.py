"""Makes the signatures of a SavedModel, which run without Lengthwise: for features, for Examples, and for chunks."""

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
from trainer.model.chunks import chunk_model, find_stack

SERVING, SERIALIZED, STREAMING = "serving_default", "serialized", "streaming"
LENGTH, EXAMPLES = "length", "examples"

_VALID_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# Names that no feature may have. TensorFlow uses `self` as the name of a function's first argument.
_RESERVED = ("self", LENGTH)

Tensors = dict[str, tf.Tensor]


def input_names(features: Iterable[str]) -> dict[str, str]:
    """Returns the name of each feature in a signature: the feature's own name if it is valid there.

    TensorFlow expects identifiers that differ in more than case. It fails on other names, or renames them silently.

    >>> input_names(["x", "a b", "ü.y", "X", "速", "class"])
    {'x': 'x', 'a b': 'a_b', 'ü.y': 'u_y', 'X': 'X_1', '速': 'feature', 'class': 'class_1'}
    """
    features = list(features)
    names: dict[str, str] = {}
    used = set(_RESERVED)
    # Valid names come first, so that no converted name takes one of them.
    for name in sorted(features, key=lambda name: _VALID_NAME.fullmatch(name) is None):
        valid = _to_valid_name(name)
        candidates = itertools.chain([valid], (f"{valid}_{n}" for n in itertools.count(1)))
        names[name] = next(c for c in candidates if c.lower() not in used and not keyword.iskeyword(c))
        used.add(names[name].lower())
    return {name: names[name] for name in features}


def output_name(target: Target) -> str:
    """Returns the name of the output in a signature."""
    if target.kind not in REGRESSION:
        return "probabilities"
    return "values" if target.per_step else "value"


def state_widths(model: keras.Model, schema: Schema) -> dict[str, int]:
    """Returns the columns of each tensor of the state in the signature `streaming`, by its name there.

    A bidirectional model has no state.
    """
    stack, taken = find_stack(model), {name.lower() for name in input_names(schema.features).values()}
    names = [
        next(free for free in (f"state_{name}" + "_" * n for n in itertools.count()) if free not in taken)
        for name in stack.state_names
    ]
    return dict(zip(names, stack.state_widths, strict=True))


def make_signatures(model: keras.Model, schema: Schema, target: Target) -> dict[str, Callable[..., Tensors]]:
    """Returns the traced functions of a SavedModel by the name of their signature.

    All return the output as float32 under the name `output_name(target)`. For labels per step, they also return
    `length` as int32[batch]: outputs at and after it are padding.

    `streaming` takes the features and the `length` of the next steps of each record, and the state after the steps
    before as float32[batch, width] under each name of `state_widths`; zeros are the state before the first step. It
    returns the new state under the same names, beside the output. A bidirectional model has no such signature.
    """
    names = input_names(schema.features)

    def predict(features: Tensors) -> Tensors:
        features = features | {LENGTH: _check_length(features, schema)}
        outputs = {output_name(target): model(features, training=False)}
        return outputs | ({LENGTH: features[LENGTH]} if target.per_step else {})

    @tf.function(autograph=False)
    def serve(**inputs: tf.Tensor) -> Tensors:
        return predict({name: inputs[names.get(name, name)] for name in (*names, LENGTH)})

    @tf.function(autograph=False)
    def serve_examples(examples: tf.Tensor) -> Tensors:
        return predict(_parse(examples, schema))

    signatures = {
        SERVING: serve.get_concrete_function(**_input_specs(model, names)),
        SERIALIZED: serve_examples.get_concrete_function(tf.TensorSpec([None], tf.string, EXAMPLES)),
    }
    if not find_stack(model).bidirectional:
        signatures[STREAMING] = _make_streaming(model, schema, target)
    return signatures


def _make_streaming(model: keras.Model, schema: Schema, target: Target) -> Callable[..., Tensors]:
    names, widths = input_names(schema.features), state_widths(model, schema)
    chunks = chunk_model(model, schema, probabilities=True)

    @tf.function(autograph=False)
    def read_on(**inputs: tf.Tensor) -> Tensors:
        features = {name: inputs[names.get(name, name)] for name in (*names, LENGTH)}
        features[LENGTH] = _check_length(features, schema)
        output, state = chunks((features, [inputs[name] for name in widths]), training=False)
        outputs = {output_name(target): output, **dict(zip(widths, state, strict=True))}
        return outputs | ({LENGTH: features[LENGTH]} if target.per_step else {})

    state_specs = {name: tf.TensorSpec([None, width], tf.float32, name) for name, width in widths.items()}
    return read_on.get_concrete_function(**_input_specs(model, names), **state_specs)


def _input_specs(model: keras.Model, names: dict[str, str]) -> dict[str, tf.TensorSpec]:
    return {
        names.get(name, name): tf.TensorSpec(tensor.shape, tensor.dtype, names.get(name, name))
        for name, tensor in model.input.items()
    }


def _to_valid_name(name: str) -> str:
    if _VALID_NAME.fullmatch(name):
        return name
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    valid = re.sub(r"[^A-Za-z0-9_]", "_", ascii_name)
    return valid if _VALID_NAME.fullmatch(valid) else "_".join(filter(None, ["feature", valid.strip("_")]))


def _check_length(features: Tensors, schema: Schema) -> tf.Tensor:
    """Returns `length`, after a check that each record has at least one step and no more steps than its features."""
    length = features[LENGTH]
    checks = [tf.debugging.assert_positive(length, "length: a record has no step, expected at least one.")]
    for name in schema.steps:
        message = f"length: larger than the number of steps of {name!r} in this batch."
        checks.append(tf.debugging.assert_less_equal(length, tf.shape(features[name])[1], message))
    with tf.control_dependencies(checks):
        return tf.identity(length)


def _parse(examples: tf.Tensor, schema: Schema) -> Tensors:
    """Parses Examples as `prepare` writes them, string[batch], into features and `length`, padded to the longest."""
    # Ragged features, which the reader of a dataset does not need: it reads checked records. Here a missing step would
    # become a zero.
    spec: dict[str, Any] = {
        name: tf.io.RaggedFeature(DTYPES[feature.dtype], row_splits_dtype=tf.int64)
        for name, feature in schema.steps.items()
    }
    spec |= {name: context_spec(feature) for name, feature in schema.context.items()}
    parsed = tf.io.parse_example(examples, spec | {LENGTH: tf.io.FixedLenFeature([], tf.int64)})
    length = parsed[LENGTH]
    longest = tf.reduce_max(tf.concat([[1], length], 0))  # an LSTM needs at least one step, even for an empty batch
    features = {name: parsed[name] for name in schema.context}
    for name, feature in schema.steps.items():
        message = f"{name}: the number of values is not length x {feature.width}."
        fits = tf.debugging.assert_equal(parsed[name].row_lengths(), length * feature.width, message)
        with tf.control_dependencies([fits]):
            padded = parsed[name].to_tensor(shape=[None, None])
        shape = tf.concat([[tf.shape(padded, tf.int64)[0], longest], tf.constant(feature.shape, tf.int64)], 0)
        features[name] = tf.ensure_shape(tf.reshape(padded, shape), [None, None, *feature.shape])
    return features | {LENGTH: tf.cast(length, tf.int32)}
