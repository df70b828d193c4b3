"""Computes one update from the next chunk of each lane, and carries the state of each lane to the next update."""

import collections
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.schema.record import Array
from pipeline.schema.schema import Schema
from trainer.model.chunks import chunk_model, find_stack
from trainer.training.update import Sums, Update

# The (features, fresh) of a chunk of one replica: `fresh` is bool[rows], whether the record begins with the chunk.
_Chunk = tuple[Any, Any]


class StatefulUpdate(Update):
    """An update of batching `stateful`: truncated back-propagation through time.

    The state before a chunk is that after the chunk before it, without its gradient (Williams & Peng 1990). With
    `backprop_chunks` K, an update reads the K - 1 chunks before the new one again, from the state before them, so that
    the gradient of the new chunk's loss reaches K chunks back.

    A part is (features, label, weight, fresh).

    Args:
        backprop_chunks: K.
        others: As for Update.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        *,
        schema: Schema,
        backprop_chunks: int,
        element_spec: tuple[Any, ...],
        **others: Any,
    ) -> None:
        # The state is used only where a record goes on, and so its row is full.
        self._chunks = chunk_model(model, schema, full_rows=True)
        self._widths = find_stack(model).state_widths
        self._num_earlier = backprop_chunks - 1
        super().__init__(model, optimizer, element_spec=element_spec, **others)
        self.begin_epoch(0)

    def _compile(self, part_spec: Any) -> Any:
        """Returns the functions for a chunk and the earlier ones that its gradient goes back through."""
        features, label, weight = part_spec
        chunk = features, tf.TensorSpec([None], tf.bool)
        state = [tf.TensorSpec([None, width], tf.float32) for width in self._widths]
        return super()._compile((features, label, weight, chunk[1], (chunk,) * self._num_earlier, state))

    def begin_epoch(self, rows: int) -> None:
        """Forgets the chunks and the state: the next chunks begin their records.

        Args:
            rows: Rows of the first chunk of a replica.
        """
        self._set_window([])
        zeros = [tf.zeros((rows, width)) for width in self._widths]
        self._states: list[list[tf.Tensor]] = [zeros for _ in range(self._replicas.num_local_replicas)]

    def resume(self, lanes: list[Array], earlier: list[tuple[Any, ...]]) -> None:
        """Continues an epoch from the result of `carried`.

        Args:
            lanes: The state before the first one of the `earlier` chunks: float32[lanes, width] each.
            earlier: The parts of the last chunks before the next one, at most `backprop_chunks` - 1, the oldest first.
        """
        number, first = self._replicas.num_replicas, self._replicas.first_replica
        rows = -(-len(lanes[0]) // number)
        padded = [np.pad(part, [(0, rows * number - len(part)), (0, 0)]) for part in lanes]
        local = range(first, first + self._replicas.num_local_replicas)
        self._states = [[tf.constant(part[replica::number]) for part in padded] for replica in local]
        self._set_window(earlier)

    def _set_window(self, earlier: list[tuple[Any, ...]]) -> None:
        """Sets the chunks before the next one, of which there are fewer at the start of an epoch."""
        chunks = [tuple((part[0], part[3]) for part in parts) for parts in earlier]
        self._window: collections.deque[tuple[_Chunk, ...]] = collections.deque(chunks, maxlen=self._num_earlier)
        if chunks:
            self._fill_window(chunks[0])

    def _fill_window(self, first: tuple[_Chunk, ...]) -> None:
        """Fills the window with repetitions of the first chunk of the epoch.

        All records begin with that chunk, so that no state and no gradient comes from the chunks before it. With them,
        one compiled function serves all updates.
        """
        while len(self._window) < self._num_earlier:
            self._window.appendleft(first)

    def carried(self) -> list[Array]:
        """Returns the state of all lanes of all replicas, from which `resume` goes on: float32[lanes, width] each.

        Every worker must call this; each waits for all others.
        """
        number, found = self._replicas.num_replicas, []
        for place, width in enumerate(self._widths):
            local = [state[place].numpy() for state in self._states]
            lanes = np.zeros((len(local[0]) * number, width), np.float32)
            for replica, part in enumerate(local, self._replicas.first_replica):
                lanes[replica::number] = part
            found.append(self._replicas.combine(lanes))
        return found

    def __call__(self, parts: tuple[Any, ...], scale: float | tf.Tensor = 1.0, stop_request: float = 0.0) -> Sums:
        """Updates the weights, carries the state on, and returns the sums of the new chunks."""
        if not self._window:
            self._fill_window(tuple((part[0], part[3]) for part in parts))
        sums, carried = self._compiled.update(
            self._with_window(parts), tf.convert_to_tensor(scale), tf.constant(stop_request)
        )
        self._window.append(tuple((part[0], part[3]) for part in parts))
        local = zip(*(self._replicas.strategy.experimental_local_results(each) for each in carried), strict=True)
        self._states = [list(state) for state in local]
        return Sums(*sums)

    def gradients(self, parts: tuple[Any, ...]) -> tuple[Sums, list[tf.Tensor]]:
        """Returns the sums and the gradients of chunks (features, label, weight) after as many earlier ones as there
        may be, with the same features; changes no weight and no state."""
        full = []
        for features, label, weight in parts:
            rows = tf.size(features["length"])
            chunk = features, tf.zeros([rows], tf.bool)
            state = [tf.zeros([rows, width]) for width in self._widths]
            full.append((features, label, weight, chunk[1], (chunk,) * self._num_earlier, state))
        sums, gradients, _ = self._compiled.gradients(tuple(full), tf.constant(1.0), tf.constant(0.0))
        return self._on_first_replica(sums), gradients

    def _with_window(self, parts: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            (*part, tuple(chunks[number] for chunks in self._window), self._states[number])
            for number, part in enumerate(parts)
        )

    def _outputs(self, part: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Returns the outputs of the new chunk, and the state after the oldest one."""
        features, _, _, fresh, earlier, state = part
        carried: list[tf.Tensor] = []
        outputs = None
        for each, begins in (*earlier, (features, fresh)):
            # The lanes that have ended are the last rows.
            rows = tf.size(each["length"])
            state = [tf.where(begins[:, None], 0.0, value[:rows]) for value in state]
            outputs, state = self._chunks((each, state), training=True)
            carried = carried or [tf.stop_gradient(value) for value in state]
        return outputs, carried
