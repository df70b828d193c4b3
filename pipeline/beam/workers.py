"""Runs functions in a few light processes beside this one, so that a job uses all cores without a Beam worker on each.

A process of Beam's own holds 250 MB. multiprocessing and concurrent.futures import the program's `__main__` again in
each process, which a program must be written for, and they leave orphans when the program is killed. The processes
here start with Python alone, import only what they run, and end with the process that started them. loky was measured
against this file: its first result took 1.6 s instead of 0.9 s, it holds 31 MB more in two helper processes, and its
workers keep running after `kill -9` of their parent.
"""

import collections
import concurrent.futures
import contextlib
import ctypes
import functools
import gc
import importlib
import multiprocessing
import os
import pathlib
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from pipeline import progress
from pipeline.errors import UserError

_START = "import sys; sys.path.insert(0, sys.argv[1]); from pipeline.beam.workers import serve; serve(*sys.argv[2:])"

# Without these, the allocators keep freed memory. Measured: a process peaks at 150 MB instead of 190 MB. They keep
# 8 MB at the end of the heap: a merge then takes a tenth of the page faults, and 20 % less time.
_ENVIRONMENT = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_MMAP_THRESHOLD_": str(2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**23),
    "MALLOC_ARENA_MAX": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

# A line of this size, in bytes, is sent to a process as it is.
_LARGE_BYTES = 2**20
# Input of calls that have not ended, in bytes: one call may have more.
_HELD_BYTES = 64 * 2**20


class WorkerPool:
    """Processes that run functions, each one function at a time.

    Beam pickles the steps of a pipeline. A pool inside of a step is pickled as its id: in the process that started the
    pool, the unpickled value is the same pool; in any other process it is None.

    Args:
        num_workers: Number of processes.
        module: Imported by each process when it starts, while this process does other work.
    """

    def __init__(self, num_workers: int, module: str) -> None:
        self.num_workers = num_workers
        self._id = uuid.uuid4().hex
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        early = _early.pop(module, [])
        self._workers = [early.pop() if early else _Worker(module) for _ in range(num_workers)]
        for worker in early:
            worker.close()
        for worker in self._workers:
            self._idle.put(worker)
        # One thread waits for each process.
        self._threads = concurrent.futures.ThreadPoolExecutor(num_workers)
        # The calls that were started before they were needed: function, arguments, options and future.
        self._started: list[tuple[tuple[Any, ...], concurrent.futures.Future[Any]]] = []
        _pools[self._id] = self

    def __reduce__(self) -> tuple[Callable[[str], "WorkerPool | None"], tuple[str]]:
        return _find_pool, (self._id,)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> concurrent.futures.Future[Any]:
        """Runs a module-level function in a worker and returns the future of its result.

        The future raises what the function raised, with the traceback in the worker as its cause, or a UserError if
        the worker process ended.
        """
        return self._threads.submit(self._call, [function, arguments])

    def start(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Starts a call before the step that needs it runs. The first equal call of `PendingCalls` takes its result.

        If no call is equal, the result is dropped, and so is an error.
        """
        future = self.submit(functools.partial(function, **options), *arguments)
        self._started.append(((function, arguments, options), future))

    def submit_or_take(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> concurrent.futures.Future[Any]:
        """Submits a call, or returns the future of an equal one that was started."""
        for place, (call, future) in enumerate(self._started):
            if call == (function, arguments, options):
                del self._started[place]
                return future
        return self.submit(functools.partial(function, **options), *arguments)

    def map(self, function: Callable[[Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        """Yields the results of a module-level function for values, in order. Takes a few values ahead at most."""
        calls = PendingCalls(self)
        for value in values:
            yield from calls.call(function, value)
        yield from calls.finish()

    def _call(self, call: list[Any]) -> Any:
        worker = self._idle.get()
        try:
            return worker.call(call)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Kills the processes, also in the middle of a call."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.close()


# The processes that `start_early` started, by module. They end with this process if no pool takes them.
_early: "dict[str, list[_Worker]]" = {}


def start_early(num_workers: int, module: str) -> None:
    """Starts processes for the next pool with this module. The other arguments of the pool need not be known yet."""
    _early.setdefault(module, []).extend(_Worker(module) for _ in range(num_workers))


# The pools that this process started, by id.
_pools: weakref.WeakValueDictionary[str, WorkerPool] = weakref.WeakValueDictionary()


def _find_pool(pool_id: str) -> WorkerPool | None:
    return _pools.get(pool_id)


class WorkerTraceback(Exception):
    """The cause of an error that a worker process raised: its traceback there as text, since frames are not pickled."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Answer(NamedTuple):
    """What a worker process sends back after a call: the result, or the error and its traceback."""

    result: Any
    error: BaseException | None
    traceback: str
    counts: dict[str, int]


class _Worker:
    def __init__(self, module: str) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        folder = pathlib.Path(__file__).parents[2]
        with theirs, _block_signals():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, folder, module, str(theirs.fileno())],
                stdin=subprocess.PIPE,  # closes when this process ends, however it ends
                pass_fds=[theirs.fileno()],
                env=_ENVIRONMENT | os.environ,
            )

    def call(self, call: list[Any]) -> Any:
        """Calls a function in the process and returns its result.

        Args:
            call: The function and its arguments. The list is empty once they are sent, as they may be large.
        """
        try:
            _send(self._connection, call)
            call.clear()
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise UserError(self._explain_end()) from None
        progress.add_counts(answer.counts)
        if answer.error is not None:
            raise answer.error from WorkerTraceback(answer.traceback)
        return answer.result

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _explain_end(self) -> str:
        status = self._process.wait()
        if status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
            hint = " (the system does so where memory is short: try --processes 1)" if status == -signal.SIGKILL else ""
        else:
            how, hint = f"ended with status {status}", ""
        return f"A process of this job {how}{hint}. Nothing was published."


