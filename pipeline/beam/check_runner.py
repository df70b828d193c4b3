"""Checks that a runner can be reached and has workers, before a job is built for it."""

import json
import os
import shutil
import socket
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import grpc
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

from pipeline.beam.flink_rest import EMBEDDED, FlinkRest
from pipeline.beam.runner_options import runner_kind
from pipeline.errors import UserError, show

# Seconds for which an address is tried again, and until a service that took the connection must have answered.
_PATIENCE = 5.0
# Beam's own name of a job server in this process.
_IN_THIS_PROCESS = "embed"
# The installation of the worker, for messages.
_PROCESS = '--environment_type=PROCESS --environment_config=\'{"command": "lengthwise-worker"}\''
# Each of these options says what the workers run, or adds to the image that Beam takes without them.
_ENVIRONMENT_OPTIONS = "environment_config environment_options sdk_container_image setup_file requirements_file "
_ENVIRONMENT_OPTIONS += "extra_packages prebuild_sdk_container_engine"
# With each of these options, a worker must install something first.
_INSTALLED = "setup_file requirements_file extra_packages save_main_session"


def check_runner(beam_options: Mapping[str, Any]) -> None:
    """Checks the options of the portable runners: PortableRunner, FlinkRunner and SparkRunner.

    Beam itself would try for minutes to reach a job server that is not there, or would start workers that lack
    Lengthwise, again and again.

    Raises:
        UserError: An option that the runner needs is missing, no service answers at an address, or a file is missing.
    """
    kind = runner_kind(beam_options.get("runner"))
    if kind not in ("portable", "flink", "spark") or beam_options.get("job_endpoint") == _IN_THIS_PROCESS:
        return
    task_managers = _check_addresses(kind, beam_options)
    # An engine of this process has LOOPBACK by default.
    if beam_options.get("environment_type") not in (None, "LOOPBACK") or not starts_engine(beam_options):
        _check_environment(beam_options, task_managers)


def starts_engine(beam_options: Mapping[str, Any]) -> bool:
    """Returns whether a runner starts an engine of its own on this machine."""
    kind = runner_kind(beam_options.get("runner"))
    if beam_options.get("job_endpoint"):
        return False
    if kind == "flink":
        return beam_options.get("flink_master", EMBEDDED[0]) in EMBEDDED
    return kind == "spark" and str(beam_options.get("spark_master_url", "local")).startswith("local")


def _check_addresses(kind: str, options: Mapping[str, Any]) -> int | None:
    """Checks that the services of a runner answer; returns the number of Flink's task managers, if it is known."""
    endpoint, task_managers = options.get("job_endpoint"), None
    if endpoint:
        _check_job_server(endpoint)
        if options.get("artifact_endpoint"):
            _connect("artifact_endpoint", options["artifact_endpoint"])
    elif kind == "portable":
        raise UserError(
            "--runner PortableRunner: needs --job_endpoint=HOST:PORT, the address of a job server of Beam. FlinkRunner "
            "and SparkRunner start one from --flink_job_server_jar or --spark_job_server_jar."
        )
    else:
        _check_job_server_jar(kind, options)
    master = options.get("flink_master", EMBEDDED[0])
    if kind in ("portable", "flink") and master not in EMBEDDED:
        rest = FlinkRest(master)
        _connect("flink_master", rest.url)
        try:
            task_managers = rest.count_task_managers()
        except ConnectionError as error:
            raise UserError(f"--flink_master {master}: is not the REST service of a Flink cluster: {error}.") from None
    spark = str(options.get("spark_master_url", "")).split(",")[0]  # there may be several, of which one is at work
    if kind == "spark" and not endpoint and spark.startswith("spark://"):
        _connect("spark_master_url", spark)
    return task_managers


def _check_job_server_jar(kind: str, options: Mapping[str, Any]) -> None:
    """Checks that the job server can be started from its jar."""
    flag = f"{kind}_job_server_jar"
    jar = options.get(flag)
    if jar and "://" not in jar and not os.path.isfile(jar):
        raise UserError(f"--{flag} {jar}: does not exist. Give the path or the URL of the jar of Beam's job server.")
    java = options.get("job_server_java_launcher", "java")
    if shutil.which(java) is None:
        raise UserError(
            f"--runner {options['runner']}: starts Beam's job server with Java, but there is no program "
            f"{java}. Install Java, name it with --job_server_java_launcher, or use a job server that runs: "
            "--job_endpoint=HOST:PORT."
        )


