"""Reads a dataset as batches of like lengths: every record once an epoch, in an order that seed and epoch decide."""

import functools
import os
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from pipeline.schema import Feature, Schema
from pipeline.values import NO_LABEL
from trainer.dataset import Dataset, ShardIndex, open_dataset
from trainer.fields import Field, stored_fields
from trainer.layers import is_missing
from trainer.lookup import Lookup, make_lookup
from trainer.plan import Batching, BucketPlan, make_plan
from trainer.target import Vocabularies

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
    vocabularies: Vocabularies | None = None,
) -> tf.data.Dataset:
    """One epoch of a split as a tf.data.Dataset of (features, label, weight), for `model.fit` or a loop of your own.

    features: a dict of each step feature [batch, time, *shape] and each context feature [batch, *shape] (float32, int64
    or string), and `length` int32[batch]. Steps at and after `length` are padding: 0 or "". A value that is missing is
    NaN, -1 or b"\\xff". label: class int64[batch]; distribution and multilabel float32[batch, classes]; regression
    float32[batch]; step_class int64[batch, time]; step_multilabel float32[batch, time, classes]; step_regression
    float32[batch, time], or float32[batch, time, width] where a vector comes next. weight: float32[batch], or
    float32[batch, time] for labels per step, where 0 marks padding and steps without a label.

    Args:
        batching: `bucket` (tf.data's bucket_by_sequence_length), `pad` (all to one length), `exact` (no padding).
        batch_steps, batch_size, pad_length, truncate: As for `trainer.plan.make_plan`.
        reader_index, num_readers: This reader yields every num_readers-th record; the readers together yield all.
        vocabularies: Those by which the label `next_of` a string is numbered, if not the dataset's own.

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
    reader = {"reader_index": reader_index, "num_readers": num_readers}
    numbered = numbered_batches(dataset, split, plan, seed=seed, epoch=epoch, vocabularies=vocabularies, **reader)
    return numbered.map(lambda features, label, weight, _: (features, label, weight))


def numbered_batches(
    dataset: Dataset,
    split: str,
    plan: BucketPlan,
    *,
    seed: int = 0,
    epoch: int = 0,
    reader_index: int = 0,
    num_readers: int = 1,
    vocabularies: Vocabularies | None = None,
) -> tf.data.Dataset:
    """`batches` by a plan of the split, with one element more: `row` int64[batch], the place of each record in
    `Dataset.index(split)`."""
    shards = dataset.shards(split)
    ends = np.cumsum([len(shard.num_steps) for shard in shards])
    rows = np.split(np.arange(ends[-1] if shards else 0), ends[:-1])
    order = np.random.default_rng([seed, epoch]).permutation(len(shards))
    shards, rows = [shards[i] for i in order], [rows[i] for i in order]
    mine = slice(reader_index, None, num_readers)
    lengths = np.concatenate([np.zeros(0, np.int64), *(shard.num_steps for shard in shards)])[mine]
    plan = plan.with_lengths(lengths)

    # The index knows the lengths, so records are batched as they lie in the file, and parsed a batch at a time.
    records = tf.data.TFRecordDataset([shard.path for shard in shards]).shard(num_readers, reader_index)
    columns = lengths.astype(np.int32), np.concatenate([np.zeros(0, np.int64), *rows])[mine]
    records = tf.data.Dataset.zip(records, *map(tf.data.Dataset.from_tensor_slices, columns))
    draw_seed = int(np.random.default_rng([seed, epoch, 1]).integers(2**31))
    records = records.shuffle(_shuffle_size(shards), seed=draw_seed, reshuffle_each_iteration=False)
    batched = _batch(records, plan)
    # At the end of an epoch all buckets give their rest, the shortest first: spread these few among their neighbours.
    batched = batched.shuffle(max(1, len(plan.buckets)), seed=draw_seed, reshuffle_each_iteration=False)
    parse = functools.partial(
        parse_batch,
        schema=dataset.schema,
        plan=plan,
        lookup=label_lookup(dataset.schema, dataset.vocabularies() if vocabularies is None else vocabularies),
    )
    parsed = batched.map(
        lambda serialized, length, row: (*parse(serialized, length), row),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return parsed.apply(tf.data.experimental.assert_cardinality(plan.num_batches)).prefetch(tf.data.AUTOTUNE)


def _shuffle_size(shards: list[ShardIndex]) -> int:
    records = sum(len(shard.num_bytes) for shard in shards)
    mean_bytes = sum(int(shard.num_bytes.sum()) for shard in shards) / max(records, 1)
    return max(1, min(records, _SHUFFLE_RECORDS, int(_SHUFFLE_BYTES / max(mean_bytes, 1))))


def _batch(records: tf.data.Dataset, plan: BucketPlan) -> tf.data.Dataset:
    """(serialized, length, row) -> the same in batches, each of one bucket."""
    if plan.batching == "pad":
        return records.batch(plan.batch_sizes[0])
    return records.bucket_by_sequence_length(
        lambda _, length, row: length,
        # An empty split has no bucket, but tf.data wants a boundary.
        bucket_boundaries=plan.boundaries or [1],
        bucket_batch_sizes=plan.batch_sizes if plan.buckets else [1, 1],
    )


def parse_batch(
    serialized: tf.Tensor, length: tf.Tensor, *, schema: Schema, plan: BucketPlan, lookup: Lookup | None = None
) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
    """Serialized Examples string[batch], all of one bucket -> (features, label, weight), padded as the plan says."""
    parsed = tf.io.parse_example(serialized, example_spec(schema))
    same = tf.debugging.assert_equal(
        tf.cast(length, tf.int64), parsed["length"], "A record has another length than its index says: run verify."
    )
    per_step = [name for name in parsed if schema.is_per_step(name)]
    with tf.control_dependencies([same]):
        steps = {name: tf.identity(parsed[name]) for name in per_step}
    longest = plan.buckets[-1].pad_length if plan.buckets else 1
    if plan.truncate is not None:
        steps = {name: _truncate(value, length, longest, plan.truncate) for name, value in steps.items()}
        length = tf.minimum(length, longest)
    pad_length = _pad_length(tf.reduce_max(length), plan)
    padding = {field.name: field.padding for field in stored_fields(schema)}
    padded = {name: _pad(value, pad_length, padding[name]) for name, value in steps.items()}
    values = {**parsed, **padded}
    features = {name: values[name] for name in schema.features} | {"length": length}
    label = None if schema.label.name is None else values[schema.label.name]
    return features, *label_and_weight(label, features, schema, lookup)


def label_and_weight(
    label: tf.Tensor | None, features: dict[str, tf.Tensor], schema: Schema, lookup: Lookup | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """A label as it was stored -> the label, with some valid value where there is none, and its float32 weight.

    Args:
        label: None where it is the next value of a step feature.
        lookup: Numbers the strings of such a feature.
    """
    kind = schema.label.kind
    if schema.label.next_of is not None:
        return _next_values(features[schema.label.next_of], features["length"], lookup)
    assert label is not None
    if kind == "step_regression":
        known = tf.math.is_finite(label)
        return tf.where(known, label, 0.0), tf.cast(known, tf.float32)
    if kind == "step_class":
        return tf.maximum(label, 0), tf.cast(label != NO_LABEL, tf.float32)
    if kind == "step_multilabel":
        return tf.cast(tf.maximum(label, 0), tf.float32), tf.cast(label[:, :, 0] != NO_LABEL, tf.float32)
    if kind == "multilabel":
        label = tf.cast(label, tf.float32)
    return label, tf.ones(tf.shape(label)[:1])


def _next_values(values: tf.Tensor, length: tf.Tensor, lookup: Lookup | None) -> tuple[tf.Tensor, tf.Tensor]:
    """The value of the next step, at every step, and 1 where there is one and nothing of it is missing."""
    following = tf.concat([values[:, 1:], values[:, :1]], axis=1)
    present = ~is_missing(following)
    if present.shape.rank > 2:
        present = tf.reduce_all(present, axis=2)
    real = tf.sequence_mask(length, tf.shape(values)[1])
    known = tf.concat([real[:, 1:], tf.zeros_like(real[:, :1])], axis=1) & present
    if following.dtype == tf.string:
        assert lookup is not None
        following = lookup(following)
    elif following.dtype == tf.int64:
        following = tf.maximum(following, 0)
    else:
        following = tf.where(tf.math.is_nan(following), 0.0, following)
    return following, tf.cast(known, tf.float32)


def label_lookup(schema: Schema, vocabularies: Vocabularies) -> Lookup | None:
    """What numbers the strings of the feature whose next value is the label; None where there are none."""
    name = schema.label.next_of
    return make_lookup(tuple(vocabularies[name])) if name is not None and name in vocabularies else None


def example_spec(schema: Schema, *, labelled: bool = True) -> dict[str, Any]:
    """How tf.io.parse_example reads a record of this schema: step features come out padded to the longest."""

    def spec(field: Field) -> Any:
        shape, dtype = list(field.shape), DTYPES[field.dtype]
        if not field.per_step:
            return tf.io.FixedLenFeature(shape, dtype)
        return tf.io.FixedLenSequenceFeature(shape, dtype, allow_missing=True, default_value=field.padding)

    return {field.name: spec(field) for field in stored_fields(schema, labelled=labelled)}


def step_spec(feature: Feature) -> Any:
    return tf.io.FixedLenSequenceFeature(list(feature.shape), DTYPES[feature.dtype], allow_missing=True)


def context_spec(feature: Feature) -> Any:
    return tf.io.FixedLenFeature(list(feature.shape), DTYPES[feature.dtype])


def _pad_length(longest: tf.Tensor, plan: BucketPlan) -> tf.Tensor:
    """The pad length of the bucket that a batch is of, by its longest record."""
    edges = tf.constant([bucket.pad_length for bucket in plan.buckets] or [1], tf.int32)
    return edges[tf.searchsorted(edges, [longest])[0]]


def _pad(value: tf.Tensor, length: tf.Tensor, padding: float | str) -> tf.Tensor:
    """value[batch, time, …] with time made `length`."""
    missing = length - tf.shape(value)[1]
    paddings = [[0, 0], [0, missing], *([[0, 0]] * (value.shape.rank - 2))]
    padded = tf.pad(value, paddings, constant_values=tf.constant(padding, value.dtype))
    return tf.ensure_shape(padded, [None, None, *value.shape[2:]])


def _truncate(value: tf.Tensor, length: tf.Tensor, limit: int, where: str) -> tf.Tensor:
    """The first `limit` steps of each row (its tail is cut off), or the last real ones (its head is)."""
    if where == "tail":
        return value[:, :limit]
    start = tf.maximum(length - limit, 0)
    positions = start[:, None] + tf.range(tf.minimum(limit, tf.shape(value)[1]))[None, :]
    return tf.gather(value, positions, batch_dims=1)
