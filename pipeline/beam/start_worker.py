"""The command `lengthwise-worker`: starts a worker of Beam for the environments PROCESS and EXTERNAL.

A runner starts the command of a PROCESS environment, and Beam's worker pool its `--container_executable`, with the
flags --id, --provision_endpoint and others. Beam's own command for this is a part of its Docker images. It installs
packages, which this one does not: all that a job needs is installed beside it.
"""

import argparse
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import grpc
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc, beam_runner_api_pb2
from apache_beam.runners.worker.worker_id_interceptor import WorkerIdInterceptor
from google.protobuf import json_format, text_format

# Seconds that the answer of the runner may take.
_TIMEOUT = 60
# What Beam stages with every job, to compare the packages of the workers with those of the driver.
_LIST_OF_PACKAGES = "submission_environment_dependencies.txt"


def main(arguments: Sequence[str] | None = None) -> None:
    """Asks the runner what to run, and works for it until it ends the worker.

    Exits with a line if the command was not started by a runner, or if the job wants packages installed.
    """
    parser = argparse.ArgumentParser(prog="lengthwise-worker", description="Starts a worker of Beam.")
    parser.add_argument("--id", help="the name that the runner gives to the worker")
    parser.add_argument("--provision_endpoint", metavar="HOST:PORT", help="where the runner says what to run")
    values, _ = parser.parse_known_args(arguments)  # the other endpoints are in the answer of the runner
    if values.id is None or values.provision_endpoint is None:
        parser.exit(2, "lengthwise-worker: --id and --provision_endpoint are missing: only a runner starts a worker.\n")
    try:
        info = ask_runner(values.id, values.provision_endpoint)
    except ConnectionError as error:
        sys.exit(f"lengthwise-worker: {error}")
    os.environ.update(worker_environment(values.id, info))
    names = [name for name in map(_staged_name, info.dependencies) if name != _LIST_OF_PACKAGES]
    if names:
        message = (
            f"lengthwise-worker: the job wants {', '.join(names)} installed, and this command installs nothing. "
            "Install the packages where the workers run, and leave out --setup_file, --requirements_file, "
            "--extra_package and --save_main_session."
        )
        _log_to_runner(info, message)  # nobody sees what a worker prints
        sys.exit(message)
    threading.Thread(target=_end_with_parent, args=[os.getppid()], daemon=True).start()
    from apache_beam.runners.worker import sdk_worker_main  # reads the environment when it is imported

    sdk_worker_main.main([])


def ask_runner(worker_id: str, endpoint: str, timeout: float = _TIMEOUT) -> Any:
    """Returns the ProvisionInfo that a runner has for a worker.

    Args:
        worker_id: Name of the worker.
        endpoint: HOST:PORT of the runner's provision service.
        timeout: Seconds until the runner must have answered.

    Raises:
        ConnectionError: The runner does not answer.
    """
    try:
        with grpc.insecure_channel(endpoint) as channel:
            service = beam_provision_api_pb2_grpc.ProvisionServiceStub(
                grpc.intercept_channel(channel, WorkerIdInterceptor(worker_id))
            )
            request = beam_provision_api_pb2.GetProvisionInfoRequest()
            return service.GetProvisionInfo(request, timeout=timeout, wait_for_ready=True).info
    except grpc.RpcError as error:
        message = f"the runner at {endpoint} does not say what to run: {error.code().name}."
        raise ConnectionError(message) from None


def worker_environment(worker_id: str, info: Any) -> dict[str, str]:
    """Returns the variables of the environment that Beam's worker reads.

    Args:
        worker_id: Name of the worker.
        info: What `ask_runner` returned.
    """
    found = {
        "WORKER_ID": worker_id,
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
    }
    for name in ("logging", "control", "status"):
        if info.HasField(f"{name}_endpoint"):
            text = text_format.MessageToString(getattr(info, f"{name}_endpoint"), as_one_line=True)
            found[f"{name.upper()}_API_SERVICE_DESCRIPTOR"] = text
    return found


def _log_to_runner(info: Any, message: str) -> None:
    """Writes an error to the log of the runner. The environment must be that of `worker_environment`."""
    from apache_beam.runners.worker.log_handler import FnApiLogRecordHandler  # reads the environment as well

    with (
        contextlib.suppress(grpc.FutureTimeoutError),
        contextlib.closing(FnApiLogRecordHandler(info.logging_endpoint)) as log,
    ):
        log.emit(logging.LogRecord("lengthwise-worker", logging.ERROR, __file__, 0, message, None, None))


def _staged_name(artifact: Any) -> str:
    """Returns the name of a file that the driver has sent along with a job."""
    if artifact.role_urn != common_urns.artifact_roles.STAGING_TO.urn:
        return str(artifact.type_urn)
    return str(beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(artifact.role_payload).staged_name)


def _end_with_parent(parent: int) -> None:
    """Ends this process when the process that started it has ended.

    Beam's worker notices that only after some seconds, and goes on writing until then.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
