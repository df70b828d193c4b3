"""Two replicas of one process train as one device does, and as every record by itself: losses, gradients, weights."""

import json

import children
import datasets
import pytest
import replicas

SMALL = {"epochs": 3, "units": [4], "learning_rate": 0.01}
PAIRS = [
    {"batching": "window", "batch_steps": 40, "loss_scale": "epoch", "clip_norm": 0.3},
    {"batching": "bucket", "batch_size": 3, "loss_scale": "batch", "clip_norm": 0.3},
]


def check(dataset, folder, configs, *, quick=False):
    """Compares the differences that `replicas.py` finds for each configuration with the tolerance."""
    child = children.Child(folder / "output", replicas.main, dataset, str(folder), configs, quick)
    assert child.wait() == 0, child.lines[-50:]
    for config, found in zip(configs, json.loads(child.lines[-1]), strict=True):
        print(f"\n{config}: {found}")
        assert found["updates"] >= 3
        assert quick is False or 0 < found["clipped"] < found["updates"]
        assert found.get("waits_for_others", []) == []
        assert max(*found["one_by_one"], *found.get("one_device", []), found.get("gradient", 0)) <= 1e-5


@pytest.mark.parametrize("quick", datasets.some([True, False], [True]))
def test_two_replicas_train_as_one_device_and_as_records_one_by_one(tmp_path, quick):
    config = SMALL | PAIRS[0] | {"epochs": 1}
    check(datasets.of_kind("step_class").path, tmp_path, [config], quick=quick)


@pytest.mark.proof
@pytest.mark.parametrize("kind", list(datasets.LABELS | datasets.NEXT_LABELS))
def test_two_replicas_train_as_one_device_for_every_kind_of_label(tmp_path, kind):
    others = [{"batching": "pad", "batch_size": 7, "loss_scale": "batch", "clip_norm": 0.1, "optimizer": "adam"}]
    others += [{"batching": "exact", "batch_size": 1}]  # one of the two replicas never has a record
    others += [{"batching": "window", "batch_size": 5, "units": [3, 3], "cell": "gru", "clip_norm": 0.2}]
    check(datasets.of_every_feature(kind).path, tmp_path, [SMALL | config for config in [*PAIRS, *others]])
