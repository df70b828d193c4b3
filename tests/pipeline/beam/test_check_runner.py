"""An option of a runner that cannot work is a line at once, not a traceback after minutes."""

import functools
import json

import pytest
from engines import job_server, rest_service, unused_address

from pipeline.beam import check_runner as module
from pipeline.beam.check_runner import check_runner, starts_engine
from pipeline.beam.local_paths import warn_of_local_paths
from pipeline.beam.runners import make_pipeline
from pipeline.errors import UserError

PROCESS = {"environment_type": "PROCESS", "environment_config": json.dumps({"command": "lengthwise-worker"})}


@pytest.fixture(scope="module")
def server():
    with job_server() as address:
        yield address


@pytest.fixture(scope="module")
def cluster():
    with rest_service({"/overview": {"taskmanagers": 2}}) as address:
        yield address


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.5)


def check(runner="PortableRunner", **options):
    """Returns the message of the error; "" if there is none."""
    try:
        check_runner({"runner": runner} | options)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


def test_options_that_can_work_are_accepted(server, cluster, tmp_path):
    (tmp_path / "server.jar").touch()
    check_flink = functools.partial(
        check, "FlinkRunner", flink_job_server_jar=f"{tmp_path}/server.jar", job_server_java_launcher="true"
    )
    assert check(job_endpoint=server, artifact_endpoint=server, flink_master=cluster, **PROCESS) == ""
    assert check("FlinkRunner", job_endpoint=server, **PROCESS) == ""
    assert check(job_endpoint=f"ipv4:{server}", **PROCESS) == ""
    assert check(job_endpoint="embed") == ""
    assert check_flink(flink_master=f"http://{cluster}/", **PROCESS) == ""
    assert check_flink() == check_flink(flink_master="[local]", **PROCESS) == ""
    assert check("SparkRunner", job_server_java_launcher="true") == ""
    for environment in (
        {"environment_config": "image"},
        {"environment_type": "DOCKER", "sdk_container_image": "image"},
        {"environment_type": "PROCESS", "environment_options": ["process_command=lengthwise-worker"]},
        {"environment_type": "EXTERNAL", "environment_config": "localhost:50000"},
        {"environment_type": "EXTERNAL", "environment_options": ["external_service_address=localhost:50000"]},
        {"environment_type": "LOOPBACK"},
        {"setup_file": "setup.py"},
    ):
        assert check(job_endpoint=server, **environment) == ""
    for runner in (None, "DirectRunner", "DataflowRunner", "PrismRunner", "FooRunner"):
        assert check(runner) == ""


def test_an_address_where_nothing_answers_is_an_error(server, cluster, tmp_path):
    nothing = unused_address()
    wrong = f"{nothing}: nothing answers there (Connection refused). Start the service, or correct the address."
    assert check(job_endpoint=nothing, **PROCESS) == f"--job_endpoint {wrong}"
    assert check(job_endpoint=server, artifact_endpoint=nothing, **PROCESS) == f"--artifact_endpoint {wrong}"
    assert check(job_endpoint=server, flink_master=nothing, **PROCESS) == f"--flink_master http://{wrong}"
    launcher = {"job_server_java_launcher": "true"}
    assert check("FlinkRunner", flink_master=nothing, **launcher, **PROCESS) == f"--flink_master http://{wrong}"
    spark = check("SparkRunner", spark_master_url=f"spark://{nothing},{nothing}", **launcher, **PROCESS)
    assert spark == f"--spark_master_url spark://{wrong}"
    for address in ("localhost", "localhost:x", "localhost:99999"):
        message = f"--job_endpoint {address}: is not an address, expected HOST:PORT."
        assert check(job_endpoint=address, **PROCESS) == message


def test_another_service_at_the_address_is_an_error(server, cluster):
    message = check(job_endpoint=cluster, **PROCESS)
    assert message.startswith(f"--job_endpoint {cluster}: takes connections, but is not a job server of Beam (")
    message = check(job_endpoint=server, flink_master=server, **PROCESS)
    assert message.startswith(f"--flink_master {server}: is not the REST service of a Flink cluster: ")


