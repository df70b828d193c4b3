"""`predict` on a Flink cluster: the predictions of this process, whatever is killed, and none after Ctrl-C."""

import json
import signal

import datasets
import numpy as np
import pytest
from flink_cluster import Command, run, wait_until
from predict_runs import assert_close, by_id, check_complete, lines_of, run_of, snapshot

from trainer.serving.predict import predict

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Returns a folder with 3,000 raw records in 6 files, the folder of a run, and the predictions of this process."""
    folder = tmp_path_factory.mktemp("place")
    records = datasets.random_records(np.random.default_rng(0).integers(1, 60, 3000).tolist())
    (folder / "raw").mkdir()
    for number in range(6):
        lines = [json.dumps(record) + "\n" for record in records[number::6]]
        (folder / f"raw/{number}.jsonl").write_text("".join(lines) + "{\n")
    _, run_folder = run_of("class")
    predict(run_folder, [folder / "raw"], folder / "here")
    return folder, run_folder


@pytest.fixture(autouse=True)
def idle(flink):
    flink.wait_idle()


def on(flink, place, output):
    folder, run_folder = place
    return ["predict", run_folder, folder / "raw", "--output", output, *flink.flags, *flink.process]


def check_equal(folder, output):
    """Checks that predictions are complete, and equal those of this process but for the last digits."""
    here, there = (check_complete(folder / name) for name in ("here", output))
    assert (there["records"], there["duplicate_ids"]) == (here["records"], here["duplicate_ids"])
    assert {**there["rejected"], "files": []} == {**here["rejected"], "files": []}
    assert_close(by_id(lines_of(folder / output)), by_id(lines_of(folder / "here")))


def test_the_predictions_are_those_of_this_process(flink, place):
    err = run(place[0], *on(flink, place, "out"))
    check_equal(place[0], "out")
    assert f"predict: warning: local paths on PortableRunner: RUN {place[1]}, RAW " in err
    assert "predict: 3,006 records, 6 rejected" in err


def test_a_killed_task_manager_changes_no_prediction(flink, place):
    folder, _ = place
    with Command(folder, *on(flink, place, "killed")) as command:
        command.wait_for(lambda: list(folder.glob("killed/.staging/*/part-*")) or flink.records() > 0)
        flink.kill("task_manager_0")
        assert command.finish() == (0, []), command.err
    check_equal(folder, "killed")


def test_an_interrupted_job_leaves_nothing(flink, place):
    folder, _ = place
    with Command(folder, *on(flink, place, "interrupted")) as command:
        command.wait_for(lambda: flink.running() and "predict: job " in command.err)
        command.send(signal.SIGINT)
        assert command.finish() == (130, ["lengthwise predict: interrupted."])
    flink.wait_idle()
    wait_until(lambda: snapshot(folder / "interrupted") == {})
