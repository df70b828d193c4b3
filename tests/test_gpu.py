"""What only a GPU shows (`make gpu`), and that its programs run and find a difference, which a CPU shows too."""

import json
import subprocess
import sys

import gpu_checks
import gpu_programs
import numpy as np
import pytest


@pytest.fixture(scope="session")
def gpu():
    """Skips a test on a machine without a GPU."""
    program = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.split()
    if found[-1:] in ([], ["0"]):
        pytest.skip("TensorFlow sees no GPU")


@pytest.mark.gpu
@pytest.mark.parametrize("check", gpu_checks.CHECKS, ids=lambda check: check.__name__)
def test_on_a_gpu(gpu, check, tmp_path):
    print(json.dumps(check(tmp_path)))


@pytest.fixture
def seems_to_have_a_gpu(monkeypatch):
    """Lets Keras build graphs for a GPU, which are not run."""
    import tensorflow as tf

    real = tf.config.list_logical_devices
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: ["GPU:0"] if kind == "GPU" else real(kind))


def test_a_trace_for_a_gpu_has_cudnns_kernel_in_each_layer_and_direction(seems_to_have_a_gpu):
    for name, options in gpu_programs.MODELS.items():
        _, update = gpu_programs._make_update(name)
        found = gpu_programs.count_cudnn(update._compiled.update.get_concrete_function())
        num_layers = len(options["units"]) * (2 if options.get("bidirectional") else 1)
        assert found == {"CudnnRNNV3": num_layers, "CudnnRNNBackpropV3": num_layers}


@pytest.mark.parametrize("cell", ["lstm", pytest.param("gru", marks=pytest.mark.proof)])
def test_a_trace_of_chunks_for_a_gpu_has_cudnns_kernel_too(seems_to_have_a_gpu, cell):
    """With a state in and out, in an update of two chunks without a mask, and where a mask keeps padding out of it."""
    import tensorflow as tf

    from trainer.model.chunks import chunk_model, find_stack

    options = {"units": (4, 3, 2), "cell": cell, "pooling": "max"}
    model, schema, make_update = gpu_programs.make_model(options, backprop_chunks=2)
    found = gpu_programs.count_cudnn(make_update()._compiled.update.get_concrete_function())
    assert found == {"CudnnRNNV3": 2 * 3, "CudnnRNNBackpropV3": 2 * 3}
    features = {name: tf.TensorSpec(part.shape, part.dtype) for name, part in model.input.items()}
    state = [tf.TensorSpec([None, width], tf.float32) for width in find_stack(model).state_widths]
    reader = chunk_model(model, schema)
    traced = tf.function(lambda features, state: reader((features, state))).get_concrete_function(features, state)
    assert gpu_programs.count_cudnn(traced) == {"CudnnRNNV3": 3}


@pytest.mark.proof
def test_the_programs_for_a_gpu_compare_what_they_say(tmp_path, monkeypatch):
    """Both processes run on a CPU here, so the outputs are equal; other weights in one of them are a difference."""
    paths = tmp_path / "same", tmp_path / "other"
    for path in paths:
        path.mkdir()
    found = gpu_checks.outputs_and_gradients_equal_those_of_the_cpu(paths[0], num_batches=2)
    assert found == {"batches": 2, **{kind: {"lstm": 0, "bidirectional gru": 0} for kind in ("output", "gradient")}}

    def change(program, path, num_batches, on_cpu=False):
        with np.load(paths[0] / "cpu.npz") as saved:
            arrays = {key: saved[key] + (0 if on_cpu or not key.endswith("gradient") else 1e-2) for key in saved.files}
        np.savez(path, **arrays)

    monkeypatch.setattr(gpu_checks, "call", change)
    with pytest.raises(AssertionError, match="'gradient': "):
        gpu_checks.outputs_and_gradients_equal_those_of_the_cpu(paths[1], num_batches=2)
