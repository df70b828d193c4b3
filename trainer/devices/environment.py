"""Records what the bits of a run hang on beside its data and configuration: versions, devices, threads."""

import os
import platform
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.devices.local_workers import count_cores
from trainer.devices.replicas import Replicas

# What Keras asks of a layer before it takes cuDNN's kernel; its values there are functions.
_WANTED: tuple[tuple[str, Any], ...] = (
    ("activation", "tanh"),
    ("recurrent_activation", "sigmoid"),
    ("use_bias", True),
    ("unroll", False),
    ("recurrent_dropout", 0),
)


def describe_environment(team: Replicas, *, deterministic: bool) -> dict[str, Any]:
    """What is written to RUN/environment.json."""
    cores = count_cores()
    threading = tf.config.threading
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "devices": sorted(device.device_type for device in tf.config.list_logical_devices()),
        "intra_op_threads": _threads(threading.get_intra_op_parallelism_threads(), "TF_NUM_INTRAOP_THREADS", cores),
        "inter_op_threads": _threads(threading.get_inter_op_parallelism_threads(), "TF_NUM_INTEROP_THREADS", cores),
        "deterministic": deterministic,
        "strategy": type(team.strategy).__name__,
        "workers": team.num_workers,
        "replicas": team.num_replicas,
    }


def describe_differences(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What is different now, as one line; None where nothing is."""
    found = [f"{name} {before.get(name)}, now {now.get(name)}" for name in now if before.get(name) != now[name]]
    if not found:
        return None
    return f"Not as this run last ran: {'; '.join(found)}. Its numbers may differ in their last bits from here on."


def _threads(chosen: int, variable: str, cores: int) -> int:
    # 0 means that TensorFlow chooses: as this variable says, or as many as there are cores.
    return chosen or int(os.environ.get(variable) or 0) or cores


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
