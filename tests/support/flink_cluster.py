"""A Flink session cluster for the tests, with commands that run on it and are interrupted at a chosen moment.

The jars are in build/flink, where `deploy/flink/cluster.py` downloads them once.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from paths import ROOT

from pipeline.beam.flink_rest import FlinkRest
from trainer.devices.local_workers import free_ports
from trainer.devices.tensorflow_setup import LOG_LEVEL

DOWNLOADS = ROOT / "build" / "flink"
JAR = DOWNLOADS / "beam-flink-job-server-2.62.0.jar"
_STARTER = [sys.executable, str(ROOT / "deploy" / "flink" / "cluster.py")]
# Seconds that no job of a test takes, also on a busy machine.
PATIENCE = 300


class FlinkCluster:
    """A cluster of two task managers with a slot each, and a job server, that starts workers with `worker`.

    Attributes:
        folder: Folder of the logs.
        flags: Flags of a job.
        worker: Path of the program that starts a worker.
    """

    def __init__(self, folder):
        skip_without("java")
        if not JAR.exists() or not list(DOWNLOADS.glob("libraries/pyflink/lib/flink-dist-*.jar")):
            skip_without("mvn")
        self.folder, self.worker = folder / "flink", write_worker(folder)
        rest, rpc, job, artifact = free_ports(4)
        self._rest = FlinkRest(f"127.0.0.1:{rest}")
        self.flags = ["--runner=PortableRunner", f"--job_endpoint=127.0.0.1:{job}", "--parallelism=2"]
        self.flags += [f"--artifact_endpoint=127.0.0.1:{artifact}", f"--flink_master=127.0.0.1:{rest}"]
        self.process = process_environment(self.worker)
        ports = [f"--rest_port={rest}", f"--rpc_port={rpc}", f"--job_port={job}", f"--artifact_port={artifact}"]
        self._call("up", *ports, "--task_managers=2", "--slots=1")

    def _call(self, command, *arguments):
        done = subprocess.run(
            [*_STARTER, command, *arguments, "--folder", str(self.folder), "--downloads", str(DOWNLOADS)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def close(self):
        """Ends all processes."""
        self._call("down")
        assert "runs as process" not in self._call("status")

    def kill(self, name):
        """Kills a task manager with SIGKILL, and starts another one in its place."""
        self._call("kill", name)
        self._call("start", name)

    @contextlib.contextmanager
    def without(self, name):
        """Ends a task manager, and starts it again after the block."""
        self._call("kill", name)
        try:
            wait_until(lambda: self.get("/overview")["slots-total"] == 1)
            yield
        finally:
            self._call("start", name)

    def get(self, path):
        """Returns the answer of Flink's REST service."""
        with urllib.request.urlopen(self._rest.url + path, timeout=10) as answer:
            return json.load(answer)

    def running(self):
        """Returns the ids of the jobs that have not ended."""
        ended = ("FINISHED", "FAILED", "CANCELED")
        return [job["jid"] for job in self.get("/jobs/overview")["jobs"] if job["state"] not in ended]

    def records(self):
        """Returns how many records the running job has parsed."""
        with contextlib.suppress(ConnectionError, ValueError):
            (job,) = self.running()
            return sum(step.get("records_parsed", 0) for step in self._rest.read_counters(job).values())
        return 0

    def cancel(self):
        """Cancels the running job through Flink's REST service."""
        (job,) = self.running()
        request = urllib.request.Request(f"{self._rest.url}/jobs/{job}?mode=cancel", method="PATCH")
        with urllib.request.urlopen(request, timeout=10):
            pass

    def wait_idle(self):
        """Waits until no job runs, and all slots are free."""

        def is_idle():
            overview = self.get("/overview")
            return not self.running() and overview["slots-available"] == overview["slots-total"] == 2

        wait_until(is_idle)


class Command:
    """A command of Lengthwise in a process of its own, whose output goes to files.

    Args:
        folder: The working folder.
        arguments: The arguments of the command.
    """

    def __init__(self, folder, *arguments):
        # TensorFlow sets the variable in this process, and would print more in another one.
        inherited = {name: value for name, value in os.environ.items() if name != LOG_LEVEL}
        self._paths = [folder / f"{name}-{time.monotonic_ns()}" for name in ("out", "err")]
        with open(self._paths[0], "wb") as out, open(self._paths[1], "wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lengthwise", *map(str, arguments)],
                cwd=folder,
                env=inherited | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                # A shell ignores Ctrl-C in what it starts in the background, and so would this process.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def err(self):
        """Returns what was printed to stderr."""
        return self._paths[1].read_text()

    def is_running(self):
        """Whether the command has not ended."""
        return self._process.poll() is None

    def wait_for(self, condition):
        """Waits until something is true while the command runs."""

        def check():
            assert self.is_running(), f"ended with {self._process.returncode} before the moment:\n{self.err}"

        wait_until(condition, check)

    def send(self, number):
        """Sends a signal."""
        self._process.send_signal(number)

    def finish(self):
        """Waits for the end; returns the exit status and the lines of stderr but for progress, warnings and notes."""
        status = self._process.wait(PATIENCE)
        lines = self.err.splitlines()
        notes = "prepare: ", "predict: ", "/"  # the last are raw files that the dataset has already
        return status, [line for line in lines if not line.startswith(notes)]


def run(folder, *arguments):
    """Runs a command, and checks that it succeeds."""
    with Command(folder, *arguments) as command:
        assert command.finish() == (0, []), command.err
        return command.err


def wait_until(condition, check=lambda: None):
    """Waits until something is true, looking every few milliseconds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        check()
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.005)


def skip_without(program):
    """Skips the test if a program is not installed."""
    if shutil.which(program) is None:
        pytest.skip(
            f"a Flink cluster needs Java 11 or 17, and Maven to build the job server, but there is no {program}"
        )


def write_worker(folder):
    """Writes a program that starts a worker from the source, as the installed `lengthwise-worker` does."""
    path = pathlib.Path(folder, "lengthwise-worker")
    path.write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -W ignore -m pipeline.beam.start_worker "$@"\n'
    )
    path.chmod(0o755)
    return path


def process_environment(worker):
    """Returns the flags of a job whose workers are started by a program."""
    return ["--environment_type=PROCESS", "--environment_config=" + json.dumps({"command": str(worker)})]
