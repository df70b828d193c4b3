"""The recurrent layers of a model as one layer, and a layer that runs them from one state to the next."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from trainer.model.layers import Dropout, LastStep, MaxStep, MeanStep, ReverseSteps, step_mask

_POOLING: dict[str, type[keras.layers.Layer]] = {"last": LastStep, "mean": MeanStep, "max": MaxStep}
_CELLS: dict[str, type[keras.layers.Layer]] = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}

# The state after some steps of each row: float32[batch, units] for the output of each layer, and for LSTM for its cell;
# for pooling `mean` and `max` also the sum or maximum of the steps, float32[batch, units], and their number,
# float32[batch, 1]. Zeros are the state before the first step.
StackState: TypeAlias = list[Any]


@keras.saving.register_keras_serializable(package="lengthwise")
class RecurrentStack(keras.layers.Layer):
    """Maps values[batch, time, width] and length[batch] to the output of stacked LSTM or GRU layers.

    The output is [batch, time, units], or [batch, units] with `pooling`; twice as wide if the stack is bidirectional.
    Steps at and after `length` have no effect on the output of the steps before them, nor on the pooled output.

    The layers keep the names and the paths of their weights that they would have as layers of the model: a warm start
    finds weights by their paths.

    Args:
        width: Columns of the input.
        units: Units of each layer.
        cell: `lstm` or `gru`.
        bidirectional: Whether each layer also reads from right to left. Such a stack takes no state.
        dropout: Share of the outputs of each layer that is dropped in training.
        pooling: `last`, `mean` or `max` over the steps of a row; None for an output per step.
    """

    def __init__(
        self,
        width: int,
        units: Sequence[int],
        *,
        cell: str = "lstm",
        bidirectional: bool = False,
        dropout: float = 0.0,
        pooling: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.width, self.units, self.cell = width, tuple(units), cell
        self.bidirectional, self.dropout, self.pooling = bidirectional, dropout, pooling
        self._cells: list[keras.layers.Layer] = []
        # The places in `_cells` of the forward and the backward layer of each number.
        self._places: list[tuple[int, int]] = []
        self._reverses: list[keras.layers.Layer] = []
        self._dropouts: list[keras.layers.Layer] = []
        self._pooling: keras.layers.Layer | None = None
        # The initial weights of a seed depend on the order in which layers are made, and checkpoints on the order in
        # which they are kept. Both are those of a Keras model of the single layers, as earlier versions built.
        for number, size in enumerate(self.units):
            is_pooled = pooling is not None and number == len(self.units) - 1
            made = [self._make_cell(size, f"{cell}_{number}", width)]
            if is_pooled:
                self._pooling = _POOLING[str(pooling)](name=f"{pooling}_{number}")
            if bidirectional:
                self._reverses.append(ReverseSteps(name=f"reverse_{number}"))
                made.append(self._make_cell(size, f"{cell}_{number}_backward", width))
            first = len(self._cells)
            self._places.append((first, first + 1) if is_pooled or not bidirectional else (first + 1, first))
            self._cells.extend(made if is_pooled else made[::-1])
            if dropout:
                self._dropouts.append(Dropout(dropout, name=f"dropout_{number}"))
            width = size * (2 if bidirectional else 1)
        self.output_width = width
        self.built = True

    def _make_cell(self, units: int, name: str, width: int) -> keras.layers.Layer:
        # Not recurrent_dropout: with it, Keras does not use the cuDNN kernel.
        layer = _CELLS[self.cell](units, return_sequences=True, return_state=True, name=name)
        layer.build((None, None, width))
        return layer

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """The LSTM or GRU layers."""
        return list(self._cells)

    @property
    def state_widths(self) -> list[int]:
        """Columns of each tensor of the state. Empty if the stack is bidirectional, and so has no state."""
        if self.bidirectional:
            return []
        widths = [size for size in self.units for _ in range(2 if self.cell == "lstm" else 1)]
        return widths + ([self.units[-1], 1] if self.pooling in ("mean", "max") else [])

    @property
    def state_names(self) -> list[str]:
        """Name of each tensor of the state, such as `lstm_0_output`, `lstm_0_cell`, `mean_sum` and `mean_steps`."""
        if self.bidirectional:
            return []
        parts = ("output", "cell") if self.cell == "lstm" else ("output",)
        names = [f"{self.cell}_{number}_{part}" for number in range(len(self.units)) for part in parts]
        pooled = {"mean": ["mean_sum", "mean_steps"], "max": ["max_value", "max_steps"]}
        return names + pooled.get(str(self.pooling), [])

    def call(self, values: tf.Tensor, length: tf.Tensor, training: bool = False) -> tf.Tensor:
        hidden = values
        for number, (forward_place, backward_place) in enumerate(self._places):
            pooling = self._pooling if number == len(self.units) - 1 else None
            forward = self._cells[forward_place](hidden)[0]
            if self.bidirectional:
                reverse = self._reverses[number]
                backward = self._cells[backward_place](reverse(hidden, length))[0]
                # In reverse order, the last step is the first step of the record. The mean and the maximum do not
                # depend on the order.
                parts = [pooling(forward, length), pooling(backward, length)] if pooling else []
                hidden = tf.concat(parts or [forward, reverse(backward, length)], axis=-1)
            else:
                hidden = pooling(forward, length) if pooling else forward
            hidden = self._drop(number, hidden, training)
        return hidden

    def read_on(
        self, values: tf.Tensor, length: tf.Tensor, state: StackState, *, training: bool, full_rows: bool
    ) -> tuple[tf.Tensor, StackState]:
        """Returns the output for parts of records, and the new state. See StatefulStack."""
        # A mask carries the state of a row past its padding. The outputs of its real steps do not need one.
        mask = None if full_rows else step_mask(values, length)
        states_per_layer = 2 if self.cell == "lstm" else 1
        hidden, new = values, []
        for number, layer in enumerate(self._cells):
            first = number * states_per_layer
            hidden, *states = layer(hidden, mask=mask, initial_state=state[first : first + states_per_layer])
            new += states
            hidden = tf.identity(hidden)  # without the mask that Keras attaches to the tensor
            if number == len(self.units) - 1 and self._pooling is not None:
                hidden, pooled = self._pool_on(hidden, length, state[first + states_per_layer :])
                new += pooled
            hidden = self._drop(number, hidden, training)
        return hidden, new

    def _pool_on(self, hidden: tf.Tensor, length: tf.Tensor, state: StackState) -> tuple[tf.Tensor, StackState]:
        """Returns what the steps so far are pooled to, and the new state of the pooling."""
        assert self._pooling is not None
        here = self._pooling(hidden, length)
        if self.pooling == "last":
            return here, []
        before, steps_before = state
        steps_here = tf.cast(length, here.dtype)[:, None]
        steps = steps_before + steps_here
        if self.pooling == "mean":
            total = before + here * steps_here
            return total / steps, [total, steps]
        largest = tf.where(steps_before > 0, tf.maximum(before, here), here)
        return largest, [largest, steps]

    def _drop(self, number: int, hidden: tf.Tensor, training: bool) -> tf.Tensor:
        return self._dropouts[number](hidden, training=training) if self._dropouts else hidden

    def compute_output_spec(self, values: Any, length: Any, training: bool = False) -> Any:
        shape = values.shape[:1] if self.pooling else values.shape[:2]
        return keras.KerasTensor((*shape, self.output_width), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "width": self.width,
            "units": list(self.units),
            "cell": self.cell,
            "bidirectional": self.bidirectional,
            "dropout": self.dropout,
            "pooling": self.pooling,
        }


@keras.saving.register_keras_serializable(package="lengthwise")
class StatefulStack(keras.layers.Layer):
    """Maps values[batch, time, width], length[batch] and a state to the output of a stack, and the new state.

    The steps continue a record that was read up to the state. So a record may be read in parts of any lengths. (Keras's
    `stateful=True` keeps the state in variables of a fixed batch size, and resets all rows at once.)

    Args:
        stack: The layers, which are not bidirectional.
        full_rows: Whether the new state is needed only for rows whose length is `time`, which is faster. That of the
            other rows is then that after their padding.
    """

    def __init__(self, stack: RecurrentStack, *, full_rows: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if stack.bidirectional:
            raise ValueError("A bidirectional stack reads from the end of a record, so it takes no state.")
        self.stack, self.full_rows = stack, full_rows
        self.built = True

    def call(self, values: tf.Tensor, length: tf.Tensor, state: StackState, training: bool = False) -> Any:
        return self.stack.read_on(values, length, list(state), training=training, full_rows=self.full_rows)

    def compute_output_spec(self, values: Any, length: Any, state: Any, training: bool = False) -> Any:
        output = self.stack.compute_output_spec(values, length)
        widths = self.stack.state_widths
        return output, [keras.KerasTensor((values.shape[0], width), dtype=self.compute_dtype) for width in widths]

    def get_config(self) -> dict[str, Any]:
        stack = keras.saving.serialize_keras_object(self.stack)
        return super().get_config() | {"stack": stack, "full_rows": self.full_rows}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "StatefulStack":
        return cls(keras.saving.deserialize_keras_object(config.pop("stack")), **config)
