"""The manifest: the only entry to a dataset, and all that its reader believes."""

import hashlib
import json
import posixpath
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pydantic

from pipeline.errors import UserError
from pipeline.schema import Schema

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


class FeatureStatistics(_Part):
    """Over the steps of the train split, one number for each column of the flattened shape."""

    count: Count
    mean: tuple[float, ...]
    variance: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]


class Rejected(_Part):
    total: Count
    by_reason: dict[str, Count]
    files: tuple[InsidePath, ...]


class Source(_Part):
    """A raw file as it was read. `sha256` is over the digests of its chunks, in their order."""

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
        except (ValueError, KeyError, TypeError):
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
        for place, found, expected, source in _sums(manifest):
            if found != expected:
                raise UserError(f"{origin}: {place} is {found:,}, but {source} say {expected:,}. Was this file edited?")
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


def fingerprint(schema: Schema, *, seed: int, shards: dict[str, list[str]]) -> str:
    """SHA-256 over format version, schema, seed and every shard's SHA-256: nothing that varies with time or version."""
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "schema": schema.fingerprint,
        "seed": seed,
        "shards": shards,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sums(manifest: Manifest) -> Iterator[tuple[str, int, int, str]]:
    """(place, number there, number that other places give, those places) of what the manifest says twice."""
    label = manifest.record_schema.label
    for name, split in manifest.splits.items():
        place, lengths = f"splits.{name}", split.length_counts
        yield f"{place}.records", split.records, sum(s.records for s in split.shards), "its shards"
        yield f"{place}.steps", split.steps, sum(s.steps for s in split.shards), "its shards"
        yield f"{place}.records", split.records, sum(lengths.values()), "its length_counts"
        yield f"{place}.steps", split.steps, sum(n * count for n, count in lengths.items()), "its length_counts"
        if label.kind in ("class", "step_class"):
            yield f"{place}.labels", split.labels, sum(split.label_counts.values()), "its label_counts"
        if not label.per_step:
            yield f"{place}.labels", split.labels, split.records, "its records"
    rejected = manifest.rejected
    yield "rejected.total", rejected.total, sum(rejected.by_reason.values()), "its reasons"
    train = manifest.splits.get(TRAIN)
    for name, statistics in manifest.statistics.items():
        expected = 0 if train is None else train.records if name == label.name else train.steps
        yield f"statistics.{name}.count", statistics.count, expected, f"the counts of {TRAIN}"
