"""Reads batches with the means of tf.data: records one by one, shuffled, each batch from one bucket of lengths."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline import s3
from pipeline.schema.schema import NEXT_STEP, Schema
from trainer.batching.bucket import BucketPlan
from trainer.data.dataset import Dataset
from trainer.data.examples import MISSING, Values, parse_examples
from trainer.data.labels import make_label_lookup, split_label
from trainer.data.lookup import LookupFn
from trainer.data.padding import pad_steps
from trainer.data.shard_index import ShardIndex
from trainer.data.target import Vocabularies

# Size of the shuffle buffer in bytes and records. It is enough to mix adjacent shards; each shard is already shuffled,
# because the records of a dataset are in the order of their hashes.
_SHUFFLE_BYTES = 64 * 2**20
_SHUFFLE_RECORDS = 16_384
# Bytes of a shard on S3 that one request reads.
_BLOCK_BYTES = 4 * 2**20


def bucket_batches(
    dataset: Dataset,
    split: str,
    plan: BucketPlan,
    *,
    seed: int = 0,
    epoch: int = 0,
    first_batch: int = 0,
    reader_index: int = 0,
    num_readers: int = 1,
    vocabularies: Vocabularies,
    with_rows: bool = True,
) -> tf.data.Dataset:
    """Returns the batches of a plan of the whole split, as `planned_batches` describes them.

    Reader i of n yields every n-th record, but each reader reads all bytes.
    """
    shards = dataset.header_checked_indexes(split)
    ends = np.cumsum([len(shard.num_steps) for shard in shards])
    rows = np.split(np.arange(ends[-1] if shards else 0), ends[:-1])
    order = np.random.default_rng([seed, epoch]).permutation(len(shards))
    shards, rows = [shards[i] for i in order], [rows[i] for i in order]
    own = slice(reader_index, None, num_readers)
    lengths = np.concatenate([np.zeros(0, np.int32), *(shard.num_steps for shard in shards)])[own]
    row = np.concatenate([np.zeros(0, np.int64), *rows])[own]
    plan = plan.with_lengths(lengths)

    # The lengths are known from the index. So serialized records are batched, and a whole batch is parsed at once.
    records = _read_examples(shards).shard(num_readers, reader_index)
    records = tf.data.Dataset.zip(records, *map(tf.data.Dataset.from_tensor_slices, (lengths, row)))
    shuffle_seed = int(np.random.default_rng([seed, epoch, 1]).integers(2**31))
    records = records.shuffle(_shuffle_size(shards), seed=shuffle_seed, reshuffle_each_iteration=False)
    batched = _batch(records, plan)
    plan.check_first_batch(first_batch)
    # At the end of an epoch all buckets yield their last, partial batches, the shortest first. This mixes them.
    batched = batched.shuffle(max(1, len(plan.buckets)), seed=shuffle_seed, reshuffle_each_iteration=False)
    schema, lookup = dataset.schema, make_label_lookup(dataset.schema, vocabularies)

    @tf.autograph.experimental.do_not_convert
    def parse(serialized: tf.Tensor, length: tf.Tensor, row: tf.Tensor) -> tuple[Any, ...]:
        batch = parse_batch(serialized, length, schema=schema, plan=plan, lookup=lookup)
        return (*batch, row) if with_rows else batch

    parsed = batched.skip(first_batch).map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return parsed.apply(tf.data.experimental.assert_cardinality(plan.num_batches - first_batch))


def _read_examples(shards: list[ShardIndex]) -> tf.data.Dataset:
    """Returns the Examples of shards, one by one: string[]."""
    if not any(s3.is_s3(shard.path) for shard in shards):
        return tf.data.TFRecordDataset([shard.path for shard in shards])

    def examples() -> Iterator[bytes]:
        for shard in shards:
            blocks = shard.offset[:-1] // _BLOCK_BYTES
            for records in np.split(np.arange(len(blocks)), np.flatnonzero(np.diff(blocks)) + 1):
                data, begin, end = shard.read(records)
                yield from (data[start:stop] for start, stop in zip(begin.tolist(), end.tolist(), strict=True))

    # TensorFlow's own reader cannot open these files.
    return tf.data.Dataset.from_generator(examples, output_signature=tf.TensorSpec([], tf.string))


def parse_batch(
    serialized: tf.Tensor, length: tf.Tensor, *, schema: Schema, plan: BucketPlan, lookup: LookupFn | None = None
) -> tuple[Values, tf.Tensor, tf.Tensor]:
    """Returns the (features, label, weight) of a batch, padded as the plan says.

    Args:
        serialized: string[batch], Examples of one bucket.
        length: int32[batch], steps of each record by the index.
        lookup: As for `label_and_weight`.
    """
    values = parse_examples(serialized, length, schema)
    longest = plan.buckets[-1].pad_length if plan.buckets else 1
    if plan.truncate is not None:
        for name in filter(schema.is_per_step, values):
            values[name] = _truncate(values[name], length, longest, plan.truncate)
        if NEXT_STEP in values and plan.truncate == "tail":
            # The step that follows is one of those that are cut off, as it is for a complete record.
            is_cut = tf.reshape(length > longest, [-1] + [1] * (values[NEXT_STEP].shape.rank - 1))
            missing = tf.constant(MISSING[schema.steps[str(schema.label.next_of)].dtype], values[NEXT_STEP].dtype)
            values[NEXT_STEP] = tf.where(is_cut, missing, values[NEXT_STEP])
        length = tf.minimum(length, longest)
    return split_label(pad_steps(values, _pad_length(tf.reduce_max(length), plan), schema), length, schema, lookup)


def _shuffle_size(shards: list[ShardIndex]) -> int:
    records = sum(len(shard.num_bytes) for shard in shards)
    mean_bytes = sum(int(shard.num_bytes.sum()) for shard in shards) / max(records, 1)
    return max(1, min(records, _SHUFFLE_RECORDS, int(_SHUFFLE_BYTES / max(mean_bytes, 1))))


def _batch(records: tf.data.Dataset, plan: BucketPlan) -> tf.data.Dataset:
    """Returns (serialized, length, row) in batches, each from one bucket."""
    if plan.batching == "pad":
        return records.batch(plan.batch_sizes[0])
    return records.bucket_by_sequence_length(
        lambda _, length, row: length,
        # An empty split has no bucket, but tf.data requires a boundary.
        bucket_boundaries=plan.boundaries or [1],
        bucket_batch_sizes=plan.batch_sizes if plan.buckets else [1, 1],
    )


def _pad_length(longest: tf.Tensor, plan: BucketPlan) -> tf.Tensor:
    """Returns the padded length of the bucket of a batch whose longest record has `longest` steps."""
    edges = tf.constant([bucket.pad_length for bucket in plan.buckets] or [1], tf.int32)
    return edges[tf.searchsorted(edges, [longest])[0]]


def _truncate(value: tf.Tensor, length: tf.Tensor, limit: int, end: str) -> tf.Tensor:
    """Returns `limit` steps of each row: the first ones if `end` is "tail", the last real ones if it is "head".

    Args:
        end: The end of the record that is cut off.
    """
    if end == "tail":
        return value[:, :limit]
    start = tf.maximum(length - limit, 0)
    positions = start[:, None] + tf.range(tf.minimum(limit, tf.shape(value)[1]))[None, :]
    return tf.gather(value, positions, batch_dims=1)
