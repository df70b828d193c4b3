"""Pads the records of a batch to one length."""

import itertools
from collections.abc import Sequence

import numpy as np

from pipeline.schema.record import Array, ParsedRecord, Values
from pipeline.schema.schema import Schema

_DTYPES = {"float32": np.float32, "int64": np.int64, "string": object}


def pad_batch(records: Sequence[ParsedRecord], schema: Schema) -> dict[str, Array]:
    """The features of a batch as `trainer.reading.batches.batches` gives them, padded to the longest of these records.

    Each step feature as float32, int64 or bytes [batch, time, *shape], each context feature [batch, *shape], and
    `length` int32[batch]. Padding is 0 or b"".
    """
    lengths = np.array([record.num_steps for record in records], np.int32)
    real = np.arange(lengths.max()) < lengths[:, None]
    features = {}
    for name, feature in schema.steps.items():
        # Row by row, the real steps of the rectangle are the steps of the records one after the other.
        padded = np.full((*real.shape, *feature.shape), b"" if feature.dtype == "string" else 0, _DTYPES[feature.dtype])
        padded[real] = _join([record.features[name] for record in records], feature.shape)
        features[name] = padded
    for name, feature in schema.context.items():
        features[name] = _join(
            [np.asarray(record.context[name], _DTYPES[feature.dtype]).ravel() for record in records], feature.shape
        )
    return features | {"length": lengths}


def _join(parts: list[Values], shape: tuple[int, ...]) -> Array:
    """The values of all parts as [rows, *shape]."""
    if isinstance(parts[0], list):
        joined = np.array(list(itertools.chain.from_iterable(parts)), object)
    else:
        joined = np.concatenate(parts)
    return joined.reshape(-1, *shape)
