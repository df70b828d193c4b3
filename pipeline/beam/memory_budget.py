"""Chooses how many worker processes a job starts, from the cores and the memory that it may use."""

import contextlib
import math
import os
import posixpath
from collections.abc import Iterator

from pipeline.errors import UserError, counted

# Measured with records around 24 steps: memory of the process that runs the job, and of each worker process.
PARENT_BYTES, WORKER_BYTES = 300_000_000, 150_000_000
# The smallest budget by default, which is enough for two workers.
_LEAST_BYTES = PARENT_BYTES + 2 * WORKER_BYTES
# Smaller inputs are done before worker processes have started.
_SMALL_BYTES = 16 * 2**20
# Beside the first two, there is a worker for each so many bytes of input: less is done before it has started.
_BYTES_PER_WORKER = 16 * 2**20


def count_workers(processes: int | None, memory: int | None) -> int:
    """Returns the number of worker processes of a job: `processes`, or one per core within the memory.

    Args:
        processes: Number of worker processes. None chooses.
        memory: Bytes that all processes of the job may take together. None is half of the free memory, at least 600 MB,
            and 600 MB on two cores or fewer.

    Raises:
        UserError: The memory is too small for the processes.
    """
    check_memory(processes, memory)
    if processes is not None:
        return processes
    cores = count_cores()
    if memory is None:
        memory = _LEAST_BYTES if cores <= 2 else max(_LEAST_BYTES, free_memory() // 2)
    return min(cores, (memory - PARENT_BYTES) // WORKER_BYTES)


def workers_for(num_bytes: int, memory: int | None) -> int:
    """Returns the number of worker processes of a job over an input of this size, without compression."""
    most = count_workers(None, memory)
    return 0 if not most or num_bytes < _SMALL_BYTES else min(most, max(2, num_bytes // _BYTES_PER_WORKER))


def check_memory(processes: int | None, memory: int | None) -> None:
    """Raises a UserError if the memory is too small for the processes. See `count_workers`."""
    needed = PARENT_BYTES + (processes or 0) * WORKER_BYTES
    if memory is None or memory >= needed:
        return
    limit = f"{memory / 1e6:,.0f} MB" if memory >= 10**6 else counted(memory, "byte")
    expected = f"a memory of at least {needed // 10**6}MB"
    if not processes:
        raise UserError(f"a job takes {needed // 10**6} MB, but the memory is limited to {limit}. Allow {expected}.")
    each = f"{PARENT_BYTES // 10**6} MB, and {WORKER_BYTES // 10**6} MB for each process"
    fewer = max(0, (memory - PARENT_BYTES) // WORKER_BYTES)
    raise UserError(
        f"a job with {counted(processes, 'process')} takes {needed / 1e6:,.0f} MB ({each}), but the memory "
        f"is limited to {limit}. Allow {expected}, or at most {fewer} processes."
    )


def count_cores(root: str = "/") -> int:
    """Returns the number of cores that this process may use, which a control group (as of a container) may limit.

    Args:
        root: The folder with `proc` and `sys`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _control_groups(root, "cpu"):
        quota, period = [*_read_numbers(f"{folder}/cpu.max"), math.inf, math.inf][:2]
        if math.isinf(quota):
            quota = next(_read_numbers(f"{folder}/cpu.cfs_quota_us"), -1)  # -1: any
            period = next(_read_numbers(f"{folder}/cpu.cfs_period_us"), math.inf)
        if quota > 0 and 0 < period < math.inf:
            cores = min(cores, math.ceil(quota / period))
    return max(1, cores)


def free_memory(root: str = "/") -> int:
    """Returns the bytes of memory that this process may still take; 0 if they are unknown.

    That is what the system says is available, or what a control group (as of a container) has left.

    Args:
        root: The folder with `proc` and `sys`.
    """
    free = _available_memory(root)
    for folder in _control_groups(root, "memory"):
        limit = next(_read_numbers(f"{folder}/memory.max", f"{folder}/memory.limit_in_bytes"), math.inf)
        used = next(_read_numbers(f"{folder}/memory.current", f"{folder}/memory.usage_in_bytes"), 0.0)
        if not math.isinf(limit):
            # The system frees pages of files that were not read lately when others need memory.
            free = min(free, limit - max(0.0, used - _inactive_bytes(folder)))
    return max(0, int(free))


def _available_memory(root: str) -> float:
    with contextlib.suppress(OSError, ValueError), open(os.path.join(root, "proc/meminfo")) as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return 1024 * int(rest.split()[0])
    for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            return max(0, os.sysconf(name)) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _control_groups(root: str, controller: str) -> Iterator[str]:
    """Yields the folders of the control group of this process, and of those around it, in both versions of them."""
    try:
        with open(os.path.join(root, "proc/self/cgroup")) as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number != "0" and controller not in names.split(","):
            continue
        top = os.path.join(root, "sys/fs/cgroup") if number == "0" else os.path.join(root, "sys/fs/cgroup", controller)
        path = posixpath.normpath("/" + path.lstrip("/"))  # two slashes would stay two
        # In a container, the path may be that of the host, of which only the top is there.
        while path != "/":
            yield top + path
            path = posixpath.dirname(path)
        yield top


def _read_numbers(*paths: str) -> Iterator[float]:
    """Yields the numbers in the first of some files that exists; `max` is infinite."""
    for path in paths:
        with contextlib.suppress(OSError), open(path) as file:
            words = file.read().split()
            yield from (math.inf if word == "max" else float(word) for word in words)
            return


def _inactive_bytes(folder: str) -> float:
    found = 0.0
    with contextlib.suppress(OSError), open(f"{folder}/memory.stat") as file:
        for name, number in (line.split() for line in file):
            if name in ("inactive_file", "total_inactive_file"):
                found = max(found, float(number))
    return found
