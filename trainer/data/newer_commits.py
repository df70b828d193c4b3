"""Looks for commits that were added to a dataset after a commit that a trainer has read."""

import functools
from typing import NamedTuple

import pydantic

from pipeline.errors import UserError
from pipeline.format.commit import commit_path
from pipeline.format.history import LoggedCommit, read_commit
from pipeline.format.manifest import Manifest
from pipeline.format.models import Sha256
from pipeline.format.summary import summary_path
from trainer.data.dataset import Dataset, open_dataset
from trainer.data.dataset_files import file_exists, read_file

# `compact` only moves the records to other shards.
_KEEPS_RECORDS = {"compact"}
# After a commit of these operations, nothing that the dataset had before need be there any more.
_REPLACES = {"create", "replace"}


class PinnedCommit(pydantic.BaseModel):
    """A commit that an epoch reads.

    Attributes:
        number: Its number.
        sha256: SHA-256 of its file, which contains that of the commit before it. So it identifies the whole log.
        fingerprint: Fingerprint of the dataset as of this commit.
    """

    number: int
    sha256: Sha256
    fingerprint: Sha256

    @classmethod
    def of(cls, manifest: Manifest, *, origin: str) -> "PinnedCommit":
        """Returns the commit of a manifest. Raises a UserError if the dataset has a format without commits."""
        if manifest.commit is None or manifest.commit_sha256 is None:
            raise UserError(
                f"{origin}: has format version {manifest.format_version}, which has no commits to follow. Make it "
                "again with `lengthwise prepare --overwrite`, or train without --follow."
            )
        return cls(number=manifest.commit, sha256=manifest.commit_sha256, fingerprint=manifest.fingerprint)


class Replaced(UserError):
    """The dataset no longer contains what a commit had, or it is another dataset."""


class Newer(NamedTuple):
    """The newest commit of a dataset.

    Attributes:
        dataset: The dataset as of this commit.
        has_other_records: Whether its records are not those of the pinned commit. `compact` keeps them, and a commit
            may add none.
    """

    dataset: Dataset
    has_other_records: bool


def find_newer(path: str, pinned: PinnedCommit) -> Newer | None:
    """Returns the newest commit of a dataset, or None if it is the pinned one. This costs little if it is.

    Raises:
        Replaced: The dataset was replaced since, or is another one.
    """
    if not file_exists(f"{path}/{commit_path(pinned.number + 1)}"):
        check_is_logged(path, pinned)
        return None
    dataset = open_dataset(path)
    newest = dataset.manifest.commit
    if newest is None or newest <= pinned.number:  # a writer creates the commit, and then replaces the manifest
        return None
    previous, keeps_records = pinned.sha256, dataset.manifest.fingerprint == pinned.fingerprint
    operations = set()
    for number in range(pinned.number + 1, newest + 1):
        commit, sha256 = _read(path, number)
        if commit.previous_sha256 != previous:
            raise _other_dataset(path, pinned)
        if commit.operation in _REPLACES:
            raise Replaced(
                f"{path}: commit {number} of {commit.time} ({commit.operation}) replaced the dataset that this run has "
                f"followed up to commit {pinned.number}."
            )
        previous = sha256
        operations.add(commit.operation)
    return Newer(dataset, not (keeps_records or operations <= _KEEPS_RECORDS))


def check_is_logged(path: str, pinned: PinnedCommit) -> None:
    """Raises Replaced if a dataset has not, or not any more, the pinned commit."""
    is_there = file_exists(f"{path}/{commit_path(pinned.number)}")
    if not is_there or _read(path, pinned.number).sha256 != pinned.sha256:
        raise _other_dataset(path, pinned)


def has_files(dataset: Dataset) -> bool:
    """Returns whether the generations of an opened dataset have not been removed since."""
    return all(file_exists(f"{dataset.path}/{summary_path(name)}") for name in dataset.manifest.generations)


def _read(path: str, number: int) -> LoggedCommit:
    return read_commit(functools.partial(read_file, path), number, origin=path)


def _other_dataset(path: str, pinned: PinnedCommit) -> Replaced:
    return Replaced(
        f"{path}: is not the dataset that this run has followed: it has no commit {pinned.number} with the SHA-256 "
        f"{pinned.sha256}."
    )
