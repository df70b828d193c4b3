"""Measures the cost of the training loop besides the updates, against a bare loop and against Keras's `fit`.

    python tests/benchmarks/loop.py [--quick]

The model has two LSTM layers of 100 units on 8 features, and all loops use the same batches. `lengthwise` reads them
from its dataset and writes metrics and checkpoints. The other loops keep the batches in memory and write nothing.
"""

import argparse
import functools
import pathlib
import time
from typing import Any

import keras
import tensorflow as tf
import textbook
from data import make_dataset
from measure import alternate, compare, print_rows
from training import BATCH_STEPS, NUM_FEATURES, Clock, useful_steps_of_train

from trainer.config import TrainConfig
from trainer.data.dataset import open_dataset
from trainer.devices.tensorflow_setup import start_tensorflow
from trainer.model.build import build_model, head_model
from trainer.reading.batches import batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer records, one repeat")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/benchmarks"))
    options = parser.parse_args()
    num_records, repeats = (600, 1) if options.quick else (8000, 5)
    start_tensorflow()
    path = make_dataset(options.output / "data", NUM_FEATURES, num_records)
    batches_in_memory = list(batches(path, "train", batch_steps=BATCH_STEPS, epoch=2))
    # The first pass, which compiles, is not timed for any of the loops.
    bare, fit = BareLoop(path, batches_in_memory), KerasFit(batches_in_memory)
    ours, bare_loop, keras_fit = alternate(
        repeats, functools.partial(useful_steps_of_train, path, options.output / "run"), bare.measure, fit.measure
    )
    unit = "useful steps/s"
    print_rows(
        [
            compare(
                "the training loop", unit, "bare updates, batches in memory", [ours, bare_loop], floor=0.95, aim=1.0
            ),
            compare(
                "the training loop", unit, "fit, masked, batches in memory", [ours, keras_fit], floor=1.15, aim=1.5
            ),
        ]
    )


class BareLoop:
    """Calls a tf.function with the simplest form of an update for each batch."""

    def __init__(self, path: pathlib.Path, batches_in_memory: list[Any]) -> None:
        dataset = open_dataset(path)
        model = build_model(dataset.schema, dataset.manifest.statistics, TrainConfig())
        head, optimizer = head_model(model), keras.optimizers.RMSprop(0.002)
        optimizer.build(model.trainable_variables)
        spec = batches(path, "train").element_spec

        @tf.function(input_signature=spec, jit_compile=False)
        def update(features: Any, label: Any, weight: Any) -> Any:
            with tf.GradientTape() as tape:
                logits = head(features, training=True)
                loss = tf.reduce_mean(weight * tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits))
            variables = [variable.value for variable in model.trainable_variables]
            optimizer.apply(tape.gradient(loss, variables), model.trainable_variables)
            return loss

        self._update, self._batches_in_memory = update, batches_in_memory
        self.measure()

    def measure(self) -> float:
        begin = time.perf_counter()
        for features, label, weight in self._batches_in_memory:
            loss = self._update(features, label, weight)
        float(loss)
        return useful_steps(self._batches_in_memory) / (time.perf_counter() - begin)


class KerasFit:
    """Calls Keras's `fit` with the masked model."""

    def __init__(self, batches_in_memory: list[Any]) -> None:
        self._batches_in_memory, self._model = batches_in_memory, textbook.model(NUM_FEATURES)
        spec = tf.TensorSpec([None, None, NUM_FEATURES], tf.float32), tf.TensorSpec([None], tf.int64)
        pairs = [(features["x"], label) for features, label, _ in batches_in_memory]
        self._batches = tf.data.Dataset.from_generator(lambda: iter(pairs), output_signature=spec).cache().prefetch(8)
        self.measure()

    def measure(self) -> float:
        clock = Clock()
        self._model.fit(self._batches, epochs=1, callbacks=[clock], verbose=0)
        return useful_steps(self._batches_in_memory) / clock.seconds


def useful_steps(batches_in_memory: list[Any]) -> int:
    """Returns the number of steps in all batches, without padding."""
    return sum(int(tf.reduce_sum(features["length"])) for features, _, _ in batches_in_memory)


if __name__ == "__main__":
    main()
