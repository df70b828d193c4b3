"""The command `lengthwise-worker` asks a runner what to run; the runner here is a service of this process."""

import json
import logging
import os
import subprocess
import sys
from concurrent import futures

import grpc
import pytest
from apache_beam.portability import common_urns
from apache_beam.portability.api import (
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    beam_runner_api_pb2,
    endpoints_pb2,
)
from apache_beam.runners.worker import sdk_worker_main
from google.protobuf import struct_pb2, text_format
from paths import ROOT

from pipeline.beam import start_worker
from pipeline.beam.start_worker import ask_runner, main, worker_environment


class Runner(beam_provision_api_pb2_grpc.ProvisionServiceServicer, beam_fn_api_pb2_grpc.BeamFnLoggingServicer):
    """A runner that has a job for a worker.

    Attributes:
        staged: Names of the files that the job has sent along.
        asked: Names of the workers that have asked.
        logged: Messages that a worker has logged.
        endpoint: Where the services are.
    """

    def __init__(self, server):
        self.staged, self.asked, self.logged = ["submission_environment_dependencies.txt"], [], []
        beam_fn_api_pb2_grpc.add_BeamFnLoggingServicer_to_server(self, server)
        beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(self, server)
        self.endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"

    def GetProvisionInfo(self, request, context):
        self.asked += [value for name, value in context.invocation_metadata() if name == "worker_id"]
        options = struct_pb2.Struct()
        options.update({"beam:option:experiments:v1": ["beam_fn_api"], "beam:option:parallelism:v1": "2"})
        role = common_urns.artifact_roles.STAGING_TO.urn
        payloads = [beam_runner_api_pb2.ArtifactStagingToRolePayload(staged_name=name) for name in self.staged]
        info = beam_provision_api_pb2.ProvisionInfo(
            pipeline_options=options,
            control_endpoint=endpoints_pb2.ApiServiceDescriptor(url="127.0.0.1:1"),
            logging_endpoint=endpoints_pb2.ApiServiceDescriptor(url=self.endpoint),
            runner_capabilities=["beam:one:v1", "beam:two:v1"],
            dependencies=[
                beam_runner_api_pb2.ArtifactInformation(role_urn=role, role_payload=payload.SerializeToString())
                for payload in payloads
            ],
        )
        return beam_provision_api_pb2.GetProvisionInfoResponse(info=info)

    def Logging(self, request_iterator, context):
        for entries in request_iterator:
            self.logged += [entry.message for entry in entries.log_entries]
        yield from ()


@pytest.fixture
def runner():
    server = grpc.server(futures.ThreadPoolExecutor(2))
    found = Runner(server)
    server.start()
    yield found
    server.stop(None)


def test_a_worker_learns_from_the_runner_what_the_worker_of_beam_reads(runner):
    found = worker_environment("1-1", ask_runner("1-1", runner.endpoint))
    assert runner.asked == ["1-1"]
    assert json.loads(found.pop("PIPELINE_OPTIONS"))["beam:option:parallelism:v1"] == "2"
    addresses = {}
    for name in ("CONTROL", "LOGGING"):
        addresses[name] = text_format.Parse(
            found.pop(f"{name}_API_SERVICE_DESCRIPTOR"), endpoints_pb2.ApiServiceDescriptor()
        ).url
    assert addresses == {"CONTROL": "127.0.0.1:1", "LOGGING": runner.endpoint}
    assert found == {"WORKER_ID": "1-1", "RUNNER_CAPABILITIES": "beam:one:v1 beam:two:v1"}


def test_the_worker_of_beam_accepts_what_the_runner_said(runner):
    """Beam's own code reads the variables as far as it can without a connection to the runner."""
    level, handlers = logging.root.level, list(logging.root.handlers)
    found = worker_environment("1-1", ask_runner("1-1", runner.endpoint))
    del found["LOGGING_API_SERVICE_DESCRIPTOR"]  # it would connect
    try:
        assert sdk_worker_main.create_harness(found, dry_run=True) is None
    finally:
        logging.root.setLevel(level)
        logging.root.handlers[:] = handlers


def test_the_command_runs_the_worker_of_beam_in_that_environment(runner, monkeypatch):
    ran, watched = [], []
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(sdk_worker_main, "main", lambda arguments: ran.append(os.environ["WORKER_ID"]))
    monkeypatch.setattr(start_worker, "_end_with_parent", watched.append)
    main(["--id=7", f"--provision_endpoint={runner.endpoint}", "--control_endpoint=127.0.0.1:9", "--later=1"])
    assert (ran, watched) == (["7"], [os.getppid()])


def test_a_job_that_wants_packages_installed_is_refused_also_in_the_log_of_the_runner(runner, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    runner.staged.append("requirements.txt")
    line = r"^lengthwise-worker: the job wants requirements.txt installed, and this command installs nothing. [^\n]+$"
    with pytest.raises(SystemExit, match=line) as exit:
        main(["--id=1-1", f"--provision_endpoint={runner.endpoint}"])
    assert runner.logged == [str(exit.value)]


def test_a_runner_that_does_not_answer_is_an_error(runner):
    with pytest.raises(
        ConnectionError, match=r"^the runner at 127.0.0.1:1 does not say what to run: DEADLINE_EXCEEDED.$"
    ):
        ask_runner("1-1", "127.0.0.1:1", timeout=0.1)


def test_without_a_runner_the_command_says_who_starts_it(capsys):
    with pytest.raises(SystemExit) as exit:
        main([])
    assert exit.value.code == 2
    assert capsys.readouterr().err == (
        "lengthwise-worker: --id and --provision_endpoint are missing: only a runner starts a worker.\n"
    )


def test_a_worker_ends_when_the_process_that_started_it_is_killed():
    child = "import os; from pipeline.beam.start_worker import _end_with_parent; parent = os.getppid()\n"
    child += "print('up', flush=True); _end_with_parent(parent)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", parent], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        process.kill()
        assert process.stdout.read() == b""  # the child has closed its end
