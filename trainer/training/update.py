"""Computes one update of the weights from one global batch, with the same result on any number of replicas."""

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
    """Sums over a global batch, over all replicas; each is float32[] and still on the device.

    Attributes:
        loss: Σ weight × loss.
        weight: Σ weight.
        norm: Global norm of the gradient: scaled, not clipped. If it or the loss is non-finite, no weight was changed.
        stop_requests: Number of workers that were asked to stop.
    """

    loss: tf.Tensor
    weight: tf.Tensor
    norm: tf.Tensor
    stop_requests: tf.Tensor


class _ConditionalUpdates:
    """Lets a Keras optimizer apply gradients under a condition.

    Keras's optimizers sum the gradients over the replicas. Here the gradients are summed before, because their sum is
    clipped.
    """

    def apply_if(self: Any, condition: tf.Tensor, gradients: list[tf.Tensor], variables: list[Any]) -> None:
        """Applies finite gradients if the condition bool[] is true; otherwise changes no weight.

        With a learning rate of 0 every delta is 0, also one that comes from momentum. The optimizer's own variables
        change in both cases.
        """
        if not self.built:
            self.build(variables)
        rate = tf.convert_to_tensor(self.learning_rate)
        rate = tf.where(condition, rate, tf.zeros_like(rate))
        self._backend_update_step(gradients, variables, rate)
        self.iterations.assign_add(1)

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> list[Any]:
        return list(grads_and_vars)


class RMSprop(_ConditionalUpdates, keras.optimizers.RMSprop):
    """Keras's RMSprop, for gradients that are already summed over the replicas."""


class Adam(_ConditionalUpdates, keras.optimizers.Adam):
    """Keras's Adam, for gradients that are already summed over the replicas."""


def make_optimizer(config: TrainConfig) -> keras.optimizers.Optimizer:
    """Returns the configured optimizer, without clipping; `Update` clips."""
    return {"rmsprop": RMSprop, "adam": Adam}[config.optimizer](learning_rate=config.learning_rate)


class _Compiled(NamedTuple):
    """The functions of an update, compiled for one spec of its parts."""

    gradients: Any
    update: Any

    @property
    def num_traces(self) -> int:
        return sum(function.experimental_get_tracing_count() for function in self)


