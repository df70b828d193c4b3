"""Callbacks resume with their own state where they allow it, and are named where they do not."""

import json
import math

import datasets
import keras
import numpy as np
import pytest
from interruptions import InterruptAt, Interrupted, lines_of

from pipeline.errors import UserError
from trainer.config import TrainConfig
from trainer.devices.tensorflow_setup import start_tensorflow
from trainer.runs.state import State
from trainer.training.callback_states import read_states, restore_states
from trainer.training.train import train

SMALL = TrainConfig(epochs=4, units=(2,), batch_size=20, checkpoint_updates=1)


class Counter(keras.callbacks.Callback):
    """Counts updates; has a state of its own."""

    def on_train_begin(self, logs=None):
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(batch)

    def get_state(self):
        return {"seen": self.seen, "worst": math.inf}

    def set_state(self, state):
        assert state["worst"] == math.inf
        self.seen = state["seen"]


class Patient(keras.callbacks.EarlyStopping):
    """A subclass, whose own attributes nobody knows."""


def through_json(states):
    """Stores the states in a checkpoint's text and reads them again."""
    return State.model_validate_json(State(callbacks=states).model_dump_json()).callbacks


@pytest.mark.proof
def test_a_resumed_run_equals_an_uninterrupted_one_with_callbacks(tmp_path, capsys):
    """With this min_delta no epoch is better than the first, so the learning rate falls after the third."""
    start_tensorflow()
    path = datasets.of_kind("class").path

    def callbacks():
        return [keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=2, min_delta=100.0), Counter()]

    expected, found = callbacks(), callbacks()
    result = train(path, tmp_path / "one", SMALL, callbacks=expected)
    with pytest.raises(Interrupted):
        train(path, tmp_path / "two", SMALL, callbacks=[*callbacks(), InterruptAt(1, 1)])
    capsys.readouterr()
    # The interrupted update has no checkpoint, so it is counted once.
    assert train(path, tmp_path / "two", SMALL, callbacks=[*found, InterruptAt(9)]) == result
    assert lines_of(tmp_path / "two") == lines_of(tmp_path / "one")
    assert found[1].seen == expected[1].seen == list(range(result["updates"] // 4)) * 4
    assert float(found[0].model.optimizer.learning_rate) == pytest.approx(SMALL.learning_rate * 0.1)
    err = capsys.readouterr().err.splitlines()
    assert "Callbacks that start anew: InterruptAt (it has no get_state and set_state)." in err


def test_known_attributes_of_keras_and_numbers_of_numpy_are_kept():
    stopping, plateau = keras.callbacks.EarlyStopping(), keras.callbacks.ReduceLROnPlateau()
    for number, callback in enumerate((stopping, plateau)):
        callback.on_train_begin()
        callback.wait, callback.best = 3 + number, np.float32(0.5)
    plateau.cooldown_counter, stopping.best_epoch = 7, 2
    fresh = [keras.callbacks.ReduceLROnPlateau(), keras.callbacks.EarlyStopping()]  # in another order
    for callback in fresh:
        callback.on_train_begin()
    assert restore_states(fresh, through_json(read_states([stopping, plateau]))) is None
    assert (fresh[0].wait, fresh[0].best, fresh[0].cooldown_counter) == (4, 0.5, 7)
    assert (fresh[1].wait, fresh[1].best, fresh[1].best_epoch) == (3, 0.5, 2)


def test_several_callbacks_of_a_class_are_told_apart_by_their_order():
    one, two, three = Counter(), Counter(), Counter()
    one.seen, two.seen = [1], [2]
    states = through_json(read_states([one, two]))
    fresh = [Counter(), Counter(), three]
    three.seen = []
    assert restore_states(fresh, states) == "Callbacks that start anew: Counter (the checkpoint has no state of it)."
    assert [callback.seen for callback in fresh] == [[1], [2], []]


@pytest.mark.parametrize(
    ("callback", "reason"),
    [
        (keras.callbacks.EarlyStopping(restore_best_weights=True), "its best weights are not in the checkpoint"),
        (keras.callbacks.ModelCheckpoint("x.keras", save_freq=3), "it counts updates"),
        (Patient(), "it has no get_state and set_state"),
        (keras.callbacks.LambdaCallback(), "it has no get_state and set_state"),
        (keras.callbacks.TerminateOnNaN(), None),
        (keras.callbacks.TensorBoard(), None),
    ],
)
def test_a_callback_without_a_state_is_named_unless_it_needs_none(callback, reason):
    assert read_states([callback]) == ()
    name = type(callback).__name__
    assert restore_states([callback], ()) == (reason and f"Callbacks that start anew: {name} ({reason}).")


def test_a_state_that_is_not_json_is_refused_by_name():
    callback = Counter()
    callback.seen = {1, 2}
    with pytest.raises(UserError, match=r"Counter: get_state returned a dict that is not serializable as JSON"):
        read_states([callback])
    callback.seen = [json.loads("NaN")]
    assert math.isnan(json.loads(through_json(read_states([callback]))[0].json_text)["seen"][0])
