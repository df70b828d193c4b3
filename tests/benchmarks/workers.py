"""Measures training with two workers against one, and how long the faster worker waits for the slower one.

    python tests/benchmarks/workers.py [--quick]

All workers run on this machine, each in a process with one thread. Waiting is the share of the time of an update in
which the worker that has finished its part waits for the other one. It is measured for batches that are dealt by
length, and for workers that make batches from their own half of the shards.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from data import make_dataset
from measure import alternate, command_line, compare, print_rows
from training import BATCH_STEPS, NUM_FEATURES

from trainer.batching.window import BatchShapes, make_window_plan
from trainer.data.dataset import open_dataset

NUM_WORKERS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer records, one repeat")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/benchmarks"))
    parser.add_argument("--compute", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compute:
        compute(json.loads(pathlib.Path(options.compute).read_text()))
        return
    num_records, repeats = (600, 1) if options.quick else (6000, 3)
    path = make_dataset(options.output / "data", NUM_FEATURES, num_records)

    def updates_per_second(workers: int) -> float:
        return train(path, options.output / "run", workers)

    one, two = alternate(repeats, lambda: updates_per_second(1), lambda: updates_per_second(NUM_WORKERS))
    speed = compare("training, 2 workers", "updates/s", "1 worker", [two, one], floor=1.3, aim=1.8)
    balanced, random = alternate(repeats, lambda: waiting(balanced_shapes(path)), lambda: waiting(random_shapes(path)))
    share = compare(
        "waiting for the slower of 2 workers, dealt by length",
        "of the time",
        "shards dealt at random",
        [balanced, random],
        floor=0.5,
        aim=0.25,
        at_most=True,
    )
    note = f"{np.median(balanced):.1%} of the time, against {np.median(random):.1%}."
    print_rows([speed, dataclasses.replace(share, note=note)])


def train(path: pathlib.Path, run: pathlib.Path, workers: int) -> float:
    """Trains, and returns the updates per second of the second epoch."""
    shutil.rmtree(run, ignore_errors=True)
    flags = ["--output", run, "--epochs", 2, "--batch_steps", BATCH_STEPS, "--local_workers", workers]
    threads = {"TF_NUM_INTRAOP_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command_line("train", path, *flags))), env=os.environ | threads, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    updates = sum(line["epoch"] == 2 for line in lines if "update" in line)
    (seconds,) = (line["train"]["seconds"] for line in lines if "train" in line and line["epoch"] == 2)
    return updates / seconds


def balanced_shapes(path: pathlib.Path) -> list[list[list[int]]]:
    """Returns the [rows, steps] of each batch of each worker, for global batches that are dealt by length."""
    plan = make_window_plan(open_dataset(path).indexes("train"), batch_steps=BATCH_STEPS, seed=0, epoch=1)
    return [shapes(plan.deal(NUM_WORKERS).batch_shapes(worker)) for worker in range(NUM_WORKERS)]


def random_shapes(path: pathlib.Path) -> list[list[list[int]]]:
    """Returns the same for workers that make batches from their own shards, with their part of the budget."""
    shards = open_dataset(path).indexes("train")
    budget = BATCH_STEPS // NUM_WORKERS
    plans = [
        make_window_plan(shards[worker::NUM_WORKERS], batch_steps=budget, seed=worker, epoch=1)
        for worker in range(NUM_WORKERS)
    ]
    return [shapes(plan.batch_shapes()) for plan in plans]


def shapes(batches: BatchShapes) -> list[list[int]]:
    return np.stack([batches.rows, batches.pad_length], axis=1).tolist()


def waiting(shapes: list[list[list[int]]]) -> float:
    """Returns the share of the time in which workers wait for the slowest one. All start each update together."""
    length = min(map(len, shapes))
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder, f"{worker}.json") for worker in range(len(shapes))]
        for file, part in zip(files, shapes, strict=True):
            file.write_text(json.dumps({"shapes": part[:length], "output": f"{file}.seconds"}))
        threads = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
        workers = [
            subprocess.Popen([sys.executable, __file__, "--compute", file], env=os.environ | threads) for file in files
        ]
        if any([worker.wait() for worker in workers]):
            raise SystemExit("A worker failed.")
        seconds = np.array([json.loads(pathlib.Path(f"{file}.seconds").read_text()) for file in files])
    return float(1 - seconds.mean(axis=0).sum() / seconds.max(axis=0).sum())


def compute(task: dict[str, Any]) -> None:
    """Measures the seconds of the gradient for a batch of each shape, in the process of one worker."""
    from trainer.devices.tensorflow_setup import start_tensorflow

    start_tensorflow()
    import keras
    import tensorflow as tf

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((None, NUM_FEATURES)),
            layers.LSTM(100, return_sequences=True),
            layers.LSTM(100, return_sequences=True),
            layers.Dense(3),
        ]
    )

    @tf.function(input_signature=[tf.TensorSpec([None, None, NUM_FEATURES])], jit_compile=False)
    def gradient(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x, training=True) ** 2)
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        return tf.linalg.global_norm(gradients)

    seconds = []
    for rows, steps in [task["shapes"][0], *task["shapes"]]:
        x = tf.random.stateless_normal([rows, steps, NUM_FEATURES], seed=[rows, steps])
        begin = time.perf_counter()
        float(gradient(x))
        seconds.append(time.perf_counter() - begin)
    pathlib.Path(task["output"]).write_text(json.dumps(seconds[1:]))  # the first call traces the function


if __name__ == "__main__":
    main()
