"""Jobs on an engine: a job that was interrupted, cancelled or refused publishes nothing and leaves nothing."""

import itertools
import os
import pathlib
import signal
import threading

import datasets
import engine
import pytest
from engine import RUNNER, EngineResult, Gate
from prepare_jobs import contents, read_whole, snapshot

from pipeline.beam import engine_shuffle, fenced, run_job
from pipeline.beam.run_job import _engine_error
from pipeline.errors import Terminated, UserError
from pipeline.writing import refreshed_file
from pipeline.writing.publish import Publisher

SCHEMA = """\
id: id
steps: {x: {dtype: float32}}
label: {name: y, kind: class, classes: [a, b]}
"""


def rows_of(number, wrong=()):
    return [{"id": str(n), "x": [n, 1.5], "y": "c" if n in wrong else "ab"[n % 2]} for n in range(number)]


@pytest.fixture
def waiting(monkeypatch):
    """Returns a function that sets what the driver does while it waits; and the results of the jobs that began."""
    results = []
    start = EngineResult.start

    def record(self, run):
        results.append(self)
        start(self, run)

    monkeypatch.setattr(EngineResult, "start", record)

    def wait(function):
        monkeypatch.setattr(engine, "while_waiting", function)
        return results

    return wait


@pytest.fixture(autouse=True)
def no_late_files(monkeypatch):
    monkeypatch.setattr(run_job, "_LATE_SECONDS", 0.0)


@pytest.fixture
def run(run_prepare):
    def run_on_engine(*raw, **options):
        return run_prepare(*raw, schema=SCHEMA, beam={"runner": RUNNER, **options.pop("beam", {})}, **options)

    return run_on_engine


def test_a_job_on_an_engine_leaves_what_a_job_in_this_process_leaves(run, run_prepare, write_raw, tmp_path):
    raw = write_raw(rows_of(50))
    run_prepare(raw, schema=SCHEMA, output="here", num_shards=2, plain=True)
    run(raw, output="there", num_shards=2)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    named = {pathlib.Path(path).name for path in snapshot(tmp_path / "there")}
    assert not named & {"fence.json", "decision.json", "refusal.json", "writer.json"}


def left(tmp_path):
    """Returns what is left in the output folder."""
    return [str(path.relative_to(tmp_path / "dataset")) for path in (tmp_path / "dataset").rglob("*")]


@pytest.mark.parametrize("replaces", datasets.some([False, True], [True]))
def test_too_many_rejects_are_a_result_that_the_engine_does_not_retry(run, write_raw, tmp_path, waiting, replaces):
    results = waiting(None)
    before = run(write_raw(rows_of(9), "before.jsonl")) if replaces else None
    with pytest.raises(UserError, match=r"^2 of 50 records \(4.00%\) were rejected: 2 unknown_class; at most 1.00%"):
        run(write_raw(rows_of(50, wrong=(3, 7))), overwrite=replaces)
    assert results[-1].attempts == 1
    rejects = [path for path in left(tmp_path) if path.startswith("rejected/")]
    assert len(rejects) == 1
    assert replaces or left(tmp_path) == ["rejected", *rejects]
    assert not replaces or read_whole(tmp_path / "dataset") == before


def test_an_error_of_a_task_is_a_result_too(run, write_raw, tmp_path, waiting):
    results = waiting(None)
    raw = write_raw(["not json"] * 20_000)
    with pytest.raises(UserError, match="its first 10,000 records were all rejected"):
        run(raw)
    assert results[-1].attempts == 1 and left(tmp_path) == []


def stop_at(monkeypatch, moment):
    """Makes a task wait at a moment. Returns the gates that say so, and that let it go on."""
    arrived, go_on = Gate(), Gate()

    def hold():
        arrived.open()
        go_on.wait()

    def after(function):
        def call(*arguments, **options):
            result = function(*arguments, **options)
            hold()
            return result

        return call

    def before(function):
        def call(*arguments, **options):
            hold()
            return function(*arguments, **options)

        return call

    if moment == "parsing":
        monkeypatch.setattr(fenced, "is_wanted", after(fenced.is_wanted))
    elif moment == "writing_shards":
        monkeypatch.setattr(engine_shuffle, "write_grouped", before(engine_shuffle.write_grouped))
    elif moment == "shards_written":
        monkeypatch.setattr(engine_shuffle, "write_grouped", after(engine_shuffle.write_grouped))
    elif moment == "before_publishing":
        monkeypatch.setattr(fenced, "may_publish", before(fenced.may_publish))
    else:
        monkeypatch.setattr(Publisher, "publish", before(Publisher.publish))
    return arrived, go_on


