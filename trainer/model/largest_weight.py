"""Names the largest weight of a model, which is the likely cause if memory does not suffice for the model itself."""

import math
from typing import Any

import keras
from rich.filesize import decimal

from pipeline.schema.schema import Schema
from trainer.model.unique_names import make_unique_name


def describe_largest_weight(model: keras.Model, schema: Schema) -> str:
    """Returns two sentences: the shape and size of the largest weight, and how to make it smaller.

    Reads no value, so the weights of the model need no memory (`keras.StatelessScope`).
    """
    largest = max(model.weights, key=_num_bytes)
    total = sum(map(_num_bytes, model.weights))
    origin, way_out = _explain(largest, schema)
    shape = " x ".join(f"{size:,}" for size in largest.shape)
    return (
        f"the weights of the model take {decimal(total)}, and training takes several times that. The largest one is "
        f"{largest.path}, {origin}: {shape} numbers, {decimal(_num_bytes(largest))}. {way_out}"
    )


def _num_bytes(weight: Any) -> int:
    return math.prod(weight.shape) * 4  # all weights are float32


def _explain(weight: Any, schema: Schema) -> tuple[str, str]:
    """Returns what a weight belongs to, and how to make it smaller."""
    layer, unique = weight.path.split("/")[0], make_unique_name(schema)
    for number, (name, feature) in enumerate(schema.features.items()):
        if layer == unique(f"embedding_{number}"):
            key, rows = ("num_values", weight.shape[0]) if feature.num_values else ("vocabulary", weight.shape[0] - 1)
            return f"the embedding of the feature {name}", f"Choose a {key} of {name} that is smaller than {rows}."
    if layer == unique("head"):
        return "the output layer", "Choose fewer --units, or a label with fewer classes or values."
    return "a recurrent layer", "Choose fewer --units."