def test_a_missing_job_server_is_an_error(tmp_path):
    assert check(**PROCESS).startswith("--runner PortableRunner: needs --job_endpoint=HOST:PORT, ")
    for runner, flag in (("FlinkRunner", "flink_job_server_jar"), ("SparkRunner", "spark_job_server_jar")):
        assert check(runner, **{flag: f"{tmp_path}/no.jar"}).startswith(f"--{flag} {tmp_path}/no.jar: does not exist. ")
    message = check("FlinkRunner", job_server_java_launcher="no_java")
    assert message.startswith(
        "--runner FlinkRunner: starts Beam's job server with Java, but there is no program no_java"
    )


@pytest.mark.parametrize("options", [{}, {"environment_type": "DOCKER"}])
def test_workers_that_would_lack_lengthwise_are_an_error(server, options):
    message = check(job_endpoint=server, **options)
    assert message.startswith("--runner PortableRunner: nothing says what the workers run, and the image ")
    assert """--environment_type=PROCESS --environment_config='{"command": "lengthwise-worker"}'""" in message


@pytest.mark.parametrize("config", [None, "", "lengthwise-worker", "[1]", "{}", '{"command": ""}', '{"command": 3}'])
def test_a_process_without_a_command_is_an_error(server, config):
    message = check(job_endpoint=server, environment_type="PROCESS", environment_config=config)
    assert " is not a JSON object with a command, which PROCESS needs: " in message


def test_packages_that_the_worker_would_not_install_are_an_error(server):
    message = check(job_endpoint=server, extra_packages=["a.whl"], **PROCESS)
    assert message.startswith(
        "--extra_package: wants packages installed in the workers, and lengthwise-worker installs "
    )
    boot = {"environment_type": "PROCESS", "environment_config": '{"command": "/opt/apache/beam/boot"}'}
    assert check(job_endpoint=server, extra_packages=["a.whl"], **boot) == ""


def test_external_workers_without_an_address_are_an_error(server):
    assert check(job_endpoint=server, environment_type="EXTERNAL").startswith("--environment_type EXTERNAL: needs ")


def test_loopback_is_an_error_where_the_workers_cannot_reach_this_process(server, cluster, monkeypatch):
    message = check(job_endpoint=server, flink_master=cluster, environment_type="LOOPBACK")
    assert message.startswith("--environment_type LOOPBACK: the cluster has 2 task managers, whose workers ")
    monkeypatch.setattr(module, "_check_job_server", lambda endpoint: None)
    message = check(job_endpoint="192.0.2.7:8099", environment_type="LOOPBACK")
    assert "run in this process, which --job_endpoint 192.0.2.7:8099 cannot reach. Give --env" in message


def test_a_pipeline_is_not_made_for_a_runner_that_does_not_answer():
    with pytest.raises(UserError, match=r"^--job_endpoint [0-9.:]+: nothing answers there"):
        make_pipeline({"runner": "PortableRunner", "job_endpoint": unused_address(), **PROCESS})


def test_local_paths_on_an_engine_are_a_warning(capsys):
    paths = {"RAW": ["a.jsonl", "s3://bucket/b", "/c", "d"], "--output": ["out"]}
    options = {"runner": "PortableRunner", "job_endpoint": "localhost:8099"}
    warn_of_local_paths("prepare", options, paths)
    line = "prepare: warning: local paths on PortableRunner: RAW a.jsonl, RAW /c, RAW d and 1 more. Every machine that "
    assert capsys.readouterr().err == line + (
        "runs workers must see the same files there, and this machine too, as on a network file system; otherwise use "
        "s3:// or gs:// paths.\n"
    )
    warn_of_local_paths("prepare", options, {"RAW": ["gs://a/b"], "--output": ["s3://out/x"]})
    for runner in (None, "DirectRunner", "FlinkRunner", "SparkRunner"):
        warn_of_local_paths("prepare", {"runner": runner}, paths)
    assert capsys.readouterr().err == ""


def test_an_engine_is_started_only_without_an_address():
    assert starts_engine({"runner": "FlinkRunner"})
    assert starts_engine({"runner": "SparkRunner", "spark_master_url": "local[2]"})
    assert not starts_engine({"runner": "FlinkRunner", "flink_master": "localhost:8081"})
    assert not starts_engine({"runner": "SparkRunner", "spark_master_url": "spark://localhost:7077"})
    assert not starts_engine({"runner": "FlinkRunner", "job_endpoint": "localhost:8099"})
    assert not starts_engine({"runner": "DataflowRunner"})
