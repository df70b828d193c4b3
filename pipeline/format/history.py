"""Reads the log of commits: which generations a dataset has at a commit, and its manifest as of that commit.

The functions take `read`, which returns the bytes of a file inside the dataset and raises a UserError if it cannot, or
if the file has more bytes than its second argument: the pipeline and the trainer reach file systems in different ways.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias

from pipeline.errors import UserError
from pipeline.files import join, read_bytes
from pipeline.format.commit import MAX_BYTES as MAX_COMMIT_BYTES
from pipeline.format.commit import Commit, commit_path, sha256_of
from pipeline.format.manifest import MAX_BYTES, Manifest, read_manifest
from pipeline.format.summary import GenerationSummary, summary_path
from pipeline.format.view import build_view

Read: TypeAlias = Callable[[str, int], bytes]


def reader(dataset: str) -> Read:
    """Returns the `read` of a dataset on any file system that Beam knows."""
    return lambda path, max_bytes: read_bytes(join(dataset, path), max_bytes)


class LoggedCommit(NamedTuple):
    """A commit, and the SHA-256 of its file."""

    commit: Commit
    sha256: str


def read_commit(read: Read, number: int, *, origin: str) -> LoggedCommit:
    """Reads one commit.

    Args:
        origin: Path of the dataset, for error messages.

    Raises:
        UserError: The file cannot be read, or is not this commit.
    """
    path = commit_path(number)
    data = read(path, MAX_COMMIT_BYTES)
    commit = Commit.parse(data, origin=f"{origin}/{path}")
    if commit.number != number:
        raise UserError(f"{origin}/{path}: is commit {commit.number}, expected {number}. Were files renamed?")
    return LoggedCommit(commit, sha256_of(data))


def read_commits(read: Read, last: int, *, origin: str) -> Iterator[LoggedCommit]:
    """Yields the commits 1 to `last`, after a check that each one follows the one before it.

    Raises:
        UserError: A commit is missing, or is not the one that the next commit names.
    """
    previous: LoggedCommit | None = None
    for number in range(1, last + 1):
        found = read_commit(read, number, origin=origin)
        expected = None if previous is None else previous.sha256
        if found.commit.previous_sha256 != expected:
            changed = commit_path(number - 1) if number > 1 else commit_path(number)
            raise UserError(
                f"{origin}/{commit_path(number)}: does not follow the commit before it: {changed} has the SHA-256 "
                f"{expected}, but this commit names {found.commit.previous_sha256}. Was one of the two edited?"
            )
        yield found
        previous = found


def live_generations(commits: Iterable[Commit]) -> dict[str, str]:
    """Returns the generations of the dataset after these commits, oldest first, with the SHA-256 of their summaries."""
    live: dict[str, str] = {}
    for commit in commits:
        for generation in commit.removed:
            live.pop(generation, None)  # commit 1 may replace a dataset of format version 1, which has no commits
        live.update((added.generation, added.summary_sha256) for added in commit.added)
    return live


def read_summary(read: Read, generation: str, sha256: str, *, origin: str) -> GenerationSummary:
    """Reads the summary of a generation.

    Raises:
        UserError: The file cannot be read, or is not the one that the commit names.
    """
    path = summary_path(generation)
    data = read(path, MAX_BYTES)
    if sha256_of(data) != sha256:
        raise UserError(
            f"{origin}/{path}: is not the file that its commit names. `lengthwise verify` lists all errors."
        )
    return GenerationSummary.parse(data, origin=f"{origin}/{path}")


def read_view(read: Read, number: int, *, origin: str, is_newest: bool = True) -> Manifest:
    """Returns the manifest of a dataset as of a commit.

    Args:
        origin: Path of the dataset, for error messages.
        is_newest: Whether no commit follows. If one does, it is read too: it has the SHA-256 of this one.

    Raises:
        UserError: There is no such commit, the log is damaged, or a generation of the commit was removed.
    """
    commits = list(read_commits(read, number if is_newest else number + 1, origin=origin))[:number]
    newest = commits[-1]
    summaries = []
    for generation, sha256 in live_generations(logged.commit for logged in commits).items():
        try:
            summaries.append((read_summary(read, generation, sha256, origin=origin), sha256))
        except UserError as error:
            raise UserError(
                f"{origin}: commit {number} cannot be opened: its generation {generation} is not there any more "
                f"({error}) A replaced generation is kept for the --retain of the job that replaced it; "
                "`lengthwise inspect --commits` lists what can be opened."
            ) from None
    return build_view(newest.commit, newest.sha256, summaries)


def view_of(manifest: Manifest, number: int | None, read: Read, *, origin: str) -> Manifest:
    """Returns the manifest of a dataset as of a commit, or `manifest` itself if `number` is None.

    Args:
        manifest: The manifest in the folder of the dataset.
        origin: Path of the dataset, for error messages.

    Raises:
        UserError: There is no such commit, the log is damaged, or a generation of the commit was removed.
    """
    if number is None or number == manifest.commit:
        return manifest
    if manifest.commit is None:
        raise UserError(
            f"{origin}: has no commit {number}: a dataset of format version {manifest.format_version} has no commits. "
            "Make it again with `lengthwise prepare --overwrite`."
        )
    if not 1 <= number <= manifest.commit:
        raise UserError(f"{origin}: has no commit {number}; expected 1 to {manifest.commit}, which is the newest one.")
    return read_view(read, number, origin=origin, is_newest=False)


def read_manifest_at(dataset: str, number: int | None) -> Manifest:
    """Reads the manifest of a dataset as of a commit, on any file system that Beam knows.

    Args:
        number: The commit. None is the newest one.

    Raises:
        UserError: The folder is no dataset, or the commit cannot be opened.
    """
    manifest = read_manifest(dataset)
    return view_of(manifest, number, reader(dataset), origin=dataset)
