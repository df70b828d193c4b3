"""Trains with several processes on this machine, by the launcher or as a cluster does, and reads their runs."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import tensorflow as tf
from paths import ROOT

from trainer.devices.local_workers import free_ports
from trainer.devices.tensorflow_setup import LOG_LEVEL

# Seconds that no step of these tests takes, even on a very busy machine.
PATIENCE = 240
TINY = 1e-30
Config = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Ended:
    """The exit status and the output of a process."""

    status: int
    out: str
    err: str
    seconds: float


class Process:
    """A running command in its own session. Its output goes to files, so that it never waits for a reader."""

    def __init__(self, command: Sequence[Any], *, environment: Mapping[str, str] | None = None) -> None:
        folder = datasets.new_folder()
        self._out, self._err, self._begin = folder / "out", folder / "err", time.monotonic()
        # Not what this process has set for its own TensorFlow: with a log level, a worker would show all messages.
        inherited = {name: value for name, value in os.environ.items() if name not in ("TF_CONFIG", LOG_LEVEL)}
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self._popen = subprocess.Popen(
                list(map(str, command)),
                env=inherited | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def err(self) -> str:
        return self._err.read_text()

    def is_running(self) -> bool:
        return self._popen.poll() is None

    def send(self, number: int) -> None:
        self._popen.send_signal(number)

    def wait(self, seconds: float = PATIENCE) -> Ended:
        """Waits for the end of the process; fails if it takes longer than `seconds`."""
        try:
            status = self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"It still runs after {seconds} s. Its stderr: {self.err[-2000:]}") from None
        return Ended(status, self._out.read_text(), self.err, time.monotonic() - self._begin)

    def workers(self) -> list[int]:
        """Returns the running child processes: for the launcher, its workers in their order."""
        return children(self.pid)

    def end(self) -> None:
        """Kills the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()


def children(parent: int) -> list[int]:
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, its_parent, *_ = path.read_text().rpartition(")")[2].split()
            if int(its_parent) == parent and state != "Z":
                found.append(int(path.parent.name))
    return sorted(found)


def is_alive(pid: int) -> bool:
    """Returns whether a process runs; a zombie does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Any, seconds: float = PATIENCE, *, what: str = "") -> float:
    """Waits until condition() is true, and returns the seconds it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, f"{what or condition} did not happen within {seconds} s"
        time.sleep(0.01)
    return time.monotonic() - begin


def flags_of(config: Config) -> list[Any]:
    """Returns a configuration as flags of the command."""
    found: list[Any] = []
    for name, value in config.items():
        found += [f"--{name}", *(value if isinstance(value, tuple) else [value])]
    return found


def command(dataset: Any, output: Any, config: Config, *more: Any) -> list[Any]:
    return [sys.executable, ROOT / "lengthwise.py", "train", dataset, "--output", output, *flags_of(config), *more]


@contextlib.contextmanager
def launched(dataset: Any, output: Any, config: Config, *more: Any, workers: int = 2) -> Iterator[Process]:
    """Runs `lengthwise train --local_workers` and kills it at the end of the block."""
    process = Process(command(dataset, output, config, "--local_workers", workers, *more))
    try:
        yield process
    finally:
        process.end()


def launch(dataset: Any, output: Any, config: Config, *more: Any, workers: int = 2) -> Ended:
    """Runs `lengthwise train --local_workers` to its end."""
    with launched(dataset, output, config, *more, workers=workers) as process:
        return process.wait()


@contextlib.contextmanager
def joined(
    dataset: Any, output: Any, config: Config, *more: Any, workers: int = 2, chief: bool = False
) -> Iterator[list[Process]]:
    """Runs processes that know each other only by TF_CONFIG, as on separate hosts; the first is the chief."""
    addresses = [f"localhost:{port}" for port in free_ports(workers)]
    cluster = {"chief": addresses[:1], "worker": addresses[1:]} if chief else {"worker": addresses}
    tasks = [(name, index) for name, hosts in cluster.items() for index in range(len(hosts))]
    processes = []
    try:
        for kind, index in tasks:
            config_text = json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})
            environment = {"TF_CONFIG": config_text, "TF_NUM_INTRAOP_THREADS": "1"}
            processes.append(Process(command(dataset, output, config, *more), environment=environment))
        yield processes
    finally:
        for process in processes:
            process.end()


# Four or five updates an epoch.
UNEVEN: Config = {"epochs": 12, "units": (4,), "batch_size": 3, "learning_rate": 0.01, "clip_norm": 0.5}


@functools.cache
def uneven() -> str:
    """Makes a dataset with labels per step; in an epoch, one batch has a record of 40 steps, alone or with one of 4."""
    records = datasets.random_records([40] + [4] * 11 + [1], kind="step_class")
    return datasets.make(datasets.new_folder(), records, datasets.schema_text("step_class")).path


def updates_of(run: Any) -> list[dict[str, Any]]:
    """Returns the lines of a run's updates."""
    lines = [json.loads(line) for line in pathlib.Path(run, "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "update" in line]


def checkpoint_update(run: Any) -> int:
    """Returns the update of the last checkpoint of a run; -1 if there is none."""
    path = tf.train.latest_checkpoint(f"{run}/checkpoints/last")
    if path is None:
        return -1
    with contextlib.suppress(tf.errors.OpError):  # it was replaced meanwhile
        reader = tf.train.load_checkpoint(path)
        return json.loads(reader.get_tensor("state/.ATTRIBUTES/VARIABLE_VALUE"))["update"]
    return -1


def weights_of(run: Any) -> list[np.ndarray[Any, Any]]:
    """Returns the weights of a run's last checkpoint."""
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(f"{run}/checkpoints/last"))
    count = sum(name.startswith("weights/") for name in reader.get_variable_to_shape_map())
    return [reader.get_tensor(f"weights/{number}/.ATTRIBUTES/VARIABLE_VALUE") for number in range(count)]


def differences(run: Any, other: Any) -> tuple[float, float]:
    """Returns the largest relative differences of a loss and of a weight, between two runs on the same batches."""
    ours, theirs = updates_of(run), updates_of(other)
    names = ("epoch", "update", "records", "steps")
    assert [[line[name] for name in names] for line in ours] == [[line[name] for name in names] for line in theirs]
    losses = np.array([[line["loss"] for line in lines] for lines in (ours, theirs)])
    found, expected = weights_of(run), weights_of(other)
    assert [weight.shape for weight in found] == [weight.shape for weight in expected]
    of_weights = max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, expected, strict=True))
    # A batch without a label has a loss of exactly 0.
    of_losses = np.abs(losses[0] - losses[1]) / np.maximum(np.abs(losses[1]), TINY)
    return float(of_losses.max(initial=0)), float(of_weights)


def check_same(run: Any, other: Any, *, within: float = 1e-5) -> None:
    """Checks that two runs have the same losses and weights, up to a relative difference."""
    of_losses, of_weights = differences(run, other)
    print(f"\n{len(updates_of(run))} updates: losses differ by {of_losses:.1e} at most, weights by {of_weights:.1e}")
    assert max(of_losses, of_weights) <= within
