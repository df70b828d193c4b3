"""Reads TFRecord files that other programs wrote, given a schema, in batches of similar lengths."""

import functools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.errors import UserError
from pipeline.format.tfrecord import CorruptRecord, walk
from pipeline.schema.features import Feature
from pipeline.schema.labels import MULTILABEL, REGRESSION, Label, class_name
from pipeline.schema.record import NO_LABEL
from pipeline.schema.schema import Schema
from trainer.batching.bucket import MIN_BUCKETS
from trainer.batching.bucket_edges import plan_buckets
from trainer.batching.cut import DEFAULT_BATCH_STEPS, BatchLimits
from trainer.data.examples import DTYPES, context_spec, step_spec
from trainer.data.labels import label_and_weight, make_label_lookup
from trainer.data.lowercase import lowercase
from trainer.data.target import Vocabularies
from trainer.reading.foreign_records import RecordCheck, WrongRecord, has_lists, has_names, parse_record, wrong_record

# Number of records whose lengths determine the boundaries, if none are given.
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
    vocabularies: Vocabularies | None = None,
) -> tf.data.Dataset:
    """Returns one epoch of TFRecord files as a tf.data.Dataset of (features, label, weight), as `batches` does.

    Records are tf.train.Example (each step feature is a flat list) or tf.train.SequenceExample (step features and
    labels per step are feature lists, everything else is in the context). The first record decides which. A class is
    stored as its index or its name; a multilabel as 0 or 1 for each class, or (one label per record) as a list of
    names. A step without a label has -1, "" or NaN. Features and label are read from the same fields as raw records
    (`from` in the schema), so the shards of a dataset whose schema has a `from` need a schema without it.

    There is no manifest, so the lengths are not known before the records are read: batches are padded to their longest
    record, and the number of batches is unknown.

    Args:
        files: Paths or globs, on a local disk or on any file system that TensorFlow supports.
        schema: The schema of the records.
        boundaries: Exclusive upper edges of the buckets in steps, ascending. A record at or beyond the last one makes a
            batch of one record. By default they are chosen from the lengths of the first 10,000 records.
        batch_steps: Budget of padded steps per batch; by default 6,400, unless batch_size is given.
        batch_size: Maximum number of records per batch.
        seed, epoch: Determine the order.
        vocabularies: The strings of each feature by its name. Needed if the label is the next value of a string
            feature.

    Raises:
        UserError: There is no file, a file is damaged, a record does not fit the schema, or an argument is wrong.
            Records are checked by the rules of `prepare`, before the first batch: once for each file and process.
    """
    for name, limit in (("batch_steps", batch_steps), ("batch_size", batch_size)):
        if limit is not None and limit < 1:
            raise UserError(f"{name} is {limit}, expected at least 1.")
    _refuse_shared_fields(schema)
    lookup = make_label_lookup(schema, vocabularies or {})
    if lookup is None and schema.label.next_of is not None and schema.steps[schema.label.next_of].dtype == "string":
        raise UserError(f"next_of {schema.label.next_of}: needs its vocabulary, in the argument vocabularies.")
    paths = _find_files(files)
    for path in paths:
        _check_file(path, _stamp(path), json.dumps(schema.canonical()))
    parse = tf.autograph.experimental.do_not_convert(_make_parser(paths, schema))
    if batch_steps is None and batch_size is None:
        batch_steps = DEFAULT_BATCH_STEPS
    bucket_boundaries, bucket_sizes = _choose_buckets(paths, parse, boundaries, BatchLimits(batch_steps, batch_size))

    order = np.random.default_rng([seed, epoch])
    records = tf.data.TFRecordDataset([paths[position] for position in order.permutation(len(paths))])
    records = records.shuffle(_SHUFFLE_RECORDS, seed=int(order.integers(2**31)), reshuffle_each_iteration=False)
    parsed = records.map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    batched = parsed.bucket_by_sequence_length(
        lambda features, _: features["length"],
        bucket_boundaries=bucket_boundaries,
        bucket_batch_sizes=bucket_sizes,
        padding_values=_padding_values(schema),
    )

    @tf.autograph.experimental.do_not_convert
    def finish(features: dict[str, tf.Tensor], label: tf.Tensor) -> Any:
        stored = None if schema.label.name is None else label
        return features, *label_and_weight(stored, features, schema, lookup)

    return batched.map(finish).prefetch(tf.data.AUTOTUNE)


