"""Measures reading with window batching against the textbook way, and against reading the files without parsing.

    python tests/benchmarks/reading.py [--quick]

Both sides add up all values of their batches, so that every value is read. The sums are compared.
"""

import argparse
import functools
import os
import pathlib
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from data import MAX_LENGTH, draw_lengths, make_dataset, make_sequence_examples
from measure import Row, alternate, compare, print_rows
from textbook import sequence_example_batches

from trainer.batching.plan_epoch import plan_epoch
from trainer.data.dataset import open_dataset
from trainer.reading.batches import batches

BATCH_STEPS = 6400
# Our side reads several epochs, because one epoch is too short to measure.
EPOCHS = range(4)
TEXTBOOK = "parse_single_…, bucket_by_sequence_length"


@tf.function(reduce_retracing=True, autograph=False)
def add_up(x: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Returns the sum of the values and the sum of the lengths: float32[2]."""
    return tf.stack([tf.reduce_sum(x), tf.cast(tf.reduce_sum(length), tf.float32)])


def consume(found: tf.data.Dataset, select: Callable[..., tuple[tf.Tensor, tf.Tensor]]) -> tuple[float, np.ndarray]:
    """Reads all batches, and returns the seconds and the sums of values and lengths."""
    begin = time.perf_counter()
    total = np.zeros(2)
    for batch in found:
        total += add_up(*select(*batch)).numpy()
    return time.perf_counter() - begin, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the records, one repeat")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/benchmarks"))
    options = parser.parse_args()
    scale, repeats = (20, 1) if options.quick else (1, 5)
    rows = []
    for num_features, num_records, floor, aim in ((8, 200_000, 5.0, 8.0), (100, 20_000, 2.2, 4.0)):
        rows += measure(options.output / "data", num_features, num_records // scale, repeats, floor=floor, aim=aim)
    rows.append(useful_share(options.output / "data", 200_000 // scale))
    print_rows(rows)


def measure(folder: pathlib.Path, num_features: int, num_records: int, repeats: int, **goals: float) -> list[Row]:
    dataset = open_dataset(make_dataset(folder, num_features, num_records))
    files = sorted(map(str, make_sequence_examples(folder, num_features, num_records).iterdir()))
    shards = [shard.path for shard in dataset.header_checked_indexes("train")]
    num_bytes = sum(map(os.path.getsize, shards))
    numbers = iter(range(10_000))
    sums: dict[str, list[np.ndarray]] = {"ours": [], "textbook": []}

    def read() -> tf.data.Dataset:
        return batches(dataset, "train", batching="window", batch_steps=BATCH_STEPS, epoch=next(numbers))

    def ours() -> float:
        found = [consume(read(), lambda features, label, weight: (features["x"], features["length"])) for _ in EPOCHS]
        sums["ours"] += [total for _, total in found]
        return num_records * len(found) / sum(seconds for seconds, _ in found)

    def textbook() -> float:
        found = sequence_example_batches(files, num_features=num_features, batch_steps=BATCH_STEPS, longest=MAX_LENGTH)
        seconds, total = consume(found, lambda x, length, label: (x, length))
        sums["textbook"].append(total)
        return num_records / seconds

    ours(), textbook()  # reads the files into the page cache, and traces the functions
    name = f"reading, {num_features} features"
    rows = [compare(name, "records/s", TEXTBOOK, alternate(repeats, ours, textbook), **goals)]
    check_sums(sums, num_records)
    if num_features == 100:
        # Without sums: both sides read all bytes into tensors and check them.
        def speed(make: Callable[[], tf.data.Dataset]) -> float:
            return len(EPOCHS) * num_bytes / 2**20 / sum(read_all(make()) for _ in EPOCHS)

        def without_parsing() -> float:
            return max(
                speed(functools.partial(serialized_records, shards, parallel)) for parallel in (None, tf.data.AUTOTUNE)
            )

        measured = alternate(repeats, lambda: speed(read), without_parsing)
        goals = {"floor": 0.35, "aim": 0.6}
        rows.append(compare(f"{name}, in bytes", "MiB/s", "TFRecordDataset alone", measured, **goals))
    return rows


def serialized_records(files: list[str], parallel: int | None) -> tf.data.Dataset:
    """Returns all records of files, in batches: to get them from tf.data one by one takes longer than to read them."""
    return tf.data.TFRecordDataset(files, num_parallel_reads=parallel).batch(256).prefetch(2)


def read_all(found: tf.data.Dataset) -> float:
    """Reads all elements, and returns the seconds."""
    begin = time.perf_counter()
    for _ in found:
        pass
    return time.perf_counter() - begin


def check_sums(sums: dict[str, list[np.ndarray]], num_records: int) -> None:
    steps = draw_lengths(num_records).sum()
    found = np.array(sums["ours"] + sums["textbook"])
    if (found[:, 1] != steps).any() or np.ptp(found[:, 0]) > 1e-4 * np.abs(found[:, 0]).max() + 1:
        raise SystemExit(f"The two sides did not read the same values: {found}.")


def useful_share(folder: pathlib.Path, num_records: int) -> Row:
    """Compares the useful share of window batching with that of batches cut from all records sorted by length."""
    dataset = open_dataset(make_dataset(folder, 8, num_records))
    plans = [plan_epoch(dataset, "train", batch_steps=BATCH_STEPS, epoch=epoch) for epoch in range(3)]
    lengths = np.sort(draw_lengths(num_records))[::-1]
    padded, start = 0, 0
    while start < len(lengths):
        rows = min(max(1, BATCH_STEPS // int(lengths[start])), len(lengths) - start)
        padded += rows * int(lengths[start])
        start += rows
    best = lengths.sum() / padded
    shares = [plan.useful_share for plan in plans]
    return compare("useful share, 8 features", "", "one sort of all", [shares, [best] * 3], floor=0.985, aim=0.995)


if __name__ == "__main__":
    main()
