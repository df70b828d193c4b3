"""The manifest: the only entry to a dataset, and all that its reader believes."""

import hashlib
import itertools
import json
import posixpath
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import pydantic

from pipeline.errors import UserError
from pipeline.files import exists, join, read_bytes
from pipeline.schema.labels import ONE_CLASS
from pipeline.schema.schema import Schema

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
# The split whose statistics the model is built from.
TRAIN = "train"

Count = Annotated[int, pydantic.Field(ge=0)]
Sha256 = Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]


def _check_inside(path: str) -> str:
    """A path that stays in the dataset: a manifest from elsewhere must not make anyone open other files."""
    if (
        path.startswith("/")
        or "\\" in path
        or "\0" in path
        or "://" in path
        or posixpath.normpath(path) != path
        or path.startswith("..")
    ):
        raise ValueError("expected a path inside the dataset, relative to it")
    return path


InsidePath = Annotated[str, pydantic.AfterValidator(_check_inside)]


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, populate_by_name=True)


class Shard(_Part):
    """One TFRecord file and its index."""

    path: InsidePath
    records: Count
    steps: Count
    bytes: Count
    sha256: Sha256
    index_path: InsidePath
    index_sha256: Sha256


class Split(_Part):
    """The shards of one split and what lies in them; every count is exact."""

    records: Count
    steps: Count
    labels: Count = pydantic.Field(description="Records with a label, or steps with one where labels are per step.")
    truncated: Count = pydantic.Field(description="Records that were cut to max_length.")
    shards: tuple[Shard, ...]
    length_counts: dict[int, Count] = pydantic.Field(description="Records of each number of steps.")
    label_counts: dict[str, Count] = pydantic.Field(description="Labels of each class, where there are classes.")
    missing: dict[str, Count] = pydantic.Field({}, description="Missing values of each feature that may miss.")
    unknown: dict[str, Count] = pydantic.Field({}, description="Strings of no vocabulary, by their feature.")


_NOTHING = Split(records=0, steps=0, labels=0, truncated=0, shards=(), length_counts={}, label_counts={})


class FeatureStatistics(_Part):
    """Over the steps (or records) of the train split, one number for each column of the flattened shape.

    Values that are missing count in nothing but `missing`; a column without any other has zeros.
    """

    count: Count = pydantic.Field(description="Steps, or records, those with a missing value included.")
    missing: tuple[Count, ...] = pydantic.Field((), description="Missing values of each column; none where empty.")
    mean: tuple[float, ...]
    variance: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]

    def columns(self) -> dict[str, tuple[float, ...]]:
        """What has a number for each column."""
        always = {"mean": self.mean, "variance": self.variance, "min": self.min, "max": self.max}
        return always | ({"missing": self.missing} if self.missing else {})


class Vocabulary(_Part):
    """The file with the strings of a feature, one a line (see pipeline/vocabulary.py)."""

    path: InsidePath
    sha256: Sha256
    size: Count = pydantic.Field(description="Strings in it; fewer than the schema asks for where there are no more.")


class Rejected(_Part):
    total: Count
    by_reason: dict[str, Count]
    files: tuple[InsidePath, ...]


class Source(_Part):
    """A raw file as it was read. `sha256` is over the digests of its chunks, in order, and theirs over their lines'."""

    path: str
    bytes: Count
    sha256: Sha256


class Manifest(_Part):
    """What `manifest.json` holds."""

    format_version: Literal[1] = 1
    # `schema` is the name of a (deprecated) method of every pydantic model.
    record_schema: Annotated[Schema, pydantic.Field(alias="schema")]
    seed: int
    fingerprint: Sha256
    generations: tuple[str, ...]
    splits: dict[str, Split]
    statistics: dict[str, FeatureStatistics] = pydantic.Field(
        description="Features of the train split: float32 ones, and the label of a regression."
    )
    vocabularies: dict[str, Vocabulary] = pydantic.Field({}, description="Of string features, by the feature's name.")
    rejected: Rejected
    sources: tuple[Source, ...]
    software: dict[str, str]

    @classmethod
    def parse(cls, data: bytes, *, origin: str) -> "Manifest":
        """The manifest in the bytes of its file.

        Raises:
            UserError: not a manifest, one of another format version, or one whose fingerprint or counts do not fit.
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
            raise UserError(f"{origin}: the fingerprint does not fit what the manifest lists. Was this file edited?")
        # In this order: what is counted of a feature is looked up by its name.
        for wrong in itertools.chain(_wrong_names(manifest), _wrong_sums(manifest), _wrong_bounds(manifest)):
            raise UserError(f"{origin}: {wrong}. Was this file edited?")
        return manifest

    def to_json(self) -> bytes:
        values = self.model_dump(mode="json", by_alias=True) | {"schema": self.record_schema.canonical()}
        return json.dumps(values, indent=1, ensure_ascii=False).encode() + b"\n"

    def computed_fingerprint(self) -> str:
        shards = {name: [shard.sha256 for shard in split.shards] for name, split in self.splits.items()}
        return fingerprint(self.record_schema, seed=self.seed, shards=shards)

    def split(self, name: str, *, origin: str = "The dataset") -> Split:
        """The split of this name.

        Raises:
            UserError: there is none; says which there are.
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
    """SHA-256 over format version, schema, seed and every shard's SHA-256: nothing that varies with time or version."""
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "schema": schema.fingerprint,
        "seed": seed,
        "shards": shards,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _wrong_names(manifest: Manifest) -> Iterator[str]:
    """A message for each place that has not the features that the schema has there."""
    features = manifest.record_schema.features
    in_vocabulary = {name for name, feature in features.items() if feature.vocabulary is not None}
    allows_nulls = {name for name, feature in features.items() if feature.allows_nulls}
    places: list[tuple[str, Iterable[str], set[str]]] = [("vocabularies", manifest.vocabularies, in_vocabulary)]
    for name, split in manifest.splits.items():
        places.append((f"splits.{name}.missing", split.missing, allows_nulls))
        places.append((f"splits.{name}.unknown", split.unknown, in_vocabulary))
    for place, found, expected in places:
        if set(found) != expected:
            yield f"{place} is of the features {sorted(found)}, but the schema says {sorted(expected)}"


