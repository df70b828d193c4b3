"""Starts the workers of a run as processes of this machine, gathers what they say, and ends them together."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

_SCRIPT = pathlib.Path(__file__).parents[2] / "lengthwise.py"
# Tells a worker that its standard input ends when the process that started it does.
_STARTED = "LENGTHWISE_LOCAL_WORKER"
# Seconds that the others have to end by themselves once one has: they wait for it in vain then.
_GRACE = 5.0
# Seconds to save the run in, after SIGTERM.
_SAVING = 30.0


def run_local_workers(count: int, arguments: Sequence[str]) -> int:
    """Runs `lengthwise` with these arguments in so many processes that TF_CONFIG tells of each other.

    What the chief says goes where this process's output goes, what the others say to stderr, each line with its
    worker's number. SIGTERM and SIGINT are passed on. Returns the status of the first that failed, or 0.
    """
    addresses = [f"localhost:{port}" for port in free_ports(count)]
    # Together they have as many threads as one process would.
    environment = {"TF_NUM_INTRAOP_THREADS": str(max(1, count_cores() // count))} | os.environ | {_STARTED: "1"}
    workers: list[subprocess.Popen[bytes]] = []
    with _passed_on(workers) as heard:
        for index in range(count):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            others: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} if index else {}
            command = [sys.executable, str(_SCRIPT), *arguments]
            config = environment | {"TF_CONFIG": json.dumps(task)}
            # In a group of its own: a terminal's Ctrl-C would come twice, from there and from here.
            workers.append(subprocess.Popen(command, env=config, stdin=subprocess.PIPE, process_group=0, **others))
        relays = [threading.Thread(target=_relay, args=(number, worker)) for number, worker in enumerate(workers)][1:]
        for relay in relays:
            relay.start()
        try:
            failed = _wait(workers, heard)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
            for relay in relays:
                relay.join()
            for worker in workers:
                for stream in filter(None, (worker.stdin, worker.stderr)):
                    stream.close()
    if signal.SIGINT in heard:
        return 128 + signal.SIGINT
    if failed is None:
        return 0
    status = workers[failed].returncode
    if status < 0:
        print(
            f"lengthwise {arguments[0]}: worker {failed} of {count} was ended by {signal.Signals(-status).name}, and "
            "so were the others. The same command goes on from the last checkpoint.",
            file=sys.stderr,
        )
        return 128 - status
    return status


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def exit_with_parent() -> None:
    """In a process that `run_local_workers` started: lets it end when that one does, however it ends."""
    if os.environ.get(_STARTED):
        threading.Thread(target=_wait_for_starter, daemon=True).start()


def _wait_for_starter() -> None:
    while os.read(0, 1):  # not by sys.stdin, whose lock a thread must not hold when Python ends
        pass
    os._exit(1)


def _wait(workers: Sequence[subprocess.Popen[bytes]], heard: Sequence[int]) -> int | None:
    """Waits until all have ended, or one has failed and the others had their grace; gives the one to blame.

    That is the first that failed, or the chief if it ended by itself meanwhile: the others only hear of its reasons.
    """
    failed, deadline = None, float("inf")
    while any(worker.poll() is None for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
        if failed is None:
            failed = next((number for number, worker in enumerate(workers) if worker.poll()), None)
            deadline = deadline if failed is None else time.monotonic() + _GRACE
        if heard and deadline == float("inf"):
            deadline = time.monotonic() + (_GRACE if signal.SIGINT in heard else _SAVING)
    if (workers[0].poll() or 0) > 0 and (failed is None or (workers[failed].poll() or 0) > 0):
        return 0
    return failed if failed is not None else next((n for n, worker in enumerate(workers) if worker.poll()), None)


@contextlib.contextmanager
def _passed_on(workers: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Sends the workers what this process is told by a signal, and gives the signals that came."""
    heard: list[int] = []

    def send(number: int, _: Any) -> None:
        heard.append(number)
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                worker.send_signal(number)

    before = {number: signal.signal(number, send) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _relay(number: int, worker: subprocess.Popen[bytes]) -> None:
    stream: IO[bytes] | None = worker.stderr
    assert stream is not None
    for line in stream:
        sys.stderr.write(f"[worker {number}] {line.decode(errors='replace')}")
        sys.stderr.flush()


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in found]
