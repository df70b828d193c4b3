"""Runs for the tests of `predict`, and functions that read and compare predictions."""

import functools
import json
import pathlib

import datasets
import numpy as np

from trainer.config import TrainConfig
from trainer.serving.publish import SUMMARY
from trainer.training.train import train


@functools.cache
def run_of(kind, *, every_feature=False):
    """Returns a dataset with a kind of label, and the folder of a run on it.

    The run is trained at a high learning rate, so that its outputs differ from record to record. With every feature,
    the outputs differ without training.
    """
    made = (datasets.of_every_feature if every_feature else datasets.of_kind)(kind)
    output = datasets.new_folder() / "run"
    train(made.path, output, TrainConfig(epochs=0 if every_feature else 2, units=(8,), batch_size=8, learning_rate=0.1))
    return made, str(output)


def lines_of(folder):
    """Returns the parsed lines of all parts in a folder."""
    paths = sorted(pathlib.Path(folder).glob("part-*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def by_id(lines):
    """Returns the lines by id, which must be unique."""
    found = {line["id"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def numbers_of(line):
    """Returns the probabilities or values of a line as float32."""
    (numbers,) = [line[name] for name in ("probabilities", "value", "values") if name in line]
    return np.array(numbers, np.float32)


def snapshot(folder):
    """Returns the content of each file in a folder by path."""
    folder = pathlib.Path(folder)
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_close(first, second, atol=1e-5):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_allclose(numbers_of(first[key]), numbers_of(second[key]), rtol=0, atol=atol)


def check_complete(folder):
    """Checks that a folder contains the files that its summary lists and no others, and returns the summary."""
    summary = json.loads(pathlib.Path(folder, SUMMARY).read_text())
    listed = {part["path"] for part in summary["parts"]} | set(summary["rejected"]["files"])
    assert set(snapshot(folder)) == {SUMMARY, *listed}
    assert not pathlib.Path(folder, ".staging").exists()
    for part in summary["parts"]:
        data = pathlib.Path(folder, part["path"]).read_bytes()
        assert (data.count(b"\n"), len(data)) == (part["records"], part["bytes"])
    assert sum(part["records"] for part in summary["parts"]) == summary["records"]
    return summary
