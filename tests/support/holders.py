"""Processes that hold a lock or a mark until they are told to leave it, or are killed."""

import subprocess
import sys
from typing import Any

from paths import ROOT

LOCK_FILE = """
from pipeline.locks import acquire
lock = acquire(sys.argv[1], timeout=0, command="holder")
"""
LOCK_DATASET = """
from pipeline.writing.lock import lock_dataset
stack.enter_context(lock_dataset(sys.argv[1], timeout=0))
"""
MARK_WRITER = """
from pipeline.writing.marker import mark_writer
stack.enter_context(mark_writer(sys.argv[1], sys.argv[2], command="prepare"))
"""


class Holder:
    """A process that has run a program, and leaves its context managers at `release()` or the end of a `with` block."""

    def __init__(self, program: str, *arguments: object) -> None:
        lines = ["import contextlib, sys", "with contextlib.ExitStack() as stack:"]
        lines += [f" {line}" for line in (*program.split("\n"), "print('ready', flush=True)", "sys.stdin.read()")]
        # Python warns of a fork beside a thread, which is what some tests try.
        command = [sys.executable, "-W", "ignore", "-c", "\n".join(lines), *map(str, arguments)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", self.process.communicate()

    @property
    def pid(self) -> int:
        return self.process.pid

    def release(self) -> None:
        assert self.process.communicate() == ("", "")
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> "Holder":
        return self

    def __exit__(self, *error: Any) -> None:
        if self.process.returncode is None:
            self.kill()
