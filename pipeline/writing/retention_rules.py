"""Decides which files of a dataset are too old to keep."""

import bisect
import collections
import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from pipeline.files import FileDetails
from pipeline.format.commit import Commit
from pipeline.format.manifest import Manifest
from pipeline.format.summary import GenerationSummary, summary_path
from pipeline.writing.paths import (
    generation_of,
    is_named_by_summary,
    is_vocabulary,
    is_written_by_prepare,
    vocabulary_copy_path,
)

UNNAMED = "files that no commit names"
CLOSED = "vocabularies of commits that can no longer be opened"


class Log(NamedTuple):
    """The files of a dataset that are read if a decision needs them.

    Attributes:
        read_commit: Returns the commit with a number.
        read_summaries: Returns the summaries of the generations of the newest commit.
        read_removed: Returns the summary of another generation, or None if it cannot be read.
    """

    read_commit: Callable[[int], Commit]
    read_summaries: Callable[[], Iterable[GenerationSummary]]
    read_removed: Callable[[str], GenerationSummary | None]


class Removal(NamedTuple):
    """A file to remove.

    Attributes:
        path: Path inside the dataset.
        reason: Why it is removed, in plain words.
        generation: The generation that is removed as a whole. None if only this file is removed.
    """

    path: str
    num_bytes: int
    reason: str
    generation: str | None = None


@dataclasses.dataclass(frozen=True)
class RetentionRules:
    """Decides which files of a dataset to remove.

    - A file whose name does not show that a job wrote it stays. So does everything that the newest commit names.
    - A generation that a commit removed stays for the retention time after that commit.
    - Another generation that is not part of the dataset stays until its newest file is older than the retention time.
      So does any other file that no commit names.
    - A file of rejects also stays as long as a generation whose summary names it: `compact` makes such summaries.
    - A vocabulary stays as long as a commit that names it can be opened: as long as all of its generations exist.
    - The files of a writer at work stay.

    Attributes:
        manifest: The view of the newest commit.
        at_work: Generations whose writers are at work.
        now: Seconds since 1970.
        retain: The retention time in seconds.
        thorough: Whether to look for old vocabularies even if no generation is removed, and to read all commits to
            say which one removed a generation. A commit does neither: it must not read thousands of other commits to
            find that there is nothing to remove.
    """

    manifest: Manifest
    log: Log
    at_work: Collection[str]
    now: float
    retain: float
    thorough: bool = False

    def choose(self, files: Sequence[FileDetails]) -> list[Removal]:
        """Returns the files to remove, in this order: a generation that has its summary is complete.

        Args:
            files: The files of the dataset; their paths are inside it. Files of the newest commit may be left out.

        Raises:
            UserError: A commit or a summary that the decision needs cannot be read.
        """
        live = self.manifest.generations
        listed = _listed_paths(self.manifest)
        removals: list[Removal] = []
        vocabularies = []
        dead: dict[str, list[FileDetails]] = collections.defaultdict(list)
        for file in files:
            generation = generation_of(file.path)
            if not is_written_by_prepare(file.path) or file.path in listed:
                continue
            if generation is None and is_vocabulary(file.path):
                vocabularies.append(file)
            elif generation is not None and generation not in live:
                dead[generation].append(file)
            elif not is_named_by_summary(file.path) and generation not in self.at_work and self._is_old(file):
                removals.append(Removal(file.path, file.num_bytes, UNNAMED))
        expired = self._expired(dead)
        removals += expired
        if expired or self.thorough:
            removed = {removal.generation for removal in expired}
            kept = {name for name in dead.keys() - removed if summary_path(name) in {file.path for file in dead[name]}}
            removals += self._remove_vocabularies(vocabularies, available={*live, *kept})
        removals += _copies(removals, files)
        return sorted(removals, key=lambda removal: (not removal.path.endswith("/summary.json"), removal.path))

    def _is_old(self, file: FileDetails) -> bool:
        """Whether a file is older than the retention time. A file of unknown age is not."""
        return file.modified is not None and file.modified <= self.now - self.retain

    def _expired(self, dead: Mapping[str, Sequence[FileDetails]]) -> list[Removal]:
        """Removes those of the generations that are not part of the dataset that are too old to keep."""
        old = {
            generation: files
            for generation, files in sorted(dead.items())
            if generation not in self.at_work and all(map(self._is_old, files))
        }
        if any(file.path.startswith("rejected/") for files in old.values() for file in files):
            listed = _listed_rejects(self.log.read_summaries())
            old = {
                generation: rest
                for generation, files in old.items()
                if (rest := [file for file in files if file.path not in listed])
            }
        limit = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(max(self.now - self.retain, 0)))
        after = "" if self.thorough else limit
        removed = find_removed(self.log.read_commit, self.manifest.commit or 0, old, after=after)
        removals = []
        for generation, files in old.items():
            commit = removed.get(generation)
            reason = f"generation {generation}, which no commit names"
            if commit is not None:
                if commit.time > limit:
                    continue
                reason = f"generation {generation}, removed by commit {commit.number} ({commit.time})"
            removals += [Removal(file.path, file.num_bytes, reason, generation) for file in files]
        if any(removal.path.startswith("rejected/") for removal in removals):
            kept = dead.keys() - {removal.generation for removal in removals}
            listed = _listed_rejects(filter(None, map(self.log.read_removed, sorted(kept))))
            removals = [removal for removal in removals if removal.path not in listed]
        return removals

    def _remove_vocabularies(self, files: Iterable[FileDetails], *, available: Collection[str]) -> list[Removal]:
        """Removes the vocabularies that are named only by commits that cannot be opened.

        Args:
            available: The generations that exist.
        """
        old = {file.path: file.num_bytes for file in files if self._is_old(file)}
        named = find_vocabularies(self.log.read_commit, self.manifest, available, wanted=old)
        return [Removal(path, num_bytes, CLOSED) for path, num_bytes in old.items() if path not in named]