OFTEN = [("parsing", "SIGTERM"), ("writing_shards", "Ctrl-C"), ("shards_written", "cancelled")]
OFTEN += [("before_publishing", "Ctrl-C")]
ALL_ENDS = list(itertools.product([moment for moment, _ in OFTEN], ["Ctrl-C", "SIGTERM", "cancelled"]))


@pytest.mark.parametrize(("moment", "end"), datasets.some(ALL_ENDS, OFTEN, unpack=True))
def test_an_ended_job_publishes_nothing_and_leaves_nothing(run, write_raw, tmp_path, waiting, monkeypatch, moment, end):
    """Its tasks go on after the driver has left, as those of some engines do."""
    raw = write_raw(rows_of(500, wrong=(3,)))
    arrived, go_on = stop_at(monkeypatch, moment)

    def leave(result):
        arrived.wait()
        if end == "Ctrl-C":
            raise KeyboardInterrupt
        if end == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("Pipeline job failed in state CANCELLED: unknown error")

    (results, expected) = waiting(leave), {"Ctrl-C": KeyboardInterrupt, "SIGTERM": Terminated, "cancelled": UserError}
    with pytest.raises(expected[end]) as raised:
        run(raw)
    if end == "cancelled":
        output = tmp_path / "dataset"
        assert str(raised.value) == f"{output}: the job was cancelled on the engine. Nothing was published."
    assert left(tmp_path) == []
    go_on.open()
    (result,) = results
    result.join()
    assert result.cancelled and result.attempts == 1 and result.error is None
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Pipeline a failed in state CANCELLED: unknown error", "the job was cancelled on the engine."),
        (
            "Pipeline a failed in state FAILED: x.JobCancellationException: Job was cancelled.",
            "the job was cancelled on ",
        ),
        (
            "Pipeline a failed in state FAILED: io.grpc.StatusRuntimeException: CANCELLED: client cancelled.",
            "the engine could not complete the job: Pipeline a failed in state FAILED: io.grpc.StatusRuntimeException: "
            "CANCELLED: client cancelled. Nothing was published. The logs",
        ),
    ],
)
def test_only_a_cancelled_job_is_called_cancelled(text, message):
    assert str(_engine_error("out", RuntimeError(text))).startswith(f"out: {message}")


def test_what_a_killed_worker_left_after_the_job_is_removed(run, write_raw, tmp_path, waiting, monkeypatch):
    monkeypatch.setattr(run_job, "_LATE_SECONDS", 1.0)
    arrived, go_on = stop_at(monkeypatch, "writing_shards")

    def write(folder):
        folder.mkdir(parents=True)
        (folder / "train-00000-of-00001.tfrecord").touch()

    def leave(result):
        arrived.wait()
        (folder,) = (tmp_path / "dataset" / "data").iterdir()
        threading.Timer(0.5, write, [folder]).start()
        raise RuntimeError("JobCancellationException: Job was cancelled.")

    results = waiting(leave)
    with pytest.raises(UserError, match="the job was cancelled on the engine"):
        run(write_raw(rows_of(50)))
    assert left(tmp_path) == []
    go_on.open()
    results[0].join()


def test_a_job_that_is_being_published_is_waited_for(run, write_raw, tmp_path, waiting, monkeypatch):
    arrived, go_on = stop_at(monkeypatch, "publishing")

    def leave(result):
        arrived.wait()
        threading.Timer(0.2, go_on.open).start()
        raise KeyboardInterrupt

    results = waiting(leave)
    with pytest.raises(UserError, match="was published, but the work after that was not completed"):
        run(write_raw(rows_of(50)))
    results[0].join()
    assert (tmp_path / "dataset" / "manifest.json").exists()


def test_an_internal_error_is_one_line_and_leaves_nothing(run, write_raw, tmp_path, waiting, monkeypatch):
    results = waiting(None)

    def fail(*arguments, **options):
        raise KeyError("shard")

    monkeypatch.setattr(engine_shuffle, "write_grouped", fail)
    with pytest.raises(UserError, match=r"the engine could not complete the job: .*KeyError.* Nothing was published\."):
        run(write_raw(rows_of(50)))
    assert results[0].attempts == 2 and left(tmp_path) == []


def test_a_job_that_ends_without_a_result_leaves_nothing(run, write_raw, tmp_path, monkeypatch):
    """The fence counts as that of a killed driver."""
    monkeypatch.setattr(refreshed_file, "_FRESH_SECONDS", 0.0)
    with pytest.raises(UserError, match="the runner ended as DONE, but nothing was published"):
        run(write_raw(rows_of(50)))
    assert left(tmp_path) == []


@pytest.mark.parametrize("option", [{"processes": 2}, {"memory": 10**9}])
def test_options_of_jobs_in_this_process_are_refused(run, write_raw, option):
    (name,) = option
    with pytest.raises(UserError, match=f"^--{name} belongs to jobs in this process"):
        run(write_raw(rows_of(5)), **option)
