"""Says which kernel the recurrent layers run on: cuDNN's, or why Keras's own loop."""

from typing import Any

import keras
import tensorflow as tf

# What Keras asks of a layer before it takes cuDNN's kernel; its values there are functions.
_WANTED: tuple[tuple[str, Any], ...] = (
    ("activation", "tanh"),
    ("recurrent_activation", "sigmoid"),
    ("use_bias", True),
    ("unroll", False),
    ("recurrent_dropout", 0),
)


def cudnn_obstacles(model: keras.Model) -> list[str]:
    """What in the recurrent layers rules out cuDNN's kernel, a phrase each; empty where a GPU would use it.

    Source: `cudnn_ok` in Keras's `backend/tensorflow/rnn.py` and `inner_loop` of its LSTM and GRU.
    """
    found = []
    for layer in model.layers:
        if not isinstance(layer, keras.layers.LSTM | keras.layers.GRU):
            continue
        config = layer.get_config()
        wanted = dict(_WANTED) | ({"reset_after": True} if isinstance(layer, keras.layers.GRU) else {})
        found += [f"{layer.name} has {name} {config[name]}" for name in wanted if config[name] != wanted[name]]
        if layer.use_cudnn is False:
            found.append(f"{layer.name} has use_cudnn False")
    return found


def describe_kernel(model: keras.Model) -> str:
    """A line about the kernel of this model on this machine."""
    obstacles = cudnn_obstacles(model)
    if obstacles:
        return f"Recurrent kernel: Keras's loop, not cuDNN's: {', '.join(obstacles)}."
    if not tf.config.list_logical_devices("GPU"):
        return "Recurrent kernel: Keras's loop, for there is no GPU; on one it would be cuDNN's."
    return "Recurrent kernel: cuDNN's."
