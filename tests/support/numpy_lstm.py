"""A reference of the model in NumPy: float64, one record at a time, without batches, padding or masks. Slow."""

import dataclasses
from typing import Any

import keras
import numpy as np
from datasets import CLASSES, Record

from pipeline.format.models import FeatureStatistics
from trainer.config import TrainConfig

Array = np.ndarray[Any, Any]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def lstm(x: Array, kernel: Array, recurrent: Array, bias: Array) -> Array:
    """Returns h[time, units] of an LSTM with a forget gate (Gers et al. 2000) for x[time, width]."""
    h = c = np.zeros(recurrent.shape[0])
    states = []
    for step in x:
        i, f, g, o = (step @ kernel + h @ recurrent + bias).reshape(4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.array(states)


def gru(x: Array, kernel: Array, recurrent: Array, bias: Array) -> Array:
    """Returns h[time, units] of a GRU for x[time, width], with the reset gate after the product as in cuDNN."""
    h = np.zeros(recurrent.shape[0])
    states = []
    for step in x:
        z, r, g = (step @ kernel + bias[0]).reshape(3, -1)
        z_before, r_before, g_before = (h @ recurrent + bias[1]).reshape(3, -1)
        z, r = sigmoid(z + z_before), sigmoid(r + r_before)
        h = z * h + (1 - z) * np.tanh(g + r * g_before)
        states.append(h)
    return np.array(states)


def layers_of(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Returns the layers of a model that have weights, by name, with the single layers of its recurrent stack."""
    layers = [inner for layer in model.layers for inner in getattr(layer, "layers", [layer])]
    return {layer.name: layer for layer in layers if layer.weights}


def weights_of(model: keras.Model) -> dict[str, list[Array]]:
    """Returns the weights of each layer that has weights, by layer name, as float64."""
    return {name: [w.astype(np.float64) for w in layer.get_weights()] for name, layer in layers_of(model).items()}


@dataclasses.dataclass(frozen=True)
class ReferenceModel:
    """Computes outputs and losses of raw records with the feature `x`, and the label `y` or else the next x.

    Attributes:
        kind: Kind of the label.
        config: Configuration of the model.
        weights: Result of `weights_of`. They can be changed in place.
        statistics: Statistics of the train split, by name.
    """

    kind: str
    config: TrainConfig
    weights: dict[str, list[Array]]
    statistics: dict[str, FeatureStatistics] = dataclasses.field(default_factory=dict)

    def outputs(self, record: Record) -> Array:
        """Returns the output for the record, or for each of its steps, before softmax or sigmoid."""
        hidden = self._standardize(np.array(record["x"], np.float64))
        for number in range(len(self.config.units)):
            forward = self._layer(f"{self.config.cell}_{number}", hidden)
            both = [forward]
            if self.config.bidirectional:
                both.append(self._layer(f"{self.config.cell}_{number}_backward", hidden[::-1])[::-1])
            hidden = np.concatenate(both, axis=-1)
        if not self.kind.startswith("step_"):
            # The step that each direction reads last.
            last = np.concatenate([states[place] for states, place in zip(both, (-1, 0), strict=False)])
            hidden = {"last": last, "mean": hidden.mean(0), "max": hidden.max(0)}[self.config.pooling]
        kernel, bias = self.weights["head"]
        return self._unstandardize(hidden @ kernel + bias)

    def predictions(self, record: Record) -> Array:
        """Returns the output of the model: probabilities, or the values of a regression."""
        outputs = self.outputs(record)
        if "regression" in self.kind:
            return outputs
        if "multilabel" in self.kind:
            return sigmoid(outputs)
        return np.exp(outputs - np.logaddexp.reduce(outputs, axis=-1, keepdims=True))

    def losses(self, record: Record) -> list[float]:
        """Returns the loss of each label of the record: one, or one for each step whose label is not null."""
        outputs = self.outputs(record)
        if not self.kind.startswith("step_"):
            return [self._loss(outputs, record["y"])]
        labels = record["y"] if "y" in record else [*record["x"][1:], None]
        pairs = zip(outputs, labels, strict=True)
        return [self._loss(output, label) for output, label in pairs if label is not None]

    def _layer(self, name: str, x: Array) -> Array:
        return {"lstm": lstm, "gru": gru}[self.config.cell](x, *self.weights[name])

    def _standardize(self, x: Array) -> Array:
        if "x" not in self.statistics:
            return x
        mean, variance = np.array(self.statistics["x"].mean), np.array(self.statistics["x"].variance)
        return (x - mean) / np.sqrt(np.where(variance > 0, variance, 1))

    def _unstandardize(self, outputs: Array) -> Array:
        if "regression" not in self.kind:
            return outputs
        is_scalar = outputs.shape[-1] == 1
        outputs = outputs[..., 0] if is_scalar else outputs
        found = self.statistics.get("y" if is_scalar else "x")
        return (
            outputs if found is None else outputs * np.sqrt(self._squeeze(found.variance)) + self._squeeze(found.mean)
        )

    @staticmethod
    def _squeeze(columns: tuple[float, ...]) -> Array:
        return np.squeeze(np.array(columns))

    def _loss(self, output: Array, label: Any) -> float:
        if "multilabel" in self.kind:
            return sum(np.logaddexp(0, -o if name in label else o) for o, name in zip(output, CLASSES, strict=True))
        if "regression" in self.kind:
            # For a label that is the next vector, the error of each column is divided by its variance.
            scale = np.array(self.statistics["x"].variance) if np.ndim(output) else 1
            return float(np.mean((output - np.array(label)) ** 2 / scale))
        negative_log_p = np.logaddexp.reduce(output) - output
        return float(
            np.dot(label, negative_log_p) if self.kind == "distribution" else negative_log_p[CLASSES.index(label)]
        )
