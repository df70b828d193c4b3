"""Measures what the training loop costs beside the update itself: in the same run a bare loop, and Keras's `fit`.

    python tests/benchmarks/loop.py [--quick]

Two LSTM layers of 100 units on 8 features, the same batches for all. `lengthwise` reads them from its dataset, keeps a
journal and checkpoints; the others hold them in memory and keep nothing.
"""

import argparse
import functools
import pathlib
import sys
import time

import keras
import tensorflow as tf
import textbook
from data import make_dataset
from measure import alternate, compare, tell
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
    held = list(batches(path, "train", batch_steps=BATCH_STEPS, epoch=2))
    # Compiled once: their first pass is not timed, as ours is not.
    bare, fit = Bare(path, held), Fit(held)
    ours, one, other = alternate(
        repeats, functools.partial(useful_steps_of_train, path, options.output / "run"), bare.measure, fit.measure
    )
    unit = "useful steps/s"
    tell(
        [
            compare("the training loop", unit, "bare updates, batches in memory", [ours, one], floor=0.95, aim=1.0),
            compare("the training loop", unit, "fit, masked, batches in memory", [ours, other], floor=1.15, aim=1.5),
        ]
    )


class Bare:
    """A tf.function of the update in the plainest form, called for each batch."""

    def __init__(self, path: pathlib.Path, held: list) -> None:
        dataset = open_dataset(path)
        model = build_model(dataset.schema, dataset.manifest.statistics, TrainConfig())
        head, optimizer = head_model(model), keras.optimizers.RMSprop(0.002)
        optimizer.build(model.trainable_variables)
        spec = batches(path, "train").element_spec

        @tf.function(input_signature=spec, jit_compile=False)
        def update(features, label, weight):
            with tf.GradientTape() as tape:
                logits = head(features, training=True)
                loss = tf.reduce_mean(weight * tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits))
            variables = [variable.value for variable in model.trainable_variables]
            optimizer.apply(tape.gradient(loss, variables), model.trainable_variables)
            return loss

        self._update, self._held = update, held
        self.measure()

    def measure(self) -> float:
        begin = time.perf_counter()
        for features, label, weight in self._held:
            loss = self._update(features, label, weight)
        float(loss)
        return useful_steps(self._held) / (time.perf_counter() - begin)


class Fit:
    """Keras's `fit` of the masked model."""

    def __init__(self, held: list) -> None:
        self._held, self._model = held, textbook.model(NUM_FEATURES)
        spec = tf.TensorSpec([None, None, NUM_FEATURES], tf.float32), tf.TensorSpec([None], tf.int64)
        pairs = [(features["x"], label) for features, label, _ in held]
        self._batches = tf.data.Dataset.from_generator(lambda: iter(pairs), output_signature=spec).cache().prefetch(8)
        self.measure()

    def measure(self) -> float:
        clock = Clock()
        self._model.fit(self._batches, epochs=1, callbacks=[clock], verbose=0)
        return useful_steps(self._held) / clock.seconds


def useful_steps(held: list) -> int:
    return sum(int(tf.reduce_sum(features["length"])) for features, _, _ in held)


if __name__ == "__main__":
    sys.exit(main())
