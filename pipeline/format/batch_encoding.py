"""Encodes many records as serialized tf.train.Examples: the bytes of `examples.encode_record`, feature by feature."""

from collections.abc import Sequence

import numpy as np

from pipeline.format.examples import (
    BYTES_LIST,
    FLOAT_LIST,
    INT64_LIST,
    encode_feature,
    encode_header,
    encode_integer,
    encode_size,
    encode_varints,
    feature_order,
)
from pipeline.schema.record import Array
from pipeline.schema.record_batch import RecordBatch
from pipeline.schema.schema import Schema


def encode_batch(batch: RecordBatch, schema: Schema) -> list[bytes]:
    """Returns the serialized tf.train.Example of each record, as `encode_record` does.

    Args:
        schema: A schema whose label is no value of a step feature. Each record has a label.
    """
    records = batch.records
    if not records:
        return []
    names = [*batch.features, *schema.context, "length", "id", str(schema.label.name)]
    num_steps = np.array([record.num_steps for record in records])
    # The entry of each feature in each record, in one or two parts.
    columns: list[Sequence[bytes]] = []
    for name in feature_order(tuple(names)):
        if name in batch.features:
            columns += _encode_steps(name, batch.features[name], num_steps * schema.steps[name].width)
        elif name == "length":
            columns.append([encode_integer(name, record.num_steps) for record in records])
        elif name == "id":
            ids = [record.id.encode() for record in records]
            columns += [encode_header(name, BYTES_LIST, len(value)) for value in ids], ids
        elif name == schema.label.name:
            labels = [record.label for record in records if record.label is not None]
            columns.append([b"".join(encode_feature(name, value)) for value in labels])
        else:
            columns.append([b"".join(encode_feature(name, record.context[name])) for record in records])
    return [b"".join((encode_size(sum(map(len, parts))), *parts)) for parts in zip(*columns, strict=True)]


def _encode_steps(name: str, values: Array, sizes: Array) -> tuple[list[bytes], list[bytes]]:
    """Returns the entry of a step feature in each record: all bytes before its numbers, and its numbers.

    Args:
        values: float32[values] or int64[values] of all records.
        sizes: int64[records], the number of values of each record.
    """
    ends = np.cumsum(sizes)
    if values.dtype == np.float32:
        kind, numbers = FLOAT_LIST, _cut(values.astype("<f4", copy=False).tobytes(), 4 * ends)
    elif not len(values) or values.max() < 128:  # one byte each
        kind, numbers = INT64_LIST, _cut(values.astype(np.uint8).tobytes(), ends)
    else:
        kind, numbers = INT64_LIST, [encode_varints(part) for part in np.split(values, ends[:-1])]
    return [encode_header(name, kind, len(data)) for data in numbers], numbers


def _cut(data: bytes, ends: Array) -> list[bytes]:
    stops = ends.tolist()
    return [data[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]
