"""The model for chunks gives the outputs of the model for whole records, for every kind of label."""

import datasets
import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.errors import UserError
from pipeline.schema.schema import Schema
from trainer.config import TrainConfig
from trainer.model.build import build_model, head_model
from trainer.model.chunks import chunk_model, find_stack

STEPS = """x: {dtype: float32, shape: [2]}
  page: {dtype: int64, num_values: 5}"""
CONTEXT = "context: {age: {dtype: float32}, plan: {dtype: string, num_values: 4}}\n"
ROWS, TIME = 3, 9


def features(with_context):
    random = np.random.default_rng(0)
    found = {
        "x": random.normal(size=(ROWS, TIME, 2)).astype(np.float32),
        "page": random.integers(0, 5, (ROWS, TIME)),
        "length": np.full(ROWS, TIME, np.int32),
    }
    if with_context:
        found |= {"age": random.normal(size=ROWS).astype(np.float32), "plan": np.array(["a", "b", "c"], object)}
    return {name: tf.constant(value) for name, value in found.items()}


CASES = [("class", "last"), ("regression", "mean"), ("distribution", "max"), ("step_class", "last")]
CASES += [("step_regression", "last"), ("multilabel", "last"), ("step_multilabel", "last")]


@pytest.mark.parametrize("context", ["", CONTEXT])
@pytest.mark.parametrize(("kind", "pooling"), datasets.some(CASES, CASES[1:4], unpack=True))
def test_chunks_give_the_output_of_whole_records(kind, pooling, context):
    keras.utils.set_random_seed(3)
    schema = Schema.parse(datasets.schema_text(kind, STEPS) + context)
    model = build_model(schema, {}, TrainConfig(units=(3, 4), pooling=pooling))
    whole = features(bool(context))
    expected = head_model(model)(whole).numpy()
    for full_rows in (False, True):
        chunks = chunk_model(model, schema, full_rows=full_rows)
        assert {id(weight) for weight in chunks.weights} == {id(weight) for weight in model.weights}
        state = [tf.zeros((ROWS, width)) for width in find_stack(model).state_widths]
        found = []
        for first in range(0, TIME, 4):
            part = {name: whole[name][:, first : first + 4] for name in ("x", "page")}
            part["length"] = tf.fill([ROWS], part["x"].shape[1])
            output, state = chunks((whole | part, state))
            found.append(output.numpy())
        np.testing.assert_allclose(
            np.concatenate(found, axis=1) if kind.startswith("step_") else found[-1], expected, atol=1e-6
        )


def test_a_bidirectional_model_is_refused():
    schema = Schema.parse(datasets.schema_text("class", STEPS))
    with pytest.raises(UserError, match="^A bidirectional model reads each record from its end, too"):
        chunk_model(build_model(schema, {}, TrainConfig(units=(3,), bidirectional=True)), schema)
