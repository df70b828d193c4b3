"""Builds the summary of a generation from the summaries of its shards."""

import functools
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata

from pipeline.format.models import CountsFile, Split
from pipeline.format.sources import SourcesFile
from pipeline.format.summary import NO_LEFT_OUT, NO_REJECTS, GenerationSummary, LeftOut, Rejects
from pipeline.format.sums import FeatureSums, merge_sums
from pipeline.format.view import add_counts
from pipeline.schema.labels import class_name
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows
from pipeline.writing.open_shard import ShardSummary


def build_summary(
    schema: Schema,
    shards: Sequence[ShardSummary],
    *,
    strings: Mapping[str, CountsFile],
    rejected: Rejects,
    sources: SourcesFile,
    seed: int,
    generation: str,
    groups: CountsFile | None = None,
    replayed: Rejects = NO_REJECTS,
    left_out: LeftOut = NO_LEFT_OUT,
    windows: EventWindows | None = None,
) -> GenerationSummary:
    """Returns the summary of a generation.

    Args:
        shards: Sorted by `ShardSummary.order`.
        strings: The file of counts of each feature with a vocabulary.
        groups: The file of counts of the groups, if they must be checked.
        replayed: Rejects of earlier generations that this generation takes back.
        left_out: The files beside the raw files that were not read.
        windows: The windows of the shards.
    """
    by_split = {name: [shard for shard in shards if shard.split == name] for name in schema.split_names}
    return GenerationSummary(
        generation=generation,
        record_schema=schema,
        seed=seed,
        splits={name: _build_split(schema, parts) for name, parts in by_split.items()},
        sums=_add_sums(schema, shards),
        strings=dict(strings),
        groups=groups,
        rejected=rejected,
        replayed=replayed,
        sources=sources,
        left_out=left_out,
        windows=windows,
        software=software_versions(),
    )


def _build_split(schema: Schema, shards: Sequence[ShardSummary]) -> Split:
    records = sum(s.shard.records for s in shards)
    labels = add_counts(s.label_counts for s in shards)
    return Split(
        records=records,
        parts=sum(s.shard.examples for s in shards) if schema.stores_parts else None,
        steps=sum(s.shard.steps for s in shards),
        labels=sum(s.labels for s in shards),
        truncated=sum(s.truncated for s in shards),
        copies=sum(s.copies for s in shards),
        shards=tuple(s.shard for s in shards),
        length_counts=dict(sorted(add_counts(s.length_counts for s in shards).items())),
        label_counts={n: labels.get(n, 0) for n in map(class_name, schema.label.classes)} if labels else {},
        missing={n: sum(s.missing[n] for s in shards) for n, f in schema.features.items() if f.allows_nulls},
    )


def _add_sums(schema: Schema, shards: Sequence[ShardSummary]) -> dict[str, FeatureSums]:
    totals = {
        name: merge_sums(shard.sums[name].unpack() for shard in shards if name in shard.sums)
        for name in schema.statistics_widths
    }
    return {name: total for name, total in totals.items() if total is not None}


def software_versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that write a dataset, by name."""
    return dict(_read_versions())


@functools.cache
def _read_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("lengthwise", "apache-beam", "numpy", "pyarrow"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a worker may run from a folder where Lengthwise is not installed
            continue
    return versions
