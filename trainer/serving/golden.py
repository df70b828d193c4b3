"""Golden predictions: records that try what a schema allows, with what the model itself says of them, in one file."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.format.examples import encode_example
from pipeline.format.manifest import FeatureStatistics
from pipeline.schema.features import Feature
from pipeline.schema.record import MISSING_INTEGER, MISSING_STRING, Array, ParsedRecord, Values
from pipeline.schema.schema import Schema
from trainer.data.target import Vocabularies
from trainer.serving.padding import pad_batch

LENGTHS = (1, 2, 3, 5, 8, 13, 21, 1)
# Of one record more, which only makes the padding of the others longer.
LONGER = 34
# One value in so many is missing, where values may miss, and is in no vocabulary.
_RARE_EVERY = 4


@dataclasses.dataclass(frozen=True)
class Golden:
    """A batch and the model's answer.

    Attributes:
        features: As `pad_batch` gives them.
        examples: The same records serialized, and at the end a longer one.
        outputs: float32[batch, …] or [batch, time, …], where steps at and after `length` may be anything.
    """

    features: dict[str, Array]
    examples: list[bytes]
    outputs: Array


def make_golden(
    schema: Schema,
    statistics: Mapping[str, FeatureStatistics],
    vocabularies: Vocabularies,
    forward: Callable[[dict[str, Array]], Array],
) -> Golden:
    """Records of many lengths, with strings of no vocabulary and missing values where they may be, and what `forward`
    says of them."""
    lengths = [*LENGTHS, LONGER]
    random = np.random.default_rng(0)
    records = [ParsedRecord(f"golden-{number}", length, {}, None) for number, length in enumerate(lengths)]
    for name, feature in schema.features.items():
        per_step = name in schema.steps
        # All at once, and then cut: so that what is rare is in them, however few they are.
        rows = sum(lengths) if per_step else len(lengths)
        values = _draw(random, feature, rows, statistics.get(name), vocabularies.get(name, ()))
        position = 0
        for record in records:
            size = (record.num_steps if per_step else 1) * feature.width
            part: Any = values[position : position + size]
            position += size
            if isinstance(values, np.ndarray):
                part = part.reshape((*([record.num_steps] if per_step else []), *feature.shape))
            (record.features if per_step else record.context)[name] = part
    features = pad_batch(records[: len(LENGTHS)], schema)
    return Golden(features, [_encode(record) for record in records], forward(features))


def _draw(
    random: np.random.Generator,
    feature: Feature,
    rows: int,
    statistics: FeatureStatistics | None,
    terms: Sequence[bytes],
) -> Values:
    """`rows` values of a feature, flat."""
    turn, place = divmod(np.arange(rows * feature.width) + random.integers(_RARE_EVERY), _RARE_EVERY)
    rare = place == 0
    missing = rare & (turn % 2 == 0) if terms else rare
    missing = missing if feature.allows_nulls else np.zeros_like(rare)
    if feature.dtype == "float32":
        numbers = random.normal(size=(rows, feature.width))
        if statistics is not None:
            numbers = numbers * np.sqrt(statistics.variance) + np.array(statistics.mean)
        return np.where(missing, np.nan, numbers.ravel()).astype(np.float32)
    if feature.dtype == "int64":
        return np.where(missing, MISSING_INTEGER, random.integers(0, feature.num_values or 1, len(rare)))
    strings = [f"golden {number} \0".encode() for number in random.integers(0, 1000, len(rare))]
    if terms:
        known = random.integers(0, len(terms), len(rare))
        strings = [s if rare[i] else terms[known[i]] for i, s in enumerate(strings)]
    return [MISSING_STRING if is_missing else s for s, is_missing in zip(strings, missing, strict=True)]


def _encode(record: ParsedRecord) -> bytes:
    """As `encode_record` does, without a label."""
    own: dict[str, Values] = {"length": np.array([record.num_steps]), "id": [record.id.encode()]}
    return encode_example({**record.features, **record.context, **own})


def save_golden(path: str, golden: Golden) -> None:
    """Writes an .npz file of numbers only: no pickle, and no strings, of which NumPy drops NUL bytes at the end."""
    arrays: dict[str, Array] = {"outputs": golden.outputs}
    strings = {"examples": np.array(golden.examples, object)}
    for number, values in enumerate(golden.features.values()):
        (strings if values.dtype == object else arrays)[f"feature_{number}"] = values
    for key, values in strings.items():
        flat = values.ravel().tolist()
        arrays[f"{key}_bytes"] = np.frombuffer(b"".join(flat), np.uint8)
        arrays[f"{key}_ends"] = np.cumsum([len(value) for value in flat])
        arrays[f"{key}_shape"] = np.array(values.shape)
    # Names of features are data too: as the name of an array, one may be what savez calls an argument.
    arrays["names"] = np.frombuffer(json.dumps(list(golden.features)).encode(), np.uint8)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def load_golden(path: str) -> Golden:
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
