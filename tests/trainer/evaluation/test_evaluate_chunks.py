"""`evaluate --chunk_steps` gives the evaluation of whole records, whatever the way in which the run was trained."""

import json

import datasets
import export_runs
import pytest

from pipeline.errors import UserError
from trainer.config import TrainConfig
from trainer.data.dataset import open_dataset
from trainer.evaluation import evaluate as module
from trainer.evaluation.evaluate import evaluate
from trainer.model.build import build_model
from trainer.training.train import train

KINDS = [kind for kind in export_runs.OUTPUTS if kind != "class"]  # the model of this run is bidirectional


def leaves_of(value, path=()):
    """Returns the values of a nested dict and list by their path."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, inner in pairs for key, leaf in leaves_of(inner, (*path, name)).items()}
    return {path: value}


def are_close(found, expected):
    """Returns whether the values are the same; floats need to be close only."""
    expected = {
        path: pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value
        for path, value in leaves_of(expected).items()
    }
    return leaves_of(found) == expected


@pytest.fixture
def chunks_used(monkeypatch):
    """Returns the list of the arguments `chunk_steps` and `reset_state` of each Evaluator that is made."""
    used = []

    class Recorder(module.Evaluator):
        def __init__(self, *args, **options):
            used.append((options.get("chunk_steps"), options.get("reset_state", "record")))
            super().__init__(*args, **options)

    monkeypatch.setattr(module, "Evaluator", Recorder)
    return used


@pytest.mark.parametrize("kind", datasets.some(KINDS, ["next_word"]))
def test_the_evaluation_is_that_of_whole_records(kind, capsys, chunks_used, monkeypatch):
    monkeypatch.setattr(module, "DEFAULT_BATCH_STEPS", 30)  # six lanes
    dataset, run = datasets.of_every_feature(kind).path, export_runs.run_of(kind)
    expected = evaluate(run, dataset)
    status, out, _ = datasets.call(capsys, "evaluate", run, dataset, "--chunk_steps", 5, "--json")
    assert status == 0 and chunks_used == [(None, "record"), (5, "record")]
    assert are_close(json.loads(out), expected)
    # As a model that forgets all that is before the chunk.
    arguments = ["evaluate", run, dataset, "--reset_state", "chunk", "--json"]
    status, out, _ = datasets.call(capsys, *arguments, "--chunk_steps", 1)
    assert status == 0 and chunks_used[-1] == (1, "chunk")
    assert json.loads(out)["loss"] != pytest.approx(expected["loss"], rel=1e-5)
    status, _, (line,) = datasets.call(capsys, *arguments)
    assert status == 1 and "the records of this run are read whole. Give --chunk_steps too" in line


@pytest.mark.proof
@pytest.mark.parametrize("reset_state", ["record", "chunk"])
def test_a_stateful_run_is_evaluated_in_its_own_chunks_by_default(tmp_path, reset_state, chunks_used):
    dataset, run = datasets.of_every_feature("class").path, tmp_path / "run"
    train(dataset, run, TrainConfig(epochs=0, units=(5,), batching="stateful", chunk_steps=4, reset_state=reset_state))
    losses = [evaluate(run, dataset, chunk_steps=steps)["loss"] for steps in (None, 2, 100)]
    assert chunks_used == [(steps, reset_state) for steps in (4, 2, 100)]
    assert (losses[0] == pytest.approx(losses[2], rel=1e-5)) == (reset_state == "record")


def test_a_bidirectional_model_and_chunks_without_steps_are_refused():
    dataset = open_dataset(datasets.of_kind("class").path)
    built_with = {"statistics": dataset.manifest.statistics, "vocabularies": {}}
    model = build_model(dataset.schema, {}, TrainConfig(units=(3,), bidirectional=True))
    with pytest.raises(UserError, match="it cannot read a record in chunks. Leave --chunk_steps out, or train a model"):
        module.Evaluator(model, dataset, **built_with, chunk_steps=5)
    with pytest.raises(ValueError, match="chunk_steps is 0, expected at least 1."):
        module.Evaluator(model, dataset, **built_with, chunk_steps=0)
