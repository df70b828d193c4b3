"""Predicts records chunk by chunk, without the activations or the outputs per step of whole records in memory."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from pipeline.schema.record import Array, ParsedRecord, Values
from pipeline.schema.schema import Schema
from trainer.batching.cut import check_limits
from trainer.model.chunks import chunk_model, find_stack
from trainer.serving.predictions import BatchOutputs, LineEncoder
from trainer.serving.predictor import Predictor, pad_batch
from trainer.serving.step_lines import StepLines


class ChunkPredictor:
    """The model of a run as a function of records, which it reads in chunks of `chunk_steps`.

    Args:
        reset_state: `chunk` sets the state to zero at each chunk, as in a run that was trained so for comparison.

    Raises:
        UserError: The model is bidirectional.
        ValueError: chunk_steps is below 1.
    """

    def __init__(self, predictor: Predictor, *, chunk_steps: int, reset_state: str = "record") -> None:
        check_limits(chunk_steps=chunk_steps)
        self._schema, self._target = predictor.schema, predictor.target
        self._chunk_steps, self._reset_state = chunk_steps, reset_state
        self._encoder = LineEncoder(predictor.target)
        self._widths = find_stack(predictor.model).state_widths
        # A record continues only after a full chunk, so the state of the other rows is not needed.
        model = chunk_model(predictor.model, predictor.schema, full_rows=True, probabilities=True)
        inputs = predictor.model.input
        features_spec = {name: tf.TensorSpec(tensor.shape, tensor.dtype, name) for name, tensor in inputs.items()}
        state_spec = [tf.TensorSpec([None, width], tf.float32) for width in self._widths]

        @tf.function(input_signature=[features_spec, state_spec], autograph=False, jit_compile=False)
        def forward(features: dict[str, tf.Tensor], state: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
            return model((features, state), training=False)

        self._forward = forward

    def __call__(self, records: Sequence[ParsedRecord]) -> BatchOutputs | StepLines:
        """Returns the outputs for one batch, or for labels per step the lines of the predictions.

        Raises:
            UserError: An output per step is not finite.
        """
        # Records that have ended are the last rows, which leave the batch.
        records = sorted(records, key=lambda record: -record.num_steps)
        ids = [record.id for record in records]
        chunks = self._read(records)
        if self._target.per_step:
            lines = StepLines(ids)
            for chunk in chunks:
                for row, prediction in enumerate(self._encoder.describe(chunk)):
                    lines.add(row, prediction)
            return lines
        outputs = np.zeros(0, np.float32)
        for number, chunk in enumerate(chunks):
            outputs = outputs if number else np.empty((len(records), *chunk.outputs.shape[1:]), np.float32)
            outputs[: len(chunk.ids)] = chunk.outputs  # that of the last chunk of a record stays
        return BatchOutputs(ids, np.array([record.num_steps for record in records], np.int32), outputs)

    def _read(self, records: Sequence[ParsedRecord]) -> Iterator[BatchOutputs]:
        """Yields the outputs for the first chunk of each record, then for the second one of those that have one, ….

        Args:
            records: Records from the longest to the shortest.
        """
        steps = np.array([record.num_steps for record in records])
        state = [tf.zeros((len(records), width)) for width in self._widths]
        for first in range(0, int(steps[0]), self._chunk_steps):
            rows = int((steps > first).sum())
            parts = [_take_steps(record, self._schema, first, self._chunk_steps) for record in records[:rows]]
            features = pad_batch(parts, self._schema)
            before = [tf.zeros_like(value[:rows]) if self._reset_state == "chunk" else value[:rows] for value in state]
            outputs, state = self._forward({name: tf.constant(values) for name, values in features.items()}, before)
            yield BatchOutputs([part.id for part in parts], features["length"], outputs.numpy())


def _take_steps(record: ParsedRecord, schema: Schema, first: int, count: int) -> ParsedRecord:
    """Returns at most `count` steps of a record, from the step `first` on."""
    stop = min(first + count, record.num_steps)

    def take(name: str) -> Values:
        values = record.features[name]
        if isinstance(values, list):
            width = schema.steps[name].width
            return values[first * width : stop * width]
        steps: Array = values.reshape(record.num_steps, -1)
        return steps[first:stop]

    features = {name: take(name) for name in schema.steps}
    return dataclasses.replace(record, num_steps=stop - first, features=features)