def _refuse_shared_fields(schema: Schema) -> None:
    """Raises a UserError if two features, or a feature and the label, have the same field."""
    fields = [*schema.raw_fields.values(), *([] if schema.label.name is None else [schema.label.field])]
    shared = [field for field, count in Counter(fields).items() if count > 1]
    if shared:
        raise UserError(
            f"foreign_batches reads a field of a TFRecord once, but the schema has {shared[0]!r} for several features, "
            "or for a feature and the label. Expected fields that differ: use lengthwise prepare, or a schema with "
            "one of them."
        )


def _find_files(files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    paths = []
    for path in [files] if isinstance(files, str | os.PathLike) else files:
        pattern = os.fspath(path)
        found = sorted(tf.io.gfile.glob(pattern))
        if not found:
            raise UserError(f"{pattern}: matches no file.")
        paths += found
    return paths


def _stamp(path: str) -> tuple[int, float]:
    """Returns the size and the time of the last change of a file, by which a changed file is checked again."""
    if os.path.exists(path):
        return os.path.getsize(path), os.path.getmtime(path)
    return tf.io.gfile.stat(path).length, 0


@functools.lru_cache(maxsize=1 << 16)
def _check_file(path: str, stamp: tuple[int, float], schema_json: str) -> None:
    """Raises a UserError if a frame of a file is damaged, or a record does not fit. A file is checked once per process.

    TensorFlow crashes on some crafted lengths, and takes some truncated files for complete ones.
    """
    check = RecordCheck(Schema.model_validate(json.loads(schema_json)))
    with tf.io.gfile.GFile(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise UserError(f"{path}: is compressed; decompress it first.")
        file.seek(0)
        number = 0
        try:
            for record in walk(file, num_bytes=stamp[0]):
                check(record.data)
                number += 1
        except CorruptRecord as error:
            raise UserError(f"{path}: {error}.") from None
        except WrongRecord as error:
            raise wrong_record(path, number, error) from None


def _choose_buckets(
    paths: list[str], parse: Callable[[tf.Tensor], Any], boundaries: Sequence[int] | None, limits: BatchLimits
) -> tuple[list[int], list[int]]:
    """Returns the boundaries and batch sizes of the buckets, as `bucket_by_sequence_length` takes them.

    Args:
        boundaries: If None, the lengths of the first records determine them.
    """
    if boundaries is None:
        sample = tf.data.TFRecordDataset(paths).take(_SAMPLE_RECORDS).map(parse, num_parallel_calls=tf.data.AUTOTUNE)
        lengths = Counter(int(features["length"]) for features, _ in sample)
        return plan_buckets(
            lengths, num_buckets=MIN_BUCKETS, batch_steps=limits.batch_steps, batch_size=limits.batch_size
        )
    if list(boundaries) != sorted(set(boundaries)) or not boundaries or boundaries[0] < 1:
        raise UserError(f"boundaries are {list(boundaries)}, expected ascending numbers of steps, at least 1.")
    return list(boundaries), [*(limits.rows(max(boundary - 1, 1)) for boundary in boundaries), 1]


def _make_parser(paths: list[str], schema: Schema) -> Callable[[tf.Tensor], Any]:
    """Returns a function from a serialized record to ({features and length}, label).

    Its format follows from the first record.
    """
    first = next(iter(tf.data.TFRecordDataset(paths).take(1).as_numpy_iterator()), None)
    if first is None:
        raise UserError(f"{', '.join(paths[:3])}: no record.")
    record = parse_record(first)
    in_lists, named = has_lists(record), has_names(record, schema)
    return functools.partial(_parse, schema=schema, in_lists=in_lists, named=named)


def _parse(serialized: tf.Tensor, *, schema: Schema, in_lists: bool, named: bool) -> tuple[dict[str, Any], tf.Tensor]:
    """Returns ({features and length}, label) of a serialized record.

    Args:
        in_lists: Whether it is a SequenceExample.
        named: Whether the label holds names of classes.
    """
    fields, label = schema.raw_fields, schema.label
    specs: dict[str, Any] = {fields[name]: step_spec(feature) for name, feature in schema.steps.items()}
    per_step = [*specs, *([label.field] if label.name is not None and label.per_step else [])]
    specs |= {fields[name]: context_spec(feature) for name, feature in schema.context.items()}
    if label.name is not None:
        specs[label.field] = _label_spec(label, named)
    if in_lists:
        context = {name: spec for name, spec in specs.items() if name not in per_step}
        parsed_context, parsed = tf.io.parse_single_sequence_example(
            serialized, context, {name: specs[name] for name in per_step}
        )
        parsed |= parsed_context
    else:
        parsed = tf.io.parse_single_example(serialized, specs)
    length = tf.shape(parsed[per_step[0]])[0]
    checks = [tf.debugging.assert_positive(length, "A record has no step. Check the names of the features.")]
    for name in per_step:
        checks.append(
            tf.debugging.assert_equal(tf.shape(parsed[name])[0], length, f"{name} has another number of steps.")
        )
    with tf.control_dependencies(checks):
        features = {name: tf.identity(parsed[fields[name]]) for name in schema.features}
        features |= {name: lowercase(features[name]) for name, feature in schema.features.items() if feature.lowercase}
        # A label that is the next value of a feature is made from the batch. Until then the length takes its place.
        stored = length if label.name is None else _read_label(parsed[label.field], label, named)
        return {**features, "length": length}, stored


def _label_spec(label: Label, named: bool) -> Any:
    dtype = tf.float32 if label.kind in ("distribution", *REGRESSION) else tf.string if named else tf.int64
    if label.kind == "multilabel" and named:
        return tf.io.VarLenFeature(tf.string)
    shape = [len(label.classes)] if label.kind in ("distribution", *MULTILABEL) else []
    if label.per_step:
        return tf.io.FixedLenSequenceFeature(shape, dtype, allow_missing=True)
    return tf.io.FixedLenFeature(shape, dtype)


def _read_label(stored: Any, label: Label, named: bool) -> tf.Tensor:
    """Returns a label as our datasets store it: classes as indexes, a multilabel as 0 and 1, -1 if there is none."""
    if not label.classes or label.kind == "distribution":
        return stored
    end = len(label.classes)
    lowest = NO_LABEL if label.per_step else 0
    indices = stored.values if isinstance(stored, tf.SparseTensor) else stored
    if named:
        indices = _class_table(label).lookup(indices)
    elif label.kind in MULTILABEL:
        end = 2
    fits = tf.reduce_all((indices >= lowest) & (indices < end))
    with tf.control_dependencies([tf.debugging.Assert(fits, ["A label is not a class of the schema:", indices])]):
        if label.kind == "multilabel" and named:
            # The maximum would not do: for a record without names it is the smallest integer.
            return tf.minimum(tf.reduce_sum(tf.one_hot(indices, end, dtype=tf.int64), axis=0), 1)
        return tf.identity(indices)


def _class_table(label: Label) -> tf.lookup.StaticHashTable:
    """Returns a table from names to class indexes: NO_LABEL for the "" of a step without a label, -2 for no class."""
    names = [class_name(c) for c in label.classes]
    keys = tf.constant([*names, ""] if label.per_step else names)
    values = tf.constant([*range(len(names)), NO_LABEL] if label.per_step else [*range(len(names))], tf.int64)
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), -2)


def _padding_values(schema: Schema) -> tuple[dict[str, Any], Any]:
    """Returns the padding of the features and of the label, as `bucket_by_sequence_length` takes it."""

    def zero(feature: Feature) -> Any:
        dtype = DTYPES[feature.dtype]
        return tf.constant("" if dtype == tf.string else 0, dtype)

    features = {name: zero(feature) for name, feature in schema.features.items()} | {"length": tf.constant(0)}
    if schema.label.name is None:
        return features, tf.constant(0)
    if schema.label.kind in ("distribution", *REGRESSION):
        return features, tf.constant(math.nan)
    return features, tf.constant(NO_LABEL, tf.int64)
