"""Reads golden records with the signature `streaming` of an export, chunk by chunk, and joins its outputs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.schema.record import Array


def read_in_chunks(
    streaming: Any,
    features: dict[str, Array],
    description: dict[str, Any],
    chunk_length: Callable[[int], Any],
    *,
    fill: Callable[[dict[str, Array], dict[str, Any]], dict[str, Array]] = lambda chunk, _: chunk,
) -> Array:
    """Returns the outputs of `streaming` for a batch of records, in the shape of those of `serving_default`.

    For labels per step, that is float32[batch, time, …], with zeros at and after `length`; else float32[batch, …], the
    output after the last step of each record. The padding of a chunk holds further steps of the records.

    Args:
        features: The batch, as `pad_batch` returns it.
        description: The content of export.json.
        chunk_length: The largest number of steps of each row, int or int[batch], in the chunk of a number.
        fill: Changes the padding of a chunk; also gets `description`.
    """
    total = features["length"]
    about, output = description["streaming"], description["output"]
    per_step = "time" in output["shape"]
    state = {
        name: tf.zeros((len(total), *entry["shape"][1:]), entry["dtype"]) for name, entry in about["state"].items()
    }
    read, number = np.zeros_like(total), 0
    parts: list[list[Array]] = [[] for _ in total]
    while (read < total).any():
        # A record that has ended stays in the batch with one step: a batch of another size is summed in another order.
        goes_on = read < total
        length = np.where(goes_on, np.minimum(chunk_length(number), total - read), 1).astype(total.dtype)
        chunk = fill(_take(features, description, read, length), description)
        inputs = {description["inputs"][name]["name"]: tf.constant(values) for name, values in chunk.items()}
        found = streaming(**inputs, **state)
        state = {name: found[name] for name in state}
        values = found[output["name"]].numpy()
        for row in np.flatnonzero(goes_on).tolist():
            parts[row].append(values[row, : length[row]] if per_step else values[row])
        read, number = read + np.where(goes_on, length, 0), number + 1
    if not per_step:
        return np.stack([of_record[-1] for of_record in parts])
    joined = np.zeros((len(total), total.max(), *parts[0][0].shape[1:]), np.float32)
    for row, of_record in enumerate(parts):
        joined[row, : total[row]] = np.concatenate(of_record)
    return joined


def _take(features: dict[str, Array], description: dict[str, Any], first: Array, length: Array) -> dict[str, Array]:
    """Returns `length` steps of each row from the step `first` on; the padding are steps that follow them."""
    steps = first[:, None] + np.arange(length.max())
    taken = {}
    for name, values in features.items():
        if "time" in description["inputs"][name]["shape"]:
            values = values[np.arange(len(first))[:, None], np.minimum(steps, values.shape[1] - 1)]
        taken[name] = values
    return taken | {"length": length}
