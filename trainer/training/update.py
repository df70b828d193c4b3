"""One update of the weights by one global batch, the same on any number of replicas: every record counts the same."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from trainer.config import TrainConfig
from trainer.devices.replicas import Replicas
from trainer.model.build import head_model
from trainer.model.losses import compute_losses

# (features, label, weight) of one replica.
Part = tuple[Any, Any, Any]


class Sums(NamedTuple):
    """Of a global batch, float32[] each, still on the device; of all replicas together.

    Attributes:
        loss, weight: Σ weight × loss and Σ weight.
        norm: The global norm of the gradient, before it is clipped; where it or the loss is no finite number, the
            weights were left alone.
        leaving: How many workers were told to stop.
    """

    loss: tf.Tensor
    weight: tf.Tensor
    norm: tf.Tensor
    leaving: tf.Tensor


class _AddedUp:
    """Keras's optimizers add up the gradients of the replicas; here that was done before, so as to clip their sum.

    Attributes:
        moves: bool[], whether a weight may be changed: by its momentum it would be without any gradient.
    """

    moves: Any = True

    def assign_sub(self, variable: Any, value: Any) -> None:
        super().assign_sub(variable, tf.where(self.moves, value, tf.zeros_like(value)))  # type: ignore[misc]

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> list[Any]:
        return list(grads_and_vars)


class RMSprop(_AddedUp, keras.optimizers.RMSprop):
    """Keras's, of gradients that are added up already."""


class Adam(_AddedUp, keras.optimizers.Adam):
    """Keras's, of gradients that are added up already."""


def make_optimizer(config: TrainConfig) -> keras.optimizers.Optimizer:
    """The optimizer without clipping, which `Update` does."""
    return {"rmsprop": RMSprop, "adam": Adam}[config.optimizer](learning_rate=config.learning_rate)


class Update:
    """A compiled update. One trace serves all batches: their sizes and lengths are open in `element_spec`.

    Args:
        kind: The schema's kind of label.
        element_spec: Of a part.
        by_epoch: The loss is `scale` · Σ weight × loss, where `scale` is the number of batches ÷ the total weight of
            the epoch. So every record counts the same: a batch's gradient is that of the mean over all records, up to
            noise, however many it holds. Otherwise Σ is divided by the weight of the batch instead.
        clip_norm: Largest global norm of the gradient of the whole batch (Pascanu et al., 2013).
        column_scale: As for `compute_losses`.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        *,
        kind: str,
        element_spec: tuple[Any, ...],
        by_epoch: bool,
        team: Replicas,
        clip_norm: float | None = None,
        column_scale: Sequence[float] = (),
    ) -> None:
        self._head, self._optimizer, self._team = head_model(model), optimizer, team
        self._variables = model.trainable_variables
        self.element_spec = element_spec
        self._kind, self._by_epoch, self._clip_norm, self._column_scale = kind, by_epoch, clip_norm, column_scale
        number = tf.TensorSpec([], tf.float32)
        signature = ((element_spec,) * team.num_local_replicas, number, number)
        compiled = {"input_signature": signature, "autograph": False, "jit_compile": False}
        self._measure = tf.function(self._measure_all, **compiled)
        self._update = tf.function(self._update_all, **compiled)

    def __call__(self, parts: tuple[Part, ...], scale: float | tf.Tensor = 1.0, leaving: float = 0.0) -> Sums:
        """Updates the weights.

        Args:
            parts: The batch, dealt to the replicas of this process. A row that only fills it up has weight 0.
            leaving: 1 if this worker was told to stop.
        """
        return Sums(*self._update(parts, tf.convert_to_tensor(scale), tf.constant(leaving)))

    def measure(self, parts: tuple[Part, ...]) -> Sums:
        """All that an update computes, with the weights left alone."""
        sums, _ = self._measure(parts, tf.constant(1.0), tf.constant(0.0))
        return Sums(*(self._team.strategy.experimental_local_results(one)[0] for one in sums))

    @property
    def num_traces(self) -> int:
        return sum(one.experimental_get_tracing_count() for one in (self._measure, self._update))

    def _update_all(self, parts: Any, scale: tf.Tensor, leaving: tf.Tensor) -> tuple[tf.Tensor, ...]:
        sums, gradients = self._measure(parts, scale, leaving)
        sums = self._team.strategy.run(self._apply_one, (sums, gradients))
        return tuple(self._team.strategy.experimental_local_results(one)[0] for one in sums)

    def _measure_all(self, parts: Any, scale: tf.Tensor, leaving: tf.Tensor) -> tuple[Sums, list[tf.Tensor]]:
        return self._team.strategy.run(self._measure_one, (parts, scale, leaving))

    def _measure_one(self, parts: Any, scale: tf.Tensor, leaving: tf.Tensor) -> tuple[Sums, list[tf.Tensor]]:
        """On one replica: the sums of all of them, and the gradient of their loss."""
        context = tf.distribute.get_replica_context()
        replica = int(tf.get_static_value(context.replica_id_in_sync_group)) - self._team.first_replica

        def add_up(values: list[tf.Tensor]) -> list[tf.Tensor]:
            return values if self._team.num_replicas == 1 else context.all_reduce(tf.distribute.ReduceOp.SUM, values)

        features, label, weight = parts[replica]
        weight_sum = tf.reduce_sum(weight)
        # All is added up at once; only the mean over a batch needs its weight before.
        total = weight_sum if self._by_epoch else add_up([weight_sum])[0]
        with tf.GradientTape() as tape:
            each = compute_losses(self._head(features, training=True), label, self._kind, self._column_scale)
            loss = tf.reduce_sum(weight * each)
            # A batch may hold no labelled step at all.
            objective = loss * scale if self._by_epoch else tf.math.divide_no_nan(loss, total)
        variables = [variable.value for variable in self._variables]
        found = tape.gradient(objective, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        leaving = tf.identity(leaving) if replica == 0 else tf.zeros_like(leaving)
        loss, weight_sum, leaving, *gradients = add_up([loss, weight_sum, leaving, *map(_dense, found)])
        return Sums(loss, weight_sum, tf.linalg.global_norm(gradients), leaving), gradients

    def _apply_one(self, sums: Sums, gradients: list[tf.Tensor]) -> Sums:
        if self._clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self._clip_norm, use_norm=sums.norm)
        # Not tf.cond or an assertion: a GPU would wait for the answer at every update. Who looks at the sums a second
        # later ends the run.
        finite = tf.math.is_finite(sums.loss) & tf.math.is_finite(sums.norm)
        gradients = [tf.where(finite, gradient, tf.zeros_like(gradient)) for gradient in gradients]
        self._optimizer.moves = finite
        self._optimizer.apply(gradients, self._variables)
        self._optimizer.moves = True  # what is symbolic stays in its graph
        return sums


def _dense(gradient: Any) -> tf.Tensor:
    """The gradient of an embedding with one row for each category: of one that a batch has twice, the sum.

    Keras's optimizers square each of the two alone, and the sum of a clipped gradient would not be the one clipped.
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows = tf.math.unsorted_segment_sum(gradient.values, gradient.indices, gradient.dense_shape[0])
    return tf.reshape(rows, gradient.dense_shape)
