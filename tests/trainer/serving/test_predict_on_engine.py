"""Predictions on an engine: those of a run in this process; an ended job publishes nothing and leaves nothing."""

import json

import datasets
import engine
import pytest
from engine import RUNNER, EngineResult, Gate
from predict_runs import by_id, check_complete, lines_of, run_of, snapshot

from pipeline.beam import fenced, run_job
from pipeline.errors import UserError
from trainer.serving import predict as predict_module
from trainer.serving.predict import predict
from trainer.serving.publish import PredictionsPublisher

BEAM = {"runner": RUNNER}


@pytest.fixture
def raw(tmp_path):
    """Returns the path of raw records, a run for them, and the number of records."""
    made, run = run_of("class")
    path = tmp_path / "raw.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in made.records))
    return str(path), run, len(made.records)


@pytest.fixture(autouse=True)
def no_late_files(monkeypatch):
    monkeypatch.setattr(run_job, "_LATE_SECONDS", 0.0)


@pytest.fixture
def results(monkeypatch):
    found, start = [], EngineResult.start

    def record(self, run):
        found.append(self)
        start(self, run)

    monkeypatch.setattr(EngineResult, "start", record)
    return found


def test_predictions_and_rejects_are_those_of_a_run_in_this_process(raw, tmp_path):
    path, run, number = raw
    with open(path, "a") as file:
        file.write("wrong\n")
    found = []
    for name, beam_options in (("here", None), ("there", BEAM)):
        summary = predict(run, path, tmp_path / name, max_rejected=0.5, beam_options=beam_options)
        check_complete(tmp_path / name)
        rejects = [file for file in snapshot(tmp_path / name) if file.startswith("rejected/")]
        found.append((summary["records"], by_id(lines_of(tmp_path / name)), snapshot(tmp_path / name)[rejects[0]]))
    assert found[0] == found[1] and found[0][0] == number


@pytest.mark.proof
def test_too_many_rejects_are_a_result_that_the_engine_does_not_retry(raw, tmp_path, results):
    path, run, number = raw
    with open(path, "a") as file:
        file.write("wrong\n")
    with pytest.raises(UserError, match=f"^1 of {number + 1:,} records .* was rejected: 1 not_json"):
        predict(run, path, tmp_path / "out", max_rejected=0, beam_options=BEAM)
    assert results[0].attempts == 1
    assert [name.split("/")[0] for name in snapshot(tmp_path / "out")] == ["rejected"]


@pytest.mark.proof
def test_a_model_that_a_worker_cannot_load_is_a_result_too(raw, tmp_path, results, monkeypatch):
    path, run, _ = raw

    def fail(self):
        raise UserError(f"{self.run}: its weights changed.")

    monkeypatch.setattr(predict_module.RunLoader, "load", fail)
    with pytest.raises(UserError, match=r"its weights changed\.$"):
        predict(run, path, tmp_path / "out", beam_options=BEAM)
    assert results[0].attempts == 1 and snapshot(tmp_path / "out") == {}


@pytest.mark.parametrize("moment", datasets.some(["predicting", "publishing"], ["predicting"]))
def test_an_interrupted_job_publishes_nothing_and_leaves_nothing(raw, tmp_path, results, monkeypatch, moment):
    path, run, _ = raw
    arrived, go_on = Gate(), Gate()

    def hold(function):
        def call(*arguments, **options):
            arrived.open()
            go_on.wait()
            return function(*arguments, **options)

        return call

    if moment == "predicting":
        monkeypatch.setattr(predict_module.PartWriter, "flush", hold(predict_module.PartWriter.flush))
    else:
        monkeypatch.setattr(fenced, "may_publish", hold(fenced.may_publish))

    def leave(result):
        arrived.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "while_waiting", leave)
    with pytest.raises(KeyboardInterrupt):
        predict(run, path, tmp_path / "out", beam_options=BEAM)
    go_on.open()
    results[0].join()
    assert results[0].error is None and results[0].attempts == 1
    assert list((tmp_path / "out").rglob("*")) == []
    assert PredictionsPublisher(str(tmp_path / "out"), "none", 0, False, {}).read_published() is None
