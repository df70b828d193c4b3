"""The memory that `predict` needs does not depend on the number of records, nor in chunks on their outputs per step."""

import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
from predict_runs import check_complete

from trainer.config import TrainConfig
from trainer.training.train import train


def peak_mebibytes(command):
    """Runs a command and returns the peak memory of its process."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss / 1024


def assert_memory_is_bounded(folder, num_records, length, dimensions):
    """Checks that ten times the records need at most a fifth more memory."""
    schema = f"id: id\nsteps: {{x: {{dtype: float32, shape: [{dimensions}]}}}}\n"
    schema += "label: {name: y, kind: class, classes: [a, b, c]}\nsplits: {train: 1}\n"
    record = {"x": np.full((length, dimensions), 0.125).tolist(), "y": "a"}
    made = datasets.make(folder / "made", [record | {"id": number} for number in range(20)], schema)
    train(made.path, folder / "run", TrainConfig(epochs=0, units=(4,)))
    line = json.dumps(record).removeprefix("{")
    peaks = []
    for times in (1, 10):
        raw = folder / f"{times}.jsonl"
        with open(raw, "w") as file:
            file.writelines(f'{{"id": {number}, {line}\n' for number in range(times * num_records))
        command = ["predict", str(folder / "run"), str(raw), "--output", str(folder / f"out-{times}")]
        peaks.append(peak_mebibytes([sys.executable, "-m", "lengthwise", *command]))
        assert check_complete(folder / f"out-{times}")["records"] == times * num_records
        raw.unlink()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.proof
def test_ten_times_the_records_take_no_more_memory(tmp_path):
    # 80,000 of these records, or their lines, need more memory than the fifth that is allowed, in any form.
    assert_memory_is_bounded(tmp_path, 8000, length=40, dimensions=8)


@pytest.mark.proof
def test_ten_times_many_records_take_no_more_memory(tmp_path):
    assert_memory_is_bounded(tmp_path, 40_000, length=33, dimensions=8)


@pytest.mark.proof
def test_ten_times_the_steps_take_no_more_memory(tmp_path):
    """In chunks. The outputs of the longer record are 400 values for each of 100,000 steps: 160 MB, 400 MB as JSON."""
    schema = "id: id\nsteps: {page: {dtype: int64, num_values: 400}}\nlabel: {next_of: page}\nsplits: {train: 1}\n"
    made = datasets.make(tmp_path / "made", [{"id": n, "page": [1, 2, 3, n]} for n in range(20)], schema)
    train(made.path, tmp_path / "run", TrainConfig(epochs=0, units=(4,)))
    peaks = []
    for steps in (10_000, 100_000):
        raw, output = tmp_path / f"{steps}.jsonl", tmp_path / f"out-{steps}"
        raw.write_text(json.dumps({"id": 0, "page": np.random.default_rng(0).integers(0, 400, steps).tolist()}))
        command = ["predict", str(tmp_path / "run"), str(raw), "--output", str(output), "--chunk_steps", "100"]
        peaks.append(peak_mebibytes([sys.executable, "-m", "lengthwise", *command]))
        assert check_complete(output)["records"] == 1
        assert sum(path.stat().st_size for path in output.glob("part-*.jsonl")) > 8 * 400 * steps
    assert peaks[1] < 1.2 * peaks[0]