def find_removed(
    read_commit: Callable[[int], Commit], newest: int, generations: Collection[str], *, after: str
) -> dict[str, Commit]:
    """Returns the commit that removed each generation, of those that were removed later than a time.

    Reads commits only until all generations are found, beginning with the first one after that time. Most often they
    are found at once: what is old enough to be looked up was removed long ago.

    Args:
        newest: Number of the newest commit; 0 if there is none.
        after: Time in the form of `Commit.time`; earlier ones may be empty.
    """
    found: dict[str, Commit] = {}
    if not generations:
        return found
    numbers = range(1, newest + 1)
    first = bisect.bisect_right(numbers, after, key=lambda number: read_commit(number).time) if after else 0
    for number in numbers[first:]:
        commit = read_commit(number)
        found |= {generation: commit for generation in commit.removed if generation in generations}
        if len(found) == len(generations):
            break
    return found


def find_vocabularies(
    read_commit: Callable[[int], Commit], manifest: Manifest, available: Collection[str], *, wanted: Collection[str]
) -> set[str]:
    """Returns the paths among `wanted` that are named by a commit that can be opened.

    Args:
        manifest: The view of the newest commit.
        available: The generations that exist.
    """
    named: set[str] = set()
    # The generations of the commit, and those that exist and were not added later.
    live, earlier = set(manifest.generations), set(available)
    for number in range(manifest.commit or 0, 0, -1):
        if len(named) == len(wanted) or not earlier:
            break
        commit = read_commit(number)
        if live <= earlier:
            named |= {vocabulary.path for vocabulary in commit.vocabularies.values() if vocabulary.path in wanted}
        added = {added.generation for added in commit.added}
        live = live - added | set(commit.removed)
        earlier -= added
    return named


def _listed_rejects(summaries: Iterable[GenerationSummary]) -> set[str]:
    return {file.path for summary in summaries for file in summary.rejected.files}


def _listed_paths(manifest: Manifest) -> set[str]:
    listed = {*manifest.rejected.files, *(vocabulary.path for vocabulary in manifest.vocabularies.values())}
    for split in manifest.splits.values():
        listed.update(path for shard in split.shards for path in (shard.path, shard.index_path))
    return listed


def _copies(removals: Sequence[Removal], files: Iterable[FileDetails]) -> list[Removal]:
    """Removes the copies for people of vocabularies of which none is left.

    Their names do not show that a job wrote them: no other copy is removed.
    """
    gone = {removal.path for removal in removals if is_vocabulary(removal.path)}
    stored = {file.path: file.num_bytes for file in files if file.path.startswith("vocabulary/")}
    left = {vocabulary_copy_path(path) for path in stored.keys() - gone if is_vocabulary(path)}
    copies = {vocabulary_copy_path(path) for path in gone} & stored.keys() - left
    return [Removal(path, stored[path], CLOSED) for path in copies]
