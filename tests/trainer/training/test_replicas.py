"""Two replicas of one process train as one device does, and as every record by itself: losses, gradients, weights."""

import json
import os
import subprocess
import sys

import datasets
import pytest
from paths import ROOT

SMALL = {"epochs": 3, "units": [4], "learning_rate": 0.01}
PAIRS = [
    {"batching": "window", "batch_steps": 40, "loss_scale": "epoch", "clip_norm": 0.3},
    {"batching": "bucket", "batch_size": 3, "loss_scale": "batch", "clip_norm": 0.3},
]


def compare(dataset, folder, configs):
    """Returns the differences that `replicas.py` finds for each configuration."""
    command = [sys.executable, ROOT / "tests" / "support" / "replicas.py", dataset, folder]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}"}
    done = subprocess.run([*command, json.dumps(configs)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(dataset, folder, configs):
    for config, found in zip(configs, compare(dataset, folder, configs), strict=True):
        print(f"\n{config}: {found}")
        assert found["updates"] >= 3
        assert max(*found["one_device"], *found["one_by_one"], found["gradient"]) <= 1e-5


def test_two_replicas_train_as_one_device_and_as_records_one_by_one(tmp_path):
    check(datasets.of_kind("step_class").path, tmp_path, [SMALL | PAIRS[0] | {"epochs": 1}])


@pytest.mark.proof
@pytest.mark.parametrize("kind", list(datasets.LABELS | datasets.NEXT_LABELS))
def test_two_replicas_train_as_one_device_for_every_kind_of_label(tmp_path, kind):
    others = [{"batching": "pad", "batch_size": 7, "loss_scale": "batch", "clip_norm": 0.1, "optimizer": "adam"}]
    others += [{"batching": "exact", "batch_size": 1}]  # one of the two replicas never has a record
    others += [{"batching": "window", "batch_size": 5, "units": [3, 3], "cell": "gru", "clip_norm": 0.2}]
    check(datasets.of_every_feature(kind).path, tmp_path, [SMALL | config for config in [*PAIRS, *others]])
