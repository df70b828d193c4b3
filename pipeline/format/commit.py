"""A commit of a dataset: a file that is created once, never changes, and says which generations came and went."""

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import pydantic

from pipeline.errors import UserError
from pipeline.format.models import UNLESS_NONE, Count, Generation, Model, Sha256, Vocabulary, parse_model

FOLDER = "commits"
_NAME = re.compile(r"(\d{8})\.json", re.ASCII)
# A larger file is no commit. It is refused before all of it is read.
MAX_BYTES = 16 * 2**20

Operation = Literal["create", "replace", "append", "compact", "stream"]
Number = Annotated[int, pydantic.Field(ge=1, lt=10**8)]


class AddedGeneration(Model):
    """A generation that a commit adds, and the SHA-256 of its summary."""

    generation: Generation
    summary_sha256: Sha256


class Commit(Model):
    """The contents of `commits/00000001.json`.

    The vocabularies and the counts of unknown strings are stored here, because they follow from the strings of all
    generations together: to choose them again would read every count of a string.

    Attributes:
        number: Number of the commit, from 1.
        previous_sha256: SHA-256 of the file of the previous commit. None for commit 1.
        time: When the commit was made, in UTC: "2026-01-31T12:00:00Z".
        operation: What was done.
        added, removed: Generations that the dataset gained, and those that it no longer has.
        positions: What of a stream the commit holds, if a pipeline on an unbounded source wrote it: `pane` is the name
            of its pane, which no other commit has. Else empty. (Up to where each raw file was read is in the file of
            sources of each generation.)
        vocabularies: The vocabulary of each string feature that has one.
        unknown: For each split, the number of strings of each of these features that are not in its vocabulary.
        vocabularies_of: Number of the commit that chose the vocabularies, from the strings of all its generations. None
            if it is this one. A stream chooses them now and then.
    """

    format_version: Literal[2] = 2
    number: Number
    previous_sha256: Sha256 | None
    time: Annotated[str, pydantic.Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    operation: Operation
    added: tuple[AddedGeneration, ...]
    removed: tuple[Generation, ...]
    positions: dict[str, Any] = {}
    vocabularies: dict[str, Vocabulary] = {}
    unknown: dict[str, dict[str, Count]] = {}
    vocabularies_of: Annotated[Number | None, UNLESS_NONE] = None

    @property
    def pane(self) -> str | None:
        """The name of the pane that the commit holds, or None."""
        return self.positions.get("pane")

    @classmethod
    def parse(cls, data: bytes, *, origin: str) -> "Commit":
        """Parses and checks the bytes of a commit.

        Args:
            origin: Path of the file, for error messages.

        Raises:
            UserError: The bytes are not a commit, or have another format version.
        """
        if len(data) > MAX_BYTES:
            raise UserError(f"{origin}: not a commit of a dataset: it has more than {MAX_BYTES:,} bytes. {_WAY_OUT}")
        return parse_model(
            cls, data, origin=origin, kind="a commit of a dataset", versions=(FORMAT_VERSION,), way_out=_WAY_OUT
        )

    def to_json(self) -> bytes:
        """Returns the bytes of the file."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False).encode() + b"\n"


FORMAT_VERSION = 2
_WAY_OUT = "`lengthwise verify` lists all errors; restore the file from a copy, or prepare the dataset again."


def commit_path(number: int) -> str:
    """Returns the path of a commit, inside the dataset.

    >>> commit_path(12)
    'commits/00000012.json'
    """
    return f"{FOLDER}/{number:08d}.json"


def commit_numbers(paths: Iterable[str]) -> list[int]:
    """Returns the numbers of the commits among files, ascending.

    >>> commit_numbers(["commits/00000012.json", "commits/lock", "commits/00000003.json"])
    [3, 12]
    """
    names = (path.rsplit("/", 1)[-1] for path in paths)
    return sorted(int(found[1]) for found in map(_NAME.fullmatch, names) if found)


def sha256_of(data: bytes) -> str:
    """Returns the SHA-256 of bytes as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
