"""The environment of a run names what its last bits depend on, also on machines with GPUs."""

import pytest
import tensorflow as tf

import trainer.devices.environment
from trainer.devices.environment import describe_differences, describe_environment
from trainer.devices.replicas import find_replicas

OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release  Thu\nGCC version: 12.2.0"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"


@pytest.fixture
def replicas():
    return find_replicas("one")


@pytest.fixture
def gpu(monkeypatch):
    """Lets TensorFlow report a GPU that is not there."""
    details = {"device_name": "NVIDIA H200", "compute_capability": (9, 0)}
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["gpu:0"] if kind == "GPU" else [])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", {"gpu:0": details}.get)
    monkeypatch.setattr(tf.config.experimental, "tensor_float_32_execution_enabled", lambda: True)
    monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: {"cuda_version": "12.5.1", "cudnn_version": "9"})
    return details


def test_without_a_gpu_nothing_is_said_of_gpus(replicas):
    assert not {"gpus", "driver", "cuda", "cudnn", "tf32"} & set(describe_environment(replicas, deterministic=True))


@pytest.mark.parametrize(("text", "driver"), [(OPEN, "570.86.15"), (CLOSED, "535.104.05"), ("?", None), (None, None)])
def test_a_gpu_is_described(monkeypatch, tmp_path, replicas, gpu, text, driver):
    path = tmp_path / "version"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(trainer.devices.environment, "_DRIVER_FILE", path)
    before = describe_environment(replicas, deterministic=False)
    assert before["gpus"] == ["NVIDIA H200 (compute capability 9.0)"]
    assert (before["driver"], before["cuda"], before["cudnn"], before["tf32"]) == (driver, "12.5.1", "9", True)
    gpu.clear()
    now = describe_environment(replicas, deterministic=False)
    assert now["gpus"] == ["unknown model"]
    assert "gpus ['NVIDIA H200 (compute capability 9.0)'], now ['unknown model']" in describe_differences(before, now)
