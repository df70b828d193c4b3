"""Checks an export: a process that did not make it loads it and compares its outputs with those of the run's model."""

import functools
import json
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.errors import UserError
from pipeline.schema.record import Array
from trainer.devices.tensorflow_setup import buffer_stderr
from trainer.runs.checkpoints import sha256
from trainer.serving.golden_chunks import read_in_chunks
from trainer.serving.golden_records import LENGTHS, Golden, load_golden

# Largest difference of a probability. For other outputs, it is multiplied by the largest output.
TOLERANCE = 1e-6
# Number of steps of padding that `fill_padding` adds.
EXTRA_STEPS = 7

# Steps of the chunks in which `streaming` reads the golden records.
CHUNK_STEPS = (1, 8, max(LENGTHS))
# Values for padding, by the kind of a NumPy dtype; they alternate from step to step.
_ARBITRARY = {"f": (np.nan, 1e30), "i": (-(2**62), 2**62), "O": (b"garbage", b"\xff")}
# Way of calling the export -> (rows of the golden records, outputs for them).
_Outputs = dict[str, tuple[slice, Array]]
_ALL = slice(0, len(LENGTHS))


def check(folder: str, golden_path: str) -> dict[str, float]:
    """Returns the largest difference between the outputs of an export and the golden outputs, by way of calling it.

    Raises:
        UserError: A weight is not bit-identical, or a difference is larger than the tolerance.
    """
    with open(f"{folder}/export.json", "rb") as file:
        description = json.load(file)
    golden = load_golden(golden_path)
    outputs = _call_saved_model(f"{folder}/saved_model", description, golden)
    outputs |= _call_keras_model(f"{folder}/model.keras", description, golden)
    differences = {}
    for way, (rows, found) in outputs.items():
        differences[way] = difference = _largest_difference(found, golden, rows, description)
        if not difference <= TOLERANCE:  # also true for NaN
            raise UserError(
                f"The outputs of the exported model are not those of the run's model: {way} is off by "
                f"{difference:.2g}, expected at most {TOLERANCE:g}. Nothing was published."
            )
    return differences


def _call_saved_model(path: str, description: dict[str, Any], golden: Golden) -> _Outputs:
    """Calls all signatures before this process imports the code of Lengthwise's model."""
    model = tf.saved_model.load(path)
    _check_weights(model.weights, description, "saved_model")
    serve, serialized = (model.signatures[name] for name in ("serving_default", "serialized"))
    output = description["output"]["name"]
    names = {name: entry["name"] for name, entry in description["inputs"].items()}

    def call(features: dict[str, Array]) -> Array:
        return serve(**{names[name]: tf.constant(values) for name, values in features.items()})[output].numpy()

    def call_serialized(examples: list[bytes]) -> Array:
        return serialized(examples=tf.constant(examples))[output].numpy()

    outputs = {
        "serving_default": (_ALL, call(golden.features)),
        "serving_default with garbage for padding": (_ALL, call(fill_padding(golden.features, description))),
        "serialized": (_ALL, call_serialized(golden.examples[:-1])),
        # The same number of records as before: a batch of another size is summed in another order.
        "serialized beside a longer record": (slice(1, _ALL.stop), call_serialized(golden.examples[1:])[:-1]),
    }
    if "streaming" in model.signatures:
        outputs |= _call_streaming(model.signatures["streaming"], description, golden)
    imported = {"trainer.model.layers", "trainer.model.recurrent_stack", "trainer.model.build"} & set(sys.modules)
    if imported:
        raise RuntimeError(f"{imported} are imported, so this check does not show that a SavedModel needs neither.")
    return outputs


def _call_streaming(streaming: Any, description: dict[str, Any], golden: Golden) -> _Outputs:
    """Calls the signature `streaming` with the golden records in chunks, which it must read as whole records."""
    read = functools.partial(read_in_chunks, streaming, golden.features, description)
    chunk_lengths: dict[str, Any] = {f"chunks of {steps}": lambda _, steps=steps: steps for steps in CHUNK_STEPS}
    with buffer_stderr():  # on some CPUs, TensorFlow reports that oneDNN does not transpose the mask
        outputs = {f"streaming in {chunks}": (_ALL, read(length)) for chunks, length in chunk_lengths.items()}
        # A row has 1 to 5 steps of a chunk, which change from chunk to chunk.
        uneven = read(lambda number: 1 + (np.arange(len(LENGTHS)) + number) % 5, fill=fill_padding)
    return outputs | {"streaming in uneven chunks with garbage for padding": (_ALL, uneven)}


def _call_keras_model(path: str, description: dict[str, Any], golden: Golden) -> _Outputs:
    import keras

    import trainer.model.recurrent_stack  # noqa: F401  registers it and our layers, the only ones that are not Keras's own

    model = keras.saving.load_model(path, compile=False, safe_mode=True)
    _check_weights(model.weights, description, "model.keras")

    @tf.function(reduce_retracing=True, autograph=False, jit_compile=False)
    def forward(features: dict[str, tf.Tensor]) -> tf.Tensor:
        return model(features, training=False)

    def call(features: dict[str, Array]) -> Array:
        return forward({name: tf.constant(values) for name, values in features.items()}).numpy()

    return {
        "model.keras": (_ALL, call(golden.features)),
        "model.keras with garbage for padding": (_ALL, call(fill_padding(golden.features, description))),
    }


def _check_weights(weights: Iterable[Any], description: dict[str, Any], name: str) -> None:
    found, expected = sha256(weight.numpy() for weight in weights), description["weights_sha256"]
    if found != expected:
        raise UserError(f"{name}: its weights have the SHA-256 {found}, expected {expected}. Nothing was published.")


def fill_padding(features: dict[str, Array], description: dict[str, Any]) -> dict[str, Array]:
    """Returns the same batch with `EXTRA_STEPS` more steps of padding and arbitrary values in all of the padding.

    Args:
        features: A batch, as `pad_batch` returns it.
        description: The content of export.json.
    """
    length, filled = features["length"], {}
    for name, values in features.items():
        if "time" in description["inputs"][name]["shape"]:
            values = np.concatenate([values, np.repeat(values[:, :1], EXTRA_STEPS, axis=1)], axis=1)
            steps = np.arange(values.shape[1])
            for parity, value in enumerate(_ARBITRARY[values.dtype.kind]):
                values[(steps >= length[:, None]) & (steps % 2 == parity)] = value
        filled[name] = values
    return filled


def _largest_difference(outputs: Array, golden: Golden, rows: slice, description: dict[str, Any]) -> float:
    """Returns the largest difference from the golden outputs, without padding; NaN if the shapes differ."""
    length, per_step = golden.features["length"][rows], "time" in description["output"]["shape"]
    found, expected = (_without_padding(values, length, per_step) for values in (outputs, golden.outputs[rows]))
    if found.shape != expected.shape:
        return float("nan")
    scale = 1.0 if description["output"]["name"] == "probabilities" else np.abs(expected).max() or 1.0
    return float(np.abs(found - expected).max() / scale)


def _without_padding(outputs: Array, length: Array, per_step: bool) -> Array:
    """Returns the outputs of real records or steps: float64[records, …], or float64[steps, …] for labels per step."""
    outputs = outputs.astype(np.float64)
    return outputs[np.arange(outputs.shape[1]) < length[:, None]] if per_step else outputs
