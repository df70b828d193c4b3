"""Predicts records with a trained run: records are collected into batches, padded, and given to the model."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from pipeline.schema.features import Feature
from pipeline.schema.record import Array, ParsedRecord, Values
from pipeline.schema.schema import Schema
from trainer.batching.cut import cut_batches
from trainer.config import TrainConfig
from trainer.data.target import Target, make_target
from trainer.devices.tensorflow_setup import allow_tf32
from trainer.model.build import build_model
from trainer.runs.checkpoints import restore_weights, weights_sha256
from trainer.runs.local_copy import local_copy
from trainer.runs.run import Run

# Padded steps per batch. On a CPU, larger batches are not faster, and they contain more padding.
_BATCH_STEPS = 12_800
# Numbers in the inputs and outputs of a batch. The budget of steps is smaller where a step has many numbers.
_BATCH_NUMBERS = 2**21
# Limits of the records that wait to be sorted: enough for batches of similar lengths, and little memory compared with
# TensorFlow's own.
_BUFFER_RECORDS = 16_384
_BUFFER_BYTES = 64 * 2**20
# Python needs about 60 bytes for a string besides its characters.
_VALUE_BYTES = {"float32": 4, "int64": 8, "string": 80}
_DTYPES = {"float32": np.float32, "int64": np.int64, "string": object}


def choose_batch_steps(schema: Schema, target: Target) -> int:
    """Returns the budget of padded steps of a batch, which is smaller if a step has many inputs or outputs."""
    width = sum(feature.width for feature in schema.steps.values()) + (target.size if target.per_step else 0)
    return max(1, min(_BATCH_STEPS, _BATCH_NUMBERS // width))


class BatchBuffer:
    """Collects records, and cuts them into batches of similar lengths when the buffer is full.

    Args:
        schema: Features of a record.
        batch_steps: Budget of padded steps of a batch.
        chunk_steps: Steps of a chunk if records are read in chunks; the budget is then that of a chunk of the batch.
    """

    def __init__(self, schema: Schema, batch_steps: int, chunk_steps: int | None = None) -> None:
        self._batch_steps, self._chunk_steps = batch_steps, chunk_steps
        self._step_bytes = _count_bytes(schema.steps.values())
        self._record_bytes = _count_bytes(schema.context.values())
        self._records: list[ParsedRecord] = []
        self._bytes = 0

    def add(self, record: ParsedRecord) -> Iterator[list[ParsedRecord]]:
        """Adds a record, and yields all batches if the buffer is full."""
        self._records.append(record)
        self._bytes += self._record_bytes + self._step_bytes * record.num_steps
        if len(self._records) >= _BUFFER_RECORDS or self._bytes >= _BUFFER_BYTES:
            yield from self.flush()

    def flush(self) -> Iterator[list[ParsedRecord]]:
        """Yields all records in the buffer as batches."""
        records, self._records, self._bytes = self._records, [], 0
        steps = [record.num_steps for record in records]
        for rows in cut_batches(steps, batch_steps=self._batch_steps, chunk_steps=self._chunk_steps):
            yield [records[row] for row in rows]


def _count_bytes(features: Iterable[Feature]) -> int:
    return sum(feature.width * _VALUE_BYTES[feature.dtype] for feature in features)


def pad_batch(records: Sequence[ParsedRecord], schema: Schema) -> dict[str, Array]:
    """Returns the features of a batch, padded to the longest record, as `trainer.reading.batches.batches` does.

    Each step feature is float32, int64 or bytes [batch, time, *shape], each context feature [batch, *shape], and
    `length` is int32[batch]. Padding is 0 or b"".
    """
    lengths = np.array([record.num_steps for record in records], np.int32)
    real = np.arange(lengths.max()) < lengths[:, None]
    features = {}
    for name, feature in schema.steps.items():
        # In row-major order, the real steps of the padded array are the steps of all records in sequence.
        padded = np.full((*real.shape, *feature.shape), b"" if feature.dtype == "string" else 0, _DTYPES[feature.dtype])
        padded[real] = _concatenate([record.features[name] for record in records], feature.shape)
        features[name] = padded
    for name, feature in schema.context.items():
        features[name] = _concatenate(
            [np.asarray(record.context[name], _DTYPES[feature.dtype]).ravel() for record in records], feature.shape
        )
    return features | {"length": lengths}


def _concatenate(parts: list[Values], shape: tuple[int, ...]) -> Array:
    """Returns the values of all parts as one array [rows, *shape]."""
    if isinstance(parts[0], list):
        joined = np.array(list(itertools.chain.from_iterable(parts)), object)
    else:
        joined = np.concatenate(parts)
    return joined.reshape(-1, *shape)


@dataclasses.dataclass(frozen=True)
class Predictor:
    """The model of a run as a function of records.

    Attributes:
        schema: Features of a record.
        target: What the model predicts.
        checkpoint: The checkpoint of the weights, `best` or `last`.
        weights_sha256: SHA-256 of the weights' bytes, in the order of `model.weights`.
        model: The Keras model.
        config: Configuration of the run.
        forward: Maps a dict of tensors, with the arrays of `pad_batch`, to the outputs. One trace serves all shapes.
    """

    schema: Schema
    target: Target
    checkpoint: str
    weights_sha256: str
    model: keras.Model
    config: TrainConfig
    forward: Callable[[dict[str, tf.Tensor]], tf.Tensor]

    def __call__(self, records: Sequence[ParsedRecord]) -> Array:
        """Returns the outputs for one batch: float32[batch, …], or float32[batch, time, …] for labels per step."""
        batch = pad_batch(records, self.schema)
        return self.forward({name: tf.constant(values) for name, values in batch.items()}).numpy()


def load_predictor(run_path: str, checkpoint: str | None = None) -> Predictor:
    """Returns the model of a run with the weights of a checkpoint.

    Args:
        run_path: Folder of the run.
        checkpoint: `best` or `last`. By default the best checkpoint, or the last one if the run has no best one.

    Raises:
        UserError: There is no run or no such checkpoint, or the checkpoint is damaged.
    """
    with local_copy(run_path.rstrip("/") or "/") as folder:
        return _load(Run(folder), checkpoint)


def _load(run: Run, checkpoint: str | None) -> Predictor:
    config, schema, vocabularies = run.config(), run.manifest().record_schema, run.vocabularies()
    allow_tf32(config.tf32)
    model = build_model(schema, run.statistics(), config, vocabularies=vocabularies)
    used = restore_weights(run, model, checkpoint)
    spec = {name: tf.TensorSpec(tensor.shape, tensor.dtype, name) for name, tensor in model.input.items()}

    @tf.function(input_signature=[spec], autograph=False, jit_compile=False)
    def forward(features: dict[str, tf.Tensor]) -> tf.Tensor:
        return model(features, training=False)

    return Predictor(schema, make_target(schema, vocabularies), used, weights_sha256(model), model, config, forward)
