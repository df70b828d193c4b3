"""The parts that the JSON files of a dataset share: shards, splits, statistics, vocabularies and rejects."""

import json
import posixpath
from collections.abc import Collection
from typing import Annotated, TypeVar

import pydantic

from pipeline.errors import UserError

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
# The name of a generation is a part of paths.
Generation = Annotated[str, pydantic.Field(pattern=r"^[0-9A-Za-z_-]{1,64}$")]


class Model(pydantic.BaseModel):
    """A part of a JSON file of a dataset. It never changes."""

    model_config = pydantic.ConfigDict(frozen=True, populate_by_name=True)


# Leaves a value out of the file if there is none, so that files without it have the same bytes as before it existed.
UNLESS_NONE = pydantic.Field(exclude_if=lambda value: value is None)

ModelType = TypeVar("ModelType", bound=Model)


def parse_model(
    model: type[ModelType], data: bytes, *, origin: str, kind: str, versions: Collection[int], way_out: str
) -> ModelType:
    """Parses the bytes of a JSON file of a dataset.

    Args:
        origin: Path of the file, for error messages.
        kind: What the file is, for error messages: "a manifest of a dataset".
        versions: The format versions that this code reads.
        way_out: What to do if the file is something else, as a sentence.

    Raises:
        UserError: The bytes are something else, have another format version, or a value has the wrong type.
    """
    try:
        values = json.loads(data)
        version = values["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{origin}: not {kind}: {data[:40]!r}. {way_out}") from None
    if version not in versions or isinstance(version, bool):
        expected = " and ".join(map(str, versions))
        raise UserError(
            f"{origin}: has format version {version!r}, but this code reads version {expected}. "
            "Make the dataset again with `lengthwise prepare`, or use the version of Lengthwise that wrote it."
        )
    try:
        return model.model_validate(values)
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise UserError(
            f"{origin}: {place}: {str(fault['input'])[:60]!r}: {fault['msg']}. Was this file edited?"
        ) from None


class Shard(Model):
    """A TFRecord file and its index.

    Attributes:
        path: Path of the TFRecord file, inside the dataset.
        records: Number of records.
        steps: Number of steps of all records.
        bytes: Size of the TFRecord file.
        sha256: SHA-256 of the TFRecord file.
        index_path: Path of the index, inside the dataset.
        index_sha256: SHA-256 of the index.
        parts: Number of parts of all records, each of which is an Example. None if each record is one Example because
            the schema stores no parts.
        window: Start of the window that the event times of all records are in, in seconds since 1970. None for a shard
            without a window.
        oldest, newest: The event times of the oldest and the newest record, in microseconds since 1970.
    """

    path: InsidePath
    records: Count
    steps: Count
    bytes: Count
    sha256: Sha256
    index_path: InsidePath
    index_sha256: Sha256
    parts: Annotated[Count | None, UNLESS_NONE] = None
    window: Annotated[int | None, UNLESS_NONE] = None
    oldest: Annotated[int | None, UNLESS_NONE] = None
    newest: Annotated[int | None, UNLESS_NONE] = None

    @property
    def examples(self) -> int:
        """Number of Examples in the file, and of rows in the index."""
        return self.records if self.parts is None else self.parts


class Split(Model):
    """The shards of one split, and exact counts of their contents."""

    records: Count
    parts: Annotated[Count | None, UNLESS_NONE] = pydantic.Field(
        None,
        description="Number of parts of all records, each of which is an Example; None if the schema has no parts.",
    )
    steps: Count
    labels: Count = pydantic.Field(description="Number of labelled records, or of labelled steps for labels per step.")
    truncated: Count = pydantic.Field(description="Number of records that were shortened to max_length.")
    copies: Count = pydantic.Field(
        0, description="Number of records that are equal to another one, without the first of each."
    )
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


class FeatureStatistics(Model):
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


class Vocabulary(Model):
    """A file with the strings of a feature, one on each line (see pipeline/format/vocabulary.py)."""

    path: InsidePath
    sha256: Sha256
    size: Count = pydantic.Field(description="Number of strings; less than in the schema if the train split has fewer.")


class CountsFile(Model):
    """A file with the exact counts of the strings of a feature (see pipeline/format/string_counts.py)."""

    path: InsidePath
    sha256: Sha256
    strings: Count = pydantic.Field(description="Number of distinct strings.")


class Rejected(Model):
    """The number of rejects, in total and for each reason, and the files that list them."""

    total: Count
    by_reason: dict[str, Count]
    files: tuple[InsidePath, ...]
