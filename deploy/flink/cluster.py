#!/usr/bin/env python3
"""Starts a Flink session cluster and Beam's job server on this machine, and stops them again.

It needs Java 11 or 17, and only Python's standard library. Flink comes from the package apache-flink-libraries of PyPI,
and the job server from Maven (pom.xml beside this file). Both are downloaded once, and Maven is needed only then.

    python deploy/flink/cluster.py up                        # job manager, two task managers, job server
    python deploy/flink/cluster.py status                    # what runs, and the flags for a job
    python deploy/flink/cluster.py kill task_manager_1       # kill -9
    python deploy/flink/cluster.py start task_manager_1
    python deploy/flink/cluster.py down

All ports are bound to 127.0.0.1. Each process writes to FOLDER/NAME.log, and FOLDER/NAME.pid has its process id.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

HERE = pathlib.Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "flink"
FLINK_VERSION = "1.19.3"
JAR = "beam-flink-job-server-2.62.0.jar"  # named by pom.xml
JAVA_VERSIONS = (11, 17)

# Java's modules that Flink opens to itself, as in its own config.yaml.
_EXPORTS = "java.base/sun.net.util java.rmi/sun.rmi.registry java.security.jgss/sun.security.krb5"
_OPENS = "lang net io nio sun.nio.ch lang.reflect text time util util.concurrent util.concurrent.atomic"
_OPENS += " util.concurrent.locks"
# The variables of the environment that the processes get. A worker thus depends on nothing else of the shell.
_ENVIRONMENT = ("PATH", "HOME", "USER", "LANG", "TMPDIR", "JAVA_HOME")
# Each process of a cluster has this variable, with the folder as its value, and so have the workers that it starts.
_MARK = "LENGTHWISE_CLUSTER"
_PATIENCE = 180  # seconds that no start takes, also on a busy machine


def fail(message: str) -> NoReturn:
    """Prints a line and exits with status 1."""
    sys.exit(f"cluster.py: {message}")


# --- What is downloaded ---


def find_java() -> str:
    """Returns the path of Java 11 or 17."""
    home = os.environ.get("JAVA_HOME")
    java = os.path.join(home, "bin", "java") if home else shutil.which("java")
    wanted = f"Flink {FLINK_VERSION} needs Java {' or '.join(map(str, JAVA_VERSIONS))}"
    if java is None or not os.access(java, os.X_OK):
        fail(f"{java or 'java'} does not exist; {wanted}. Install it, or set JAVA_HOME to its folder.")
    text = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
    found = re.search(r'version "(?:1\.)?(\d+)', text)
    if found is None or int(found[1]) not in JAVA_VERSIONS:
        fail(f"{java} is Java {found[1] if found else 'of an unknown version'}; {wanted}. Set JAVA_HOME to its folder.")
    return java


def fetch(downloads: pathlib.Path) -> tuple[list[str], str]:
    """Downloads Flink and the job server, unless that was done before; returns the jars of both."""
    lib, jar = downloads / "libraries" / "pyflink" / "lib", downloads / JAR
    if not list(lib.glob("flink-dist-*.jar")):
        print(f"Downloading Flink {FLINK_VERSION} to {downloads} ...", flush=True)
        shutil.rmtree(downloads / "libraries", ignore_errors=True)
        package = f"apache-flink-libraries=={FLINK_VERSION}"
        target = ["--quiet", "--no-deps", "--target", str(downloads / "libraries"), package]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        has_pip = subprocess.run([*pip, "--version"], capture_output=True).returncode == 0
        _download([*(pip if has_pip else ["uv", "pip"]), "install", *target], "pip")
    if not jar.exists():
        if shutil.which("mvn") is None:
            fail(f"{jar} does not exist, and there is no mvn to build it. Install Maven, or copy the jar there.")
        print(f"Building {jar} with Maven ...", flush=True)
        build = downloads / "maven"
        build.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "pom.xml", build)
        _download(["mvn", "--quiet", "--batch-mode", "--file", str(build / "pom.xml"), "package"], "Maven")
        (build / "target" / JAR).rename(jar)
    return [str(path) for pattern in ("flink-dist-*.jar", "log4j-*.jar") for path in sorted(lib.glob(pattern))], str(
        jar
    )


def _download(command: list[str], name: str) -> None:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except FileNotFoundError:
        fail(f"there is no {name}: install it.")
    if done.returncode != 0:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        fail(f"{name} failed with status {done.returncode}: {lines[-1] if lines else 'no output'}")


# --- The processes ---


class Cluster:
    """The processes of a cluster, which are named in its folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        try:
            self.options: dict[str, Any] = json.loads((folder / "cluster.json").read_text())
        except FileNotFoundError:
            fail(f"{folder}: no cluster was started there. Run `cluster.py up --folder {folder}` first.")

    @property
    def names(self) -> list[str]:
        """Names of all processes."""
        managers = [f"task_manager_{number}" for number in range(self.options["task_managers"])]
        return ["job_manager", *managers, "job_server"]

    def start(self, name: str) -> None:
        """Starts a process."""
        if name not in self.names:
            fail(f"there is no process {name}; expected {', '.join(self.names)}.")
        if self.runs(name):
            fail(f"{name} runs already.")
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                self._command(name),
                cwd=self.folder,
                env={key: os.environ[key] for key in _ENVIRONMENT if key in os.environ}
                | self.options["environment"]
                | {_MARK: str(self.folder), "FLINK_CONF_DIR": str(self.folder / "conf")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal does not reach it
            )
        (self.folder / f"{name}.pid").write_text(str(process.pid))

    def _command(self, name: str) -> list[str]:
        options = self.options
        java = [options["java"], *(f"--add-exports={module}=ALL-UNNAMED" for module in _EXPORTS.split())]
        for package in _OPENS.split():
            full = package if package.startswith("sun.") else f"java.{package}"
            java.append(f"--add-opens=java.base/{full}=ALL-UNNAMED")
        if name == "job_server":
            address = ["--job-host=127.0.0.1", f"--job-port={options['job_port']}"]
            address += [f"--artifact-port={options['artifact_port']}", "--expansion-port=-1"]
            master = [f"--flink-master=127.0.0.1:{options['rest_port']}", f"--flink-conf-dir={self.folder}/conf"]
            artifacts = f"--artifacts-dir={self.folder}/artifacts"
            return [*java, "-Xmx768m", "-jar", options["jar"], *address, *master, artifacts]
        java += [f"-Dlog4j.configurationFile=file:{self.folder}/conf/log4j.properties"]
        java += ["-Xmx512m" if name == "job_manager" else "-Xmx640m", "-XX:MaxMetaspaceSize=256m"]
        # The jar of the job server comes last: what both have is Flink's.
        java += ["-cp", ":".join([*options["flink"], options["jar"]])]
        conf = ["--configDir", f"{self.folder}/conf"]
        if name == "job_manager":
            return [*java, "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint", *conf]
        more = ["-D", f"taskmanager.resource-id={name}-{time.time_ns()}"]  # a new one for each start
        return [*java, "org.apache.flink.runtime.taskexecutor.TaskManagerRunner", *conf, *more]

    def pid(self, name: str) -> int | None:
        """Returns the process id of a process that was started, dead or alive."""
        try:
            return int((self.folder / f"{name}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def runs(self, name: str) -> bool:
        """Returns whether a process is alive."""
        pid = self.pid(name)
        return pid is not None and pid in self.members()

    def members(self) -> list[int]:
        """Returns the ids of all processes of the cluster that are alive, and of the workers that they started."""
        if not os.path.isdir("/proc/self"):
            pids = [pid for name in self.names if (pid := self.pid(name)) is not None]
            return [pid for pid in pids if _is_alive(pid)]
        found = []
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and f"{_MARK}={self.folder}" in _environment(entry):
                    found.append(int(entry))
        return found

    def wait(self) -> None:
        """Waits until all task managers have registered, and the job server answers."""
        slots = self.options["task_managers"] * self.options["slots"]
        with self._watched(["job_manager", *self.names[1:-1]]) as check:
            _wait_until(lambda: self.overview().get("slots-total", 0) >= slots, check)
        with self._watched(["job_server"]) as check:
            _wait_until(lambda: _answers(self.options["job_port"]), check)

    @contextlib.contextmanager
    def _watched(self, names: list[str]) -> Iterator[Callable[[], None]]:
        def check() -> None:
            for name in names:
                if not self.runs(name):
                    log = self.folder / f"{name}.log"
                    lines = log.read_text(errors="replace").splitlines() or ["no output"]
                    stop(self)
                    fail(f"{name} has ended: {lines[-1].strip()} (see {log})")

        try:
            yield check
        except TimeoutError:
            stop(self)
            fail(f"{', '.join(names)}: not up after {_PATIENCE} s. See the logs in {self.folder}.")

    def overview(self) -> dict[str, Any]:
        """Returns what the REST service of the job manager says of the cluster; empty if it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.options['rest_port']}/overview", timeout=10) as answer:
                return dict(json.load(answer))
        except (OSError, ValueError):
            return {}

    def describe(self) -> str:
        """Returns the lines of `status`."""
        lines = []
        for name in self.names:
            pid = self.pid(name)
            lines.append(f"{name:<15} {f'runs as process {pid}' if self.runs(name) else 'does not run'}")
        overview = self.overview()
        if overview:
            slots = f"{overview['slots-available']} of {overview['slots-total']} slots are free"
            lines.append(f"Flink {overview['flink-version']} at http://127.0.0.1:{self.options['rest_port']}: {slots}")
        flags = {"job_endpoint": "job_port", "artifact_endpoint": "artifact_port", "flink_master": "rest_port"}
        addresses = [f"--{flag}=127.0.0.1:{self.options[port]}" for flag, port in flags.items()]
        lines.append(f"Flags of a job: --runner=PortableRunner {' '.join(addresses)}")
        return "\n".join(lines)


def _environment(pid: str) -> list[str]:
    # A process that has ended, but was not waited for, has an empty one.
    return pathlib.Path("/proc", pid, "environ").read_bytes().decode(errors="replace").split("\0")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
        return True
    return False


def _wait_until(condition: Callable[[], bool], check: Callable[[], None]) -> None:
    end = time.monotonic() + _PATIENCE
    while not condition():
        check()
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.2)


# --- The commands ---


def up(options: argparse.Namespace) -> None:
    """Starts all processes, and waits until the cluster takes jobs."""
    folder: pathlib.Path = options.folder
    if (folder / "cluster.json").exists() and Cluster(folder).members():
        fail(f"{folder}: a cluster runs there already. Run `cluster.py down --folder {folder}` first.")
    for name in ("rest_port", "rpc_port", "job_port", "artifact_port"):
        if _answers(getattr(options, name)):
            fail(f"--{name} {getattr(options, name)} is taken by another program. Choose another port.")
    java = find_java()
    flink, jar = fetch(options.downloads)
    begin = time.monotonic()
    for name in ("conf", "tmp", "artifacts"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    for path in (*folder.glob("*.log"), *folder.glob("*.pid")):
        path.unlink()
    shutil.copy(HERE / "log4j.properties", folder / "conf")
    settings = _settings((HERE / "config.yaml").read_text().splitlines(), ": ")
    settings |= {
        "jobmanager.rpc.port": str(options.rpc_port),
        "rest.port": str(options.rest_port),
        "taskmanager.numberOfTaskSlots": str(options.slots),
        "taskmanager.cpu.cores": f"{options.slots}.0",
        "io.tmp.dirs": f"{folder}/tmp",
    } | _settings(options.set, "=")
    (folder / "conf" / "config.yaml").write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    numbers = {name: getattr(options, name) for name in ("task_managers", "slots", "rest_port", "job_port")}
    more = {"artifact_port": options.artifact_port, "environment": _settings(options.env, "=")}
    of_java = {"java": java, "flink": flink, "jar": jar}
    (folder / "cluster.json").write_text(json.dumps({**numbers, **more, **of_java}))
    cluster = Cluster(folder)
    for name in cluster.names:
        cluster.start(name)
    cluster.wait()
    print(f"Up after {time.monotonic() - begin:.0f} s in {folder}.")
    print(cluster.describe())


def _settings(lines: list[str], separator: str) -> dict[str, str]:
    parts = [line.partition(separator) for line in lines if line.strip() and not line.startswith("#")]
    for name, found, _ in parts:
        if not found:
            fail(f"{name!r} is not a setting; expected NAME{separator}VALUE.")
    return {name.strip(): value.strip() for name, _, value in parts}


def stop(cluster: Cluster) -> None:
    """Ends all processes, first with SIGTERM, and then with SIGKILL those that are still alive after five seconds."""
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 10.0)):
        end = time.monotonic() + patience
        for pid in cluster.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while cluster.members() and time.monotonic() < end:
            time.sleep(0.1)
    for path in cluster.folder.glob("*.pid"):
        path.unlink()
    for name in ("tmp", "artifacts"):
        shutil.rmtree(cluster.folder / name, ignore_errors=True)


def main() -> None:
    """Runs a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["up", "down", "status", "start", "kill"])
    parser.add_argument("name", nargs="?", help="the process that `start` or `kill` means, for example task_manager_1")
    parser.add_argument("--folder", default=BUILD / "cluster", help="folder of logs and pids; default: %(default)s")
    parser.add_argument("--downloads", default=BUILD, help="folder of the downloaded jars; default: %(default)s")
    parser.add_argument("--task_managers", type=int, default=2, help="number of task managers; default: %(default)s")
    parser.add_argument("--slots", type=int, default=1, help="slots of a task manager; default: %(default)s")
    ports = {"rest_port": 8081, "rpc_port": 6123, "job_port": 8099, "artifact_port": 8098}
    for name, port in ports.items():
        parser.add_argument(f"--{name}", type=int, default=port, help="default: %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of Flink")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable for the processes")
    options = parser.parse_args()
    options.folder, options.downloads = (pathlib.Path(path).resolve() for path in (options.folder, options.downloads))
    if (options.name is None) is (options.command in ("start", "kill")):
        parser.error("start and kill need the name of a process, and only they.")
    if options.command == "up":
        up(options)
        return
    cluster = Cluster(options.folder)
    if options.command == "down":
        stop(cluster)
    elif options.command == "status":
        print(cluster.describe())
    elif options.command == "start":
        cluster.start(options.name)
    elif not cluster.runs(options.name):
        fail(f"{options.name} does not run; expected one of {', '.join(filter(cluster.runs, cluster.names))}.")
    else:
        os.kill(cluster.pid(options.name) or 0, signal.SIGKILL)


if __name__ == "__main__":
    main()
