"""The recurrent stack reads a record in parts as it reads it in one piece."""

import datasets
import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.model.recurrent_stack import RecurrentStack, StatefulStack

LENGTHS = [1, 7, 8, 20, 13, 2]
ROWS, LONGEST, WIDTH = len(LENGTHS), max(LENGTHS), 3
ROWS_CONTINUE = datasets.some(
    [(cell, pooling) for cell in ("lstm", "gru") for pooling in (None, "mean", "max")], [("lstm", "mean")], unpack=True
)
KINDS = datasets.some([("lstm", (4,)), ("gru", (4, 3)), ("lstm", (2, 4, 3))], [("gru", (4, 3))], unpack=True)


def make(units=(4, 3), **options):
    keras.utils.set_random_seed(2)
    stack = RecurrentStack(WIDTH, units, **options)
    for weight in stack.weights:  # some of Keras's initial weights are all zeros or ones
        weight.assign(weight.numpy() + np.random.default_rng(len(weight.shape)).normal(size=weight.shape) / 2)
    return stack


def values():
    random = np.random.default_rng(5)
    found = random.normal(size=(ROWS, LONGEST, WIDTH)).astype(np.float32)
    return tf.constant(found), tf.constant(LENGTHS, tf.int32)


def zeros(stack, rows=ROWS):
    return [tf.zeros((rows, width)) for width in stack.state_widths]


def read_alone(stack, row, chunk_steps, full_rows):
    """Reads one record in chunks; the last one may be shorter. Returns its output, joined if it is per step."""
    steps, _ = values()
    state, outputs = zeros(stack, 1), []
    for first in range(0, LENGTHS[row], chunk_steps):
        part = steps[row : row + 1, first : min(first + chunk_steps, LENGTHS[row])]
        output, state = StatefulStack(stack, full_rows=full_rows)(part, tf.constant([part.shape[1]]), state)
        outputs.append(output.numpy()[0])
    return outputs[-1] if stack.pooling else np.concatenate(outputs)


@pytest.mark.parametrize(
    ("pooling", "full_rows"),
    datasets.some(
        [(pooling, full_rows) for pooling in (None, "last", "mean", "max") for full_rows in (True, False)],
        [(None, True), ("max", False)],
        unpack=True,
    ),
)
@pytest.mark.parametrize(("cell", "units"), KINDS)
def test_chunks_of_any_size_give_the_output_of_one_piece(cell, units, pooling, full_rows):
    stack = make(units, cell=cell, pooling=pooling)
    whole = stack(*values()).numpy()
    for chunk_steps in (1, 7, 100):
        for row, length in enumerate(LENGTHS):
            found = read_alone(stack, row, chunk_steps, full_rows)
            expected = whole[row] if pooling else whole[row, :length]
            np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("cell", "pooling"), ROWS_CONTINUE)
def test_rows_of_any_lengths_continue_from_their_states(cell, pooling):
    """Each row is read in two parts at another place, so that its first part has padding."""
    stack = make(cell=cell, pooling=pooling)
    steps, length = values()
    whole = stack(steps, length).numpy()
    first = np.maximum(1, np.array(LENGTHS) * 2 // 3)
    some = [row for row, size in enumerate(LENGTHS) if size > first[row]]
    garbage = np.where(np.arange(LONGEST)[None, :, None] < first[:, None, None], steps, np.nan)
    reader = StatefulStack(stack)
    _, state = reader(tf.constant(np.nan_to_num(garbage, nan=9.0)), tf.constant(first, tf.int32), zeros(stack))
    rest = np.stack([np.roll(steps[row], -first[row], axis=0) for row in some])
    left = np.array(LENGTHS)[some] - first[some]
    output, _ = reader(tf.constant(rest), tf.constant(left, tf.int32), [tf.gather(part, some) for part in state])
    for place, row in enumerate(some):
        found = output.numpy()[place] if pooling else output.numpy()[place, : left[place]]
        np.testing.assert_allclose(found, whole[row] if pooling else whole[row, first[row] : LENGTHS[row]], atol=1e-6)


def test_parts_equal_those_of_a_stateful_lstm_of_keras_and_so_do_their_gradients():
    """200 records of 50 steps in 5 parts of 10, and another 200 after the states were reset."""
    stack = make((6,))
    (layer,), reader = stack.layers, StatefulStack(stack, full_rows=True)
    keras_layer = keras.layers.LSTM(6, return_sequences=True, stateful=True)
    keras_layer.build((200, 10, WIDTH))
    keras_layer.set_weights(layer.get_weights())
    random = np.random.default_rng(0)
    for _ in range(2):
        steps = random.normal(size=(200, 50, WIDTH)).astype(np.float32)
        factors = tf.constant(random.normal(size=(200, 10, 6)).astype(np.float32))
        state = zeros(stack, 200)
        keras_layer.reset_states()
        for first in range(0, 50, 10):
            part = tf.constant(steps[:, first : first + 10])
            with tf.GradientTape(persistent=True) as tape:
                output, new_state = reader(part, tf.fill([200], 10), state)
                expected = keras_layer(part)
                losses = [tf.reduce_sum(factors * tf.square(each)) for each in (output, expected)]
            np.testing.assert_allclose(output, expected, atol=1e-6)
            for ours, theirs in zip(layer.weights, keras_layer.weights, strict=True):
                found, wanted = tape.gradient(losses[0], ours.value), tape.gradient(losses[1], theirs.value)
                np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
            state = new_state


def test_a_stack_is_the_same_after_it_was_written_and_read(tmp_path):
    stack = make(dropout=0.1, bidirectional=True, pooling="max")
    inputs = keras.Input((None, WIDTH)), keras.Input((), dtype="int32")
    model = keras.Model(inputs, stack(*inputs))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(again(list(values())), model(list(values())))
    assert [weight.path for weight in again.weights] == [weight.path for weight in model.weights]


def test_a_functional_model_takes_and_returns_the_state():
    stack = make(pooling="mean")
    steps, length = keras.Input((None, WIDTH)), keras.Input((), dtype="int32")
    state = [keras.Input((width,)) for width in stack.state_widths]
    whole = keras.Model([steps, length], stack(steps, length))
    model = keras.Model([steps, length, *state], StatefulStack(stack)(steps, length, state))
    output, new_state = model([*values(), *zeros(stack)])
    np.testing.assert_array_equal(whole(list(values())), stack(*values()))
    np.testing.assert_allclose(output, stack(*values()), atol=1e-6)
    assert [part.shape for part in new_state] == [(ROWS, width) for width in (4, 4, 3, 3, 3, 1)]


def test_a_bidirectional_stack_takes_no_state():
    stack = make(bidirectional=True)
    assert stack.state_widths == []
    with pytest.raises(ValueError, match="A bidirectional stack reads from the end of a record, so it takes no state"):
        StatefulStack(stack)
