"""Adds commits to the log of a dataset, and keeps its manifest at the newest commit."""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.create_once import create_once, supports_create_once
from pipeline.errors import TryAgain, UserError
from pipeline.files import exists, is_local, join, list_files, list_temporary, read_bytes, remove, replace
from pipeline.format.commit import (
    FOLDER,
    MAX_BYTES,
    AddedGeneration,
    Commit,
    Operation,
    commit_numbers,
    commit_path,
    sha256_of,
)
from pipeline.format.history import read_commit, read_summary, read_view, reader
from pipeline.format.manifest import FILE_NAME, Manifest
from pipeline.format.manifest import MAX_BYTES as MAX_MANIFEST_BYTES
from pipeline.format.summary import GenerationSummary, summary_path
from pipeline.format.view import build_view
from pipeline.writing.base import Base
from pipeline.writing.conflicts import (
    check_may_append,
    check_no_conflict,
    check_not_replayed,
    check_windows_of_shards,
)
from pipeline.writing.groups import check_groups
from pipeline.writing.lock import lock_dataset
from pipeline.writing.paths import runs_folder
from pipeline.writing.retention import remove_old
from pipeline.writing.summary_cache import SummaryCache
from pipeline.writing.vocabularies import are_copied, choose_and_write, copy_vocabularies, keep_vocabularies

# How often a writer tries to commit on an object store while others are faster.
_MAX_RACES = 100


class Head(NamedTuple):
    """The state of an output folder.

    Attributes:
        number: Number of the newest commit; 0 if there is none, which includes a dataset of format version 1.
        manifest: The manifest of this commit, or of the dataset of format version 1. None if there is no dataset.
    """

    number: int
    manifest: Manifest | None


@dataclasses.dataclass(frozen=True)
class Change:
    """What a commit does to a dataset.

    Attributes:
        operation: `create` and `replace` remove all generations of `base`.
        base: The dataset as it was when the work began.
        added: The generation that the dataset gains. Its files are written, and so is its summary.
        removed: For `compact`, the generations that `added` takes the place of.
        pane: Name of the pane that the commit holds. If there is a commit with this name already, none is added.
        keep_vocabularies: For `stream`, whether the dataset keeps its vocabularies, if it has any. Otherwise they are
            chosen from the strings of all generations.
    """

    operation: Operation
    base: Base
    added: GenerationSummary
    removed: tuple[str, ...] = ()
    pane: str | None = None
    keep_vocabularies: bool = False


def newest_commit(output: str, *, after: int = 0) -> int:
    """Returns the number of the newest commit in an output folder, or 0 if there is none.

    Args:
        after: Number of a commit that was there before. If it still is, only later ones are looked for: a stream makes
            millions of commits, which are not listed each time.

    Raises:
        UserError: A commit before the newest one is missing.
    """
    if after and exists(join(output, commit_path(after))):
        while exists(join(output, commit_path(after + 1))):
            after += 1
        return after
    numbers = commit_numbers(list_files(join(output, FOLDER)))
    if numbers and numbers != list(range(1, numbers[-1] + 1)):
        missing = min(set(range(1, numbers[-1])) - set(numbers))
        raise UserError(
            f"{join(output, commit_path(missing))}: is missing, but commit {numbers[-1]} exists. "
            "Restore the file from a copy, or prepare into another --output."
        )
    return numbers[-1] if numbers else 0


def read_head(output: str) -> Head:
    """Returns the state of an output folder. Does not write: a manifest that is behind stays so.

    Raises:
        UserError: The log is damaged.
    """
    return _read_state(output)[0]


def _read_state(output: str, after: int = 0) -> tuple[Head, bool]:
    """Returns the state of an output folder, and whether its manifest is behind the log."""
    manifest = _read_valid_manifest(output)  # first: another writer may add a commit, and then its manifest
    number = newest_commit(output, after=after)
    is_behind = number > 0 and (manifest is None or manifest.commit != number)
    if is_behind:
        manifest = read_view(reader(output), number, origin=output)
    return Head(number, manifest), is_behind


def recover(output: str, *, after: int = 0) -> Head:
    """Returns the state of an output folder, after its manifest was rebuilt if it is behind the log.

    A writer that is killed between its commit and the manifest leaves the manifest one commit behind, and the copies of
    the vocabularies. Call it under the lock of the dataset. On an object store, which has no lock, another writer may
    publish a commit meanwhile: whoever writes a manifest there looks once more, so that the last one is the newest.

    Args:
        after: See `newest_commit`.

    Raises:
        UserError: The log is damaged.
    """
    head, is_behind = _read_state(output, after)
    while is_behind and head.manifest is not None:
        _show(output, head.manifest)
        if is_local(output):
            break
        head, is_behind = _read_state(output, head.number)
    return head


