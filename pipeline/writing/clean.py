"""Cleans a dataset: removes all files that are too old to keep, and says which."""

import collections
import dataclasses
from collections.abc import Sequence

from pipeline.errors import UserError
from pipeline.files import absolute
from pipeline.format.manifest import Manifest, read_manifest
from pipeline.writing.commit_log import read_head, recover
from pipeline.writing.lock import lock_dataset
from pipeline.writing.marker import writers_at_work
from pipeline.writing.retention import apply_removals, find_old
from pipeline.writing.retention_rules import Removal


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """What was removed from a dataset, or would be.

    Attributes:
        removals: The files.
        at_work: A description of each writer at work, whose files stay.
        dry_run: Whether the files are still there.
    """

    removals: Sequence[Removal]
    at_work: Sequence[str]
    dry_run: bool


def clean(dataset: str, *, retain: float, dry_run: bool = False, lock_timeout: float) -> Cleaning:
    """Removes the files of a dataset that are too old to keep. The newest commit, and all files that it names, stay.

    Args:
        retain: Seconds for which a generation is kept after a commit removed it, and for which files that no commit
            names are kept.
        dry_run: Changes nothing.
        lock_timeout: Longest time to wait for the lock of the dataset, in seconds.

    Raises:
        UserError: The folder is no dataset, its log is damaged, or its store does not tell the age of files.
        LockTimeout: The lock could not be had in time.
        OSError: A file could not be removed.
    """
    output = absolute(dataset)
    manifest = _check(output, read_head(output).manifest)
    if dry_run:
        return Cleaning(find_old(output, manifest, retain=retain), writers_at_work(output), dry_run)
    with lock_dataset(output, timeout=lock_timeout, command="clean"):
        manifest = _check(output, recover(output).manifest)
        removals = find_old(output, manifest, retain=retain)
        at_work = writers_at_work(output)
        apply_removals(output, removals)
    return Cleaning(removals, at_work, dry_run)


def _check(output: str, manifest: Manifest | None) -> Manifest:
    """Returns the manifest, or raises a UserError that says why there is none."""
    if manifest is None:
        read_manifest(output)
        raise UserError(f"{output}: changed while it was read. Run the command again.")
    return manifest


def print_cleaning(cleaning: Cleaning, dataset: str) -> None:
    """Prints what was removed, by reason, or each file that would be."""
    removals = cleaning.removals
    verb = "would remove" if cleaning.dry_run else "removed"
    print(f"{dataset}: {verb} {_describe(removals)}" if removals else f"{dataset}: nothing to remove")
    by_reason = collections.defaultdict(list)
    for removal in removals:
        by_reason[removal.reason].append(removal)
    for reason, group in sorted(by_reason.items()):
        print(f"  {reason}: {_describe(group)}")
        if cleaning.dry_run:
            for removal in group:
                print(f"    {removal.path}")
    for writer in cleaning.at_work:
        print(f"  kept: generation {writer}")


def _describe(removals: Sequence[Removal]) -> str:
    # Imported here because workers import this package, and need no tables.
    from rich.filesize import decimal

    number = len(removals)
    return f"{number:,} file{'s' * (number != 1)}, {decimal(sum(removal.num_bytes for removal in removals))}"
