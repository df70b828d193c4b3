"""Describes the environment of a run, which the last bits of its numbers depend on: versions, devices and threads."""

import os
import pathlib
import platform
import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.devices.local_workers import count_cores
from trainer.devices.replicas import Replicas

# Where NVIDIA's driver for Linux says what it is.
_DRIVER_FILE = pathlib.Path("/proc/driver/nvidia/version")
# Options of a recurrent layer that Keras requires before it uses the cuDNN kernel.
_CUDNN_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("activation", "tanh"),
    ("recurrent_activation", "sigmoid"),
    ("use_bias", True),
    ("unroll", False),
    ("recurrent_dropout", 0),
)


def describe_environment(replicas: Replicas, *, deterministic: bool) -> dict[str, Any]:
    """Returns the contents of RUN/environment.json. With GPUs it also has what `_describe_gpus` returns."""
    cores = count_cores()
    threading = tf.config.threading
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "devices": sorted(device.device_type for device in tf.config.list_logical_devices()),
        "intra_op_threads": _num_threads(threading.get_intra_op_parallelism_threads(), "TF_NUM_INTRAOP_THREADS", cores),
        "inter_op_threads": _num_threads(threading.get_inter_op_parallelism_threads(), "TF_NUM_INTEROP_THREADS", cores),
        "deterministic": deterministic,
        "strategy": type(replicas.strategy).__name__,
        "workers": replicas.num_workers,
        "replicas": replicas.num_replicas,
        **_describe_gpus(),
    }


def _describe_gpus() -> dict[str, Any]:
    """Returns what the last bits of a number depend on with GPUs, or nothing without any.

    `gpus` has the model of each GPU and its compute capability; `driver`, `cuda` and `cudnn` are versions, None if they
    are not known; `tf32` is whether products of float32 matrices are rounded to TF32, which keeps 10 bits of the
    fraction (only GPUs of compute capability 8.0 and later do that).
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return {}
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    build = tf.sysconfig.get_build_info()
    return {
        "gpus": [_describe_gpu(each) for each in details],
        "driver": _read_driver_version(),
        "cuda": build.get("cuda_version"),
        "cudnn": build.get("cudnn_version"),
        "tf32": tf.config.experimental.tensor_float_32_execution_enabled(),
    }


def _describe_gpu(details: dict[str, Any]) -> str:
    capability = details.get("compute_capability")
    name = details.get("device_name", "unknown model")
    return name if capability is None else f"{name} (compute capability {'.'.join(map(str, capability))})"


def _read_driver_version() -> str | None:
    try:
        text = _DRIVER_FILE.read_text()
    except OSError:
        return None
    # "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023"
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
    return found and found[1]


def describe_differences(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Returns one line that lists the differences between two environments, or None if there are none."""
    found = [f"{name} {before.get(name)}, now {now.get(name)}" for name in now if before.get(name) != now[name]]
    if not found:
        return None
    return f"The environment of this run has changed: {'; '.join(found)}. Its numbers may now differ in the last bits."


def _num_threads(configured: int, variable: str, cores: int) -> int:
    # 0 means that TensorFlow chooses: the value of this environment variable, or one thread for each core.
    return configured or int(os.environ.get(variable) or 0) or cores


def cudnn_obstacles(model: keras.Model) -> list[str]:
    """Returns the options of recurrent layers that prevent the cuDNN kernel, one phrase each.

    The list is empty if Keras would use the cuDNN kernel on a GPU.

    Source: `cudnn_ok` in Keras's `backend/tensorflow/rnn.py` and `inner_loop` of its LSTM and GRU.
    """
    found = []
    for layer in _recurrent_layers(model):
        options = layer.get_config()
        required = dict(_CUDNN_OPTIONS) | ({"reset_after": True} if isinstance(layer, keras.layers.GRU) else {})
        found += [f"{layer.name} has {name} {options[name]}" for name in required if options[name] != required[name]]
        if layer.use_cudnn is False:
            found.append(f"{layer.name} has use_cudnn False")
    return found


def _recurrent_layers(parent: Any) -> Iterator[keras.layers.LSTM | keras.layers.GRU]:
    """Yields the recurrent layers among the layers of a model, or of a layer that has layers."""
    for layer in parent.layers:
        if isinstance(layer, keras.layers.LSTM | keras.layers.GRU):
            yield layer
        elif hasattr(layer, "layers"):
            yield from _recurrent_layers(layer)


def describe_kernel(model: keras.Model) -> str:
    """Returns one line that names the kernel of the recurrent layers on this machine."""
    obstacles = cudnn_obstacles(model)
    if obstacles:
        return f"Recurrent kernel: Keras's loop, not cuDNN's: {', '.join(obstacles)}."
    if not tf.config.list_logical_devices("GPU"):
        return "Recurrent kernel: Keras's loop, because there is no GPU. On a GPU it is cuDNN's."
    return "Recurrent kernel: cuDNN's."
