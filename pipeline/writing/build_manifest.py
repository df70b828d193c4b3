"""Builds the manifest of a generation from the summaries of its shards."""

import collections
import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import TypeVar

from pipeline.format.manifest import Manifest, Source, fingerprint
from pipeline.format.models import FeatureStatistics, Split, Vocabulary
from pipeline.format.sums import merge_sums
from pipeline.format.vocabulary import serialize_terms, vocabulary_file_names
from pipeline.schema.labels import class_name
from pipeline.schema.schema import Schema
from pipeline.writing.merge_strings import MergedStrings
from pipeline.writing.paths import vocabulary_path
from pipeline.writing.rejects import RejectsFile, count_rejects
from pipeline.writing.shards import ShardSummary

Key = TypeVar("Key", int, str)


def build_manifest(
    schema: Schema,
    shards: Sequence[ShardSummary],
    rejects: Iterable[RejectsFile],
    sources: Iterable[Source],
    strings: Mapping[str, MergedStrings],
    *,
    seed: int,
    generation: str,
) -> Manifest:
    """Returns the manifest of a generation.

    Args:
        shards: Sorted by number.
        sources: All raw files that were read.
        strings: The strings of each feature with a vocabulary.
    """
    splits = {
        name: _build_split(name, schema, [shard for shard in shards if shard.split == name], strings)
        for name in schema.split_names
    }
    return Manifest(
        record_schema=schema,
        seed=seed,
        fingerprint=fingerprint(
            schema,
            seed=seed,
            shards={name: [shard.sha256 for shard in split.shards] for name, split in splits.items()},
        ),
        generations=(generation,),
        splits=splits,
        statistics=_build_statistics(shards),
        vocabularies=_build_vocabularies(strings, generation),
        rejected=count_rejects(rejects),
        sources=tuple(sources),
        software=_software_versions(),
    )


def _build_split(
    name: str, schema: Schema, shards: Sequence[ShardSummary], strings: Mapping[str, MergedStrings]
) -> Split:
    records = sum(s.shard.records for s in shards)
    labels = _sum_counts(s.label_counts for s in shards)
    return Split(
        records=records,
        steps=sum(s.shard.steps for s in shards),
        labels=sum(s.labels for s in shards),
        truncated=sum(s.truncated for s in shards),
        # A split without records lists no shard. Its empty files are removed with all other files that are not listed.
        shards=tuple(s.shard for s in shards) if records else (),
        length_counts=_sum_counts(s.length_counts for s in shards),
        label_counts={n: labels.get(n, 0) for n in map(class_name, schema.label.classes)} if labels else {},
        missing={n: sum(s.missing[n] for s in shards) for n, f in schema.features.items() if f.allows_nulls},
        unknown={feature: merged.unknown[name] for feature, merged in strings.items()},
    )


def _build_vocabularies(strings: Mapping[str, MergedStrings], generation: str) -> dict[str, Vocabulary]:
    return {
        name: Vocabulary(
            path=vocabulary_path(generation, file_name),
            sha256=hashlib.sha256(serialize_terms(strings[name].terms)).hexdigest(),
            size=len(strings[name].terms),
        )
        for name, file_name in vocabulary_file_names(strings).items()
    }


def _build_statistics(shards: Sequence[ShardSummary]) -> dict[str, FeatureStatistics]:
    statistics = {}
    for name in sorted({name for shard in shards for name in shard.sums}):
        sums = merge_sums(shard.sums.get(name) for shard in shards)
        assert sums is not None
        statistics[name] = sums.statistics()
    return statistics


def _sum_counts(counts: Iterable[dict[Key, int]]) -> dict[Key, int]:
    """Returns the sum of the counts of each key, sorted by key."""
    total: collections.Counter[Key] = collections.Counter()
    for part in counts:
        total.update(part)
    return {key: total[key] for key in sorted(total)}


def _software_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("lengthwise", "apache-beam", "numpy", "pyarrow"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a worker may run from a folder where Lengthwise is not installed
            continue
    return versions
