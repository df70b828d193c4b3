"""Merges many runs into at most MAX_RUNS larger ones, in passes, so that a merge can keep all of them open.

A pass merges no more runs than it must, and begins with the smallest ones. So of n runs, each byte is read at most
1 + log(n) / log(MAX_RUNS) times, the last merge included.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from pipeline.files import remove
from pipeline.shuffle.hashing import END_NUMBER
from pipeline.shuffle.merge_runs import MAX_RUNS, merge_runs
from pipeline.shuffle.runs import PAYLOADS_ENDING, ROWS_ENDING, Run, new_run
from pipeline.shuffle.sorted_rows import RowKind

Call: TypeAlias = Callable[[Callable[[list[Run]], Run], list[list[Run]]], Iterable[Run]]


def group_runs(runs: Iterable[Run]) -> list[list[Run]]:
    """Divides runs into at most MAX_RUNS groups, each of which is to become one run.

    A group of one run stays as it is. With more than MAX_RUNS² runs, a group has more than MAX_RUNS.
    """
    ordered = sorted(runs, key=lambda run: (run.num_bytes, run.path))
    excess = len(ordered) - MAX_RUNS
    if excess <= 0:
        return [[run] for run in ordered]
    # A group of MAX_RUNS makes one run out of them, and so removes all but one.
    num_groups = min(-(-excess // (MAX_RUNS - 1)), MAX_RUNS)
    num_merged = excess + num_groups
    bounds = [num_merged * number // num_groups for number in range(num_groups + 1)]
    merged = [ordered[first:stop] for first, stop in zip(bounds, bounds[1:], strict=False)]
    return merged + [[run] for run in ordered[num_merged:]]


def merge_group(runs: Sequence[Run], folder: str, kind: RowKind) -> Run:
    """Returns the run of a group: the only one, or a new one in `folder` with the rows and the totals of all.

    The runs of the group are kept, because a step may be retried.
    """
    if len(runs) == 1:
        return runs[0]
    given = {run.path for run in runs}
    while len(runs) > MAX_RUNS:
        before, runs = runs, reduce_runs(runs, folder, kind)
        _remove({run.path for run in before} - {run.path for run in runs} - given)
    totals = collections.Counter[Any]()
    for run in runs:
        totals.update(run.totals)
    with new_run(folder, kind) as writer:
        for block in merge_runs(runs, 0, END_NUMBER, kind):
            writer.add(block)
    _remove({run.path for run in runs} - given)
    return writer.run(dict(totals))


def reduce_runs(runs: Sequence[Run], folder: str, kind: RowKind, *, call: Call = map) -> list[Run]:
    """Returns at most MAX_RUNS runs with the rows of all runs.

    Args:
        folder: Folder for the larger runs.
        call: Calls a function for each group and returns the results, as `map` does; for example in several processes.
    """
    if len(runs) <= MAX_RUNS:
        return list(runs)
    groups = group_runs(runs)
    alone = [group[0] for group in groups if len(group) == 1]
    several = [group for group in groups if len(group) > 1]
    return alone + list(call(functools.partial(merge_group, folder=folder, kind=kind), several))


def _remove(paths: Iterable[str]) -> None:
    remove([f"{path}{ending}" for path in paths for ending in (ROWS_ENDING, PAYLOADS_ENDING)])
