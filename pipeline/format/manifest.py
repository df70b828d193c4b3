"""The manifest of a dataset: it lists all files and counts. A reader opens no file that it does not list."""

import hashlib
import json
from typing import Annotated, Any, Literal

import pydantic

from pipeline.errors import UserError
from pipeline.files import exists, join, read_bytes
from pipeline.format.manifest_checks import Numbers, find_contradictions
from pipeline.format.models import Count, FeatureStatistics, Model, Rejected, Sha256, Split, Vocabulary
from pipeline.schema.schema import Schema

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"


class Source(Model):
    """A raw file as it was read.

    Attributes:
        bytes: Number of bytes that were read.
        sha256: SHA-256 of the joined digests of its chunks, in order. The digest of a chunk is computed from its lines.
    """

    path: str
    bytes: Count
    sha256: Sha256


class Manifest(Model):
    """The contents of `manifest.json`."""

    format_version: Literal[1] = 1
    # Not `schema`, which is a (deprecated) method of every pydantic model.
    record_schema: Annotated[Schema, pydantic.Field(alias="schema")]
    seed: int
    fingerprint: Sha256
    generations: tuple[str, ...]
    splits: dict[str, Split]
    statistics: dict[str, FeatureStatistics] = pydantic.Field(
        description="Of float32 features and of regression labels, in the train split."
    )
    vocabularies: dict[str, Vocabulary] = pydantic.Field({}, description="Of each string feature with a vocabulary.")
    rejected: Rejected
    sources: tuple[Source, ...]
    software: dict[str, str]

    @classmethod
    def parse(cls, data: bytes, *, origin: str) -> "Manifest":
        """Parses and checks the bytes of a manifest.

        Args:
            origin: Path of the file, for error messages.

        Raises:
            UserError: The bytes are not a manifest, have another format version, or contradict themselves.
        """
        try:
            values = json.loads(data)
            version = values["format_version"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{origin}: not a manifest of a dataset: {data[:40]!r}. Make it again with `lengthwise prepare`."
            ) from None
        if version != FORMAT_VERSION:
            raise UserError(
                f"{origin}: has format version {version!r}, but this code reads version {FORMAT_VERSION}. "
                "Make the dataset again with `lengthwise prepare`, or use the version of Lengthwise that wrote it."
            )
        try:
            manifest = cls.model_validate(values)
        except pydantic.ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(str(part) for part in fault["loc"])
            raise UserError(
                f"{origin}: {place}: {str(fault['input'])[:60]!r}: {fault['msg']}. Was this file edited?"
            ) from None
        if manifest.fingerprint != manifest.computed_fingerprint():
            raise UserError(f"{origin}: the fingerprint does not match what the manifest lists. Was this file edited?")
        for problem in find_contradictions(manifest.numbers()):
            raise UserError(f"{origin}: {problem}. Was this file edited?")
        return manifest

    def to_json(self) -> bytes:
        """Returns the bytes of `manifest.json`."""
        values = self.model_dump(mode="json", by_alias=True) | {"schema": self.record_schema.canonical()}
        return json.dumps(values, indent=1, ensure_ascii=False).encode() + b"\n"

    def computed_fingerprint(self) -> str:
        """Returns the fingerprint that follows from the other attributes."""
        shards = {name: [shard.sha256 for shard in split.shards] for name, split in self.splits.items()}
        return fingerprint(self.record_schema, seed=self.seed, shards=shards)

    def numbers(self) -> Numbers:
        """Returns the numbers that must not contradict one another."""
        return Numbers(self.record_schema, self.splits, self.statistics, self.vocabularies, self.rejected)

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


def read_manifest(dataset: str) -> Manifest:
    """Reads the manifest of the dataset in a folder, on any file system that Beam knows.

    Raises:
        UserError: The folder is no dataset, or its manifest is not valid.
    """
    path = join(dataset, FILE_NAME)
    if not exists(path):
        problem = f"has no {FILE_NAME}" if exists(dataset) else "there is no such folder"
        raise UserError(f"{dataset}: not a dataset: {problem}; make one with `lengthwise prepare`.")
    return Manifest.parse(read_bytes(path), origin=path)


def fingerprint(schema: Schema, *, seed: int, shards: dict[str, list[str]]) -> str:
    """Returns the fingerprint of a dataset: the SHA-256 of format version, schema, seed and each shard's SHA-256.

    It does not depend on the time or on software versions.

    Args:
        shards: For each split, the SHA-256 of its shards.
    """
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "schema": schema.fingerprint,
        "seed": seed,
        "shards": shards,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
