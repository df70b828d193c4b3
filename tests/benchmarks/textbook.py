"""The textbook ways, written as one would write them today: tf.data's own means, and Keras's `fit`."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

BOUNDARIES = (16, 32, 64, 128, 256)


def sequence_example_batches(
    files: Sequence[str], *, num_features: int, batch_steps: int, longest: int
) -> tf.data.Dataset:
    """(x, length, label): records parsed one by one, then batched by bucket_by_sequence_length."""

    def parse(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        context, steps = tf.io.parse_single_sequence_example(
            serialized,
            context_features={
                "label": tf.io.FixedLenFeature([], tf.int64),
                "length": tf.io.FixedLenFeature([], tf.int64),
            },
            sequence_features={"x": tf.io.FixedLenSequenceFeature([num_features], tf.float32)},
        )
        return steps["x"], context["length"], context["label"]

    return (
        tf.data.TFRecordDataset(files, num_parallel_reads=tf.data.AUTOTUNE)
        .shuffle(10_000)
        .map(parse, num_parallel_calls=tf.data.AUTOTUNE)
        .bucket_by_sequence_length(
            lambda x, length, label: tf.cast(length, tf.int32),
            bucket_boundaries=[boundary + 1 for boundary in BOUNDARIES],
            bucket_batch_sizes=[max(1, batch_steps // steps) for steps in (*BOUNDARIES, longest)],
        )
        .prefetch(tf.data.AUTOTUNE)
    )


def model(num_features: int) -> keras.Model:
    """Two masked LSTM layers of 100 units."""
    layers = keras.layers
    built = keras.Sequential(
        [
            keras.Input((None, num_features)),
            layers.Masking(0.0),
            layers.LSTM(100, return_sequences=True),
            layers.LSTM(100),
            layers.Dense(3, activation="softmax"),
        ]
    )
    # Without XLA, which compiles anew for every shape of a batch: slower by far for lengths that vary.
    built.compile("rmsprop", "sparse_categorical_crossentropy", jit_compile=False)
    return built


def padded_to_longest(xs: Sequence[np.ndarray], labels: Sequence[int], *, longest: int) -> tf.data.Dataset:
    padded = keras.utils.pad_sequences(xs, maxlen=longest, dtype="float32", padding="post")
    return tf.data.Dataset.from_tensor_slices((padded, np.array(labels))).shuffle(len(xs)).batch(32)


def padded_batches(xs: Sequence[np.ndarray], labels: Sequence[int]) -> tf.data.Dataset:
    """Batches at random, each padded to its longest record."""
    return _elements(xs, labels).shuffle(len(xs)).padded_batch(64)


def bucket_batches(
    xs: Sequence[np.ndarray], labels: Sequence[int], *, batch_steps: int, longest: int
) -> tf.data.Dataset:
    return (
        _elements(xs, labels)
        .shuffle(len(xs))
        .bucket_by_sequence_length(
            lambda x, label: tf.shape(x)[0],
            bucket_boundaries=[boundary + 1 for boundary in BOUNDARIES],
            bucket_batch_sizes=[max(1, batch_steps // steps) for steps in (*BOUNDARIES, longest)],
        )
    )


def _elements(xs: Sequence[np.ndarray], labels: Sequence[int]) -> tf.data.Dataset:
    def generate() -> Any:
        yield from zip(xs, labels, strict=True)

    spec = tf.TensorSpec([None, xs[0].shape[1]], tf.float32), tf.TensorSpec([], tf.int64)
    # In memory: what is measured is training.
    return tf.data.Dataset.from_generator(generate, output_signature=spec).cache()
