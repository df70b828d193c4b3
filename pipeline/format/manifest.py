"""The manifest of a dataset: it lists all files and counts. A reader opens no file that it does not list."""

import hashlib
import itertools
import json
import posixpath
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, NamedTuple

import pydantic

from pipeline.errors import UserError
from pipeline.files import exists, join, read_bytes
from pipeline.schema.labels import ONE_CLASS
from pipeline.schema.schema import Schema

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
# The split that statistics and vocabularies are computed from.
TRAIN = "train"

Count = Annotated[int, pydantic.Field(ge=0)]
Sha256 = Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]


def _check_inside(path: str) -> str:
    """Refuses a path that leaves the dataset: a manifest from elsewhere must not make a reader open other files."""
    inside = posixpath.normpath(path) == path and not path.startswith(("/", ".."))
    if not inside or any(text in path for text in ("\\", "\0", "://")):
        raise ValueError("expected a path inside the dataset, relative to it")
    return path


InsidePath = Annotated[str, pydantic.AfterValidator(_check_inside)]


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, populate_by_name=True)


class Shard(_Model):
    """A TFRecord file and its index.

    Attributes:
        path: Path of the TFRecord file, inside the dataset.
        records: Number of records.
        steps: Number of steps of all records.
        bytes: Size of the TFRecord file.
        sha256: SHA-256 of the TFRecord file.
        index_path: Path of the index, inside the dataset.
        index_sha256: SHA-256 of the index.
    """

    path: InsidePath
    records: Count
    steps: Count
    bytes: Count
    sha256: Sha256
    index_path: InsidePath
    index_sha256: Sha256


class Split(_Model):
    """The shards of one split, and exact counts of their contents."""

    records: Count
    steps: Count
    labels: Count = pydantic.Field(description="Number of labelled records, or of labelled steps for labels per step.")
    truncated: Count = pydantic.Field(description="Number of records that were shortened to max_length.")
    shards: tuple[Shard, ...]
    length_counts: dict[int, Count] = pydantic.Field(description="Number of records of each length.")
    label_counts: dict[str, Count] = pydantic.Field(
        description="Number of labels of each class; empty without classes."
    )
    missing: dict[str, Count] = pydantic.Field(
        {}, description="Number of missing values of each feature that allows nulls."
    )
    unknown: dict[str, Count] = pydantic.Field(
        {}, description="Number of strings of each feature that are not in its vocabulary."
    )


_EMPTY_SPLIT = Split(records=0, steps=0, labels=0, truncated=0, shards=(), length_counts={}, label_counts={})


class FeatureStatistics(_Model):
    """Statistics over the steps (or records) of the train split, for each column of a feature's flattened shape.

    Missing values count in `count` and `missing` only. A column without any other value has zeros elsewhere.
    """

    count: Count = pydantic.Field(description="Number of steps (or records), including those with missing values.")
    missing: tuple[Count, ...] = pydantic.Field(
        (), description="Number of missing values of each column; empty if none is missing."
    )
    mean: tuple[float, ...]
    variance: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]

    def columns(self) -> dict[str, tuple[float, ...]]:
        """Returns the attributes that have a number for each column, by name."""
        always = {"mean": self.mean, "variance": self.variance, "min": self.min, "max": self.max}
        return always | ({"missing": self.missing} if self.missing else {})


class Vocabulary(_Model):
    """A file with the strings of a feature, one on each line (see pipeline/format/vocabulary.py)."""

    path: InsidePath
    sha256: Sha256
    size: Count = pydantic.Field(description="Number of strings; less than in the schema if the train split has fewer.")


class Rejected(_Model):
    """The number of rejects, in total and for each reason, and the files that list them."""

    total: Count
    by_reason: dict[str, Count]
    files: tuple[InsidePath, ...]


class Source(_Model):
    """A raw file as it was read.

    Attributes:
        bytes: Number of bytes that were read.
        sha256: SHA-256 of the joined digests of its chunks, in order. The digest of a chunk is computed from its lines.
    """

    path: str
    bytes: Count
    sha256: Sha256


class Manifest(_Model):
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
        # The names come first, for the other checks look up counts by the name of a feature.
        for problem in itertools.chain(_find_wrong_names(manifest), _find_wrong_numbers(manifest)):
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


class _Check(NamedTuple):
    """A number in the manifest, and the limits that other numbers in the manifest set for it.

    Attributes:
        place: Path of the number.
        found: The number.
        minimum, maximum: The limits, both included.
        expectation: The limits and where they come from, in words.
    """

    place: str
    found: int
    minimum: int
    maximum: int
    expectation: str


def _equal(place: str, found: int, expected: int, source: str) -> _Check:
    return _Check(place, found, expected, expected, f"{source} say {expected:,}")


