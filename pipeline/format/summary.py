"""The summary of a generation: its files and exact counts, from which the manifest of a dataset is added up."""

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import pydantic

from pipeline.errors import UserError
from pipeline.format.manifest_checks import Numbers, find_contradictions
from pipeline.format.models import (
    TRAIN,
    UNLESS_NONE,
    Count,
    CountsFile,
    Generation,
    InsidePath,
    Model,
    Rejected,
    Sha256,
    Split,
    parse_model,
)
from pipeline.format.sources import SourcesFile
from pipeline.format.sums import FeatureSums
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows

FORMAT_VERSION = 2
# Most names of files that were left out; a folder may have millions.
_MAX_LEFT_OUT = 100
_WAY_OUT = "`lengthwise verify` lists all errors; restore the file from a copy, or prepare the dataset again."


class RejectsFile(Model):
    """A file of rejects, one JSON object on each line."""

    path: InsidePath
    sha256: Sha256


class Rejects(Model):
    """The number of rejects, in total and for each reason, and the files that list them."""

    total: Count
    by_reason: dict[str, Count]
    files: tuple[RejectsFile, ...]


class LeftOut(Model):
    """Files that were in the folders of raw files and were not read, because of their names.

    Attributes:
        files: Number of files.
        paths: The first of them.
    """

    files: Count = 0
    paths: tuple[str, ...] = ()

    @classmethod
    def of(cls, paths: Sequence[str]) -> "LeftOut":
        """Returns the entry for all paths that were left out, of which it names a few."""
        return cls(files=len(paths), paths=tuple(paths[:_MAX_LEFT_OUT]))


NO_LEFT_OUT = LeftOut()
NO_REJECTS = Rejects(total=0, by_reason={}, files=())


class GenerationSummary(Model):
    """The contents of `data/<generation>/summary.json`. It never changes.

    Attributes:
        splits: Shards and counts of each split. Unknown strings are counted for the whole dataset, in the commit.
        sums: The exact sums of each feature (and of a regression label) in the train split.
        strings: For each feature with a vocabulary, the file with the count of each string.
        groups: The file with the number of records of each group. None unless groups must be checked.
        rejected: Rejects of the job that wrote this generation.
        replayed: Rejects of earlier generations that this generation takes back: their files no longer count.
        sources: The raw files.
        left_out: The files beside them that were not read.
        windows: The windows that its shards are labelled with. None if they have none.
    """

    format_version: Literal[2] = 2
    generation: Generation
    # Not `schema`, which is a (deprecated) method of every pydantic model.
    record_schema: Annotated[Schema, pydantic.Field(alias="schema")]
    seed: int
    splits: dict[str, Split]
    sums: dict[str, FeatureSums]
    strings: dict[str, CountsFile]
    groups: CountsFile | None = None
    rejected: Rejects
    replayed: Rejects = NO_REJECTS
    sources: SourcesFile
    left_out: LeftOut = NO_LEFT_OUT
    windows: Annotated[EventWindows | None, UNLESS_NONE] = None
    software: dict[str, str]

    @classmethod
    def parse(cls, data: bytes, *, origin: str) -> "GenerationSummary":
        """Parses and checks the bytes of a summary.

        Args:
            origin: Path of the file, for error messages.

        Raises:
            UserError: The bytes are not a summary, have another format version, or contradict themselves.
        """
        summary = parse_model(
            cls, data, origin=origin, kind="a summary of a generation", versions=(FORMAT_VERSION,), way_out=_WAY_OUT
        )
        rejected = Rejected(total=summary.rejected.total, by_reason=summary.rejected.by_reason, files=())
        statistics = {name: sums.statistics() for name, sums in summary.sums.items()}
        numbers = Numbers(summary.record_schema, summary.splits, statistics, None, rejected, summary.windows)
        for problem in itertools.chain(find_contradictions(numbers), _find_wrong_names(summary)):
            raise UserError(f"{origin}: {problem}. Was this file edited?")
        return summary

    def paths(self) -> set[str]:
        """Returns the paths of all files of the generation, including its summary, inside the dataset."""
        shards = [shard for split in self.splits.values() for shard in split.shards]
        return {
            summary_path(self.generation),
            self.sources.path,
            *(shard.path for shard in shards),
            *(shard.index_path for shard in shards),
            *(counts.path for counts in self.count_files()),
            *(file.path for file in self.rejected.files),
        }

    def count_files(self) -> list[CountsFile]:
        """Returns the files of counts: those of strings, and that of groups."""
        return [*self.strings.values(), *([] if self.groups is None else [self.groups])]

    def to_json(self) -> bytes:
        """Returns the bytes of the file."""
        # So that a summary without them has the same bytes as before there were any.
        unused: dict[str, Any] = {} if self.left_out.files else {"left_out": True}
        unused |= {"groups": True} if self.groups is None else {}
        unused |= {"sources": self.sources.unused}
        values = self.model_dump(mode="json", by_alias=True, exclude=unused)
        values |= {"schema": self.record_schema.canonical()}
        return json.dumps(values, indent=1, ensure_ascii=False).encode() + b"\n"


def _find_wrong_names(summary: GenerationSummary) -> Iterator[str]:
    """Yields a message for each place that has other features than the schema says."""
    train = summary.splits.get(TRAIN)
    has_sums = summary.record_schema.statistics_widths if train is not None and train.records else ()
    places = (("strings", summary.strings, summary.record_schema.vocabulary_sizes), ("sums", summary.sums, has_sums))
    for place, found, expected in places:
        if set(found) != set(expected):
            yield f"{place} has the features {sorted(found)}, but the schema says {sorted(expected)}"
    if (summary.groups is not None) != summary.record_schema.checks_groups:
        yield f"groups is {'missing' if summary.groups is None else 'given'}, but the schema says the opposite"


def summary_path(generation: str) -> str:
    """Returns the path of the summary of a generation, inside the dataset.

    >>> summary_path("20260101T000000-00000000")
    'data/20260101T000000-00000000/summary.json'
    """
    return f"data/{generation}/summary.json"
