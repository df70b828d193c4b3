"""Measures training in useful steps per second against Keras's `fit`, and the memory of training.

    python tests/benchmarks/training.py [--quick]

The model has two LSTM layers of 100 units on 8 features. Each side trains for two epochs, and the second one is timed.
All sides use the same records, but only as many of them as take some seconds.
"""

import argparse
import functools
import json
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import textbook
from data import CLASSES, MAX_LENGTH, make_dataset, records
from measure import Row, alternate, compare, print_rows, run_command

from trainer.config import TrainConfig
from trainer.devices.tensorflow_setup import start_tensorflow
from trainer.training.train import train

NUM_FEATURES, BATCH_STEPS = 8, 6400
# Name, floor, aim, share of the records to train on: the speeds differ by an order of magnitude.
TWINS = (
    ("padded to the longest", 8.0, 10.0, 0.1),
    ("padded_batch at random", 4.0, 5.0, 0.3),
    ("masked bucket_by_sequence_length", 1.3, 1.5, 0.5),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer records, one repeat")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/benchmarks"))
    options = parser.parse_args()
    num_records, repeats = (600, 1) if options.quick else (6000, 3)
    rows = speed(options.output, num_records, repeats)
    print_rows([*rows, memory(options.output, 600 if options.quick else 20_000)])


def speed(output: pathlib.Path, num_records: int, repeats: int) -> list[Row]:
    """Compares the speed of `lengthwise train` with that of `fit` on batches of several kinds."""
    start_tensorflow()
    dataset = make_dataset(output / "data", NUM_FEATURES, num_records)
    found = list(records(NUM_FEATURES, num_records))
    xs, labels = [x for _, x, _ in found], [CLASSES.index(label) for _, _, label in found]
    # Our side trains as a user does, and also writes metrics and checkpoints.
    ours = functools.partial(useful_steps_of_train, dataset, output / "run")
    twins = [
        functools.partial(useful_steps_of_fit, name, xs[: int(part * num_records)], labels[: int(part * num_records)])
        for name, _, _, part in TWINS
    ]
    measured = alternate(repeats, ours, *twins)
    return [
        compare("training", "useful steps/s", f"fit, {name}", [measured[0], theirs], floor=floor, aim=aim)
        for (name, floor, aim, _), theirs in zip(TWINS, measured[1:], strict=True)
    ]


def useful_steps_of_train(dataset: pathlib.Path, run: pathlib.Path) -> float:
    """Trains with Lengthwise, and returns the useful steps per second of the second epoch."""
    shutil.rmtree(run, ignore_errors=True)
    train(dataset, run, TrainConfig(epochs=2, batch_steps=BATCH_STEPS))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (timed,) = (line["train"] for line in lines if "train" in line and line["epoch"] == 2)
    return timed["steps"] / timed["seconds"]


class Clock(keras.callbacks.Callback):
    """Measures the seconds of the last epoch."""

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self.begin = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.seconds = time.perf_counter() - self.begin


def useful_steps_of_fit(name: str, xs: list[np.ndarray], labels: list[int]) -> float:
    """Trains with `fit`, and returns the useful steps per second of the second epoch."""
    functions: dict[str, Callable[..., Any]] = {
        "padded to the longest": functools.partial(textbook.padded_to_longest, longest=MAX_LENGTH),
        "padded_batch at random": textbook.padded_batches,
        "masked bucket_by_sequence_length": functools.partial(
            textbook.bucket_batches, batch_steps=BATCH_STEPS, longest=MAX_LENGTH
        ),
    }
    batches, clock = functions[name](xs, labels), Clock()
    textbook.model(NUM_FEATURES).fit(batches.prefetch(2), epochs=2, callbacks=[clock], verbose=0)
    return sum(map(len, xs)) / clock.seconds


def memory(output: pathlib.Path, num_records: int) -> Row:
    """Compares the peak memory of `lengthwise train` for ten times the records with that for the records.

    Both have the same number of updates: on batches of many shapes, malloc's heap grows for a while with the updates,
    not with the records. The model is small to save time.
    """
    flags = ["--units", 24, 24, "--batch_steps", BATCH_STEPS, "--overwrite"]
    peaks = []
    for count, epochs in ((num_records, 10), (10 * num_records, 1)):
        dataset = make_dataset(output / "data", NUM_FEATURES, count)
        found = run_command("train", dataset, "--output", output / "memory-run", "--epochs", epochs, *flags)
        peaks.append(found["peak_mebibytes"])
    once, ten_times = peaks
    name, twin = f"peak memory of training, {10 * num_records:,} records", f"{num_records:,} records, ten times"
    return Row(name, "MiB", ten_times, twin, once, ten_times / once, floor=1.1, aim=1.1, at_most=True)


if __name__ == "__main__":
    main()
