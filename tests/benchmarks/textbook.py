"""The textbook ways to read and train: with the functions of tf.data, and with Keras's `fit`."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

BOUNDARIES = (16, 32, 64, 128, 256)


def sequence_example_batches(
    files: Sequence[str], *, num_features: int, batch_steps: int, longest: int
) -> tf.data.Dataset:
    """Returns batches of (x, length, label): records are parsed one by one, then put into buckets by length."""

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
    """Returns a compiled model of two masked LSTM layers of 100 units."""
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
    # Without XLA, which compiles again for every shape of a batch, and is far slower for variable lengths.
    built.compile("rmsprop", "sparse_categorical_crossentropy", jit_compile=False)
    return built


def padded_to_longest(xs: Sequence[np.ndarray], labels: Sequence[int], *, longest: int) -> tf.data.Dataset:
    """Returns shuffled batches of 32 records, all padded to `longest` steps."""
    padded = keras.utils.pad_sequences(xs, maxlen=longest, dtype="float32", padding="post")
    return tf.data.Dataset.from_tensor_slices((padded, np.array(labels))).shuffle(len(xs)).batch(32)


def padded_batches(xs: Sequence[np.ndarray], labels: Sequence[int]) -> tf.data.Dataset:
    """Returns shuffled batches of 64 records, each padded to its longest record."""
    return _elements(xs, labels).shuffle(len(xs)).padded_batch(64)


def bucket_batches(
    xs: Sequence[np.ndarray], labels: Sequence[int], *, batch_steps: int, longest: int
) -> tf.data.Dataset:
    """Returns shuffled batches from `bucket_by_sequence_length`, with a budget of padded steps."""
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
    # The elements are cached in memory, because the benchmark measures training.
    return tf.data.Dataset.from_generator(generate, output_signature=spec).cache()
