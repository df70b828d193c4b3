"""Compiles a model, since a test that calls it often would spend most of its time in eager LSTM steps."""

from typing import Any

import keras
import tensorflow as tf


def compiled(model: keras.Model) -> Any:
    """Returns a function that calls the model and is traced once, for batches of any size and length."""
    signature = {name: tf.TensorSpec(value.shape, value.dtype) for name, value in model.input.items()}
    return tf.function(lambda features: model(features), input_signature=[signature], autograph=False)
