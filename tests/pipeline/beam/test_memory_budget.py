"""The number of worker processes, from the cores and the memory of machines that are folders of files."""

import os

import pytest

from pipeline.beam import memory_budget
from pipeline.beam.memory_budget import check_memory, count_cores, count_workers, free_memory
from pipeline.beam.prepare import PrepareOptions
from pipeline.errors import UserError
from pipeline.main import prepare
from pipeline.raw.find_files import RawFile
from pipeline.streaming.kept_workers import KeptWorkers

MB, GB = 10**6, 10**9


@pytest.fixture
def machine(monkeypatch):
    """Returns a function that sets the cores and the free memory."""

    def set_machine(cores, free):
        monkeypatch.setattr(memory_budget, "count_cores", lambda: cores)
        monkeypatch.setattr(memory_budget, "free_memory", lambda: free)

    return set_machine


@pytest.mark.parametrize(
    ("cores", "free", "memory", "workers"),
    [
        (1, 64 * GB, None, 1),
        (2, 64 * GB, None, 2),
        (2, 1 * GB, None, 2),
        (2, 0, None, 2),
        (4, 0, None, 2),  # at least 600 MB
        (4, 1 * GB, None, 2),
        (8, 2 * GB, None, 4),
        (8, 3 * GB, None, 8),
        (64, 64 * GB, None, 64),
        (64, 8 * GB, None, 24),
        (2, 0, 2 * GB, 2),  # not more than cores
        (64, 0, 600 * MB, 2),
        (64, 0, 1500 * MB, 8),
        (64, 0, 1499 * MB, 7),
        (64, 64 * GB, 450 * MB, 1),
        (64, 64 * GB, 449 * MB, 0),
        (64, 64 * GB, 300 * MB, 0),
    ],
)
def test_there_is_a_worker_for_each_core_within_the_memory(machine, cores, free, memory, workers):
    machine(cores, free)
    assert count_workers(None, memory) == workers


def test_a_given_number_of_processes_is_taken_if_the_memory_is_enough(machine):
    machine(2, 0)
    assert count_workers(8, None) == count_workers(8, 1500 * MB) == 8
    assert count_workers(0, 300 * MB) == 0


@pytest.mark.parametrize(
    ("processes", "memory", "message"),
    [
        (
            8,
            1500 * MB - 1,
            r"^a job with 8 processes takes 1,500 MB \(300 MB, and 150 MB for each process\), but the memory is "
            r"limited to 1,500 MB\. Allow a memory of at least 1500MB, or at most 7 processes\.$",
        ),
        (
            1,
            100,
            r"^a job with 1 process takes 450 MB .* is limited to 100 bytes\. .* 450MB, or at most 0 processes\.$",
        ),
        (None, 299 * MB, r"^a job takes 300 MB, but the memory is limited to 299 MB\. Allow .* at least 300MB\.$"),
        (0, 0, r"is limited to 0 bytes\. Allow a memory of at least 300MB\.$"),
    ],
)
def test_too_little_memory_for_the_processes_is_an_error_that_says_what_they_need(processes, memory, message):
    for check in (check_memory, count_workers):
        with pytest.raises(UserError, match=message):
            check(processes, memory)
    with pytest.raises(UserError, match=message):
        PrepareOptions(("raw",), "schema.yaml", "out", processes=processes, memory=memory)


