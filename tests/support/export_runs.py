"""Runs and exports for the tests of `export`, and functions that compare their outputs."""

import functools
import json
import os
import pathlib
import shutil
import sys

import children
import datasets
import numpy as np
import tensorflow as tf
from interruptions import change

from pipeline.errors import UserError
from pipeline.format.examples import decode_example
from trainer.config import TrainConfig
from trainer.model.build import build_model
from trainer.runs.checkpoints import restore_weights
from trainer.runs.run import Run
from trainer.serving.saved_model import make
from trainer.training.train import train

LENGTHWISE = str(pathlib.Path(sys.executable).parent / "lengthwise")
SMALL = TrainConfig(units=(4,), epochs=1, batch_steps=60, learning_rate=0.02)


VARIED = change(SMALL, bidirectional=True, dropout=0.2, cell="gru", pooling="mean")
# Kind of label -> name of its output.
OUTPUTS = {
    "class": "probabilities",
    "step_class": "probabilities",
    "multilabel": "probabilities",
    "regression": "value",
    "next_word": "probabilities",
    "next_x": "values",
    "distribution": "probabilities",
    "step_multilabel": "probabilities",
    "step_regression": "values",
    "next_page": "probabilities",
    "next_bits": "probabilities",
}
# The other kinds differ in their label only.
KINDS = datasets.some(OUTPUTS, ["class", "next_word"])


@functools.cache
def run_of(kind):
    """Returns the folder of a small run with features of every kind.

    Only the run with the label `class` is trained, because only it needs a best checkpoint.
    """
    output = datasets.new_folder() / "run"
    train(datasets.of_every_feature(kind).path, output, VARIED if kind == "class" else change(SMALL, epochs=0))
    return str(output)


@functools.cache
def other_run():
    """Returns the folder of a run with the same model as that of `class` and other weights."""
    output = datasets.new_folder() / "run"
    train(datasets.of_every_feature("class").path, output, change(VARIED, seed=5, epochs=0))
    return output


@functools.cache
def model_of(kind):
    """Returns the model of the run, loaded with the functions that `evaluate` uses, not those that `export` uses."""
    run = Run(run_of(kind))
    manifest = run.manifest()
    vocabularies = run.vocabularies()
    model = build_model(manifest.record_schema, run.statistics(), run.config(), vocabularies=vocabularies)
    restore_weights(run, model, None)
    return model


@functools.cache
def made_of(kind):
    """Returns a folder with `export` and `golden.npz`, as the first process of an export makes them."""
    folder = datasets.new_folder()
    make(run_of(kind), str(folder / "export"), str(folder / "golden.npz"), None)
    return folder


def files_of(folder):
    return {str(path.relative_to(folder)) for path in pathlib.Path(folder).rglob("*") if path.is_file()}


def copy_run(tmp_path, kind="class"):
    return pathlib.Path(shutil.copytree(run_of(kind), tmp_path / "run"))


def difference(found, expected, length=None):
    """Returns the largest difference at real steps, divided by the largest expected number if that is above 1."""
    found, expected = np.array(found, np.float64), np.array(expected, np.float64)
    if length is not None:
        real = np.arange(expected.shape[1]) < np.array(length)[:, None]
        found, expected = found[:, : expected.shape[1]][real], expected[real]
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / max(1.0, np.abs(expected).max())


def shards_of(kind, split="test"):
    """Returns the paths of the shards of a split, in the order of the manifest."""
    folder = pathlib.Path(datasets.of_every_feature(kind).path)
    shards = json.loads((folder / "manifest.json").read_text())["splits"][split]["shards"]
    return [str(folder / shard["path"]) for shard in shards]


def serialized_of(kind):
    """Returns the test records as the Examples that `prepare` wrote."""
    return list(tf.data.TFRecordDataset(shards_of(kind)).as_numpy_iterator())


def raw_batch(records, extra_steps=0):
    """Returns the inputs of serving_default for raw records of EVERY_FEATURE, with arbitrary values as padding."""
    length = np.array([len(record["word"]) for record in records], np.int32)
    shape = (len(records), length.max() + extra_steps)
    inputs = {
        "x": np.full((*shape, 2), np.nan, np.float32),
        "bits": np.full((*shape, 3), 1e30, np.float32),
        "page": np.full(shape, 2**40),
        "word": np.full(shape, b"garbage", "S9"),
        "age": np.array([np.nan if record["age"] is None else record["age"] for record in records], np.float32),
        "city": np.array([b"\xff" if record["city"] is None else record["city"].encode() for record in records]),
        "plan": np.array([record["plan"] for record in records]),
        "length": length,
    }
    for row, record in enumerate(records):
        for step in range(length[row]):
            x, word, page = (record[name][step] for name in ("x", "word", "page"))
            inputs["x"][row, step] = np.nan if x is None else [np.nan if value is None else value for value in x]
            inputs["word"][row, step] = b"\xff" if word is None else word.encode()
            inputs["page"][row, step] = -1 if page is None else page
            inputs["bits"][row, step] = record["bits"][step]
    return inputs


def in_order(kind):
    """Returns the raw test records in the order in which `prepare` wrote them."""
    by_id = {record["id"]: record for record in datasets.of_every_feature(kind).of("test")}
    return [by_id[decode_example(example)["id"][0].decode()] for example in serialized_of(kind)]


def as_tensors(inputs):
    return {name: tf.constant(values) for name, values in inputs.items()}


class Fakes:
    """Replaces `call_in_subprocess`: the first process returns a changed copy of an export, the second one checks it.

    The second process is forked after the import of TensorFlow, which takes less time than a new one.
    """

    def __init__(self, change):
        self.change = change

    def __call__(self, function, *arguments):
        if not function.endswith(":make"):
            return self._check(*arguments)
        _, made, golden, _ = arguments
        shutil.copytree(made_of("class") / "export", made)
        shutil.copy(made_of("class") / "golden.npz", golden)
        self.change(pathlib.Path(made), golden)

    def _check(self, *arguments):
        child = children.Child(datasets.new_folder() / "output", check_without_our_modules, *arguments)
        assert child.wait() == 0, child.lines
        answer = json.loads(child.lines[-1])
        if "error" in answer:
            raise UserError(answer["error"])
        return answer["result"]


def forget_our_modules():
    """Lets this process import the modules of Lengthwise anew."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("trainer", "pipeline", "lengthwise")]:
        del sys.modules[name]


def check_without_our_modules(folder, golden):
    """Checks an export, and prints {"result": …} or {"error": message}."""
    forget_our_modules()
    from pipeline.errors import UserError
    from trainer.serving.export_check import check

    try:
        answer = {"result": check(folder, golden)}
    except UserError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)


def fail(*arguments):
    raise UserError("on purpose")


def checkpoint_file(run, ending):
    (path,) = (run / "checkpoints" / "best").glob(f"*{ending}")
    return path


def cut(ending):
    return lambda run: os.truncate(checkpoint_file(run, ending), 100)
