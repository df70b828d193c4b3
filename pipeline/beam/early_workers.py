"""Starts the worker processes of a job before this process imports the modules of the job: both take half a second."""

import os
from collections.abc import Iterable

from pipeline.beam.memory_budget import workers_for
from pipeline.beam.workers import start_early

# What the workers of `prepare` import.
STAGES = "pipeline.writing.stages"


def start_early_workers(raw: Iterable[str], *, processes: int | None, memory: int | None) -> None:
    """Starts the worker processes that a job over raw files is known to need. `start_workers` takes them over.

    Args:
        raw: The paths, globs and folders of the raw files. Only local files that are named by their paths count here:
            if the job finds more, it starts more workers.
        processes, memory: As for `count_workers`.
    """
    if processes is None:
        processes = workers_for(sum(os.path.getsize(path) for path in raw if os.path.isfile(path)), memory)
    start_early(processes, STAGES)
