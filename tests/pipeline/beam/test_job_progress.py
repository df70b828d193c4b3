"""A job of an engine is named, and its state and counters are shown; the engine here is a REST service without jobs."""

import base64
import json
import threading
import time

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from engines import rest_service, unused_address

from pipeline import progress
from pipeline.beam import job_progress
from pipeline.beam.flink_rest import FlinkJob, FlinkRest
from pipeline.beam.job_progress import cancel_on_flink, follow

ID = "f66083bdda9823fcc6f94e9dcdd4bfdc"


class Result:
    """The result of a portable runner."""

    _job_id = "job_of-mine_cca9ab84-cc36"

    def __init__(self, state="RUNNING"):
        self.state = state


def job(name, start, state="RUNNING", job_id=ID):
    return {"jid": job_id, "name": name, "start-time": start, "state": state}


def counter(name, payload, step):
    return {
        "urn": "beam:metric:user:sum_int64:v1",
        "payload": base64.b64encode(payload).decode(),
        "labels": {"NAME": name, "NAMESPACE": "lengthwise", "PTRANSFORM": step},
    }


def accumulators(*metrics):
    other = {"urn": "beam:metric:element_count:v1", "payload": "DA==", "labels": {"PCOLLECTION": "a"}}
    value = json.dumps({"metrics": {"attempted": [*metrics, other]}})
    return {"user-task-accumulators": [{"name": "x", "value": "1"}, {"name": "__metricscontainers", "value": value}]}


@pytest.fixture
def flink():
    """Answers of a cluster, and its address. A job has read 3,258 records and rejected 3, one as a duplicate."""
    answers = {
        "/jobs/overview": {"jobs": [job("job_of-mine", 1, job_id="old"), job("job_of-mine", 5), job("other", 9)]},
        f"/jobs/{ID}/accumulators": accumulators(
            counter("records_parsed", b"\xb7\x19", "a"),
            counter("records_parsed", b"\x01", "b"),
            counter("records_rejected", b"\x02", "b"),
            counter("records_rejected", b"\x01", "write"),
            counter("records_written", b"\x02", "write"),
        ),
    }
    with rest_service(answers) as address:
        yield answers, address


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(job_progress, "_INTERVAL_SECONDS", 0.02)
    monkeypatch.setattr(progress, "_INTERVAL_SECONDS", 0.02)


def shown(capsys, result, until, options=()):
    """Returns what is printed while a job is followed, until a text is in it."""
    text, end = "", time.monotonic() + 60
    with progress.report("prepare"), follow(result, PipelineOptions([*options]), "prepare"):
        while until not in text:
            assert time.monotonic() < end, text
            time.sleep(0.01)
            text += capsys.readouterr().err
    return text + capsys.readouterr().err


def test_the_newest_job_with_a_name_is_found(flink):
    rest = FlinkRest(flink[1])
    assert rest.find_job("job_of-mine") == FlinkJob(ID, "RUNNING")
    assert rest.find_job("job") is None


def test_counters_are_read_for_each_step(flink):
    answers, address = flink
    assert FlinkRest(f"http://{address}/").read_counters(ID) == {
        "a": {"records_parsed": 3255},
        "b": {"records_parsed": 1, "records_rejected": 2},
        "write": {"records_rejected": 1, "records_written": 2},
    }
    answers[f"/jobs/{ID}/accumulators"] = {"user-task-accumulators": []}
    assert FlinkRest(address).read_counters(ID) == {}
    answers[f"/jobs/{ID}/accumulators"] = {
        "user-task-accumulators": [{"name": "__metricscontainers", "value": "of another version"}]
    }
    assert FlinkRest(address).read_counters(ID) == {}


@pytest.mark.parametrize("answer", [None, b"<html>", [1], {"other": 1}])
def test_what_is_no_rest_service_is_a_connection_error(flink, answer):
    answers, address = flink
    answers["/overview"] = answer
    with pytest.raises(ConnectionError, match=rf"^http://{address}/overview: "):
        FlinkRest(address).count_task_managers()
    with pytest.raises(ConnectionError, match="refused"):
        FlinkRest(unused_address()).count_task_managers()


