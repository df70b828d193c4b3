"""A trained run as a function: sequences of any lengths in, one array with the outputs of all of them out."""

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from pipeline.schema.record import Array, ParsedRecord
from pipeline.schema.schema import Schema
from trainer.data.target import Target, make_target
from trainer.model.build import build_model
from trainer.runs.checkpoints import restore_weights, weights_sha256
from trainer.runs.run import Run
from trainer.serving.padding import pad_batch


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A model and what is known of it.

    Attributes:
        checkpoint: Which one the weights are of, `best` or `last`.
        weights_sha256: Over the weights' bytes in the order of `model.weights`.
        forward: A dict of tensors, as `pad_batch` makes it of arrays -> outputs. One trace serves all shapes.
    """

    schema: Schema
    target: Target
    checkpoint: str
    weights_sha256: str
    forward: Callable[[dict[str, tf.Tensor]], tf.Tensor]

    def __call__(self, records: Sequence[ParsedRecord]) -> Array:
        """float32[batch, …], or [batch, time, …] where labels are per step, of one batch."""
        batch = pad_batch(records, self.schema)
        return self.forward({name: tf.constant(values) for name, values in batch.items()}).numpy()


def load_predictor(run_path: str, checkpoint: str | None = None) -> Predictor:
    """The model of a run with the weights of a checkpoint: the best where there is one, unless told.

    Raises:
        UserError: no run, no such checkpoint, or a damaged one.
    """
    run = Run(run_path)
    config, manifest, vocabularies = run.config(), run.manifest(), run.vocabularies()
    schema = manifest.record_schema
    model = build_model(schema, manifest.statistics, config, vocabularies=vocabularies)
    used = restore_weights(run, model, checkpoint)
    spec = {name: tf.TensorSpec(tensor.shape, tensor.dtype, name) for name, tensor in model.input.items()}

    @tf.function(input_signature=[spec], autograph=False, jit_compile=False)
    def forward(features: dict[str, tf.Tensor]) -> tf.Tensor:
        return model(features, training=False)

    return Predictor(schema, make_target(schema, vocabularies), used, weights_sha256(model), forward)