def _check_job_server(endpoint: str) -> None:
    """Checks that a job server answers."""
    if not _connect("job_endpoint", endpoint):
        return
    with grpc.insecure_channel(endpoint) as channel:
        service = beam_job_api_pb2_grpc.JobServiceStub(channel)
        request = beam_job_api_pb2.DescribePipelineOptionsRequest()
        try:
            service.DescribePipelineOptions(request, timeout=2 * _PATIENCE)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # a job server without this request, such as Prism
                return
            raise UserError(
                f"--job_endpoint {endpoint}: takes connections, but is not a job server of Beam ({error.code().name})."
            ) from None


def _connect(flag: str, address: str) -> bool:
    """Connects to an address; returns whether it is one that can be tried here.

    Raises:
        UserError: The address is malformed, or nothing answers.
    """
    if address.startswith(("unix:", "dns:", "ipv4:", "ipv6:")):  # a name that only gRPC knows how to find
        return False
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        host = port = None
    if host is None or port is None:
        raise UserError(f"--{flag} {address}: is not an address, expected HOST:PORT.")
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            socket.create_connection((host, port), timeout=_PATIENCE).close()
            return True
        except OSError as error:
            if time.monotonic() + 1 > end:
                raise UserError(
                    f"--{flag} {address}: nothing answers there ({error.strerror or error}). Start the service, or "
                    "correct the address."
                ) from None
            time.sleep(1)


def _check_environment(options: Mapping[str, Any], task_managers: int | None) -> None:
    """Checks that the options say how the workers of an engine are started."""
    kind, config = options.get("environment_type"), options.get("environment_config")
    named = [option.split("=", 1)[0] for option in options.get("environment_options") or ()]
    if kind in (None, "DOCKER") and not any(options.get(name) for name in _ENVIRONMENT_OPTIONS.split()):
        raise UserError(
            f"--runner {options['runner']}: nothing says what the workers run, and the image that Beam takes then "
            f"has no Lengthwise. Install Lengthwise where the workers run and give {_PROCESS}, or give an image that "
            "has it: --environment_type=DOCKER --environment_config=IMAGE."
        )
    if kind == "LOOPBACK":
        _check_loopback(options, task_managers)
    elif kind == "PROCESS" and "process_command" not in named:
        _check_command(options)
    elif kind == "EXTERNAL" and not config and "external_service_address" not in named:
        raise UserError(
            "--environment_type EXTERNAL: needs --environment_config=HOST:PORT, where each task manager finds a worker "
            "pool: python -m apache_beam.runners.worker.worker_pool_main --service_port=PORT "
            "--container_executable=lengthwise-worker."
        )


def _check_command(options: Mapping[str, Any]) -> None:
    """Checks the command of a PROCESS environment."""
    config = options.get("environment_config")
    try:
        command = json.loads(config or "").get("command")
    except (ValueError, AttributeError):
        command = None
    if not isinstance(command, str) or not command:
        raise UserError(
            f"--environment_config {show(config)}: is not a JSON object with a command, which PROCESS needs: give "
            f"{_PROCESS}, where the command is one program that each worker machine has."
        )
    wanted = [name for name in _INSTALLED.split() if options.get(name)]
    if os.path.basename(command) == "lengthwise-worker" and wanted:
        raise UserError(
            f"--{wanted[0].removesuffix('s')}: wants packages installed in the workers, and lengthwise-worker installs "
            "nothing. Install the packages where the workers run, and leave out the flag."
        )


def _check_loopback(options: Mapping[str, Any], task_managers: int | None) -> None:
    way_out = f"Give {_PROCESS} instead."
    for flag in ("job_endpoint", "flink_master", "spark_master_url"):
        address = str(options.get(flag) or "")
        host = urlsplit(address if "://" in address else f"//{address}").hostname
        if host and address not in EMBEDDED and not _is_this_machine(host):
            raise UserError(
                f"--environment_type LOOPBACK: the workers would run in this process, which --{flag} {address} cannot "
                f"reach. {way_out}"
            )
    if task_managers is not None and task_managers > 1:
        raise UserError(
            f"--environment_type LOOPBACK: the cluster has {task_managers} task managers, whose workers would take "
            f"each other's names in this process. {way_out}"
        )


def _is_this_machine(host: str) -> bool:
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(str(address).startswith("127.") or address == "::1" for address in addresses)