def _send(connection: Connection, value: Any) -> None:
    """Sends a value to a process that calls `_receive`. Large arrays of bytes in it are not copied to a pickle."""
    large: list[pickle.PickleBuffer] = []

    def is_small(buffer: pickle.PickleBuffer) -> bool:
        if isinstance(memoryview(buffer).obj, bytearray) and buffer.raw().nbytes >= _LARGE_BYTES:
            large.append(buffer)
            return False
        return True

    data = pickle.dumps(value, protocol=5, buffer_callback=is_small)
    connection.send_bytes(pickle.dumps(len(large)))
    connection.send_bytes(data)
    for buffer in large:
        connection.send_bytes(buffer)


def _receive(connection: Connection) -> Any:
    """Returns the next value that `_send` sent."""
    count = pickle.loads(connection.recv_bytes())
    data = connection.recv_bytes()
    return pickle.loads(data, buffers=[connection.recv_bytes() for _ in range(count)])


@contextlib.contextmanager
def _block_signals() -> Iterator[None]:
    """Lets a process that the block starts never receive SIGINT and SIGTERM, also while it starts.

    The parent receives them too, and ends its workers. It may need them first, to complete its work.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class PendingCalls:
    """The function calls of one Beam bundle: several at a time in a pool, or immediately if there is no pool."""

    def __init__(self, pool: WorkerPool | None) -> None:
        self._pool = pool
        # The calls that have not given their results yet, and the bytes of their input.
        self._futures: collections.deque[tuple[concurrent.futures.Future[Any], int]] = collections.deque()

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Any]:
        """Calls a function and yields the results that are ready now, in the order of their calls."""
        yield from self.make_room(0)
        yield from self.call_with(0, function, *arguments, **options)

    def make_room(self, num_bytes: int) -> Iterator[Any]:
        """Yields results until one more call with this number of bytes of input may begin."""
        if self._pool is None:
            return
        # One call more than workers waits in the queue. This is enough to keep the workers busy.
        while len(self._futures) > self._pool.num_workers or (
            self._futures and num_bytes + sum(held for _, held in self._futures) > _HELD_BYTES
        ):
            yield self._futures.popleft()[0].result()

    def call_with(self, num_bytes: int, function: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Any]:
        """Calls a function after `make_room`, and yields its result if there is no pool.

        Args:
            num_bytes: Bytes of the input in memory.
        """
        if self._pool is None:
            yield function(*arguments, **options)
        else:
            self._futures.append((self._pool.submit_or_take(function, arguments, options), num_bytes))

    def finish(self) -> Iterator[Any]:
        """Yields the results of the remaining calls."""
        while self._futures:
            yield self._futures.popleft()[0].result()
        _return_memory()

    def abandon(self) -> None:
        """Drops the remaining calls, after those that run have ended."""
        concurrent.futures.wait([future for future, _ in self._futures if not future.cancel()])
        self._futures.clear()


@contextlib.contextmanager
def start_workers(num_workers: int, module: str) -> Iterator[WorkerPool | None]:
    """Yields a pool that is closed after the block, or None if `num_workers` is 0."""
    if not num_workers:
        yield None
        return
    pool = WorkerPool(num_workers, module)
    try:
        yield pool
    finally:
        pool.close()


def serve(module: str, handle: str) -> None:
    """Runs in a worker process: calls each function that arrives, until the parent process ends."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    importlib.import_module(module)
    # A task creates and drops thousands of records without cycles. Collecting cycles took a tenth of its time.
    gc.freeze()
    gc.set_threshold(100_000, 50, 1_000)
    with Connection(int(handle)) as connection, contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            function, arguments = _receive(connection)
            connection.send_bytes(_call(function, arguments))
            del function, arguments
            _return_memory()


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    """Calls a function, and returns the pickled answer."""
    try:
        result = function(*arguments)
        return pickle.dumps(_Answer(result, None, "", progress.take_counts()))
    except BaseException as raised:
        error, text = raised, "".join(traceback.format_exception(raised))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error of another package may need other arguments than it keeps
        error = RuntimeError(f"{type(error).__qualname__}: {error}")
    return pickle.dumps(_Answer(None, error, text, progress.take_counts()))


def _return_memory() -> None:
    """Returns the freed memory of this process to the system, for the other processes.

    Measured with 5 million strings and two workers: at most 506 MB in all processes instead of 545 MB.
    """
    with contextlib.suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _exit_with_parent() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock Python needs when it ends
        pass
    os._exit(1)
