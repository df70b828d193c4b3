"""Checks of what only a GPU shows. Each raises an AssertionError, or returns what it measured.

They are functions without pytest, so that `tests/benchmarks/gpu.py` can run them on a machine that does not have it.
"""

import json
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import gpu_programs
import numpy as np
from gpu_programs import call, lengthwise, make_dataset, run_lengthwise

# Largest difference of an output, and of a gradient divided by its largest value.
MAX_OUTPUT_DIFFERENCE, MAX_GRADIENT_DIFFERENCE = 1e-4, 1e-3


def cudnn_runs_both_cells_and_memory_grows_as_needed(folder: pathlib.Path) -> dict[str, Any]:
    found = call("kernels")
    assert found["gpus"], "TensorFlow sees no GPU"
    for name, operations in found["operations"].items():
        num_layers = len(gpu_programs.MODELS[name]["units"]) * (1 + gpu_programs.MODELS[name].get("bidirectional", 0))
        for prefix in ("CudnnRNNV", "CudnnRNNBackprop"):
            count = sum(number for operation, number in operations.items() if operation.startswith(prefix))
            assert count == num_layers, f"{name}: {count} x {prefix}, expected {num_layers}: {operations}"
    assert all(found["memory_growth"])
    assert max(found["peak_mebibytes"]) < 1024, found
    return found


def outputs_and_gradients_equal_those_of_the_cpu(folder: pathlib.Path, num_batches: int = 200) -> dict[str, Any]:
    paths = [folder / "gpu.npz", folder / "cpu.npz"]
    call("outputs", paths[0], num_batches)
    call("outputs", paths[1], num_batches, on_cpu=True)
    farthest: dict[str, dict[str, float]] = {"output": {}, "gradient": {}}
    with np.load(paths[0]) as gpu, np.load(paths[1]) as cpu:
        assert gpu.files == cpu.files and len(gpu.files) == 2 * num_batches
        for key in cpu.files:
            assert np.isfinite(gpu[key]).all() and np.abs(cpu[key]).max() > 0, key
            scale = np.abs(cpu[key]).max() if key.endswith("gradient") else 1.0
            difference = float(np.abs(gpu[key] - cpu[key]).max() / scale)
            name, _, kind = key.rsplit(" ", 2)
            farthest[kind][name] = max(farthest[kind].get(name, 0.0), difference)
    assert max(farthest["output"].values()) <= MAX_OUTPUT_DIFFERENCE, farthest
    assert max(farthest["gradient"].values()) <= MAX_GRADIENT_DIFFERENCE, farthest
    return {"batches": num_batches, **farthest}


def an_export_made_here_serves_on_a_cpu(folder: pathlib.Path) -> dict[str, Any]:
    dataset = make_dataset(folder, 2000)
    run, export, outputs = folder / "run", folder / "export", folder / "outputs.npz"
    run_lengthwise("train", dataset, "--output", run, "--epochs", 1)
    run_lengthwise("export", run, "--output", export)
    call("predict", run, outputs)
    found = call("serve", export / "saved_model", outputs, on_cpu=True)
    assert found["devices"] == ["CPU"] and found["difference"] <= MAX_OUTPUT_DIFFERENCE, found
    return found


def the_probe_catches_a_batch_that_does_not_fit(folder: pathlib.Path, num_records: int = 30_000) -> dict[str, Any]:
    dataset = make_dataset(folder, num_records)
    found = call("out_of_memory", dataset, folder, 1024)
    assert found["message"] and found["message"].startswith("Out of memory"), found
    assert found.get("updates"), found
    return found


def a_run_that_sigterm_stops_resumes_to_its_end(folder: pathlib.Path) -> dict[str, Any]:
    dataset = make_dataset(folder, 5000)
    command = ["train", dataset, "--output", folder / "stopped", "--epochs", 12, "--batch_steps", 4000]
    process, metrics = lengthwise(*command), folder / "stopped" / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < 50):
        time.sleep(0.05)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    messages = process.communicate()[1]
    seconds = time.monotonic() - asked
    assert process.returncode == 75, f"status {process.returncode}: {messages[-2000:]}"
    num_before = metrics.read_bytes().count(b"\n")
    run_lengthwise(*command)
    result = json.loads((folder / "stopped" / "result.json").read_text())
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    updates = [line["update"] for line in lines if "update" in line]
    assert updates == list(range(1, result["updates"] + 1)) and result["epochs"] == 12
    losses = [line["train"]["loss"] for line in lines if "train" in line]
    assert len(losses) == 12 and losses[-1] < losses[0], losses
    return {"seconds_to_stop": seconds, "lines_before": num_before, "updates": len(updates)}


CHECKS: tuple[Callable[[pathlib.Path], dict[str, Any]], ...] = (
    cudnn_runs_both_cells_and_memory_grows_as_needed,
    outputs_and_gradients_equal_those_of_the_cpu,
    an_export_made_here_serves_on_a_cpu,
    the_probe_catches_a_batch_that_does_not_fit,
    a_run_that_sigterm_stops_resumes_to_its_end,
)
