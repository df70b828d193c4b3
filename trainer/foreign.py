"""Reads TFRecords that are not ours, given a schema: Example or SequenceExample, batched by length."""

import functools
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from pipeline.errors import UserError
from pipeline.schema import Schema, class_name
from pipeline.tfrecord import CorruptRecord, walk
from pipeline.values import NO_LABEL
from trainer.plan import DEFAULT_BATCH_STEPS, MIN_BUCKETS, plan_buckets, rows_of
from trainer.reader import DTYPES, label_and_weight, step_spec

# Records from which the boundaries are taken where none are given.
_SAMPLE_RECORDS = 10_000
_SHUFFLE_RECORDS = 4096


def foreign_batches(
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    schema: Schema,
    *,
    boundaries: Sequence[int] | None = None,
    batch_steps: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    epoch: int = 0,
) -> tf.data.Dataset:
    """One epoch of TFRecord files as a tf.data.Dataset of (features, label, weight), as `trainer.reader.batches` gives.

    Records are tf.train.Example (each step feature a flat list) or tf.train.SequenceExample (step features, and labels
    per step, are feature lists; other labels are in the context); which of them is seen from the first record. A class
    is its index, or its name. There is no manifest, so lengths are what the records turn out to have: batches are
    padded to their longest record, and the number of batches is unknown.

    Args:
        files: Paths or globs, local or on any file system that TensorFlow knows.
        boundaries: Exclusive upper edges of the buckets, in steps, rising. A record at or beyond the last makes a batch
            of one. By default they are taken from the lengths of the first 10,000 records.
        batch_steps: Budget of padded steps a batch; default 6,400 unless batch_size is given.
        batch_size: Records a batch, at most.

    Raises:
        UserError: no file, a file that is not whole, a first record that does not fit the schema, wrong boundaries.
    """
    for name, limit in (("batch_steps", batch_steps), ("batch_size", batch_size)):
        if limit is not None and limit < 1:
            raise UserError(f"{name} is {limit}, expected at least 1.")
    paths = _find(files)
    for path in paths:
        _check_frames(path, _stamp(path))
    parse = _make_parser(paths, schema)
    if batch_steps is None and batch_size is None:
        batch_steps = DEFAULT_BATCH_STEPS
    if boundaries is None:
        sample = tf.data.TFRecordDataset(paths).take(_SAMPLE_RECORDS).map(parse, num_parallel_calls=tf.data.AUTOTUNE)
        lengths = Counter(int(features["length"]) for features, _ in sample)
        boundaries, sizes = plan_buckets(
            lengths, num_buckets=MIN_BUCKETS, batch_steps=batch_steps, batch_size=batch_size
        )
    elif list(boundaries) != sorted(set(boundaries)) or not boundaries or boundaries[0] < 1:
        raise UserError(f"boundaries are {list(boundaries)}, expected rising numbers of steps, at least 1.")
    else:
        sizes = [*(rows_of(max(boundary - 1, 1), batch_steps, batch_size) for boundary in boundaries), 1]

    order = np.random.default_rng([seed, epoch])
    records = tf.data.TFRecordDataset([paths[position] for position in order.permutation(len(paths))])
    records = records.shuffle(_SHUFFLE_RECORDS, seed=int(order.integers(2**31)), reshuffle_each_iteration=False)
    parsed = records.map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    batched = parsed.bucket_by_sequence_length(
        lambda features, _: features["length"],
        bucket_boundaries=list(boundaries),
        bucket_batch_sizes=sizes,
        padding_values=_padding_values(schema),
    )
    return batched.map(lambda features, label: (features, *label_and_weight(label, schema))).prefetch(tf.data.AUTOTUNE)


