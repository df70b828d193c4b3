"""The manifest of a dataset: it lists all files and counts. A reader opens no file that it does not list."""

import hashlib
import json
from typing import Annotated, Any, Literal

import pydantic

from pipeline.errors import UserError
from pipeline.files import exists, join, read_bytes
from pipeline.format.commit import Number
from pipeline.format.manifest_checks import Numbers, find_contradictions
from pipeline.format.models import (
    UNLESS_NONE,
    Count,
    FeatureStatistics,
    Model,
    Rejected,
    Sha256,
    Split,
    Vocabulary,
    parse_model,
)
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows

# The version that this code writes, and all versions that it reads. Version 1 has no commits.
FORMAT_VERSION = 2
FORMAT_VERSIONS = (1, 2)
FILE_NAME = "manifest.json"
# A larger file is no manifest, and no summary of a generation. It is refused before it is read.
MAX_BYTES = 2**30


class Source(Model):
    """A raw file as it was read.

    Attributes:
        bytes: Number of bytes that were read.
        sha256: SHA-256 of the joined digests of its chunks, in order. The digest of a chunk is computed from its lines.
    """

    path: str
    bytes: Count
    sha256: Sha256


class InputTotals(Model):
    """The number of raw files, and the number of bytes that were read from them. `sources` lists the files."""

    files: Count
    bytes: Count


class Manifest(Model):
    """The contents of `manifest.json`, which is the view of the newest commit.

    Attributes:
        commit: Number of the commit. None in format version 1, which has no commits.
        commit_sha256: SHA-256 of the file of the commit.
        generations: Names of the generations, in the order in which they were added.
        summaries: SHA-256 of the summary of each generation.
        vocabularies_of: Number of the commit that chose the vocabularies. None if it is this one.
        sources: The raw files; only in format version 1. Later versions list them in a file of each generation.
        inputs: The size of the raw files; not in format version 1.
        windows: The windows that shards are labelled with; None if no shard is.
    """

    format_version: Literal[1, 2] = 2
    commit: Number | None = None
    commit_sha256: Sha256 | None = None
    # Not `schema`, which is a (deprecated) method of every pydantic model.
    record_schema: Annotated[Schema, pydantic.Field(alias="schema")]
    seed: int
    fingerprint: Sha256
    generations: tuple[str, ...]
    summaries: dict[str, Sha256] = {}
    splits: dict[str, Split]
    statistics: dict[str, FeatureStatistics] = pydantic.Field(
        description="Of float32 features and of regression labels, in the train split."
    )
    vocabularies: dict[str, Vocabulary] = pydantic.Field({}, description="Of each string feature with a vocabulary.")
    vocabularies_of: Annotated[Number | None, UNLESS_NONE] = None
    rejected: Rejected
    sources: tuple[Source, ...] = ()
    inputs: InputTotals | None = None
    windows: Annotated[EventWindows | None, UNLESS_NONE] = None
    software: dict[str, str]

    @classmethod
    def parse(cls, data: bytes, *, origin: str) -> "Manifest":
        """Parses and checks the bytes of a manifest.

        Args:
            origin: Path of the file, for error messages.

        Raises:
            UserError: The bytes are not a manifest, have another format version, or contradict themselves.
        """
        manifest = parse_model(
            cls,
            data,
            origin=origin,
            kind="a manifest of a dataset",
            versions=FORMAT_VERSIONS,
            way_out="Make it again with `lengthwise prepare`.",
        )
        if (manifest.format_version > 1) != (manifest.commit is not None and manifest.commit_sha256 is not None):
            raise UserError(f"{origin}: has no commit, which format version 2 has. Was this file edited?")
        if manifest.format_version > 1 and tuple(manifest.summaries) != manifest.generations:
            raise UserError(f"{origin}: lists other generations than summaries. Was this file edited?")
        if manifest.fingerprint != manifest.computed_fingerprint():
            raise UserError(f"{origin}: the fingerprint does not match what the manifest lists. Was this file edited?")
        for problem in find_contradictions(manifest.numbers()):
            raise UserError(f"{origin}: {problem}. Was this file edited?")
        return manifest

    def to_json(self) -> bytes:
        """Returns the bytes of `manifest.json`."""
        unused = _VERSION_1_ONLY if self.format_version > 1 else _SINCE_VERSION_2
        values = self.model_dump(mode="json", by_alias=True, exclude=unused)
        values |= {"schema": self.record_schema.canonical()}
        return json.dumps(values, indent=1, ensure_ascii=False).encode() + b"\n"

    def computed_fingerprint(self) -> str:
        """Returns the fingerprint that follows from the other attributes."""
        shards = {name: [shard.sha256 for shard in split.shards] for name, split in self.splits.items()}
        return fingerprint(self.record_schema, seed=self.seed, shards=shards, format_version=self.format_version)

    def numbers(self) -> Numbers:
        """Returns the numbers that must not contradict one another."""
        return Numbers(self.record_schema, self.splits, self.statistics, self.vocabularies, self.rejected, self.windows)

    def split(self, name: str, *, origin: str = "The dataset") -> Split:
        """Returns a split by name.

        Args:
            origin: Path of the dataset, for error messages.

        Raises:
            UserError: There is no such split. The message lists the splits.
        """
        try:
            return self.splits[name]
        except KeyError:
            raise UserError(f"{origin} has no split {name!r}; it has {', '.join(self.splits)}.") from None


_VERSION_1_ONLY = {"sources"}
_SINCE_VERSION_2 = {"commit", "commit_sha256", "summaries", "inputs"}


def read_manifest(dataset: str) -> Manifest:
    """Reads the manifest of the dataset in a folder, on any file system that Beam knows.

    Raises:
        UserError: The folder is no dataset, or its manifest is not valid.
    """
    path = join(dataset, FILE_NAME)
    if not exists(path):
        problem = f"has no {FILE_NAME}" if exists(dataset) else "there is no such folder"
        raise UserError(f"{dataset}: not a dataset: {problem}; make one with `lengthwise prepare`.")
    return Manifest.parse(read_bytes(path, MAX_BYTES), origin=path)


def fingerprint(
    schema: Schema, *, seed: int, shards: dict[str, list[str]], format_version: int = FORMAT_VERSION
) -> str:
    """Returns the fingerprint of a dataset: the SHA-256 of format version, schema, seed and each shard's SHA-256.

    It does not depend on the time or on software versions.

    Args:
        shards: For each split, the SHA-256 of its shards.
    """
    content: dict[str, Any] = {
        "format_version": format_version,
        "schema": schema.fingerprint,
        "seed": seed,
        "shards": shards,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
