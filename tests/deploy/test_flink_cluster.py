"""`deploy/flink/cluster.py` says in one line what it lacks. `make cluster` tests that it starts a cluster."""

import pathlib
import socket
import subprocess
import sys

import pytest
from paths import ROOT

from trainer.devices.local_workers import free_ports

STARTER = ROOT / "deploy" / "flink" / "cluster.py"


@pytest.fixture
def call(tmp_path):
    """Returns a function that runs the command without any program but Python and those in `tmp_path`/bin."""
    (tmp_path / "bin").mkdir()
    rest, rpc, job, artifact = free_ports(4)
    ports = [f"--rest_port={rest}", f"--rpc_port={rpc}", f"--job_port={job}", f"--artifact_port={artifact}"]

    def run(*arguments, **environment):
        folders = ["--folder", str(tmp_path / "cluster"), "--downloads", str(tmp_path / "downloads")]
        done = subprocess.run(
            [sys.executable, "-I", str(STARTER), *ports, *folders, *arguments],
            env={"PATH": str(tmp_path / "bin"), **environment},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    return run


def write_program(folder, name, text):
    path = pathlib.Path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)


def test_a_missing_java_is_a_line(call, tmp_path):
    message = "cluster.py: java does not exist; Flink 1.19.3 needs Java 11 or 17. "
    assert call("up") == (1, "", message + "Install it, or set JAVA_HOME to its folder.\n")
    status, _, err = call("up", JAVA_HOME=str(tmp_path / "jdk"))
    assert (status, err.startswith(f"cluster.py: {tmp_path}/jdk/bin/java does not exist; ")) == (1, True)


@pytest.mark.parametrize(("version", "number"), [("1.8.0_292", "8"), ("21.0.1", "21"), ("25-ea", "25")])
def test_another_java_is_a_line(call, tmp_path, version, number):
    print_version = f"import sys; sys.stderr.write('openjdk version \"{version}\" 2021-04-20\\n')"
    write_program(tmp_path / "jdk/bin", "java", print_version)
    message = f"cluster.py: {tmp_path}/jdk/bin/java is Java {number}; Flink 1.19.3 needs Java 11 or 17. "
    assert call("up", JAVA_HOME=str(tmp_path / "jdk")) == (1, "", message + "Set JAVA_HOME to its folder.\n")


@pytest.fixture
def java(tmp_path):
    write_program(tmp_path / "bin", "java", "import sys; sys.stderr.write('openjdk version \"17.0.15\" 2025-04-15\\n')")


def test_a_missing_maven_is_a_line(call, java, tmp_path):
    lib = tmp_path / "downloads/libraries/pyflink/lib"
    lib.mkdir(parents=True)
    (lib / "flink-dist-1.19.3.jar").touch()
    status, _, err = call("up")
    jar = tmp_path / "downloads/beam-flink-job-server-2.62.0.jar"
    message = (
        f"cluster.py: {jar} does not exist, and there is no mvn to build it. Install Maven, or copy the jar there.\n"
    )
    assert (status, err) == (1, message)
    write_program(tmp_path / "bin", "mvn", "print('[ERROR] no network'); raise SystemExit(3)")
    assert call("up")[2] == "cluster.py: Maven failed with status 3: [ERROR] no network\n"


def test_a_process_that_ends_at_once_is_a_line_and_the_others_are_ended(call, java, tmp_path):
    downloads = tmp_path / "downloads"
    (downloads / "libraries/pyflink/lib").mkdir(parents=True)
    (downloads / "libraries/pyflink/lib/flink-dist-1.19.3.jar").touch()
    (downloads / "beam-flink-job-server-2.62.0.jar").touch()
    status, _, err = call("up", "--set", "heartbeat.timeout=5000", "--env", "A=b")
    log = tmp_path / "cluster/job_manager.log"
    assert (status, err) == (
        1,
        f'cluster.py: job_manager has ended: openjdk version "17.0.15" 2025-04-15 (see {log})\n',
    )
    assert "heartbeat.timeout: 5000\n" in (tmp_path / "cluster/conf/config.yaml").read_text()
    assert "does not run" in call("status")[1]
    assert call("kill", "task_manager_0")[2].startswith("cluster.py: task_manager_0 does not run; ")
    assert call("start", "tm")[2].startswith(
        "cluster.py: there is no process tm; expected job_manager, task_manager_0, "
    )
    assert call("down") == (0, "", "")


def test_a_port_that_is_taken_is_a_line(call):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = f"cluster.py: --job_port {port} is taken by another program. Choose another port.\n"
        assert call("up", f"--job_port={port}") == (1, "", message)


def test_a_command_without_a_cluster_is_a_line(call, tmp_path):
    message = f"cluster.py: {tmp_path}/cluster: no cluster was started there. Run `cluster.py up --folder "
    assert call("down") == (1, "", f"{message}{tmp_path}/cluster` first.\n")
    assert call("start")[0] == 2
    assert call("up", "--set", "x")[0] == 1
