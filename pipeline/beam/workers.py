"""Runs functions in a few light processes beside this one, so that a job uses all cores without Beam in each of them.

Beam's own processes hold 250 MB each. multiprocessing and concurrent.futures import a program's `__main__` anew in each
process, which a program must be written for, and leave orphans where it is killed. These are started with nothing but
Python, import what they are asked to run, and end when the process that started them does.
"""

import concurrent.futures
import contextlib
import gc
import importlib
import multiprocessing
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from pipeline import progress
from pipeline.errors import UserError

_START = "import sys; sys.path.insert(0, sys.argv[1]); from pipeline.beam.workers import serve; serve(*sys.argv[2:])"

# What the allocators may keep for later is the system's: measured, a process peaks at 150 MB instead of 190.
_ENVIRONMENT = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_MMAP_THRESHOLD_": str(2**20),
    "MALLOC_ARENA_MAX": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

_current: "Workers | None" = None


class Workers:
    """Processes that run functions of modules, one at a time each.

    Args:
        count: Of the processes.
        module: Imported at their start, while this process is busy with its own.
    """

    def __init__(self, count: int, module: str) -> None:
        self.count = count
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers = [_Worker(module) for _ in range(count)]
        for worker in self._workers:
            self._idle.put(worker)
        # A thread waits for each process.
        self._threads = concurrent.futures.ThreadPoolExecutor(count)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> concurrent.futures.Future[Any]:
        """The result to come of a function of a module; raises there what the function raised.

        Raises:
            UserError: in the future, if the process ended.
        """
        return self._threads.submit(self._call, function, arguments)

    def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        worker = self._idle.get()
        try:
            return worker.call(function, arguments)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Ends the processes, whatever they are at."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.close()


class _Worker:
    def __init__(self, module: str) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        folder = pathlib.Path(__file__).parents[2]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, folder, module, str(theirs.fileno())],
                stdin=subprocess.PIPE,  # ends with this process
                pass_fds=[theirs.fileno()],
                env=_ENVIRONMENT | os.environ,
            )

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        try:
            self._connection.send((function, arguments))
            result, error, done = self._connection.recv()
        except (EOFError, OSError):
            raise UserError(self._explain()) from None
        progress.add_counts(done)
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _explain(self) -> str:
        status = self._process.wait()
        if status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
            why = " (the system does so where memory is short: try --processes 1)" if status == -signal.SIGKILL else ""
        else:
            how, why = f"ended with status {status}", ""
        return f"A process of this job {how}{why}. Nothing was published."


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def current() -> Workers | None:
    """The workers of this process, if there are any now."""
    return _current


@contextlib.contextmanager
def started(count: int, module: str) -> Iterator[None]:
    """Has workers for what runs in the block; none if `count` is 0."""
    global _current
    if not count or _current is not None:
        yield
        return
    _current = Workers(count, module)
    try:
        yield
    finally:
        stop()


def stop() -> None:
    """Ends the workers of this process, if there are any, before what they write is removed."""
    global _current
    if _current is not None:
        _current.close()
        _current = None


def serve(module: str, handle: str) -> None:
    """What a process does: calls what it is told to, until its starter is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter is told too, and ends this process
    threading.Thread(target=_end_with_starter, daemon=True).start()
    importlib.import_module(module)
    # A task makes and drops records by the thousand, none of which holds itself: looking for such took a tenth of it.
    gc.freeze()
    gc.set_threshold(100_000, 50, 1_000)
    with Connection(int(handle)) as connection, contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            function, arguments = connection.recv()
            result, error = None, None
            try:
                result = function(*arguments)
            except BaseException as raised:
                error = raised
            connection.send((result, error, progress.take_counts()))
            del function, arguments, result, error


def _end_with_starter() -> None:
    sys.stdin.buffer.read()
    os._exit(1)