def test_a_job_on_flink_is_named_and_its_records_are_shown(flink, quick, capsys):
    text = shown(capsys, Result(), "3,258 records", [f"--flink_master={flink[1]}"])
    assert f"prepare: job job_of-mine_cca9ab84-cc36 (Flink {ID}) at http://{flink[1]}\n" in text
    assert text.count("prepare: job ") == 1
    assert "prepare: 3,258 records, 3 rejected, 0 s\n" in text


def test_a_job_that_starts_again_counts_from_zero(flink, quick, capsys):
    answers, address = flink
    options = [f"--flink_master={address}"]
    with progress.report("prepare"), follow(Result(), PipelineOptions(options), "prepare"):
        text, end = "", time.monotonic() + 60
        for answer, state, until in (
            (None, "RUNNING", "prepare: 3,258 records, 3 rejected, 0 s"),
            (accumulators(counter("records_parsed", b"\x01", "a")), "RESTARTING", "prepare: 1 record, restarting, "),
            (accumulators(), "RESTARTING", "prepare: restarting, "),
        ):
            answers["/jobs/overview"] = {"jobs": [job("job_of-mine", 5, state)]}
            answers[f"/jobs/{ID}/accumulators"] = answer or answers[f"/jobs/{ID}/accumulators"]
            while until not in text:
                assert time.monotonic() < end, text
                time.sleep(0.01)
                text += capsys.readouterr().err


def test_a_job_without_a_rest_service_is_named_at_once_and_shows_the_state_of_the_job_server(quick, capsys):
    text = shown(capsys, Result("STARTING"), "prepare: starting, 0 s\n")
    assert text.startswith("prepare: job job_of-mine_cca9ab84-cc36\n")
    assert "prepare: working, 0 s\n" in shown(capsys, Result("RUNNING"), "prepare: working, 0 s\n")


def test_a_job_that_flink_does_not_show_yet_is_starting_and_is_named_at_the_end(flink, quick, capsys):
    flink[0]["/jobs/overview"] = {"jobs": []}
    text = shown(capsys, Result(), "prepare: starting, ", [f"--flink_master={flink[1]}"])
    assert text.count(f"prepare: job job_of-mine_cca9ab84-cc36 at http://{flink[1]}\n") == 1


def test_a_service_that_does_not_answer_ends_no_job(quick, capsys):
    text = shown(capsys, Result(), "prepare: working, ", [f"--flink_master={unused_address()}"])
    assert text.count("prepare: job ") == 1


def test_nothing_is_printed_for_a_job_of_this_process(capsys):
    with follow(object(), PipelineOptions([]), "prepare"):
        pass
    assert capsys.readouterr().err == ""


def test_a_job_whose_result_has_a_method_for_its_id_is_named(capsys):
    class Dataflow:
        state = "RUNNING"

        def job_id(self):
            return "2026-11-29_1"

    with follow(Dataflow(), PipelineOptions([]), "prepare"):
        pass
    assert capsys.readouterr().err == "prepare: job 2026-11-29_1\n"


def test_a_job_is_cancelled_on_flink_and_waited_for(flink):
    answers, address = flink

    def end():
        threading.Timer(
            0.5, answers.update, [{"/jobs/overview": {"jobs": [job("job_of-mine", 5, "CANCELED")]}}]
        ).start()

    answers["on_patch"] = end
    begin = time.monotonic()
    cancel_on_flink(Result(), PipelineOptions([f"--flink_master={address}"]))
    assert time.monotonic() - begin >= 0.5
    assert answers["patched"] == [f"/jobs/{ID}?mode=cancel"]
    # The job has ended.
    cancel_on_flink(Result(), PipelineOptions([f"--flink_master={address}"]))
    assert len(answers["patched"]) == 1


def test_nothing_is_cancelled_where_there_is_no_job(flink):
    answers, address = flink
    answers["/jobs/overview"] = {"jobs": []}
    cancel_on_flink(Result(), PipelineOptions([f"--flink_master={address}"]))
    cancel_on_flink(Result(), PipelineOptions([f"--flink_master={unused_address()}"]))
    cancel_on_flink(Result(), PipelineOptions([]))
    cancel_on_flink(object(), PipelineOptions([f"--flink_master={address}"]))
    assert "patched" not in answers
