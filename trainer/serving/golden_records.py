"""Golden records: records that cover what a schema allows, stored with the model's outputs, to check an export."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.format.examples import encode_example
from pipeline.format.models import FeatureStatistics
from pipeline.schema.features import Feature
from pipeline.schema.record import MISSING_INTEGER, MISSING_STRING, Array, ParsedRecord, Values
from pipeline.schema.schema import Schema
from trainer.data.target import Vocabularies

# Steps of the golden records.
LENGTHS = (1, 2, 3, 5, 8, 13, 21, 1)
# Steps of one more record, which only makes the padding of the other records longer.
LONGER = 34
# One value in 4 is special: missing, where the feature allows nulls, or a string that is not in the vocabulary.
_SPECIAL_EVERY = 4
# Larger numbers are in no record.
_FLOAT32_RANGE = (float(np.finfo(np.float32).min), float(np.finfo(np.float32).max))


@dataclasses.dataclass(frozen=True)
class Golden:
    """A batch of golden records and the outputs of the model for it.

    Attributes:
        features: The batch, as `pad_batch` returns it.
        examples: The same records as serialized Examples, and then a longer record.
        outputs: float32[batch, …], or float32[batch, time, …] for labels per step. Outputs at and after `length` are
            not defined.
    """

    features: dict[str, Array]
    examples: list[bytes]
    outputs: Array


def draw_golden_records(
    schema: Schema, statistics: Mapping[str, FeatureStatistics], vocabularies: Vocabularies
) -> list[ParsedRecord]:
    """Returns records of the steps `LENGTHS`, and then one of `LONGER` steps.

    Their values are random, always the same for the same arguments. Some strings are not in the vocabulary, and some
    values are missing, where the schema allows this.
    """
    lengths = [*LENGTHS, LONGER]
    random = np.random.default_rng(0)
    records = [ParsedRecord(f"golden-{number}", length, {}, None) for number, length in enumerate(lengths)]
    for name, feature in schema.features.items():
        per_step = name in schema.steps
        # The values of all records are drawn together and then split, so that special values occur in any case.
        rows = sum(lengths) if per_step else len(lengths)
        values = _draw_values(random, feature, rows, statistics.get(name), vocabularies.get(name, ()))
        position = 0
        for record in records:
            size = (record.num_steps if per_step else 1) * feature.width
            part: Any = values[position : position + size]
            position += size
            if isinstance(values, np.ndarray):
                part = part.reshape((*([record.num_steps] if per_step else []), *feature.shape))
            (record.features if per_step else record.context)[name] = part
    return records


def _draw_values(
    random: np.random.Generator,
    feature: Feature,
    rows: int,
    statistics: FeatureStatistics | None,
    terms: Sequence[bytes],
) -> Values:
    """Returns `rows` values of a feature in one dimension."""
    group, position = divmod(np.arange(rows * feature.width) + random.integers(_SPECIAL_EVERY), _SPECIAL_EVERY)
    special = position == 0
    missing = special & (group % 2 == 0) if terms else special
    missing = missing if feature.allows_nulls else np.zeros_like(special)
    if feature.dtype == "float32":
        # Some values are beyond the bound of the model's normalization.
        numbers = random.normal(size=(rows, feature.width)) * np.where(special, 30, 1).reshape(rows, feature.width)
        if statistics is not None:
            numbers = numbers * np.sqrt(statistics.variance) + np.array(statistics.mean)
        numbers = np.clip(numbers, *_FLOAT32_RANGE)
        return np.where(missing, np.nan, numbers.ravel()).astype(np.float32)
    if feature.dtype == "int64":
        return np.where(missing, MISSING_INTEGER, random.integers(0, feature.num_values or 1, len(special)))
    strings = [f"golden {number} \0".encode() for number in random.integers(0, 1000, len(special))]
    if terms:
        known = random.integers(0, len(terms), len(special))
        strings = [s if special[i] else terms[known[i]] for i, s in enumerate(strings)]
    return [MISSING_STRING if is_missing else s for s, is_missing in zip(strings, missing, strict=True)]


def encode_without_label(record: ParsedRecord) -> bytes:
    """Returns a record as an Example, as `encode_record` does, but without a label."""
    own: dict[str, Values] = {"length": np.array([record.num_steps]), "id": [record.id.encode()]}
    return encode_example({**record.features, **record.context, **own})


def save_golden(path: str, golden: Golden) -> None:
    """Writes an .npz file that holds numbers only.

    It holds no pickle, and no arrays of strings, because NumPy drops NUL bytes at the end of a string.
    """
    arrays: dict[str, Array] = {"outputs": golden.outputs}
    strings = {"examples": np.array(golden.examples, object)}
    for number, values in enumerate(golden.features.values()):
        (strings if values.dtype == object else arrays)[f"feature_{number}"] = values
    for key, values in strings.items():
        flat = values.ravel().tolist()
        arrays[f"{key}_bytes"] = np.frombuffer(b"".join(flat), np.uint8)
        arrays[f"{key}_ends"] = np.cumsum([len(value) for value in flat])
        arrays[f"{key}_shape"] = np.array(values.shape)
    # The names of features are data too: a feature may have the name of a parameter of `savez`.
    arrays["names"] = np.frombuffer(json.dumps(list(golden.features)).encode(), np.uint8)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def load_golden(path: str) -> Golden:
    """Reads a file that `save_golden` wrote."""
    with np.load(path, allow_pickle=False) as arrays:

        def read(key: str) -> Array:
            if key in arrays:
                return np.array(arrays[key])
            data, ends = arrays[f"{key}_bytes"].tobytes(), arrays[f"{key}_ends"].tolist()
            starts = [0, *ends[:-1]]
            values = np.empty(len(ends), object)
            values[:] = [data[start:end] for start, end in zip(starts, ends, strict=True)]
            return values.reshape(arrays[f"{key}_shape"])

        names = json.loads(arrays["names"].tobytes())
        features = {name: read(f"feature_{number}") for number, name in enumerate(names)}
        return Golden(features, read("examples").tolist(), read("outputs"))
