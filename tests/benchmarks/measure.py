"""Runs programs, measures them alternately, and compares the results with a floor and an aim."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

SOFTWARE = ("lengthwise", "tensorflow-cpu", "keras", "apache-beam", "numpy")

# The peak memory of a program is at least the memory of the process that started it, so a small process starts it.
_LAUNCHER = """
import resource, subprocess, sys, time
begin = time.perf_counter()
status = subprocess.call(sys.argv[1:])
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print("\\0", time.perf_counter() - begin, usage.ru_maxrss, flush=True)
sys.exit(status)
"""
# Width of a table in characters, on every terminal.
_WIDTH = 180


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement of Lengthwise, the measurement it is compared with, and their ratio.

    Attributes:
        measure: Name of the measurement.
        unit: Unit of `ours` and `theirs`.
        ours: Result of Lengthwise, the median of the repeats.
        twin: Name of the program that is measured in the same run for comparison; "" if there is none.
        theirs: Result of that program, the median of the repeats; None if there is none.
        ratio: `ours` divided by `theirs`, the median of the repeats, or `ours` if there is no comparison.
        floor, aim: Goals of the ratio: it must be at least the floor, and should be at least the aim.
        at_most: Whether the ratio should be at most the goals instead.
        spread: The smallest and the largest ratio of the repeats.
        note: Additional information.
        command: The command that repeats the measurement; `run.py` sets it.
    """

    measure: str
    unit: str
    ours: float
    twin: str
    theirs: float | None
    ratio: float
    floor: float
    aim: float
    at_most: bool = False
    spread: tuple[float, float] | None = None
    note: str = ""
    command: str = ""

    @property
    def verdict(self) -> str:
        def reached(goal: float) -> bool:
            return self.ratio <= goal if self.at_most else self.ratio >= goal

        return "aim" if reached(self.aim) else "floor" if reached(self.floor) else "below the floor"


def compare(measure: str, unit: str, twin: str, measured: Sequence[Sequence[float]], **goals: Any) -> Row:
    """Returns a row of medians.

    Args:
        measured: Our results and their results, both with one number for each repeat.
        goals: Further attributes of the row: `floor`, `aim`, `at_most`.
    """
    ours, theirs = measured
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Row(
        measure,
        unit,
        statistics.median(ours),
        twin,
        statistics.median(theirs),
        statistics.median(ratios),
        spread=(min(ratios), max(ratios)),
        **goals,
    )


def alternate(repeats: int, *runs: Callable[[], Any]) -> list[list[Any]]:
    """Calls each function once per round, and returns the results of each function.

    The functions alternate, so that other load on the machine affects all of them.
    """
    rounds = [[run() for run in runs] for _ in range(repeats)]
    return [list(results) for results in zip(*rounds, strict=True)]


def print_rows(rows: Sequence[Row]) -> None:
    """Prints a table for people on stderr, and JSON for `run.py` on stdout."""
    print_table(rows, Console(stderr=True, width=_WIDTH))
    print(json.dumps([dataclasses.asdict(row) for row in rows]))


def print_table(rows: Sequence[Row], console: Console | None = None) -> None:
    """Prints the rows as a table, and their notes."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("measure", "ours", "compared with", "theirs", "ratio", "floor", "aim", "reached"):
        table.add_column(column, justify="left" if column in ("measure", "compared with", "reached") else "right")
    for row in rows:
        theirs = "" if row.theirs is None else format_number(row.theirs, row.unit)
        ratio = format_number(row.ratio, "" if row.theirs is not None else row.unit)
        spread = f" ({format_number(row.spread[0])} to {format_number(row.spread[1])})" if row.spread else ""
        goals = [("at most " if row.at_most else "") + format_number(goal) for goal in (row.floor, row.aim)]
        table.add_row(
            row.measure, format_number(row.ours, row.unit), row.twin, theirs, ratio + spread, *goals, row.verdict
        )
    console = console or Console(width=_WIDTH)
    console.print(table)
    for row in rows:
        if row.note:
            console.print(f"{row.measure}: {row.note}", markup=False, highlight=False)


def format_number(value: float, unit: str = "") -> str:
    """Returns a number with three digits, or without decimals from 100 on, and its unit."""
    return (f"{value:,.0f}" if value >= 100 else f"{value:.3g}") + (f" {unit}" if unit else "")


def describe_machine() -> dict[str, Any]:
    """Returns the processor, the number of cores and the versions of the software."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "software": {name: importlib.metadata.version(name) for name in SOFTWARE},
    }


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def run_command(command: str, *arguments: Any) -> dict[str, Any]:
    """Runs a command of Lengthwise, as `run_program` does."""
    return run_program(command_line(command, *arguments))


def command_line(command: str, *arguments: Any) -> list[Any]:
    """Returns the command line of a command of Lengthwise."""
    return [sys.executable, "-m", "lengthwise", command, *arguments]


def peak_of_all_processes(command: Sequence[Any]) -> float:
    """Runs a program, and returns the peak memory in MiB of it and its child processes together. Needs /proc."""
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(_resident(path, process.pid) for path in pathlib.Path("/proc").glob("[0-9]*/stat")))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with status {process.returncode}.")
    return peak


def _resident(stat: pathlib.Path, session: int) -> float:
    """Returns the memory of a process in MiB, or 0 if the process is not in the session."""
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:  # the process has ended
        return 0.0
    return int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if int(fields[3]) == session else 0.0


def run_program(command: Sequence[Any]) -> dict[str, Any]:
    """Runs a program, and returns its stdout, its seconds from start to end, and its peak memory in MiB."""
    program = [sys.executable, "-c", _LAUNCHER, *map(str, command)]
    done = subprocess.run(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with status {done.returncode}.")
    stdout, _, measured = done.stdout.rpartition(b"\0")
    seconds, kibibytes = map(float, measured.split())
    return {"stdout": stdout, "seconds": seconds, "peak_mebibytes": kibibytes / 1024}