def _find(files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    paths = []
    for path in [files] if isinstance(files, str | os.PathLike) else files:
        pattern = os.fspath(path)
        found = sorted(tf.io.gfile.glob(pattern))
        if not found:
            raise UserError(f"{pattern}: matches no file.")
        paths += found
    return paths


def _stamp(path: str) -> tuple[int, float]:
    return (
        (os.path.getsize(path), os.path.getmtime(path)) if os.path.exists(path) else (tf.io.gfile.stat(path).length, 0)
    )


@functools.lru_cache(maxsize=1 << 16)
def _check_frames(path: str, stamp: tuple[int, float]) -> None:
    """Walks a file, once a process: TensorFlow dies by a signal on some lengths, and takes some cuts for an end."""
    with tf.io.gfile.GFile(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise UserError(f"{path}: is compressed; decompress it first.")
        file.seek(0)
        try:
            for _ in walk(file, num_bytes=stamp[0]):
                pass
        except CorruptRecord as error:
            raise UserError(f"{path}: {error}.") from None


def _make_parser(paths: list[str], schema: Schema) -> Any:
    """serialized -> ({step features, length}, label), after a look at the first record."""
    first = next(iter(tf.data.TFRecordDataset(paths).take(1).as_numpy_iterator()), None)
    if first is None:
        raise UserError(f"{', '.join(paths[:3])}: no record.")
    try:
        sequence = tf.train.SequenceExample.FromString(first)
    except DecodeError:
        raise UserError(f"{paths[0]}: the first record is neither an Example nor a SequenceExample.") from None
    in_lists = bool(sequence.feature_lists.feature_list)
    label_in_lists = in_lists and schema.label.per_step
    known = set(sequence.feature_lists.feature_list) if in_lists else set(sequence.context.feature)
    known |= set(sequence.context.feature)
    missing = [name for name in (*schema.steps, schema.label.name) if name not in known]
    if missing:
        raise UserError(f"{paths[0]}: the first record has no {', '.join(missing)}; it has {', '.join(sorted(known))}.")
    feature = (
        sequence.feature_lists.feature_list[schema.label.name].feature[0]
        if label_in_lists
        else sequence.context.feature[schema.label.name]
    )
    named = feature.HasField("bytes_list")
    return functools.partial(_parse, schema=schema, in_lists=in_lists, named=named)


def _parse(serialized: tf.Tensor, *, schema: Schema, in_lists: bool, named: bool) -> tuple[dict[str, Any], tf.Tensor]:
    steps = {name: step_spec(feature) for name, feature in schema.steps.items()}
    label_spec = _label_spec(schema, named)
    if schema.label.per_step:
        steps[schema.label.name] = label_spec
    if in_lists:
        context = {} if schema.label.per_step else {schema.label.name: label_spec}
        parsed_context, parsed = tf.io.parse_single_sequence_example(serialized, context, steps)
        parsed |= parsed_context
    else:
        parsed = tf.io.parse_single_example(serialized, {**steps, schema.label.name: label_spec})
    length = tf.shape(parsed[next(iter(schema.steps))])[0]
    checks = [tf.debugging.assert_positive(length, "A record has no step: is the name of a feature right?")]
    for name in steps:
        checks.append(tf.debugging.assert_equal(tf.shape(parsed[name])[0], length, f"{name} has other steps"))
    with tf.control_dependencies(checks):
        features = {name: tf.identity(parsed[name]) for name in schema.steps}
        return {**features, "length": length}, _class_index(parsed[schema.label.name], schema, named)


def _label_spec(schema: Schema, named: bool) -> Any:
    label = schema.label
    if label.kind == "distribution":
        return tf.io.FixedLenFeature([len(label.classes)], tf.float32)
    if label.kind == "regression":
        return tf.io.FixedLenFeature([], tf.float32)
    dtype = tf.string if named else tf.int64
    if label.per_step:
        return tf.io.FixedLenSequenceFeature([], dtype, allow_missing=True)
    return tf.io.FixedLenFeature([], dtype)


def _class_index(label: tf.Tensor, schema: Schema, named: bool) -> tf.Tensor:
    """A class by name or index as its index; a step without a label is "" or -1."""
    if not schema.label.classes or schema.label.kind == "distribution":
        return label
    names = [class_name(c) for c in schema.label.classes]
    lowest = 0
    if named:
        keys = tf.constant([*names, ""] if schema.label.per_step else names)
        values = tf.constant(
            [*range(len(names)), NO_LABEL] if schema.label.per_step else [*range(len(names))], tf.int64
        )
        unknown = -2
        table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), unknown)
        label = table.lookup(label)
    if schema.label.per_step:
        lowest = NO_LABEL
    fits = tf.reduce_all((label >= lowest) & (label < len(names)))
    with tf.control_dependencies([tf.debugging.Assert(fits, ["A label is no class of the schema:", label])]):
        return tf.identity(label)


def _padding_values(schema: Schema) -> tuple[dict[str, Any], Any]:
    def zero(dtype: tf.DType) -> Any:
        return tf.constant("" if dtype == tf.string else 0, dtype)

    features = {name: zero(DTYPES[feature.dtype]) for name, feature in schema.steps.items()}
    floats = schema.label.kind in ("distribution", "regression")
    label = zero(tf.float32) if floats else tf.constant(NO_LABEL, tf.int64)
    return {**features, "length": tf.constant(0, tf.int32)}, label
