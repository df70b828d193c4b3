"""Reads a dataset as batches of like lengths: every record once an epoch, in an order that seed and epoch decide."""

import functools
import os
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from pipeline.schema import Feature, Schema
from pipeline.values import NO_LABEL
from trainer.dataset import Dataset, ShardIndex, open_dataset
from trainer.plan import Batching, Plan, make_plan

# Bytes of serialized records among which the next one is drawn, and the most records: enough to mix neighbouring
# shards, which are shuffled in themselves already, since a dataset lies in hash order.
_SHUFFLE_BYTES = 64 * 2**20
_SHUFFLE_RECORDS = 16_384

DTYPES = {"float32": tf.float32, "int64": tf.int64, "string": tf.string}


def batches(
    dataset: str | os.PathLike[str] | Dataset,
    split: str,
    *,
    batching: Batching = "bucket",
    batch_steps: int | None = None,
    batch_size: int | None = None,
    pad_length: int | None = None,
    truncate: Literal["head", "tail"] | None = None,
    seed: int = 0,
    epoch: int = 0,
    reader_index: int = 0,
    num_readers: int = 1,
) -> tf.data.Dataset:
    """One epoch of a split as a tf.data.Dataset of (features, label, weight), for `model.fit` or a loop of your own.

    features: a dict of each step feature [batch, time, *shape] (float32, int64 or string) and `length` int32[batch].
    Steps at and after `length` are padding: 0 or "". label: class int64[batch]; distribution float32[batch, classes];
    regression float32[batch]; step_class int64[batch, time]. weight: float32[batch], or float32[batch, time] for labels
    per step, where 0 marks padding and steps without a label.

    Args:
        batching: `bucket` (tf.data's bucket_by_sequence_length), `pad` (all to one length), `exact` (no padding).
        batch_steps, batch_size, pad_length, truncate: As for `trainer.plan.make_plan`.
        reader_index, num_readers: This reader yields every num_readers-th record; the readers together yield all.

    Raises:
        UserError: the dataset or the split is not there, or its files are not those that the manifest lists.
        ValueError: a wrong argument.
    """
    if num_readers < 1:
        raise ValueError(f"num_readers is {num_readers}, expected at least 1.")
    if not 0 <= reader_index < num_readers:
        raise ValueError(f"reader_index is {reader_index}, expected 0 to num_readers - 1, which is {num_readers - 1}.")
    dataset = dataset if isinstance(dataset, Dataset) else open_dataset(dataset)
    plan = make_plan(
        dataset.split(split).length_counts,
        batching=batching,
        batch_steps=batch_steps,
        batch_size=batch_size,
        pad_length=pad_length,
        truncate=truncate,
    )
    shards = _shuffled(dataset.shards(split), seed=seed, epoch=epoch)
    lengths = np.concatenate([np.zeros(0, np.int64), *(shard.num_steps for shard in shards)])[reader_index::num_readers]
    plan = plan.with_lengths(lengths)

    # The index knows the lengths, so records are batched as they lie in the file, and parsed a batch at a time.
    records = tf.data.TFRecordDataset([shard.path for shard in shards]).shard(num_readers, reader_index)
    records = tf.data.Dataset.zip(records, tf.data.Dataset.from_tensor_slices(lengths.astype(np.int32)))
    draw_seed = int(np.random.default_rng([seed, epoch, 1]).integers(2**31))
    records = records.shuffle(_shuffle_size(shards), seed=draw_seed, reshuffle_each_iteration=False)
    batched = _batch(records, plan)
    # At the end of an epoch all buckets give their rest, the shortest first: spread these few among their neighbours.
    batched = batched.shuffle(max(1, len(plan.buckets)), seed=draw_seed, reshuffle_each_iteration=False)
    parse = functools.partial(parse_batch, schema=dataset.schema, plan=plan)
    parsed = batched.map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return parsed.apply(tf.data.experimental.assert_cardinality(plan.num_batches)).prefetch(tf.data.AUTOTUNE)


def _shuffled(shards: list[ShardIndex], *, seed: int, epoch: int) -> list[ShardIndex]:
    return [shards[position] for position in np.random.default_rng([seed, epoch]).permutation(len(shards))]


def _shuffle_size(shards: list[ShardIndex]) -> int:
    records = sum(len(shard.num_bytes) for shard in shards)
    mean_bytes = sum(int(shard.num_bytes.sum()) for shard in shards) / max(records, 1)
    return max(1, min(records, _SHUFFLE_RECORDS, int(_SHUFFLE_BYTES / max(mean_bytes, 1))))


