"""Lists the commits of a dataset: what each of them did, and whether it can still be opened."""

from typing import Any

from pipeline.errors import UserError, counted
from pipeline.files import exists, join
from pipeline.format.history import read_commits, read_summary, reader
from pipeline.format.manifest import Manifest
from pipeline.format.summary import summary_path
from pipeline.tables import buffered_console, print_table

# Most commits that the table shows: more lines than this are not read, and take seconds to print.
_MAX_COMMITS = 100


def list_commits(dataset: str, manifest: Manifest) -> list[dict[str, Any]]:
    """Returns the commits of a dataset as plain values for JSON, the oldest first.

    Each has the keys `commit`, `time`, `operation`, `added` and `removed` (names of generations), `records` (number of
    records of the dataset as of this commit) and `available` (whether `--commit` can open it). `records` is None if the
    commit cannot be opened.

    Raises:
        UserError: The log of commits is damaged, or the dataset has format version 1, which has no commits.
    """
    if manifest.commit is None:
        raise UserError(f"{dataset}: has no commits, for its format version is {manifest.format_version}.")
    read = reader(dataset)
    found: list[dict[str, Any]] = []
    live: dict[str, int | None] = {}
    for logged in read_commits(read, manifest.commit, origin=dataset):
        commit = logged.commit
        for name in commit.removed:
            live.pop(name, None)
        for added in commit.added:
            live[added.generation] = None
            if exists(join(dataset, summary_path(added.generation))):
                summary = read_summary(read, added.generation, added.summary_sha256, origin=dataset)
                live[added.generation] = sum(split.records for split in summary.splits.values())
        counts = list(live.values())
        records = [count for count in counts if count is not None]
        available = len(records) == len(counts)
        found.append(
            {
                "commit": commit.number,
                "time": commit.time,
                "operation": commit.operation,
                "added": [added.generation for added in commit.added],
                "removed": list(commit.removed),
                "records": sum(records) if available else None,
                "available": available,
            }
        )
    return found


def print_commits(commits: list[dict[str, Any]], dataset: str) -> None:
    """Prints a table of the newest commits that `list_commits` returned, the newest first."""
    rows = [
        (
            str(commit["commit"]),
            commit["time"],
            commit["operation"],
            f"{len(commit['added']):,}",
            f"{len(commit['removed']):,}",
            f"{commit['records']:,}" if commit["available"] else "files removed",
        )
        for commit in commits[: -_MAX_COMMITS - 1 : -1]
    ]
    with buffered_console() as console:
        title = f"{dataset}: {counted(len(commits), 'commit')}. --commit N opens an older one while its files exist."
        print_table(console, title, ("commit", "time", "operation", "generations added", "removed", "records"), rows)
        if len(commits) > _MAX_COMMITS:
            older = len(commits) - _MAX_COMMITS
            more = f"{older:,} older commits are not shown. `lengthwise inspect {dataset} --commits --json` lists all."
            console.print(more, soft_wrap=True)
