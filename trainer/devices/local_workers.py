"""Runs the workers of a training run as processes of this machine."""

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
from typing import IO, Any, Literal, TypeAlias

from pipeline.errors import UserError, counted
from trainer.devices.local_gpus import VISIBLE, deal_gpus, find_gpus

_SCRIPT = pathlib.Path(__file__).parents[2] / "lengthwise.py"
# Set in the environment of a worker: its standard input is closed when its parent process ends.
_HAS_PARENT = "LENGTHWISE_LOCAL_WORKER"
_POLL_SECONDS = 0.05
# Time for the other workers to end after one has failed, and after SIGINT. They cannot continue without it.
_GRACE_SECONDS = 5.0
# Workers for each core. More of them take all memory and processor time of the machine, and train no faster.
_MAX_PER_CORE = 4

_Workers: TypeAlias = Sequence[subprocess.Popen[bytes]]


def run_local_workers(count: int, arguments: Sequence[str]) -> int:
    """Runs `lengthwise` with these arguments in `count` processes, connected by TF_CONFIG, and returns an exit status.

    The output of the chief (worker 0) goes to the output of this process. The stderr of the other workers goes to
    stderr, each line with the number of the worker. SIGTERM and SIGINT are forwarded to the workers.

    On a machine with GPUs, each worker gets GPUs of its own.

    Returns:
        0 if all workers succeeded, else the status of the worker that `_find_culprit` returns.

    Raises:
        UserError: There are GPUs, but fewer than workers; or far more workers than cores.
    """
    gpus = deal_gpus(find_gpus(), num_workers=count)
    if count > _MAX_PER_CORE * count_cores():
        raise UserError(
            f"local_workers is {count}, but this process may use {counted(count_cores(), 'core')}; expected at most "
            f"{_MAX_PER_CORE} workers for each. The number of workers changes only the speed."
        )
    if gpus[0]:
        print("".join(f"Worker {n}: GPU {', '.join(own)}.\n" for n, own in enumerate(gpus)), end="", file=sys.stderr)
    addresses = [f"localhost:{port}" for port in free_ports(count)]
    workers: list[subprocess.Popen[bytes]] = []
    with _forward_signals(workers) as received:
        for number in range(count):
            workers.append(_start_worker(number, addresses, gpus[number], arguments))
        relays = [threading.Thread(target=_relay_stderr, args=(n, worker)) for n, worker in enumerate(workers) if n]
        for relay in relays:
            relay.start()
        try:
            failed = _wait(workers, received)
        finally:
            _kill(workers, relays)
    if signal.SIGINT in received:
        return 128 + signal.SIGINT
    if failed is None:
        return 0
    status = workers[failed].returncode
    if status < 0:
        print(
            f"lengthwise {arguments[0]}: worker {failed} of {count} was killed by {signal.Signals(-status).name}, and "
            "the others were stopped. Run the same command to resume from the last checkpoint.",
            file=sys.stderr,
        )
        return 128 - status
    return status


def count_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def exit_with_parent() -> None:
    """Ends this process when its parent ends, for whatever reason, if `run_local_workers` started it."""
    if os.environ.get(_HAS_PARENT):
        threading.Thread(target=_exit_after_stdin, daemon=True).start()


def _exit_after_stdin() -> None:
    while os.read(0, 1):  # not sys.stdin: a thread must not hold its lock when Python shuts down
        pass
    os._exit(1)


def _start_worker(
    number: int, addresses: Sequence[str], gpus: Sequence[str], arguments: Sequence[str]
) -> subprocess.Popen[bytes]:
    # Together, the workers use as many threads as one process would.
    threads = {"TF_NUM_INTRAOP_THREADS": str(max(1, count_cores() // len(addresses)))}
    task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": number}}
    devices = {VISIBLE: ",".join(gpus)} if gpus else {}
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} if number else {}
    return subprocess.Popen(
        [sys.executable, str(_SCRIPT), *arguments],
        env=threads | os.environ | devices | {_HAS_PARENT: "1", "TF_CONFIG": json.dumps(task)},
        stdin=subprocess.PIPE,
        # With a process group of its own, a worker receives Ctrl-C only once: from this process, not from the terminal.
        process_group=0,
        **streams,
    )


def _wait(workers: _Workers, received: Sequence[int]) -> int | None:
    """Waits until all workers have ended or a deadline has passed. Returns the result of `_find_culprit`.

    There are three states. "running" has no deadline, also after SIGTERM: the workers end by themselves when they have
    saved the run, and whoever sent the signal knows how long they may take. "stopping" begins when SIGINT was received.
    "failed" begins when a worker has failed; it replaces the deadline of "stopping".
    """
    state: Literal["running", "stopping", "failed"] = "running"
    first_failed, deadline = None, float("inf")
    while any(worker.poll() is None for worker in workers) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        if state != "failed":
            first_failed = _find_failed(workers)
            if first_failed is not None:
                state, deadline = "failed", time.monotonic() + _GRACE_SECONDS
        if state == "running" and signal.SIGINT in received:
            state, deadline = "stopping", time.monotonic() + _GRACE_SECONDS
    return _find_culprit(workers, first_failed)


def _find_failed(workers: _Workers) -> int | None:
    return next((number for number, worker in enumerate(workers) if worker.poll()), None)


def _find_culprit(workers: _Workers, first_failed: int | None) -> int | None:
    """Returns the number of the worker whose failure is reported, or None if none has failed.

    This is the worker that failed first. But if a status above 0 ended both that worker and the chief, it is the chief:
    the error of another worker may be only a consequence of the chief's.
    """
    was_killed = first_failed is not None and (workers[first_failed].poll() or 0) < 0
    if (workers[0].poll() or 0) > 0 and not was_killed:
        return 0
    return _find_failed(workers) if first_failed is None else first_failed


def _kill(workers: _Workers, relays: Sequence[threading.Thread]) -> None:
    for worker in workers:
        worker.kill()
        worker.wait()
    for relay in relays:
        relay.join()
    for worker in workers:
        for stream in filter(None, (worker.stdin, worker.stderr)):
            stream.close()


@contextlib.contextmanager
def _forward_signals(workers: _Workers) -> Iterator[list[int]]:
    """Forwards SIGTERM and SIGINT to the workers inside the block. Yields the list of received signals."""
    received: list[int] = []

    def forward(number: int, _: Any) -> None:
        received.append(number)
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                worker.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _relay_stderr(number: int, worker: subprocess.Popen[bytes]) -> None:
    stream: IO[bytes] | None = worker.stderr
    assert stream is not None
    for line in stream:
        sys.stderr.write(f"[worker {number}] {line.decode(errors='replace')}")
        sys.stderr.flush()


def free_ports(count: int) -> list[int]:
    """Returns `count` ports of this machine that no process listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]
