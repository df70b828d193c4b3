"""Trains on two replicas, which are logical CPUs, and with every record alone; prints the differences.

Call `main` in a process of its own, because TensorFlow accepts logical devices only before it is used otherwise.
"""

import json
from typing import Any

import cluster
import keras
import numpy as np
import tensorflow as tf

from trainer.config import TrainConfig
from trainer.data.dataset import Dataset, open_dataset
from trainer.data.target import make_target
from trainer.devices.replicas import find_replicas
from trainer.devices.tensorflow_setup import start_tensorflow
from trainer.model.build import build_model, head_model
from trainer.model.losses import column_scales, compute_losses
from trainer.reading.batches import planned_batches
from trainer.runs.state import State
from trainer.training.deal import BatchDealer
from trainer.training.epoch_source import plan_next_epoch
from trainer.training.train import train
from trainer.training.update import Update, make_optimizer

Array = np.ndarray[Any, Any]


class OneByOne:
    """A run that computes the gradient of each record alone, unpadded, and sums the gradients in float64.

    Attributes:
        clipped: Number of updates whose gradient was clipped.
    """

    def __init__(self, dataset: Dataset, config: TrainConfig) -> None:
        self._dataset, self._config, self.clipped = dataset, config, 0
        keras.utils.set_random_seed(config.seed)
        vocabularies, statistics = dataset.vocabularies(), dataset.manifest.statistics
        self.model = build_model(dataset.schema, statistics, config, vocabularies=vocabularies)
        self._columns = column_scales(make_target(dataset.schema, vocabularies), statistics)
        self.variables = [variable.value for variable in self.model.trainable_variables]
        self._head = head_model(self.model)
        single = planned_batches(
            dataset, "train", plan_next_epoch(dataset, TrainConfig(batching="exact", batch_size=1), State())
        )
        self._records = {int(row[0]): (features, label, weight) for features, label, weight, row in single}
        spec = single.element_spec[:3]
        self._measure = tf.function(self._measure_one, input_signature=[spec], autograph=False)

    def _measure_one(self, record: Any) -> Any:
        features, label, weight = record
        with tf.GradientTape() as tape:
            each = compute_losses(
                self._head(features, training=True), label, self._dataset.schema.label.kind, self._columns
            )
            loss = tf.reduce_sum(weight * each)
        found = tape.gradient(loss, self.variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return loss, tf.reduce_sum(weight), [tf.convert_to_tensor(gradient) for gradient in found]

    def measure(self, rows: Array) -> tuple[float, float, list[Array]]:
        """Returns Σ loss, Σ weight and Σ gradient of these records."""
        found = [self._measure(self._records[row]) for row in rows.tolist()]
        gradients = zip(*(gradients for _, _, gradients in found), strict=True)
        summed = [sum(gradient.numpy().astype(np.float64) for gradient in each) for each in gradients]
        return sum(float(loss) for loss, _, _ in found), sum(float(weight) for _, weight, _ in found), summed

    def train(self) -> list[float]:
        """Trains and returns the loss of every update."""
        config, dataset, update_losses = self._config, self._dataset, []
        optimizer = {"rmsprop": keras.optimizers.RMSprop, "adam": keras.optimizers.Adam}[config.optimizer](
            config.learning_rate
        )
        own = {"seed": config.seed, "vocabularies": dataset.vocabularies()}
        dealer = BatchDealer(dataset, find_replicas("one"), **own)
        for epoch in range(config.epochs):
            plan = plan_next_epoch(dataset, config, State(epoch=epoch))
            for batch in dealer.batches(plan, epoch=epoch + 1):
                loss, weight, gradients = self.measure(batch.rows())
                by_epoch = plan.num_batches / dataset.split("train").labels
                scale = by_epoch if config.loss_scale == "epoch" else 1 / max(weight, cluster.TINY)
                of_mean = [gradient / max(weight, cluster.TINY) for gradient in gradients]
                norm = np.sqrt(sum((gradient**2).sum() for gradient in of_mean))
                if config.clip_norm is not None and norm > config.clip_norm:
                    scale *= config.clip_norm / norm
                    self.clipped += 1
                scaled = [tf.constant(scale * gradient, tf.float32) for gradient in gradients]
                optimizer.apply(scaled, self.model.trainable_variables)
                update_losses.append(loss / weight if weight else 0.0)
        return update_losses


def gradients_differ(dataset: Dataset, config: TrainConfig, strategy: Any) -> float:
    """Returns how much each replica's gradients differ from the sum over the records, in the first batches."""
    replicas, one = find_replicas(strategy), OneByOne(dataset, config)
    plan = plan_next_epoch(dataset, config, State())
    feed = BatchDealer(dataset, replicas, seed=config.seed, vocabularies=dataset.vocabularies())
    with replicas.strategy.scope():
        keras.utils.set_random_seed(config.seed)
        vocabularies = dataset.vocabularies()
        model = build_model(dataset.schema, dataset.manifest.statistics, config, vocabularies=vocabularies)
        update = Update(
            model,
            None,
            kind=dataset.schema.label.kind,
            element_spec=feed.element_spec,
            by_epoch=True,
            replicas=replicas,
            column_scale=one._columns,
        )
    farthest = 0.0
    for batch, _ in zip(feed.batches(plan, epoch=1), range(4), strict=False):
        loss, weight, expected = one.measure(batch.rows())
        sums, found = update.gradients(batch.parts)
        assert float(sums.weight) == weight
        norm = float(np.sqrt(sum((gradient**2).sum() for gradient in expected)))
        for value, wanted in ((float(sums.loss), loss), (float(sums.norm), norm)):
            farthest = max(farthest, abs(value - wanted) / max(wanted, cluster.TINY))
        for gradient, wanted in zip(found, expected, strict=True):
            for replica in replicas.strategy.experimental_local_results(gradient):
                farthest = max(farthest, float(np.abs(replica.numpy() - wanted).max()) / max(norm, cluster.TINY))
    return farthest


def waits_for_others(dataset: Dataset, config: TrainConfig) -> list[str]:
    """Returns the assignments of weights and moments in an update that need an operation of another replica.

    The gradients are summed over the replicas before, in a function of its own.
    """
    replicas = find_replicas("mirrored")
    dealer = BatchDealer(dataset, replicas, seed=config.seed, vocabularies=dataset.vocabularies())
    with replicas.strategy.scope():
        vocabularies = dataset.vocabularies()
        model = build_model(dataset.schema, dataset.manifest.statistics, config, vocabularies=vocabularies)
        optimizer = make_optimizer(config)
        optimizer.build(model.trainable_variables)
        update = Update(
            model,
            optimizer,
            kind=dataset.schema.label.kind,
            element_spec=dealer.element_spec,
            by_epoch=True,
            replicas=replicas,
            clip_norm=config.clip_norm,
        )
    found, num_assigned = [], 0
    for operation in update._compiled.update.get_concrete_function().graph.get_operations():
        # Not the number of iterations, an integer that the first replica counts for all.
        if operation.type.startswith("Assign") and operation.inputs[1].dtype == tf.float32:
            num_assigned += 1
            if any(needed.device not in ("", operation.device) for needed in _needed_by(operation)):
                found.append(operation.name)
    assert num_assigned >= 2 * len(model.trainable_variables) * replicas.num_replicas
    return found


def _needed_by(operation: tf.Operation) -> set[tf.Operation]:
    """Returns the operations of the graph that an operation waits for."""
    found, left = set(), [operation]
    while left:
        now = left.pop()
        new = {tensor.op for tensor in now.inputs}.union(now.control_inputs) - found
        found |= new
        left += new
    return found


def compare(dataset: Dataset, folder: str, config: dict[str, Any], *, quick: bool) -> dict[str, Any]:
    """Returns the differences of two replicas from one device, from records one by one, and of their gradients."""
    runs = {strategy: f"{folder}-{strategy}" for strategy in ("one", "mirrored")}
    for strategy in ["mirrored"] if quick else runs:
        train(dataset, runs[strategy], TrainConfig(**config, strategy=strategy))
    one_by_one = OneByOne(dataset, TrainConfig(**config))
    losses, lines = one_by_one.train(), cluster.updates_of(runs["mirrored"])
    assert len(losses) == len(lines)
    pairs = [(line["loss"], loss) for line, loss in zip(lines, losses, strict=True)]
    of_losses = max(abs(found - loss) / max(abs(loss), cluster.TINY) for found, loss in pairs)
    weights = zip(cluster.weights_of(runs["mirrored"]), one_by_one.model.weights, strict=True)
    of_weights = max(np.abs(found - w.numpy()).max() / np.abs(w.numpy()).max() for found, w in weights)
    found = {"updates": len(lines), "clipped": one_by_one.clipped, "one_by_one": [of_losses, float(of_weights)]}
    if quick:
        return found | {"waits_for_others": waits_for_others(dataset, TrainConfig(**config))}
    return found | {
        "one_device": cluster.differences(runs["mirrored"], runs["one"]),
        "gradient": gradients_differ(dataset, TrainConfig(**config), "mirrored"),
    }


def main(path: str, folder: str, configs: list[dict[str, Any]], quick: bool) -> None:
    """Prints the differences as a JSON list, one for each configuration.

    Args:
        quick: Compares with records one by one only, and looks at the graph of the update.
    """
    start_tensorflow()
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    opened = open_dataset(path)
    found = [compare(opened, f"{folder}/{number}", config, quick=quick) for number, config in enumerate(configs)]
    print(json.dumps(found), flush=True)
