"""Generates the raw records of classic benchmarks, with variable lengths, and their schemas."""

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import orjson

from pipeline import progress
from pipeline.errors import UserError
from pipeline.files import replace

Generator: TypeAlias = np.random.Generator
Record: TypeAlias = dict[str, Any]

_SPLITS = "splits: {train: 0.8, validation: 0.1, test: 0.1}\n"

TEMPORAL_ORDER_SCHEMA = f"""\
# Which of the symbols X and Y occur, and in which order? Hochreiter & Schmidhuber, Long Short-Term Memory, 1997,
# experiment 6a, with records of 20 to 50 steps.
format: jsonl
id: id
steps:
  symbol: {{dtype: string, vocabulary: 8}}
label: {{name: order, kind: class, classes: [XX, XY, YX, YY]}}
{_SPLITS}"""

ADDING_SCHEMA = f"""\
# The sum of the two marked numbers. Hochreiter & Schmidhuber, Long Short-Term Memory, 1997, experiment 4, with markers
# of 0 and 1, and records of 10 to 40 steps.
format: jsonl
id: id
steps:
  x: {{dtype: float32, shape: [2]}}
label: {{name: sum, kind: regression}}
{_SPLITS}"""

SEED_SCHEMA = f"""\
# Random records of 50, 10 and then 60 steps of 100 numbers, each with a random distribution over two classes.
format: jsonl
id: id
steps:
  x: {{dtype: float32, shape: [100]}}
label: {{name: y, kind: distribution, classes: [a, b]}}
{_SPLITS}"""


def write_sample(
    name: str, output: str, *, num_records: int | None = None, seed: int = 0, overwrite: bool = False
) -> list[str]:
    """Writes raw records to `output`, for example raw.jsonl, and their schema to raw.schema.yaml in the same folder.

    Args:
        name: temporal_order, adding or seed.
        num_records: Number of records; None is the default of the sample.

    Returns:
        The paths of the records and of the schema.

    Raises:
        UserError: One of the files exists already, and `overwrite` is False.
    """
    generate, schema, default_records = _SAMPLES[name]
    schema_path = f"{os.path.splitext(output)[0]}.schema.yaml"
    for path in (output, schema_path):
        if os.path.exists(path) and not overwrite:
            raise UserError(f"{path}: already exists. Choose another --output, or replace it with --overwrite.")
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    total = num_records or default_records
    records = generate(total, np.random.default_rng(seed))
    with replace(os.path.abspath(output)) as file, progress.report("sample", total_records=total):
        for record in records:
            file.write(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")
            progress.add_records(1)
    with replace(os.path.abspath(schema_path)) as file:
        file.write(schema.encode())
    return [output, schema_path]


def generate_temporal_order(num_records: int, random: Generator) -> Iterator[Record]:
    """Yields records that begin with E and end with B, with an X or Y early and another one late among distractors."""
    for number in range(num_records):
        length = int(random.integers(20, 51))
        symbols = random.choice(list("abcd"), length)
        symbols[0], symbols[-1] = "E", "B"
        first = int(random.integers(1, length // 3))
        second = int(random.integers(length // 2, length - 1))
        symbols[[first, second]] = random.choice(["X", "Y"], 2)
        yield {"id": number, "symbol": symbols.tolist(), "order": symbols[first] + symbols[second]}


def generate_adding(num_records: int, random: Generator) -> Iterator[Record]:
    """Yields steps of (number in [0, 1), marker). Each half has one marked number; the label is the sum of the two."""
    for number in range(num_records):
        length = int(random.integers(10, 41))
        values, markers = random.random(length).round(6), np.zeros(length)
        marked = [int(random.integers(0, length // 2)), int(random.integers(length // 2, length))]
        markers[marked] = 1
        yield {"id": number, "x": np.stack([values, markers], 1), "sum": float(values[marked].sum())}


def generate_seed(num_records: int, random: Generator) -> Iterator[Record]:
    """Yields a third of the records with 50 steps, then a third with 10, then a third with 60."""
    counts = [len(part) for part in np.array_split(np.arange(num_records), 3)]
    lengths = itertools.chain.from_iterable([steps] * count for steps, count in zip((50, 10, 60), counts, strict=True))
    for number, length in enumerate(lengths):
        # Four digits make the file a third as large, and are enough for random numbers.
        x = random.random((length, 100)).round(4)
        share = round(float(random.random()), 4)
        yield {"id": number, "x": x, "y": [share, round(1 - share, 4)]}


_SAMPLES: dict[str, tuple[Callable[[int, Generator], Iterator[Record]], str, int]] = {
    "temporal_order": (generate_temporal_order, TEMPORAL_ORDER_SCHEMA, 5000),
    "adding": (generate_adding, ADDING_SCHEMA, 5000),
    "seed": (generate_seed, SEED_SCHEMA, 3000),
}
