"""Removes the files of a dataset that are too old to keep."""

import contextlib
import os
import time
from collections.abc import Collection, Iterable

from pipeline.errors import UserError
from pipeline.files import FileDetails, exists, is_local, join, list_details, remove
from pipeline.format.history import read_commit, read_summary, reader
from pipeline.format.manifest import MAX_BYTES, Manifest
from pipeline.format.summary import GenerationSummary, summary_path
from pipeline.writing.marker import is_at_work
from pipeline.writing.paths import FOLDERS, generation_of, is_commit
from pipeline.writing.retention_rules import Log, Removal, RetentionRules

# Default of --retain, in seconds.
DEFAULT_RETAIN = 24 * 3600.0


def remove_old(output: str, manifest: Manifest, *, retain: float) -> None:
    """Removes the files that are too old to keep, after a commit.

    Call it under the lock of the dataset. What it reads does not grow with the number of commits or shards, unless a
    generation is removed.

    Args:
        manifest: The manifest of the commit.
        retain: Seconds for which a generation is kept after a commit removed it, and for which other files that no
            commit names are kept.

    Raises:
        UserError: A commit or a summary that the decision needs cannot be read.
        OSError: A file could not be removed.
    """
    # Vocabularies become old only when a generation is removed.
    files = list_dataset(output, folders=("commits", "data", "rejected"), skip=manifest.generations)
    rules = retention_rules(output, manifest, files, retain=retain)
    removals = rules.choose(files)
    if any(removal.generation for removal in removals):
        removals = rules.choose([*files, *list_dataset(output, folders=("vocabulary",))])
    apply_removals(output, removals)


def find_old(output: str, manifest: Manifest, *, retain: float) -> list[Removal]:
    """Returns all files that are too old to keep, in the order in which they must be removed.

    Raises:
        UserError: A commit or a summary that the decision needs cannot be read, or the store does not tell the age of
            a file.
    """
    files = list_dataset(output)
    if any(file.modified is None for file in files):
        raise UserError(
            f"{output}: this store does not tell when a file was changed, so no one can say which files are older than "
            "--retain. Remove files that no commit names by hand, or copy the dataset to another store."
        )
    return retention_rules(output, manifest, files, retain=retain, thorough=True).choose(files)


def retention_rules(
    output: str, manifest: Manifest, files: Iterable[FileDetails], *, retain: float, thorough: bool = False
) -> RetentionRules:
    """Returns the rules for a dataset at this moment. RetentionRules describes the arguments."""
    generations = {generation_of(file.path) for file in files} - {None}
    read = reader(output)

    def read_removed(name: str) -> GenerationSummary | None:
        path = summary_path(name)
        try:
            return (
                GenerationSummary.parse(read(path, MAX_BYTES), origin=join(output, path))
                if exists(join(output, path))
                else None
            )
        except UserError:  # damaged: no commit with this generation can be opened
            return None

    log = Log(
        read_commit=lambda number: read_commit(read, number, origin=output).commit,
        read_summaries=lambda: (
            read_summary(read, name, sha256, origin=output) for name, sha256 in manifest.summaries.items()
        ),
        read_removed=read_removed,
    )
    at_work = {name for name in generations if name is not None and is_at_work(output, name)}
    return RetentionRules(manifest, log, at_work, time.time(), retain, thorough)


def list_dataset(
    output: str, *, folders: Iterable[str] = (*FOLDERS, "commits"), skip: Iterable[str] = ()
) -> list[FileDetails]:
    """Returns the files in some folders of a dataset, with paths inside it, without its commits.

    Args:
        skip: Generations to leave out.
    """
    prefix, skipped = join(output, ""), set(skip)
    found = []
    for folder in folders:
        files = list_details(join(output, folder), skip=lambda path: _is_skipped(path.removeprefix(prefix), skipped))
        found += [file._replace(path=file.path.removeprefix(prefix)) for file in files]
    return found


def _is_skipped(path: str, generations: Collection[str]) -> bool:
    """Whether a path is that of a commit, which is never removed, or belongs to one of some generations."""
    return is_commit(path) or generation_of(path) in generations


def apply_removals(output: str, removals: Iterable[Removal]) -> None:
    """Removes files in this order, and the folders of generations that become empty.

    Raises:
        OSError: A file could not be removed.
    """
    removals = list(removals)
    remove([join(output, removal.path) for removal in removals])
    if is_local(output):
        for generation in {removal.generation for removal in removals if removal.generation}:
            # Fails if a file of someone else is there. Its subfolders are gone.
            with contextlib.suppress(OSError):
                os.rmdir(join(output, "data", generation))
