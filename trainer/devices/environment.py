"""Records what the bits of a run hang on beside its data and configuration: versions, devices, threads."""

import os
import platform
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.devices.local_workers import count_cores
from trainer.devices.replicas import Team


def describe_environment(team: Team, *, deterministic: bool) -> dict[str, Any]:
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


def tell_differences(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What is different now, as one line; None where nothing is."""
    found = [f"{name} {before.get(name)}, now {now.get(name)}" for name in now if before.get(name) != now[name]]
    if not found:
        return None
    return f"Not as this run last ran: {'; '.join(found)}. Its numbers may differ in their last bits from here on."


def _threads(chosen: int, variable: str, cores: int) -> int:
    # 0 means that TensorFlow chooses: as this variable says, or as many as there are cores.
    return chosen or int(os.environ.get(variable) or 0) or cores
