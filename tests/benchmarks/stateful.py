"""Measures training on very long records in chunks against a loop over a stateful LSTM of Keras.

    python tests/benchmarks/stateful.py [--quick]

200 records have log-normal lengths around 5,000 steps; the longest has 100,000. A step has 8 numbers. The model has two
LSTM layers of 100 units, and trains on the label of its record in each chunk. 16 lanes read chunks of 100 steps.

The loop is what Keras's `stateful=True` asks for: one fixed batch of 16 records, all records padded to the longest, and
states that are reset by hand after each batch of records. An epoch of it takes 13,000 updates, so both sides are timed
for some updates, and their steps per second are multiplied by the useful share of the whole epoch, which follows from
the lengths.
"""

import argparse
import functools
import pathlib
import shutil
import time

import keras
import numpy as np
from data import CLASSES, write_dataset
from measure import Row, alternate, compare, print_rows

from trainer.batching.stateful import StatefulPlan
from trainer.config import TrainConfig
from trainer.data.dataset import open_dataset
from trainer.devices.tensorflow_setup import start_tensorflow
from trainer.runs.state import State
from trainer.training.epoch_source import plan_next_epoch
from trainer.training.train import train

NUM_RECORDS, MEDIAN, SIGMA, LONGEST = 200, 5000, 1.1, 100_000
NUM_FEATURES, LANES, CHUNK_STEPS = 8, 16, 100
CONFIG = TrainConfig(batching="stateful", chunk_steps=CHUNK_STEPS, lanes=LANES, label_every_chunk=True, epochs=1)
# Updates before the first one that is timed: they trace, compile and fill the buffers.
WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer updates, one repeat")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/benchmarks"))
    options = parser.parse_args()
    updates, repeats = (20, 1) if options.quick else (150, 5)
    start_tensorflow()
    dataset = make_dataset(options.output / "data")
    plan = plan_next_epoch(open_dataset(dataset), CONFIG, State())
    assert isinstance(plan, StatefulPlan)
    padded = LANES * LONGEST * -(-NUM_RECORDS // LANES)
    loop = StatefulLoop(updates, useful_share=plan.steps / padded)
    ours = functools.partial(useful_steps_of_train, dataset, options.output / "run", plan, updates)
    row = compare(
        "training on very long records",
        "useful steps/s",
        "stateful LSTM of Keras, padded to the longest",
        alternate(repeats, ours, loop.measure),
        floor=8.0,
        aim=10.0,
        note=(
            f"timed for {updates} of {plan.num_batches:,} updates in an epoch and of {padded // LANES // CHUNK_STEPS:,}"
            f"; of the padded steps, {plan.useful_share:.1%} and {plan.steps / padded:.1%} are useful"
        ),
    )
    print_rows([row, compare_with_bound(plan)])


def draw_lengths() -> np.ndarray:
    """Returns the number of steps of each record: int64[NUM_RECORDS]."""
    random = np.random.default_rng(1)
    return np.exp(random.normal(np.log(MEDIAN), SIGMA, NUM_RECORDS)).round().clip(1, LONGEST).astype(int)


def make_dataset(folder: pathlib.Path) -> pathlib.Path:
    """Makes the dataset if it does not exist, and returns its folder."""
    path = folder / f"dataset-long-{NUM_RECORDS}"
    write_dataset(
        path,
        NUM_FEATURES,
        (
            (f"record-{number}", values_of(number, length), CLASSES[number % 3])
            for number, length in enumerate(draw_lengths().tolist())
        ),
    )
    return path


def values_of(number: int, length: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=(length, NUM_FEATURES)).astype(np.float32)


class EnoughUpdates(Exception):
    pass


class Timer(keras.callbacks.Callback):
    """Measures the seconds of some updates after the warm-up, then raises EnoughUpdates."""

    def __init__(self, updates: int) -> None:
        super().__init__()
        self._last, self.begin, self.seconds = WARM_UP + updates - 1, 0.0, 0.0

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        if batch == WARM_UP - 1:
            self.begin = time.perf_counter()
        if batch == self._last:
            self.seconds = time.perf_counter() - self.begin
            raise EnoughUpdates


def useful_steps_of_train(dataset: pathlib.Path, run: pathlib.Path, plan: StatefulPlan, updates: int) -> float:
    """Trains with Lengthwise as a user does, and returns the useful steps per second."""
    shutil.rmtree(run, ignore_errors=True)
    timer = Timer(updates)
    try:
        train(dataset, run, CONFIG, callbacks=[timer])
    except EnoughUpdates:
        pass
    padded = (plan.rows() * plan.times())[WARM_UP : WARM_UP + updates].sum()
    return float(padded) / timer.seconds * plan.useful_share


class StatefulLoop:
    """Trains with `train_on_batch` on the first records, padded to the longest."""

    def __init__(self, updates: int, *, useful_share: float) -> None:
        layers = keras.layers
        self._model = keras.Sequential(
            [
                keras.Input(batch_shape=(LANES, CHUNK_STEPS, NUM_FEATURES)),
                layers.Masking(0.0),
                layers.LSTM(100, return_sequences=True, stateful=True),
                layers.LSTM(100, stateful=True),
                layers.Dense(len(CLASSES), activation="softmax"),
            ]
        )
        self._model.compile("rmsprop", "sparse_categorical_crossentropy", jit_compile=False)
        xs = [values_of(number, length) for number, length in enumerate(draw_lengths()[:LANES].tolist())]
        self._x = keras.utils.pad_sequences(xs, maxlen=LONGEST, dtype="float32", padding="post")
        self._y = np.arange(LANES) % len(CLASSES)
        self._updates, self._useful_share = updates, useful_share

    def measure(self) -> float:
        """Returns the useful steps per second."""
        for layer in self._model.layers:
            if isinstance(layer, keras.layers.LSTM):
                layer.reset_states()
        for number in range(WARM_UP + self._updates):
            if number == WARM_UP:
                begin = time.perf_counter()
            first = number * CHUNK_STEPS
            self._model.train_on_batch(self._x[:, first : first + CHUNK_STEPS], self._y)
        padded = self._updates * LANES * CHUNK_STEPS
        return padded / (time.perf_counter() - begin) * self._useful_share


def compare_with_bound(plan: StatefulPlan) -> Row:
    """Compares the useful share of the plan with the bound that `lengthwise plan` prints.

    The bound counts all lanes in all updates, so here lanes that have ended are counted too.
    """
    share = plan.steps / (plan.lanes * plan.num_batches * plan.chunk_steps)
    return Row(
        "useful share of chunks",
        "",
        share,
        f"the bound of `plan`: steps / (lanes x longest), {plan.lanes} lanes",
        plan.bound,
        share / plan.bound,
        floor=0.97,
        aim=0.99,
        note=f"counted for all lanes in all updates; without lanes that have ended it is {plan.useful_share:.1%}",
    )


if __name__ == "__main__":
    main()