def recover_if_behind(output: str, *, lock_timeout: float) -> None:
    """Completes the newest commit, for jobs that may find that there is nothing to commit.

    Rebuilds a manifest that is behind the log, and the copies of the vocabularies if they are not those of the newest
    commit. `clean` does not need this: it must work on a full disk.

    Raises:
        UserError: The log is damaged.
        LockTimeout: The lock could not be had in time. It is not taken if there is nothing to complete.
        OSError: A copy could not be read or written.
    """
    number = newest_commit(output)
    found = _read_valid_manifest(output) if number else None
    if not number or (found is not None and found.commit == number and are_copied(output, found.vocabularies)):
        return
    with lock_dataset(output, timeout=lock_timeout):
        manifest = recover(output).manifest
        if manifest is not None and not are_copied(output, manifest.vocabularies):
            copy_vocabularies(output, manifest.vocabularies)


def commit(
    output: str, change: Change, *, lock_timeout: float, retain: float | None, known: SummaryCache | None = None
) -> Manifest:
    """Adds a commit, and returns the new manifest.

    If others published commits meanwhile, `append`, `compact` and `stream` are committed on top of them. If one of them
    holds the same pane, returns its manifest, and adds nothing.

    Args:
        lock_timeout: Longest time to wait for the lock of the dataset, in seconds.
        retain: How long a generation is kept after a commit has removed it, in seconds. None removes no old files now.
        known: Summaries that were read before. None reads those of all generations.

    Raises:
        UserError: Another commit was published that does not fit with this one. Nothing is published.
        TryAgain: The same, and the same command will work when it is repeated.
        LockTimeout: The lock could not be had in time.
    """
    for left in reversed(range(_MAX_RACES)):
        try:
            return _commit(output, change, lock_timeout=lock_timeout, retain=retain, known=known)
        except _NumberTaken:  # on an object store, which has no lock
            if not left:
                raise
    raise AssertionError("not reached")


class _NumberTaken(TryAgain):
    """Another process created the commit with this number first."""


def _commit(
    output: str, change: Change, *, lock_timeout: float, retain: float | None, known: SummaryCache | None
) -> Manifest:
    """Adds a commit, as `commit` does. Raises _NumberTaken if another process was faster; then nothing is published."""
    with lock_dataset(output, timeout=lock_timeout):
        head = recover(output, after=change.base.number)
        if change.pane is not None:
            published = find_pane(output, change.pane, after=change.base.number)
            if published is not None:
                return published
        removed = _generations_to_remove(output, head, change)
        kept = {} if head.manifest is None else dict(head.manifest.summaries)
        kept = {generation: sha256 for generation, sha256 in kept.items() if generation not in removed}
        groups = None if known is None else known.groups
        known = SummaryCache() if known is None else known
        parts = list(zip(known.read(output, kept), kept.values(), strict=True))
        if change.operation in ("append", "stream"):
            check_not_replayed(output, change.added, head.manifest)
            meanwhile = [summary for summary, _ in parts if summary.generation not in change.base.summaries]
            check_no_conflict(output, change.added, meanwhile)
        sha256 = sha256_of(change.added.to_json())
        parts.append((change.added, sha256))
        folder = runs_folder(output, change.added.generation)
        if change.operation != "compact":  # which moves no record to another split
            check_groups(output, [summary for summary, _ in parts], folder=folder, known=groups)
        if change.keep_vocabularies and head.manifest is not None:
            chosen = keep_vocabularies(output, head.manifest, change.added)
        else:
            chosen = choose_and_write(output, [summary for summary, _ in parts], folder=folder)
        made = next_commit(
            output,
            head,
            change.operation if head.manifest is not None else "create",
            added=(AddedGeneration(generation=change.added.generation, summary_sha256=sha256),),
            removed=removed,
            positions={} if change.pane is None else {"pane": change.pane},
            **chosen._asdict(),
        )
        return publish_commit(output, made, parts, retain=retain)


def next_commit(output: str, head: Head, operation: Operation, **values: Any) -> Commit:
    """Returns the commit that follows the newest one.

    Args:
        values: Its other attributes.
    """
    newest = reader(output)(commit_path(head.number), MAX_BYTES) if head.number else None
    return Commit(
        number=head.number + 1,
        previous_sha256=None if newest is None else sha256_of(newest),
        time=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
        operation=operation,
        **values,
    )


def publish_commit(
    output: str, made: Commit, parts: Sequence[tuple[GenerationSummary, str]], *, retain: float | None
) -> Manifest:
    """Creates a commit, and returns its manifest. Call it under the lock of the dataset.

    Args:
        parts: The summaries of all generations, as `build_view` takes them.
        retain: See `commit`.
    """
    data = made.to_json()
    # Built before the commit exists: what contradicts itself must not be published.
    manifest = build_view(made, sha256_of(data), parts)
    _create(output, made, data)
    # The copies of the vocabularies belong to the newest commit: a job that is refused or killed before must not leave
    # copies of its own vocabularies.
    _show(output, manifest)
    if not is_local(output):
        recover(output, after=made.number)
    if retain is not None:
        remove_old(output, manifest, retain=retain)
    return manifest


