"""One update of the weights by one batch, such that every record counts the same wherever it fell."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from trainer.config import TrainConfig
from trainer.model import head_model, losses

# (features, label, weight, scale) -> (sum of weight × loss, sum of weight)
Update = Callable[[Any, Any, Any, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def make_optimizer(config: TrainConfig) -> keras.optimizers.Optimizer:
    kind = {"rmsprop": keras.optimizers.RMSprop, "adam": keras.optimizers.Adam}[config.optimizer]
    return kind(learning_rate=config.learning_rate, global_clipnorm=config.clip_norm)


def make_update(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    *,
    kind: str,
    element_spec: tuple[Any, ...],
    by_epoch: bool,
    strategy: tf.distribute.Strategy,
    column_scale: Sequence[float] = (),
) -> Update:
    """A compiled update. One trace serves all batches: their sizes and lengths are open in `element_spec`.

    Args:
        kind: The schema's kind of label.
        by_epoch: The loss is `scale` · Σ weight × loss, where `scale`, float32[], is the number of batches ÷ the total
            weight of the epoch. So every record counts the same: a batch's gradient is that of the mean over all
            records, up to noise, however many it holds. Otherwise Σ is divided by the weight of the batch instead.
        column_scale: As for `losses`.
    """
    head = head_model(model)

    def step(features: Any, label: Any, weight: Any, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weight * losses(head(features, training=True), label, kind, column_scale))
            total = tf.reduce_sum(weight)
            # A batch may hold no labelled step at all.
            objective = loss * scale if by_epoch else tf.math.divide_no_nan(loss, total)
        variables = model.trainable_variables
        gradients = tape.gradient(objective, [variable.value for variable in variables])
        optimizer.apply(gradients, variables)
        return loss, total

    signature = (*element_spec, tf.TensorSpec([], tf.float32))

    @tf.function(input_signature=signature, autograph=False, jit_compile=False)
    def update(features: Any, label: Any, weight: Any, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        loss, total = strategy.run(step, (features, label, weight, scale))
        return (
            strategy.reduce(tf.distribute.ReduceOp.SUM, loss, axis=None),
            strategy.reduce(tf.distribute.ReduceOp.SUM, total, axis=None),
        )

    return update