def _between(place: str, found: int, minimum: int, maximum: int) -> _Check:
    return _Check(place, found, minimum, maximum, f"other counts allow {minimum:,} to {maximum:,}")


def _find_wrong_names(manifest: Manifest) -> Iterator[str]:
    """Yields a message for each place that has other features than the schema says."""
    features = manifest.record_schema.features
    in_vocabulary = {name for name, feature in features.items() if feature.vocabulary is not None}
    allows_nulls = {name for name, feature in features.items() if feature.allows_nulls}
    places: list[tuple[str, Iterable[str], set[str]]] = [("vocabularies", manifest.vocabularies, in_vocabulary)]
    for name, split in manifest.splits.items():
        places.append((f"splits.{name}.missing", split.missing, allows_nulls))
        places.append((f"splits.{name}.unknown", split.unknown, in_vocabulary))
    for place, found, expected in places:
        if set(found) != expected:
            yield f"{place} has the features {sorted(found)}, but the schema says {sorted(expected)}"


def _find_wrong_numbers(manifest: Manifest) -> Iterator[str]:
    """Yields a message for each number that contradicts other numbers."""
    for check in itertools.chain(_check_sums(manifest), _check_statistics(manifest), _check_limits(manifest)):
        if not check.minimum <= check.found <= check.maximum:
            yield f"{check.place} is {check.found:,}, but {check.expectation}"


def _check_sums(manifest: Manifest) -> Iterator[_Check]:
    """Yields checks of the counts that the manifest also gives as a sum of other counts."""
    label = manifest.record_schema.label
    for name, split in manifest.splits.items():
        place, lengths = f"splits.{name}", split.length_counts
        yield _equal(f"{place}.records", split.records, sum(s.records for s in split.shards), "its shards")
        yield _equal(f"{place}.steps", split.steps, sum(s.steps for s in split.shards), "its shards")
        yield _equal(f"{place}.records", split.records, sum(lengths.values()), "its length_counts")
        steps = sum(length * count for length, count in lengths.items())
        yield _equal(f"{place}.steps", split.steps, steps, "its length_counts")
        if label.name is not None and label.kind in ONE_CLASS:
            labels = sum(split.label_counts.values())
            yield _equal(f"{place}.labels", split.labels, labels, "its label_counts")
        if not label.per_step:
            yield _equal(f"{place}.labels", split.labels, split.records, "its records")
    rejected = manifest.rejected
    yield _equal("rejected.total", rejected.total, sum(rejected.by_reason.values()), "its reasons")


def _check_statistics(manifest: Manifest) -> Iterator[_Check]:
    """Yields checks of the counts and the number of columns of each feature's statistics."""
    schema = manifest.record_schema
    train = manifest.splits.get(TRAIN, _EMPTY_SPLIT)
    for name, statistics in manifest.statistics.items():
        place = f"statistics.{name}"
        rows = train.steps if schema.is_per_step(name) else train.records
        yield _equal(f"{place}.count", statistics.count, rows, f"the counts of {TRAIN}")
        missing = rows - train.labels if name == schema.label.name else train.missing.get(name, 0)
        yield _equal(f"{place}.missing", sum(statistics.missing), missing, f"the counts of {TRAIN}")
        width = schema.statistics_widths.get(name, 0)
        for key, columns in statistics.columns().items():
            yield _equal(f"{place}.{key}", len(columns), width, "the columns of the schema")


def _check_limits(manifest: Manifest) -> Iterator[_Check]:
    """Yields checks of the counts that other counts limit, but do not give exactly."""
    schema = manifest.record_schema
    for name, vocabulary in manifest.vocabularies.items():
        yield _between(f"vocabularies.{name}.size", vocabulary.size, 0, schema.features[name].vocabulary or 0)
    for name, split in manifest.splits.items():
        place = f"splits.{name}"
        values = {
            n: (split.steps if schema.is_per_step(n) else split.records) * feature.width
            for n, feature in schema.features.items()
        }
        for n, missing in split.missing.items():
            yield _between(f"{place}.missing.{n}", missing, 0, values[n])
        for n, unknown in split.unknown.items():
            yield _between(f"{place}.unknown.{n}", unknown, 0, values[n] - split.missing.get(n, 0))
        for n, count in split.label_counts.items():
            yield _between(f"{place}.label_counts.{n}", count, 0, split.labels)
        if schema.label.next_of is not None:
            # The label of a step is the value of the next step. A missing value removes the label of one step at most.
            maximum = split.steps - split.records
            minimum = maximum - split.missing.get(schema.label.next_of, 0)
        else:
            minimum, maximum = 0, split.steps if schema.label.per_step else split.records
        yield _between(f"{place}.labels", split.labels, minimum, maximum)
