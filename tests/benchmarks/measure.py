"""Runs programs, times what is done alternately, and says what was found against the floor and the aim of it."""

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

# A program's peak memory begins with what the process held that started it, so a small one starts it.
_LAUNCHER = """
import resource, subprocess, sys, time
begin = time.perf_counter()
status = subprocess.call(sys.argv[1:])
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print("\\0", time.perf_counter() - begin, usage.ru_maxrss, flush=True)
sys.exit(status)
"""
# Columns of a table, wherever it is printed.
_WIDTH = 180


@dataclasses.dataclass(frozen=True)
class Row:
    """One measure: ours, what it is compared with, and their ratio.

    Attributes:
        twin: What is measured beside it in the same run; "" where there is nothing.
        ratio: Ours by the twin's, or the measure itself where there is no twin.
        floor, aim: What the ratio should reach, or stay below where `at_most`.
        spread: The smallest and the largest ratio of the repeats.
        note: What else one should know of it.
        command: What measures it again; `run.py` fills it in.
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
    """A row of the medians of speeds that were measured in turn: all of ours, and beside each of them one of theirs."""
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
    """What each of the runs gave, of so many rounds: each once a round, so that a busy machine is busy for all."""
    rounds = [[run() for run in runs] for _ in range(repeats)]
    return [list(results) for results in zip(*rounds, strict=True)]


def tell(rows: Sequence[Row]) -> None:
    """A table for people on stderr, and on stdout what `run.py` reads."""
    show(rows, Console(stderr=True, width=_WIDTH))
    print(json.dumps([dataclasses.asdict(row) for row in rows]))


def show(rows: Sequence[Row], console: Console | None = None) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("measure", "ours", "compared with", "theirs", "ratio", "floor", "aim", "reached"):
        table.add_column(column, justify="left" if column in ("measure", "compared with", "reached") else "right")
    for row in rows:
        theirs = "" if row.theirs is None else number(row.theirs, row.unit)
        ratio = number(row.ratio, "" if row.theirs is not None else row.unit)
        spread = f" ({number(row.spread[0])} to {number(row.spread[1])})" if row.spread else ""
        goals = [("at most " if row.at_most else "") + number(goal) for goal in (row.floor, row.aim)]
        table.add_row(row.measure, number(row.ours, row.unit), row.twin, theirs, ratio + spread, *goals, row.verdict)
    console = console or Console(width=_WIDTH)
    console.print(table)
    for row in rows:
        if row.note:
            console.print(f"{row.measure}: {row.note}", markup=False, highlight=False)


def number(value: float, unit: str = "") -> str:
    return (f"{value:,.0f}" if value >= 100 else f"{value:.3g}") + (f" {unit}" if unit else "")


def machine() -> dict[str, Any]:
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


def call(command: str, *arguments: Any) -> dict[str, Any]:
    """Runs a command of Lengthwise."""
    return execute(command_line(command, *arguments))


def command_line(command: str, *arguments: Any) -> list[Any]:
    return [sys.executable, "-m", "lengthwise", command, *arguments]


def peak_of_all(command: Sequence[Any]) -> float:
    """Runs a program: the most mebibytes that it and the processes it starts held together. Needs /proc."""
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(_resident(path, process.pid) for path in pathlib.Path("/proc").glob("[0-9]*/stat")))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}.")
    return peak


def _resident(stat: pathlib.Path, session: int) -> float:
    """Mebibytes of a process, if it is of the session."""
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:  # gone meanwhile
        return 0.0
    return int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if int(fields[3]) == session else 0.0


def execute(command: Sequence[Any]) -> dict[str, Any]:
    """Runs a program: what it said, how long it took from its start to its end, the most memory it held."""
    program = [sys.executable, "-c", _LAUNCHER, *map(str, command)]
    done = subprocess.run(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}.")
    said, _, measured = done.stdout.rpartition(b"\0")
    seconds, kibibytes = map(float, measured.split())
    return {"stdout": said, "seconds": seconds, "peak_mebibytes": kibibytes / 1024}
