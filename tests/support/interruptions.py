"""Interrupts training runs at a chosen update, and reads their lines."""

import json
import pathlib

import keras
import tensorflow as tf

from trainer.config import TrainConfig


def change(config, **values):
    """Returns the configuration with other values."""
    return TrainConfig(**(config.model_dump() | values))


def lines_of(run):
    """Returns the lines of metrics.jsonl without the seconds."""
    lines = [json.loads(line) for line in pathlib.Path(run, "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line.get("train"):
            assert line["train"].pop("seconds") > 0
    return lines


class Interrupted(Exception):
    pass


class InterruptAt(keras.callbacks.Callback):
    """Raises Interrupted after an update of an epoch, both counted from 0; without an update, at the epoch's end."""

    def __init__(self, epoch, update=None):
        super().__init__()
        self.epoch, self.update, self.now = epoch, update, None

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch) == (self.epoch, self.update):
            raise Interrupted

    def on_epoch_end(self, epoch, logs=None):
        if self.update is None and epoch == self.epoch:
            raise Interrupted


class Gather:
    """Replaces an optimizer: sums the gradients and changes no weight."""

    def __init__(self, model):
        self.sums = [tf.Variable(tf.zeros(variable.shape)) for variable in model.trainable_variables]

    def apply_if(self, condition, gradients, variables):
        for total, gradient in zip(self.sums, gradients, strict=True):
            total.assign_add(gradient)