def _wrong_sums(manifest: Manifest) -> Iterator[str]:
    """A message for each number that is not the one that other places give."""
    for place, found, expected, source in _sums(manifest):
        if found != expected:
            yield f"{place} is {found:,}, but {source} say {expected:,}"


def _wrong_bounds(manifest: Manifest) -> Iterator[str]:
    """A message for each number that is not within what other places allow."""
    for place, found, least, most in _bounds(manifest):
        if not least <= found <= most:
            yield f"{place} is {found:,}, but other counts allow {least:,} to {most:,}"


def _sums(manifest: Manifest) -> Iterator[tuple[str, int, int, str]]:
    """(place, number there, number that other places give, those places) of what the manifest says twice."""
    schema = manifest.record_schema
    label = schema.label
    for name, split in manifest.splits.items():
        place, lengths = f"splits.{name}", split.length_counts
        yield f"{place}.records", split.records, sum(s.records for s in split.shards), "its shards"
        yield f"{place}.steps", split.steps, sum(s.steps for s in split.shards), "its shards"
        yield f"{place}.records", split.records, sum(lengths.values()), "its length_counts"
        yield f"{place}.steps", split.steps, sum(n * count for n, count in lengths.items()), "its length_counts"
        if label.name is not None and label.kind in ONE_CLASS:
            yield f"{place}.labels", split.labels, sum(split.label_counts.values()), "its label_counts"
        if not label.per_step:
            yield f"{place}.labels", split.labels, split.records, "its records"
    rejected = manifest.rejected
    yield "rejected.total", rejected.total, sum(rejected.by_reason.values()), "its reasons"
    train = manifest.splits.get(TRAIN, _NOTHING)
    for name, statistics in manifest.statistics.items():
        place = f"statistics.{name}"
        rows = train.steps if schema.is_per_step(name) else train.records
        yield f"{place}.count", statistics.count, rows, f"the counts of {TRAIN}"
        missing = rows - train.labels if name == label.name else train.missing.get(name, 0)
        yield f"{place}.missing", sum(statistics.missing), missing, f"the counts of {TRAIN}"
        for key, columns in statistics.columns().items():
            yield f"{place}.{key}", len(columns), schema.statistics_widths.get(name, 0), "the columns of the schema"


def _bounds(manifest: Manifest) -> Iterator[tuple[str, int, int, int]]:
    """(place, number there, the least and the most that it can be) of what other places do not give exactly."""
    schema = manifest.record_schema
    for name, vocabulary in manifest.vocabularies.items():
        yield f"vocabularies.{name}.size", vocabulary.size, 0, schema.features[name].vocabulary or 0
    for name, split in manifest.splits.items():
        place = f"splits.{name}"
        values = {
            n: (split.steps if schema.is_per_step(n) else split.records) * feature.width
            for n, feature in schema.features.items()
        }
        for n, missing in split.missing.items():
            yield f"{place}.missing.{n}", missing, 0, values[n]
        for n, unknown in split.unknown.items():
            yield f"{place}.unknown.{n}", unknown, 0, values[n] - split.missing.get(n, 0)
        for n, count in split.label_counts.items():
            yield f"{place}.label_counts.{n}", count, 0, split.labels
        if schema.label.next_of is not None:
            # Each missing value takes the label of one step at most.
            followed = split.steps - split.records
            yield f"{place}.labels", split.labels, followed - split.missing.get(schema.label.next_of, 0), followed
        else:
            yield f"{place}.labels", split.labels, 0, split.steps if schema.label.per_step else split.records