@pytest.mark.parametrize("streaming", [(), ("--streaming",)])
def test_the_flags_are_checked_before_the_job(capsys, streaming):
    flags = ["raw", "--schema", "none.yaml", "--output", "out", *streaming]
    with pytest.raises(SystemExit) as ended:
        prepare([*flags, "--processes", "3", "--memory", "600MB"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "lengthwise prepare: argument --memory: a job with 3 processes takes 750 MB (300 MB, and 150 MB for each "
        "process), but the memory is limited to 600 MB. Allow a memory of at least 750MB, or at most 2 processes.\n"
    )
    with pytest.raises(UserError, match="none.yaml"):
        prepare([*flags, "--processes", "3", "--memory", "750MB"])


def test_a_stream_starts_workers_within_its_memory(machine, monkeypatch):
    machine(64, 64 * GB)
    monkeypatch.setattr("pipeline.streaming.kept_workers.WorkerPool", lambda number, _: number)
    small, large = ([RawFile("none", num_bytes)] for num_bytes in (1, 2**30))
    assert KeptWorkers(None, 1500 * MB).get(large) == 8
    assert KeptWorkers(3, 1500 * MB).get(small) == 3
    assert KeptWorkers(None, 1500 * MB).get(small) is None
    assert KeptWorkers(None, 300 * MB).get(large) is None


def make_machine(folder, files):
    """Writes the files of a machine."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return str(folder)


MEMINFO = {"proc/meminfo": "MemTotal:       8000000 kB\nMemFree:  1 kB\nMemAvailable:    4000000 kB\n"}
V1 = {"proc/self/cgroup": "4:cpuset,memory:/jobs/one\n3:cpu,cpuacct:/jobs/one\n0::/\n"}
V2 = {"proc/self/cgroup": "0::/jobs/one\n"}
LIMIT_V1, USED_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (MEMINFO, 4_096_000_000),
        (MEMINFO | V2, 4_096_000_000),
        (MEMINFO | V2 | {"sys/fs/cgroup/jobs/one/memory.max": "max\n"}, 4_096_000_000),
        (
            {
                **MEMINFO | V2,
                "sys/fs/cgroup/jobs/one/memory.max": "1000000000\n",
                "sys/fs/cgroup/jobs/one/memory.current": "700000000\n",
                "sys/fs/cgroup/jobs/one/memory.stat": "anon 1\ninactive_file 200000000\nactive_file 5\n",
            },
            500_000_000,
        ),
        # The group around it has less, or is the only one that the container shows.
        (MEMINFO | V2 | {"sys/fs/cgroup/jobs/memory.max": "9\n", "sys/fs/cgroup/jobs/memory.current": "2\n"}, 7),
        (MEMINFO | V2 | {"sys/fs/cgroup/memory.max": "9\n", "sys/fs/cgroup/memory.current": "20\n"}, 0),
        (MEMINFO | V1 | {f"sys/fs/cgroup/memory/{LIMIT_V1}": "9223372036854771712\n"}, 4_096_000_000),
        (
            {
                **MEMINFO | V1,
                f"sys/fs/cgroup/memory/jobs/one/{LIMIT_V1}": "1000\n",
                f"sys/fs/cgroup/memory/jobs/one/{USED_V1}": "700\n",
                "sys/fs/cgroup/memory/jobs/one/memory.stat": "inactive_file 20\ntotal_inactive_file 100\n",
            },
            400,
        ),
    ],
)
def test_the_free_memory_is_what_the_system_and_the_control_groups_leave(tmp_path, files, free):
    assert free_memory(make_machine(tmp_path, files)) == free


def test_without_these_files_the_free_memory_is_that_of_the_interface_of_the_system(tmp_path, monkeypatch):
    known = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}  # as on macOS

    def find(name):
        if name not in known:
            raise ValueError("unrecognized configuration name")
        return known[name]

    monkeypatch.setattr(os, "sysconf", find)
    assert free_memory(str(tmp_path)) == 4_096_000
    known.clear()
    assert free_memory(str(tmp_path)) == 0


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        (V2 | {"sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
        (V2 | {"sys/fs/cgroup/jobs/one/cpu.max": "250000 100000\n"}, 3),
        (V2 | {"sys/fs/cgroup/jobs/one/cpu.max": "9900000 100000\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (V1 | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 64),
        (V1 | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)
def test_the_cores_are_those_that_the_control_groups_allow(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert count_cores(make_machine(tmp_path, files)) == cores
