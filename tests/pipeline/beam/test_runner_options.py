"""Flags of the runner itself are accepted for that runner only, and a misspelt flag is still an error."""

import grpc
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_job_api_pb2_grpc
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from engines import job_server

from pipeline.beam.options import parse_with_beam
from pipeline.beam.runner_options import list_options, runner_kind
from pipeline.flags import FlagParser


@pytest.fixture
def endpoint():
    with job_server() as address:
        yield address


def parse(*arguments):
    parser = FlagParser("prepare", "", examples="")
    parser.add_argument("raw", nargs="*")
    parser.add_argument("--overwrite", action="store_true")
    return parse_with_beam(parser, list(arguments))


def test_the_options_of_flink_and_spark_are_accepted_for_their_runners():
    found = parse("raw", "--runner=FlinkRunner", "--number_of_execution_retries=3", "--faster_copy", "--overwrite")
    values = {"runner": "FlinkRunner", "number_of_execution_retries": 3, "faster_copy": True}
    assert found == ({"raw": ["raw"], "overwrite": True}, values)
    found = parse(
        "--runner", "PortableRunner", "--fasterCopy", "--operatorChaining=false", "--executionRetryDelay", "-1"
    )
    values = {"runner": "PortableRunner", "faster_copy": True, "operator_chaining": False, "execution_retry_delay": -1}
    assert found[1] == values
    assert parse("--runner=SparkRunner", "--bundle_size=5")[1] == {"runner": "SparkRunner", "bundle_size": 5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runner=FlinkRunner", "--number_of_execution_retry=3"], "did you mean --number_of_execution_retries?"),
        (["--runner=FlinkRunner", "--overwrit"], "did you mean --overwrite?"),
        (["--runner=FlinkRunner", "--paralelism=2"], "did you mean --parallelism?"),
        (["--runner=FlinkRunner", "--bundle_size=2"], "unknown flag --bundle_size; did you mean --max_bundle_size?"),
        (["--runner=SparkRunner", "--savepoint_path=x"], "unknown flag --savepoint_path; see --help for all flags."),
        (["--runner=DirectRunner", "--faster_copy"], "unknown flag --faster_copy; "),
        (["--number_of_execution_retries=3"], "unknown flag --number_of_execution_retries; "),
        (["--runner=FlinkRunner", "--max_bundle_size=x"], "x is no integer, expected one of at least 0"),
        (["--runner=FlinkRunner", "--faster_copy", "raw"], "raw is neither true nor false"),
        (["--faster_copy", "--runner"], "unknown flag --faster_copy; "),
    ],
)
def test_a_wrong_flag_is_one_line_and_exits_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        parse(*arguments)
    error = capsys.readouterr().err
    assert (exit.value.code, error.count("\n")) == (2, 1)
    assert message in error


def test_a_job_server_that_answers_names_its_own_options(endpoint, capsys):
    given = ["--runner=PortableRunner", f"--job_endpoint={endpoint}"]
    found = parse(*given, "--retries=3", "--stopEarly=false", "--labels=a", "--labels=b", "--parallelism=2")[1]
    assert found.pop("job_endpoint") == endpoint
    values = {"retries": 3, "stop_early": False, "labels": ["a", "b"], "parallelism": 2}
    assert found == {"runner": "PortableRunner"} | values
    with pytest.raises(SystemExit):
        parse(*given, "--faster_copy")
    assert "unknown flag --faster_copy; " in capsys.readouterr().err


def test_without_an_answer_the_options_of_flink_and_spark_are_accepted():
    given = ["--runner=PortableRunner", "--job_endpoint=127.0.0.1:1", "--faster_copy", "--bundle_size=5"]
    assert {"faster_copy": True, "bundle_size": 5}.items() <= parse(*given)[1].items()


def test_beam_sends_the_options_of_the_runner_to_the_job_server(endpoint):
    given = ["--runner=PortableRunner", f"--job_endpoint={endpoint}", "--retries=3", "--stop_early=false"]
    options = PipelineOptions([], **parse(*given)[1])
    with grpc.insecure_channel(endpoint) as channel:
        handle = JobServiceHandle(beam_job_api_pb2_grpc.JobServiceStub(channel), options)
        sent = dict(handle.get_pipeline_options())
    assert (sent["beam:option:retries:v1"], sent["beam:option:stop_early:v1"]) == ("3", False)


def test_a_runner_is_known_by_all_names_that_beam_accepts():
    full = "apache_beam.runners.portability.flink_runner.FlinkRunner"
    assert [runner_kind(name) for name in ("FlinkRunner", "flink", "flinkrunner", full)] == ["flink"] * 4
    assert runner_kind(None) == ""
    assert list_options(full) == list_options("FlinkRunner")


def test_every_known_option_is_there_for_the_runner_that_nobody_names():
    known = list_options("PortableRunner")
    assert known == list_options("FlinkRunner") | list_options("SparkRunner")
    assert len(known) > 40
