"""Small datasets for the trainer's tests, made by the functions of the pipeline from records that the tests know."""

import atexit
import dataclasses
import functools
import json
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import plain_prepare
import pytest

import lengthwise
from pipeline.beam.prepare import PrepareOptions
from pipeline.schema.windows import EventWindows

CLASSES = ["a", "b", "c"]
LABELS = {
    "class": "{name: y, kind: class, classes: [a, b, c]}",
    "distribution": "{name: y, kind: distribution, classes: [a, b, c]}",
    "regression": "{name: y, kind: regression}",
    "step_class": "{name: y, kind: step_class, classes: [a, b, c]}",
    "multilabel": "{name: y, kind: multilabel, classes: [a, b, c]}",
    "step_multilabel": "{name: y, kind: step_multilabel, classes: [a, b, c]}",
    "step_regression": "{name: y, kind: step_regression}",
}
# Labels that are the next value of a feature in EVERY_FEATURE.
NEXT_LABELS = {
    "next_word": "{next_of: word}",
    "next_page": "{next_of: page}",
    "next_x": "{next_of: x}",
    "next_bits": "{next_of: bits, kind: multilabel}",
}
# Features of every kind. Some values are missing, and some words are too rare for the vocabulary.
EVERY_FEATURE = """
steps:
  x: {dtype: float32, shape: [2], missing: {fill: mean}}
  word: {dtype: string, vocabulary: 4, missing: fill}
  page: {dtype: int64, num_values: 5, missing: indicator}
  bits: {dtype: float32, shape: [3]}
context:
  age: {dtype: float32, missing: indicator}
  city: {dtype: string, vocabulary: 3, missing: {fill: york}}
  plan: {dtype: int64, num_values: 3, shape: [2]}
"""
X = "x: {dtype: float32, shape: [2]}"
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Made:
    """A dataset and its raw records.

    Attributes:
        path: Folder of the dataset.
        records: The raw records.
    """

    path: str
    records: list[Record]

    def of(self, split: str) -> list[Record]:
        """Returns the raw records of a split."""
        return [record for record in self.records if record["split"] == split]


def schema_text(kind: str = "class", steps: str = X) -> str:
    return f"id: id\nsteps:\n  {steps}\nlabel: {LABELS[kind]}\nsplits: {{from: split}}\n"


def random_label(random: np.random.Generator, kind: str, length: int) -> Any:
    if kind == "class":
        return str(random.choice(CLASSES))
    if kind == "distribution":
        return random.dirichlet(np.ones(3)).astype(np.float32).tolist()
    if kind == "regression":
        return float(np.float32(random.normal(5, 3)))
    if kind == "multilabel":
        return [name for name in CLASSES if random.random() < 0.4]
    if kind == "step_multilabel":
        return [None if random.random() < 0.3 else random_label(random, "multilabel", 1) for _ in range(length)]
    if kind == "step_regression":
        return [None if random.random() < 0.3 else random_label(random, "regression", 1) for _ in range(length)]
    return [None if random.random() < 0.3 else str(random.choice(CLASSES)) for _ in range(length)]


def random_records(lengths: Sequence[int], *, split: str = "train", kind: str = "class", seed: int = 0) -> list[Record]:
    """Returns records with the feature x. Its numbers are float32, so that they are stored exactly."""
    random = np.random.default_rng([seed, len(lengths)])
    return [
        {
            "id": f"{split}-{number}",
            "split": split,
            "x": random.normal(size=(length, 2)).astype(np.float32).tolist(),
            "y": random_label(random, kind, length),
        }
        for number, length in enumerate(lengths)
    ]


