"""If the model itself does not fit into memory, the error names its largest weight and how to make it smaller."""

import datasets
import keras
import pytest
import tensorflow as tf

from pipeline.errors import UserError
from pipeline.schema.schema import Schema
from trainer.config import TrainConfig
from trainer.model.build import build_model
from trainer.model.largest_weight import describe_largest_weight

TWO_BILLION = 2**31 - 1
CASES = {
    "int64": (
        f"k: {{dtype: int64, num_values: {TWO_BILLION}}}",
        "{name: y, kind: regression}",
        (3,),
        "embedding_1/embeddings, the embedding of the feature k: 2,147,483,647 x 100 numbers, 859.0 GB. Choose a "
        "num_values of k that is smaller than 2147483647.",
    ),
    "hashed": (
        f"k: {{dtype: string, num_values: {TWO_BILLION}}}",
        "{name: y, kind: regression}",
        (3,),
        "embedding_1/embeddings, the embedding of the feature k: 2,147,483,647 x 100 numbers, 859.0 GB. Choose a "
        "num_values of k that is smaller than 2147483647.",
    ),
    "vocabulary": (
        "k: {dtype: string, vocabulary: 1000}",
        "{name: y, kind: regression}",
        (1,),
        "embedding_1/embeddings, the embedding of the feature k: 1,001 x 77 numbers, 308.3 kB. Choose a vocabulary of "
        "k that is smaller than 1000.",
    ),
    "units": (
        "k: {dtype: float32}",
        "{name: y, kind: regression}",
        (70_000,),
        "lstm_0/lstm_cell/recurrent_kernel, a recurrent layer: 70,000 x 280,000 numbers, 78.4 GB. Choose fewer "
        "--units.",
    ),
    "head": (
        f"k: {{dtype: int64, num_values: {TWO_BILLION}}}",
        "{next_of: k}",
        (1000,),
        "head/kernel, the output layer: 1,000 x 2,147,483,647 numbers, 8.6 TB. Choose fewer --units, or a label with "
        "fewer classes or values.",
    ),
}


def build(name):
    feature, label, units, _ = CASES[name]
    schema = Schema.parse(f"steps:\n  a: {{dtype: float32}}\n  {feature}\nlabel: {label}\n")
    vocabularies = {"k": [str(number).encode() for number in range(1000)]} if name == "vocabulary" else {}
    return schema, build_model(schema, {}, TrainConfig(units=units), vocabularies=vocabularies)


@pytest.mark.parametrize("name", datasets.some(CASES, CASES.keys() - {"hashed"}))
def test_the_largest_weight_is_named(name):
    with keras.StatelessScope(initialize_variables=False):
        schema, model = build(name)
    keras.utils.clear_session()
    assert describe_largest_weight(model, schema).endswith(f"The largest one is {CASES[name][-1]}")


def test_a_model_that_does_not_fit_is_an_error_that_names_its_largest_weight(monkeypatch):
    def initialize(self, shape, dtype=None, **_):
        raise tf.errors.ResourceExhaustedError(None, None, f"OOM when allocating tensor with shape{list(shape)}")

    monkeypatch.setattr(keras.initializers.RandomUniform, "__call__", initialize)
    with pytest.raises(UserError) as caught:
        build("int64")
    assert str(caught.value).startswith("Out of memory: the weights of the model take 859.0 GB, and training takes")
    assert CASES["int64"][-1] in str(caught.value)
    monkeypatch.undo()
    assert build("vocabulary")[1].count_params() > 0
