"""Measures the peak memory of a program with all of its processes."""

import os
import pathlib
import subprocess
import sys
import time
from typing import NamedTuple

from paths import ROOT
from prepare_jobs import session_of


class Peaks(NamedTuple):
    """The peak memory of all processes of a program, in bytes.

    Attributes:
        resident: All pages. Those that processes share count for each of them.
        private: Pages that no file backs. The others are mostly libraries, which the system drops and reads again where
            memory is short.
        largest: The most pages of a single process that the system has counted.
    """

    resident: int
    private: int
    largest: int

    def __str__(self):
        return ", ".join(f"{name} {value / 1e6:,.0f} MB" for name, value in self._asdict().items())


def measure(folder, *arguments, program=("-m", "lengthwise")):
    """Runs Python with a program in a folder, and returns its Peaks; fails if its exit status is not 0."""
    resident = private = 0
    with open(folder / "stderr", "w+") as stderr:
        process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        while not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            pages = [_pages(number) for number in session_of(process.pid)]
            resident = max(resident, sum(each["Rss"] for each in pages))
            private = max(private, sum(each["Anonymous"] for each in pages))
            time.sleep(0.05)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        stderr.seek(0)
        assert process.returncode == 0, stderr.read()[-2000:]
    return Peaks(resident, private, usage.ru_maxrss * 1024)


def _pages(process):
    """Returns the bytes of resident pages of a process by kind; zeros if it has ended."""
    try:
        lines = pathlib.Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        lines = []
    found = {"Rss": 0, "Anonymous": 0}
    return found | {name: 1024 * int(size) for name, size, *_ in (line.replace(":", "").split() for line in lines)}