class Update:
    """A compiled update. One trace serves all batches: `element_spec` leaves their sizes and lengths open.

    Args:
        kind: Kind of the schema's label.
        element_spec: Spec of the part of a batch that one replica gets.
        by_epoch: True: the loss is `scale` · Σ weight × loss, where `scale` is the number of batches ÷ the total weight
            of the epoch. Then every record counts the same: the gradient of a batch, whatever its size, is the gradient
            of the mean over all records plus noise. False: Σ weight × loss is divided by the weight of the batch.
        clip_norm: Largest global norm of the gradient of the mean loss of the global batch (Pascanu et al., 2013). With
            that gradient g = (Σ weight · gradient) ÷ (Σ weight), the update applies
            `share` · g · min(1, clip_norm ÷ ‖g‖), where `share` is `scale` · Σ weight by epoch, else 1. So whether a
            batch is clipped does not depend on its share of the epoch, which grows with its number of records.
        column_scale: See `compute_losses`.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        *,
        kind: str,
        element_spec: tuple[Any, ...],
        by_epoch: bool,
        replicas: Replicas,
        clip_norm: float | None = None,
        column_scale: Sequence[float] = (),
    ) -> None:
        self._model, self._optimizer, self._replicas = model, optimizer, replicas
        self._variables = model.trainable_variables
        self.element_spec = element_spec
        self._kind, self._by_epoch, self._clip_norm, self._column_scale = kind, by_epoch, clip_norm, column_scale
        self._head = head_model(model)
        self._compiled = self._compile(element_spec)

    def _compile(self, part_spec: Any) -> "_Compiled":
        """Returns the functions for parts with this spec."""
        number = tf.TensorSpec([], tf.float32)
        signature = ((part_spec,) * self._replicas.num_local_replicas, number, number)
        options = {"input_signature": signature, "autograph": False, "jit_compile": False}
        gradients = tf.function(self._compute_gradients, **options)

        def update(parts: Any, scale: tf.Tensor, stop_request: tf.Tensor) -> tuple[Sums, Any]:
            # Calls the compiled gradients, so that the model is traced once.
            sums, found, carried = gradients(parts, scale, stop_request)
            applied = self._replicas.strategy.run(self._apply_on_replica, (sums, found, scale))
            return self._on_first_replica(applied), carried

        return _Compiled(gradients, tf.function(update, **options))

    def __call__(self, parts: tuple[Part, ...], scale: float | tf.Tensor = 1.0, stop_request: float = 0.0) -> Sums:
        """Updates the weights and returns the sums of the batch.

        Args:
            parts: The batch, dealt to the replicas of this process. A filler row has weight 0.
            stop_request: 1 if this worker was asked to stop, else 0.
        """
        sums, _ = self._compiled.update(parts, tf.convert_to_tensor(scale), tf.constant(stop_request))
        return Sums(*sums)

    def gradients(self, parts: tuple[Part, ...]) -> tuple[Sums, list[tf.Tensor]]:
        """Returns the sums and the gradients, before clipping, with a scale of 1; changes no weight."""
        sums, gradients, _ = self._compiled.gradients(parts, tf.constant(1.0), tf.constant(0.0))
        return self._on_first_replica(sums), gradients

    @property
    def num_traces(self) -> int:
        return self._compiled.num_traces

    def _compute_gradients(self, parts: Any, scale: tf.Tensor, stop_request: tf.Tensor) -> Any:
        return self._replicas.strategy.run(self._gradients_on_replica, (parts, scale, stop_request))

    def _on_first_replica(self, sums: Sums) -> Sums:
        """Returns the first local replica's sums; those of all replicas are equal."""
        return Sums(*(self._replicas.strategy.experimental_local_results(value)[0] for value in sums))

    def _outputs(self, part: Any) -> tuple[tf.Tensor, Any]:
        """Returns the outputs of a part, and what the next update gets from it: nothing."""
        return self._head(part[0], training=True), ()

    def _gradients_on_replica(
        self, parts: Any, scale: tf.Tensor, stop_request: tf.Tensor
    ) -> tuple[Sums, list[tf.Tensor], Any]:
        """Computes this replica's gradients.

        Returns:
            The sums and gradients over all replicas, and the second result of `_outputs`.
        """
        context = tf.distribute.get_replica_context()
        replica = int(tf.get_static_value(context.replica_id_in_sync_group)) - self._replicas.first_replica

        def all_reduce(values: list[tf.Tensor]) -> list[tf.Tensor]:
            return (
                values if self._replicas.num_replicas == 1 else context.all_reduce(tf.distribute.ReduceOp.SUM, values)
            )

        _, label, weight, *_ = parts[replica]
        weight_sum = tf.reduce_sum(weight)
        # One all-reduce for everything; only the mean over a batch needs the batch's weight before.
        total = weight_sum if self._by_epoch else all_reduce([weight_sum])[0]
        with tf.GradientTape() as tape:
            outputs, carried = self._outputs(parts[replica])
            each = compute_losses(outputs, label, self._kind, self._column_scale)
            loss = tf.reduce_sum(weight * each)
            # A batch may hold no labelled step.
            objective = loss * scale if self._by_epoch else tf.math.divide_no_nan(loss, total)
        variables = [variable.value for variable in self._variables]
        found = tape.gradient(objective, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        stop_request = tf.identity(stop_request) if replica == 0 else tf.zeros_like(stop_request)
        loss, weight_sum, stop_requests, *gradients = all_reduce([loss, weight_sum, stop_request, *map(_dense, found)])
        return Sums(loss, weight_sum, tf.linalg.global_norm(gradients), stop_requests), gradients, carried

    def _apply_on_replica(self, sums: Sums, gradients: list[tf.Tensor], scale: tf.Tensor) -> Sums:
        """Clips and applies the gradients, if the loss and their norm are finite."""
        if self._clip_norm is not None:
            # The gradients are `share` times those of the mean loss of the batch, so the limit is too.
            share = scale * sums.weight if self._by_epoch else 1.0
            limit = self._clip_norm * share
            factor = tf.where(sums.norm > limit, limit / sums.norm, 1.0)
            gradients = [factor * gradient for gradient in gradients]
        # Neither tf.cond nor an assertion: a GPU would wait for the condition at every update. The journal reads the
        # sums up to a second later and ends the run.
        finite = tf.math.is_finite(sums.loss) & tf.math.is_finite(sums.norm)
        gradients = [tf.where(finite, gradient, tf.zeros_like(gradient)) for gradient in gradients]
        self._optimizer.apply_if(finite, gradients, self._variables)
        return sums


def _dense(gradient: Any) -> tf.Tensor:
    """Returns the dense gradient; sums the rows of an embedding's gradient that belong to the same category.

    Keras's optimizers would square each of these rows alone, and clipping would use another sum than the optimizer.
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows = tf.math.unsorted_segment_sum(gradient.values, gradient.indices, gradient.dense_shape[0])
    return tf.reshape(rows, gradient.dense_shape)
