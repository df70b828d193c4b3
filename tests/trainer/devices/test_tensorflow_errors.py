"""Every lack of memory is recognized as one, whatever class its error has and wherever it is raised."""

import numpy as np
import pytest
import tensorflow as tf

from pipeline.errors import UserError
from trainer.devices import subprocess_call
from trainer.devices.tensorflow_errors import (
    explain_out_of_memory,
    explain_tensorflow_errors,
    first_line,
    is_out_of_memory,
)

SHAPES = (
    "[num_layers, input_size, num_units, dir_count, max_seq_length, batch_size, cell_num_units]: [1, 8, 9, 1, 2, 3]"
)
MEMORY = {
    "host": MemoryError(),
    "NumPy": np._core._exceptions._ArrayMemoryError((10**12,), np.dtype("f4")),
    "C++": MemoryError("std::bad_alloc"),
    "allocator": tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[3,5]"),
    "without a word": tf.errors.ResourceExhaustedError(None, None, "Graph execution error:\n\nSomething."),
    "cuDNN forward": tf.errors.InternalError(None, None, f"Failed to call ThenRnnForward with model config: {SHAPES}"),
    "cuDNN backward": tf.errors.InternalError(None, None, f"Failed to call DoRnnBackward with model config: {SHAPES}"),
    "driver": tf.errors.InternalError(None, None, "failed to allocate 2.5GiB from device: CUDA_ERROR_OUT_OF_MEMORY"),
    "workspace": tf.errors.UnknownError(None, None, "Failed to allocate the workspace of cuDNN"),
    "library": tf.errors.InternalError(None, None, "Failed to create cublas handle: CUBLAS_STATUS_NOT_INITIALIZED"),
    "cuDNN's own": tf.errors.UnknownError(None, None, "CUDNN_STATUS_ALLOC_FAILED in tensorflow/stream_executor"),
    "copy": tf.errors.InternalError(None, None, "Dst tensor is not initialized."),
    "reader": tf.errors.UnknownError(None, None, "MemoryError: Unable to allocate 3.5 GiB for an array"),
    "first use": RuntimeError("CUDA runtime implicit initialization on GPU:0 failed. Status: out of memory"),
}
OTHER = [
    tf.errors.ResourceExhaustedError(None, None, "/run/ckpt-3; No space left on device"),
    tf.errors.ResourceExhaustedError(None, None, "/run/ckpt-3; Too many open files"),
    tf.errors.InternalError(None, None, "libdevice not found at ./libdevice.10.bc"),
    tf.errors.InvalidArgumentError(None, None, "indices[0] = 7 is not in the ROOM [0, 5)"),
    ValueError("out of memory of a kind"),
    UserError("Out of memory: this has a message already."),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", MEMORY.values(), ids=MEMORY)
def test_a_lack_of_memory_is_recognized_and_explained(error):
    assert is_out_of_memory(error)
    with pytest.raises(UserError) as caught, explain_out_of_memory(lambda: "a batch. Less."):
        raise error
    assert str(caught.value) == f"Out of memory: a batch. Less. (Reported as: {first_line(error)}.)"
    with pytest.raises(UserError) as caught, explain_tensorflow_errors("run", memory_advice="Less."):
        raise error
    assert str(caught.value) == f"Out of memory: {first_line(error)}. Less."


@pytest.mark.parametrize("error", OTHER, ids=lambda error: type(error).__name__)
def test_other_errors_are_not_taken_for_a_lack_of_memory(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as caught, explain_out_of_memory(lambda: "a batch"):
        raise error
    assert caught.value is error


def test_a_full_disk_is_not_called_a_lack_of_memory():
    with pytest.raises(UserError, match=r"^A file cannot be written: /run/ckpt-3; No space left on device\.$"):
        with explain_tensorflow_errors("run"):
            raise OTHER[0]


def raise_error(name):
    raise MEMORY[name] if name in MEMORY else OTHER[int(name)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cuDNN forward", f"Out of memory: Failed to call ThenRnnForward with model config: {SHAPES}."),
        ("C++", "Out of memory: std::bad_alloc."),
        ("0", "A file cannot be written: /run/ckpt-3; No space left on device."),
    ],
)
def test_a_subprocess_reports_it_too(monkeypatch, name, expected):
    monkeypatch.setattr(subprocess_call, "start_tensorflow", lambda: None)
    assert subprocess_call._call(f"{__name__}:raise_error", [name]) == {"error": expected}
    with pytest.raises(tf.errors.InternalError):
        subprocess_call._call(f"{__name__}:raise_error", ["2"])