def _batch(records: tf.data.Dataset, plan: Plan) -> tf.data.Dataset:
    """(serialized, length) -> the same in batches, each of one bucket."""
    if plan.batching == "pad":
        return records.batch(plan.batch_sizes[0])
    return records.bucket_by_sequence_length(
        lambda _, length: length,
        # An empty split has no bucket, but tf.data wants a boundary.
        bucket_boundaries=plan.boundaries or [1],
        bucket_batch_sizes=plan.batch_sizes if plan.buckets else [1, 1],
    )


def parse_batch(
    serialized: tf.Tensor, length: tf.Tensor, *, schema: Schema, plan: Plan
) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
    """Serialized Examples string[batch], all of one bucket -> (features, label, weight), padded as the plan says."""
    parsed = tf.io.parse_example(serialized, example_spec(schema))
    same = tf.debugging.assert_equal(
        tf.cast(length, tf.int64), parsed["length"], "A record has another length than its index says: run verify."
    )
    with tf.control_dependencies([same]):
        steps = {name: tf.identity(parsed[name]) for name in schema.steps}
    if schema.label.per_step:
        steps[schema.label.name] = parsed[schema.label.name]
    longest = plan.buckets[-1].pad_length if plan.buckets else 1
    if plan.truncate is not None:
        steps = {name: _truncate(value, length, longest, plan.truncate) for name, value in steps.items()}
        length = tf.minimum(length, longest)
    pad_length = _pad_length(tf.reduce_max(length), plan)
    padding = {schema.label.name: NO_LABEL} if schema.label.per_step else {}
    steps = {name: _pad(value, pad_length, padding.get(name)) for name, value in steps.items()}
    label = steps.pop(schema.label.name) if schema.label.per_step else parsed[schema.label.name]
    return {**steps, "length": length}, *label_and_weight(label, schema)


def label_and_weight(label: tf.Tensor, schema: Schema) -> tuple[tf.Tensor, tf.Tensor]:
    """A label as it was stored -> the label, with some valid class where there is none, and its float32 weight."""
    if schema.label.per_step:
        return tf.maximum(label, 0), tf.cast(label != NO_LABEL, tf.float32)
    return label, tf.ones(tf.shape(label)[:1])


def example_spec(schema: Schema) -> dict[str, Any]:
    """How tf.io.parse_example reads a record of this schema: step features come out padded to the longest."""
    label = schema.label
    spec: dict[str, Any] = {name: step_spec(feature) for name, feature in schema.steps.items()}
    spec[label.name] = {
        "class": lambda: tf.io.FixedLenFeature([], tf.int64),
        "distribution": lambda: tf.io.FixedLenFeature([len(label.classes)], tf.float32),
        "regression": lambda: tf.io.FixedLenFeature([], tf.float32),
        "step_class": lambda: tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True, default_value=NO_LABEL),
    }[label.kind]()
    return spec | {"length": tf.io.FixedLenFeature([], tf.int64)}


def step_spec(feature: Feature) -> Any:
    return tf.io.FixedLenSequenceFeature(list(feature.shape), DTYPES[feature.dtype], allow_missing=True)


def _pad_length(longest: tf.Tensor, plan: Plan) -> tf.Tensor:
    """The pad length of the bucket that a batch is of, by its longest record."""
    edges = tf.constant([bucket.pad_length for bucket in plan.buckets] or [1], tf.int32)
    return edges[tf.searchsorted(edges, [longest])[0]]


def _pad(value: tf.Tensor, length: tf.Tensor, padding: int | None) -> tf.Tensor:
    """value[batch, time, …] with time made `length`."""
    missing = length - tf.shape(value)[1]
    paddings = [[0, 0], [0, missing], *([[0, 0]] * (value.shape.rank - 2))]
    padded = tf.pad(
        value, paddings, constant_values="" if value.dtype == tf.string else tf.cast(padding or 0, value.dtype)
    )
    return tf.ensure_shape(padded, [None, None, *value.shape[2:]])


def _truncate(value: tf.Tensor, length: tf.Tensor, limit: int, where: str) -> tf.Tensor:
    """The first `limit` steps of each row (its tail is cut off), or the last real ones (its head is)."""
    if where == "tail":
        return value[:, :limit]
    start = tf.maximum(length - limit, 0)
    positions = start[:, None] + tf.range(tf.minimum(limit, tf.shape(value)[1]))[None, :]
    return tf.gather(value, positions, batch_dims=1)