def every_feature_records(lengths: Sequence[int], *, split: str, kind: str, seed: int = 0) -> list[Record]:
    """Returns records with the features of EVERY_FEATURE, and a label if it is a field of its own."""
    random = np.random.default_rng([seed, len(lengths)])

    def maybe(value: Any) -> Any:
        return None if random.random() < 0.15 else value

    def record(number: int, length: int) -> Record:
        x = random.normal(3, 2, (length, 2)).astype(np.float32).tolist()
        words = random.choice(["the", "of", "and", "to", "rare", "rarer"], length, p=[0.3, 0.2, 0.2, 0.1, 0.1, 0.1])
        made = {
            "id": f"{split}-{number}",
            "split": split,
            "x": [maybe([maybe(value) for value in row]) for row in x],
            "word": [maybe(str(word)) for word in words],
            "page": [maybe(int(page)) for page in random.integers(0, 5, length)],
            "bits": random.integers(0, 2, (length, 3)).tolist(),
            "age": maybe(float(np.float32(random.normal(40, 9)))),
            "city": maybe(str(random.choice(["york", "bath", "ely", "wells"]))),
            "plan": random.integers(0, 3, 2).tolist(),
        }
        return made if kind.startswith("next_") else made | {"y": random_label(random, kind, length)}

    return [record(number, length) for number, length in enumerate(lengths)]


@functools.cache
def of_every_feature(kind: str, more: str = "") -> Made:
    """Returns a dataset as `of_kind` does, but with the features of EVERY_FEATURE.

    Args:
        more: Further lines of the schema.
    """
    random, records = np.random.default_rng(6), []
    for split, count in (("train", 40), ("validation", 20), ("test", 30)):
        records += every_feature_records(random.integers(1, 13, count).tolist(), split=split, kind=kind)
    schema = f"id: id{EVERY_FEATURE}label: {(LABELS | NEXT_LABELS)[kind]}\nsplits: {{from: split}}\n{more}"
    return make(new_folder(), records, schema)


def make(
    folder: pathlib.Path,
    records: list[Record],
    schema: str | None = None,
    *,
    num_shards: int = 2,
    windows: EventWindows | None = None,
) -> Made:
    """Makes a dataset of these records in folder/dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    raw, schema_file = folder / "raw.jsonl", folder / "schema.yaml"
    raw.write_text("".join(json.dumps(record) + "\n" for record in records))
    schema_file.write_text(schema or schema_text())
    output = folder / "dataset"
    options: dict[str, Any] = {"num_shards": num_shards, "windows": windows}
    plain_prepare.prepare(PrepareOptions((str(raw),), str(schema_file), str(output), **options))
    return Made(str(output), records)


def copy(made: Made, folder: pathlib.Path) -> str:
    """Copies a dataset, so that a test may damage the copy, and returns the folder."""
    return shutil.copytree(made.path, folder / "copy")


@functools.cache
def of_kind(kind: str) -> Made:
    """Returns a dataset with a kind of label: 40 records to train, 20 to validate, 30 to test, of 1 to 12 steps."""
    random, records = np.random.default_rng(5), []
    for split, count in (("train", 40), ("validation", 20), ("test", 30)):
        records += random_records(random.integers(1, 13, count).tolist(), split=split, kind=kind)
    return make(new_folder(), records, schema_text(kind))


def some(values: Iterable[Any], often: Iterable[Any], *, unpack: bool = False) -> list[Any]:
    """Returns the parameters of a test. `make test` runs those in `often`, and `make proof` runs the others.

    Args:
        unpack: Whether each value is a tuple of several arguments.
    """
    values, often = list(values), list(often)
    assert set(map(repr, often)) <= set(map(repr, values))
    rows = [value if unpack else (value,) for value in values]
    marks = [() if value in often else pytest.mark.proof for value in values]
    return [pytest.param(*row, marks=mark) for row, mark in zip(rows, marks, strict=True)]


def new_folder() -> pathlib.Path:
    """Returns a new folder that is removed when the tests end."""
    folder = tempfile.mkdtemp(prefix="lengthwise-tests-")
    atexit.register(shutil.rmtree, folder)
    return pathlib.Path(folder)


def call(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, list[str]]:
    """Runs a command in this process, and returns (exit status, stdout, lines of stderr)."""
    capsys.readouterr()
    try:
        status = lengthwise.main([str(argument) for argument in arguments])
    except SystemExit as error:
        status = int(error.code or 0)
    out, err = capsys.readouterr()
    return status, out, err.splitlines()
