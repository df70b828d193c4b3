"""A run owns its statistics and vocabularies: it stores them when it starts, and a damaged file is refused."""

import hashlib
import json
import pathlib
import re
import shutil

import datasets
import pytest
from export_runs import run_of
from interruptions import Interrupted
from older_runs import remove_statistics

from pipeline.errors import UserError
from pipeline.format.models import Vocabulary
from pipeline.format.scaling import ScaledStatistics
from pipeline.schema.schema import Schema
from trainer.config import TrainConfig
from trainer.data.dataset import open_dataset
from trainer.evaluation.evaluate import evaluate
from trainer.runs.run import Run
from trainer.runs.statistics import RunStatistics, keep_statistics
from trainer.training.train import train


@pytest.fixture
def run(tmp_path):
    """A copy of a finished run with features of every kind."""
    return Run(shutil.copytree(run_of("class"), tmp_path / "run"))


def test_a_new_run_has_the_statistics_and_vocabularies_of_its_dataset(run):
    dataset = open_dataset(datasets.of_every_feature("class").path)
    assert run.statistics() == RunStatistics.of_dataset(dataset.manifest, origin="").statistics
    assert {name: len(found.scale) for name, found in run.statistics().items()} == {"x": 2, "bits": 3, "age": 1}
    for name, found in run.statistics().items():
        assert found.model_dump(exclude={"scale", "bound"}) == dataset.manifest.statistics[name].model_dump()
    assert run.vocabularies() == dataset.vocabularies() and set(run.vocabularies()) == {"word", "city"}
    assert run.own_statistics().to_json() == pathlib.Path(run.file("statistics.json")).read_bytes()


def edit(*keys, to=None):
    """Returns a function that changes a value of statistics.json, or removes it."""

    def change(values):
        *path, last = keys
        for key in path:
            values = values[key]
        if to is None:
            del values[last]
        else:
            values[last] = to

    return change


