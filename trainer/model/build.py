"""Builds the stacked LSTM, which maps raw features and `length` to predictions that no padding changes."""

from typing import Any

import keras
import numpy as np

from pipeline.errors import UserError
from pipeline.format.models import FeatureStatistics
from pipeline.schema.labels import MULTILABEL, REGRESSION
from pipeline.schema.schema import Schema
from trainer.config import TrainConfig
from trainer.data.target import Target, Vocabularies, make_target
from trainer.devices.tensorflow_errors import explain_out_of_memory
from trainer.model.encoding import Statistics, concatenate, encode_features
from trainer.model.largest_weight import describe_largest_weight
from trainer.model.layers import DropLastAxis, RepeatLike, Unstandardize
from trainer.model.recurrent_stack import RecurrentStack
from trainer.model.unique_names import UniqueName, make_unique_name


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
        UserError: The configuration does not fit the label, or the weights do not fit into memory.
        ValueError: The schema has a vocabulary, and `vocabularies` is not passed.
    """
    config = config or TrainConfig()
    vocabularies = vocabularies or {}
    target = make_target(schema, vocabularies)
    check_config(config, target)

    def explain() -> str:
        with keras.StatelessScope(initialize_variables=False):  # without memory for the weights
            text = describe_largest_weight(_build(schema, statistics, config, vocabularies, target), schema)
        keras.utils.clear_session()  # forgets the variables that have no memory
        return text

    with explain_out_of_memory(explain):
        return _build(schema, statistics, config, vocabularies, target)


def _build(
    schema: Schema, statistics: Statistics, config: TrainConfig, vocabularies: Vocabularies, target: Target
) -> keras.Model:
    unique = make_unique_name(schema)
    inputs: dict[str, Any] = {
        name: keras.Input((*((None,) if name in schema.steps else ()), *feature.shape), name=name, dtype=feature.dtype)
        for name, feature in schema.features.items()
    }
    length = inputs["length"] = keras.Input((), name="length", dtype="int32")
    steps, context = encode_features(schema, statistics, vocabularies, inputs, unique)
    hidden = concatenate(steps, unique("features"))
    stack = RecurrentStack(
        hidden.shape[-1],
        config.units,
        cell=config.cell,
        bidirectional=config.bidirectional,
        dropout=config.dropout,
        pooling=None if target.per_step else config.pooling,
        name=unique("recurrent"),
    )
    hidden = stack(hidden, length)
    if context:
        joined = concatenate(context, unique("context"))
        joined = RepeatLike(name=unique("context_steps"))(joined, hidden) if target.per_step else joined
        hidden = concatenate([hidden, joined], unique("with_context"))
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


def count_parameters(model: keras.Model) -> int:
    """Returns the number of values in all weights of the model."""
    return int(sum(np.prod(weight.shape) for weight in model.weights))


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