def find_published(output: str, generation: str, *, after: int) -> Manifest | None:
    """Returns the manifest of the commit that added a generation, or None if no commit did.

    Args:
        after: Only later commits are searched.
    """
    read = reader(output)
    for number in range(newest_commit(output, after=after), after, -1):
        made = read_commit(read, number, origin=output).commit
        if any(added.generation == generation for added in made.added):
            newest = _read_valid_manifest(output)
            is_newest = newest is not None and newest.commit == number
            return newest if is_newest else read_view(read, number, origin=output)
    return None


def find_pane(output: str, pane: str, *, after: int, known: dict[int, str | None] | None = None) -> Manifest | None:
    """Returns the manifest of the commit that holds a pane, or None if no commit does.

    Args:
        after: Only later commits are searched.
        known: The panes of commits that were read before, by the number of the commit. Gets those that are read now, so
            that a stream reads each commit once.
    """
    read, known = reader(output), {} if known is None else known
    for number in range(newest_commit(output, after=after), after, -1):
        if number not in known:
            known[number] = read_commit(read, number, origin=output).commit.pane
        if known[number] == pane:
            return read_view(read, number, origin=output)
    return None


def read_summaries(output: str, digests: Mapping[str, str]) -> list[GenerationSummary]:
    """Returns the summaries of generations.

    Args:
        digests: The name of each generation, and the SHA-256 of its summary.
    """
    return [read_summary(reader(output), name, sha256, origin=output) for name, sha256 in digests.items()]


def _show(output: str, manifest: Manifest) -> None:
    """Writes the files that show the newest commit: the copies of its vocabularies, and the manifest.

    A job that is killed before the manifest leaves it behind, so the next one writes both. A copy that cannot be
    written does not keep readers at the older commit.
    """
    try:
        copy_vocabularies(output, manifest.vocabularies)
    finally:
        write_manifest(output, manifest)


def write_manifest(output: str, manifest: Manifest) -> None:
    """Replaces the manifest of a dataset atomically."""
    with replace(join(output, FILE_NAME)) as file:
        file.write(manifest.to_json())
    remove(list_temporary(join(output, FILE_NAME)))


def write_summary(output: str, summary: GenerationSummary) -> None:
    """Writes the summary of a generation."""
    with replace(join(output, summary_path(summary.generation))) as file:
        file.write(summary.to_json())


def _create(output: str, made: Commit, data: bytes) -> None:
    """Creates the file of a commit, if there is none. Raises _NumberTaken if there is one.

    A store that cannot create a file only if it does not exist gets one commit, but no second one.
    """
    path = join(output, commit_path(made.number))
    try:
        if supports_create_once(path):
            create_once(path, data)
        elif made.number == 1:
            with replace(path) as file:
                file.write(data)
        else:
            raise UserError(
                f"{output}: has a dataset already. A second commit must create a file only if it does not exist, which "
                "this kind of storage cannot do. Choose another --output, or delete the folder first."
            )
    except FileExistsError:
        raise _NumberTaken(
            f"{output}: another job published commit {made.number} meanwhile. Nothing was published. Run the same "
            "command again."
        ) from None


def _generations_to_remove(output: str, head: Head, change: Change) -> tuple[str, ...]:
    """Returns the generations that a change removes, after a check that it fits the newest commit."""
    live = () if head.manifest is None else head.manifest.generations
    if change.operation in ("create", "replace"):
        if head.number != change.base.number or (change.operation == "create" and live):
            raise UserError(f"{output}: {_describe(output, head)} was published meanwhile. Nothing was published.")
        return live
    added = change.added
    # The generations that a compaction merged determine schema and seed, and are checked below.
    if head.manifest is not None and change.operation != "compact":
        may_widen = added.replayed.files != ()
        check_may_append(output, head.manifest, added.record_schema, added.seed, may_widen=may_widen)
        if head.manifest.windows is not None:
            check_windows_of_shards(output, head.manifest.windows, added.windows)
    missing = set(change.removed) - set(live)
    if missing:
        raise UserError(
            f"{output}: {_describe(output, head)} was published meanwhile, without the generation {min(missing)}. "
            "Nothing was published."
        )
    return change.removed


def _describe(output: str, head: Head) -> str:
    """Returns a description of the newest commit for messages."""
    if not head.number:
        return "a dataset of format version 1"
    made = read_commit(reader(output), head.number, origin=output).commit
    return f"commit {head.number} ({made.operation}, {made.time})"


def _read_valid_manifest(output: str) -> Manifest | None:
    """Returns the manifest in an output folder, or None if there is none that is valid.

    Raises:
        UserError: The file exists but cannot be read.
    """
    path = join(output, FILE_NAME)
    if not exists(path):
        return None
    data = read_bytes(path, MAX_MANIFEST_BYTES)
    try:
        return Manifest.parse(data, origin=path)
    except UserError:
        return None
