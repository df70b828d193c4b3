"""Every command sets up TensorFlow in the same way."""

import pytest
import tensorflow as tf

from trainer.devices.replicas import find_replicas
from trainer.devices.tensorflow_setup import start_tensorflow


@pytest.mark.parametrize("start", [start_tensorflow, lambda: find_replicas("one")], ids=["command", "training"])
@pytest.mark.parametrize("in_use", [False, True])
def test_the_memory_of_every_gpu_grows_as_needed(monkeypatch, start, in_use):
    grown = []

    def set_memory_growth(gpu, enable):
        grown.append((gpu, enable))
        if in_use:
            raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["one", "two"] if kind == "GPU" else [])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", set_memory_growth)
    start()
    assert grown == [("one", True), ("two", True)]
