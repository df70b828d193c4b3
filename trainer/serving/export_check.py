"""Proves an export in a process that did not make it: what is read back answers as the model did."""

import json
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.errors import UserError
from pipeline.schema.record import Array
from trainer.runs.checkpoints import sha256
from trainer.serving.golden import LENGTHS, Golden, load_golden

# Largest difference of a probability; of other numbers, times the largest of them.
TOLERANCE = 1e-6
EXTRA_STEPS = 7

_GARBAGE = {"f": (np.nan, 1e30), "i": (-(2**62), 2**62), "O": (b"garbage", b"\xff")}
# The way that was asked -> which of the golden records, and the answers.
_Answers = dict[str, tuple[slice, Array]]
_ALL = slice(0, len(LENGTHS))


def prove(folder: str, golden_path: str) -> dict[str, float]:
    """The largest difference of an answer from the golden one, by the way that was asked.

    Raises:
        UserError: a weight is not the same bits, or a difference is larger than it may be.
    """
    with open(f"{folder}/export.json", "rb") as file:
        about = json.load(file)
    golden = load_golden(golden_path)
    answers = _ask_saved_model(f"{folder}/saved_model", about, golden)
    answers |= _ask_keras(f"{folder}/model.keras", about, golden)
    differences = {}
    for way, (rows, outputs) in answers.items():
        differences[way] = found = _compare(outputs, golden, rows, about)
        if not found <= TOLERANCE:  # NaN is not
            raise UserError(
                f"The exported model does not answer as the run's does: {way} is off by {found:.2g}, expected at most "
                f"{TOLERANCE:g}. Nothing was published."
            )
    return differences


def _ask_saved_model(path: str, about: dict[str, Any], golden: Golden) -> _Answers:
    """Asks both signatures, while nothing of Lengthwise's model is in this process."""
    model = tf.saved_model.load(path)
    _check_weights(model.weights, about, "saved_model")
    serve, serialized = (model.signatures[name] for name in ("serving_default", "serialized"))
    output, names = about["output"]["name"], {name: entry["name"] for name, entry in about["inputs"].items()}

    def ask(features: dict[str, Array]) -> Array:
        return serve(**{names[name]: tf.constant(values) for name, values in features.items()})[output].numpy()

    def ask_examples(examples: list[bytes]) -> Array:
        return serialized(examples=tf.constant(examples))[output].numpy()

    answers = {
        "serving_default": (_ALL, ask(golden.features)),
        "serving_default with garbage for padding": (_ALL, ask(add_garbage(golden.features, about))),
        "serialized": (_ALL, ask_examples(golden.examples[:-1])),
        # The same number of records: a batch of another size is added up in another order.
        "serialized beside a longer record": (slice(1, _ALL.stop), ask_examples(golden.examples[1:])[:-1]),
    }
    ours = {"trainer.model.layers", "trainer.model.build"} & set(sys.modules)
    if ours:
        raise RuntimeError(f"{ours} are in the process, so it is not proved that a SavedModel does without them.")
    return answers


def _ask_keras(path: str, about: dict[str, Any], golden: Golden) -> _Answers:
    import keras

    import trainer.model.layers  # noqa: F401  it registers our layers: with Keras's own all that the file may name

    model = keras.saving.load_model(path, compile=False, safe_mode=True)
    _check_weights(model.weights, about, "model.keras")

    @tf.function(reduce_retracing=True, autograph=False, jit_compile=False)
    def forward(features: dict[str, tf.Tensor]) -> tf.Tensor:
        return model(features, training=False)

    def ask(features: dict[str, Array]) -> Array:
        return forward({name: tf.constant(values) for name, values in features.items()}).numpy()

    return {
        "model.keras": (_ALL, ask(golden.features)),
        "model.keras with garbage for padding": (_ALL, ask(add_garbage(golden.features, about))),
    }


def _check_weights(weights: Iterable[Any], about: dict[str, Any], what: str) -> None:
    found, expected = sha256(weight.numpy() for weight in weights), about["weights_sha256"]
    if found != expected:
        raise UserError(f"{what}: its weights have the SHA-256 {found}, expected {expected}. Nothing was published.")


def add_garbage(features: dict[str, Array], about: dict[str, Any]) -> dict[str, Array]:
    """The same batch with EXTRA_STEPS steps more, and garbage in all of its padding."""
    length, padded = features["length"], {}
    for name, values in features.items():
        if "time" in about["inputs"][name]["shape"]:
            values = np.concatenate([values, np.repeat(values[:, :1], EXTRA_STEPS, axis=1)], axis=1)
            steps = np.arange(values.shape[1])
            for parity, garbage in enumerate(_GARBAGE[values.dtype.kind]):
                values[(steps >= length[:, None]) & (steps % 2 == parity)] = garbage
        padded[name] = values
    return padded


def _compare(outputs: Array, golden: Golden, rows: slice, about: dict[str, Any]) -> float:
    """The largest difference at a real record or step."""
    length, per_step = golden.features["length"][rows], "time" in about["output"]["shape"]
    found, expected = (_real(values, length, per_step) for values in (outputs, golden.outputs[rows]))
    if found.shape != expected.shape:
        return float("nan")
    scale = 1.0 if about["output"]["name"] == "probabilities" else np.abs(expected).max() or 1.0
    return float(np.abs(found - expected).max() / scale)


def _real(outputs: Array, length: Array, per_step: bool) -> Array:
    """float64[records or steps, …]: what is no padding."""
    outputs = outputs.astype(np.float64)
    return outputs[np.arange(outputs.shape[1]) < length[:, None]] if per_step else outputs