DAMAGES = {
    "cut": (lambda data: data[:-9], "not JSON: b'{"),
    "deep": (lambda data: b"[" * 100_000, "not JSON: b'[["),
    "no UTF-8": (lambda data: b"\xff" + data, "not JSON: b'\\xff{"),
    "a list": (lambda data: b"[]", "'[]': Input should be a valid dictionary"),
    "another version": (edit("format_version", to=2), "format_version: '2': Input should be 1"),
    "no vocabularies": (edit("vocabularies"), "vocabularies: "),
    "a text": (edit("statistics", "x", "mean", 0, to="a"), "statistics.x.mean.0: 'a': Input should be a valid number"),
    "not a number": (
        edit("statistics", "x", "mean", 0, to=float("nan")),
        "statistics.x.mean has the value nan, expected ",
    ),
    "infinite": (edit("statistics", "x", "mean", 0, to=float("inf")), "statistics.x.mean has the value inf, expected "),
    "large": (edit("statistics", "x", "mean", 1, to=1e39), "has the value 1e+39, expected -3.4e+38 to 3.4e+38"),
    "negative": (
        edit("statistics", "age", "variance", 0, to=-1),
        "statistics.age.variance has the value -1.0, expected 0 ",
    ),
    "too narrow": (edit("statistics", "x", "mean", to=[1.0]), "statistics.x.mean has 1 columns, expected 2"),
    "a feature is missing": (
        edit("statistics", "age"),
        "statistics has the features ['bits', 'x'], but manifest.json ",
    ),
    "a vocabulary is missing": (
        edit("vocabularies", "city"),
        "vocabularies has the features ['word'], but manifest.json ",
    ),
    "elsewhere": (
        edit("vocabularies", "word", "path", to="config.yaml"),
        "config.yaml, expected a file in vocabulary/",
    ),
    "outside": (edit("vocabularies", "word", "path", to="../word.txt"), "expected a path inside the dataset"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_in_one_line_that_names_it(run, damage):
    change, message = DAMAGES[damage]
    path = pathlib.Path(run.file("statistics.json"))
    if isinstance(data := path.read_bytes(), bytes) and damage in ("cut", "deep", "no UTF-8", "a list"):
        path.write_bytes(change(data))
    else:
        values = json.loads(data)
        change(values)
        path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=re.escape(message)) as error:
        run.statistics()
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    with pytest.raises(UserError, match=re.escape(message)):
        run.vocabularies()


@pytest.mark.parametrize("command", datasets.some(["evaluate", "predict", "export", "train"], ["evaluate"]))
def test_every_command_refuses_a_run_without_its_statistics(run, tmp_path, capsys, command):
    pathlib.Path(run.file("statistics.json")).unlink()
    path = datasets.of_every_feature("class").path
    arguments = {
        "evaluate": ("evaluate", run.path, path),
        "predict": ("predict", run.path, f"{path}/../raw.jsonl", "--output", tmp_path / "predictions"),
        "export": ("export", run.path, "--output", tmp_path / "export"),
        "train": ("train", path, "--output", tmp_path / "new", "--warm_start", run.path),
    }
    status, out, err = datasets.call(capsys, *arguments[command])
    assert (status, out) == (1, "")
    assert f"lengthwise {command}: {run.path}: not a run: it has no statistics.json that can be read. " in err[-1]


def interrupt(*_, **__):
    raise Interrupted


def test_a_run_of_an_older_version_has_the_statistics_of_its_manifest_and_gets_the_file_when_it_resumes(
    tmp_path, monkeypatch
):
    path, run = datasets.of_kind("regression").path, Run(str(tmp_path))
    result = train(path, tmp_path, TrainConfig(epochs=0, units=(4,)))
    remove_statistics(tmp_path, result)
    # As that version did: without the new scale and bound.
    assert {(found.scale, found.bound) for found in run.statistics().values()} == {((), None)}
    assert evaluate(tmp_path, path, split="validation")["loss"] == pytest.approx(result["validation"]["loss"], rel=1e-6)
    assert not (tmp_path / "statistics.json").exists()
    monkeypatch.setattr("trainer.training.loop.probe_largest", interrupt)
    with pytest.raises(Interrupted):
        train(path, tmp_path, TrainConfig(epochs=1, units=(4,)))
    assert (tmp_path / "statistics.json").exists()
    (tmp_path / "manifest.json").write_bytes(b"")
    with pytest.raises(UserError, match="manifest.json: not a manifest"):
        run.statistics()


SCHEMA = """
id: id
steps:
  x: {dtype: float32, shape: [2]}
  word: {dtype: string, vocabulary: 4}
  page: {dtype: int64, num_values: 5}
context:
  age: {dtype: float32, missing: {fill: mean}}
label: {name: y, kind: regression}
"""


def made_up(schema, value):
    """Returns a schema and statistics whose values all depend on `value`."""
    schema = Schema.parse(schema)
    statistics = {
        name: ScaledStatistics(
            count=9, mean=(value,) * width, variance=(value,) * width, min=(0.0,) * width, max=(9.0,) * width
        )
        for name, width in schema.statistics_widths.items()
    }
    digest = hashlib.sha256(str(value).encode()).hexdigest()
    vocabularies = {
        name: Vocabulary(path=f"vocabulary/{digest[:32]}/{name}.txt", sha256=digest, size=4)
        for name, feature in schema.features.items()
        if feature.vocabulary is not None
    }
    return RunStatistics(statistics=statistics, vocabularies=vocabularies), schema


def test_a_warm_start_on_the_same_schema_keeps_everything():
    source, own = made_up(SCHEMA, 1.0), made_up(SCHEMA, 2.0)
    assert keep_statistics(*source, *own) == (source[0], {})


DIFFERENCES = [
    ("float32, shape: [2]", "float32, shape: [2, 1]", "x", "shape [2] in that run, [2, 1] in this one"),
    ("vocabulary: 4", "vocabulary: 5", "word", "vocabulary 4 in that run, 5 in this one"),
    ("word:", "name:", "name", "not in that run"),
    ("context:\n  age", "  age", "age", "a feature of the context in that run"),
    ("int64, num_values: 5", "float32", "page", "dtype int64 in that run, float32 in this one"),
    ("num_values: 5", "num_values: 6", None, None),
    ("name: y", "name: z", "z", "not the label of that run"),
    ("kind: regression", "kind: step_regression", "y", "kind regression in that run, step_regression in this one"),
    ("kind: regression", "kind: class, classes: [a, b]", None, None),
    # Statistics contain no missing values, so they do not depend on what replaces these.
    ("missing: {fill: mean}", "missing: indicator", None, None),
    ("vocabulary: 4", "vocabulary: 4, missing: fill", None, None),
]


@pytest.mark.parametrize(("old", "new", "name", "reason"), DIFFERENCES)
def test_what_the_other_run_does_not_have_in_the_same_form_is_that_of_the_dataset(old, new, name, reason):
    assert old in SCHEMA
    reasons = {name: reason} if name else {}
    source, own = made_up(SCHEMA, 1.0), made_up(SCHEMA.replace(old, new), 2.0)
    kept, found = keep_statistics(*source, *own)
    assert found == reasons
    for values, of_dataset in ((kept.statistics, own[0].statistics), (kept.vocabularies, own[0].vocabularies)):
        assert list(values) == list(of_dataset)
        for name, value in values.items():
            assert (value == of_dataset[name]) == (name in reasons), name


def test_a_chain_of_warm_starts_keeps_the_statistics_of_the_first_run(tmp_path):
    config, runs = TrainConfig(), [Run(str(tmp_path / f"run_{number}")) for number in range(3)]
    made = [datasets.random_records([3, 4, 5], seed=seed) for seed in range(3)]
    opened = [open_dataset(datasets.make(tmp_path / str(n), records).path) for n, records in enumerate(made)]
    runs[0].create(config, opened[0])
    runs[1].create(config, opened[1], source=runs[0])
    runs[2].create(config, opened[2], source=runs[1])
    assert (
        runs[2].statistics()
        == runs[1].statistics()
        == RunStatistics.of_dataset(opened[0].manifest, origin="").statistics
    )
    assert len({run.manifest().fingerprint for run in runs}) == 3
    assert opened[0].manifest.statistics != opened[2].manifest.statistics
