"""Counts the records of each generation again in one pass, and compares its summary with them."""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pipeline.format.count_strings import StringCounter
from pipeline.format.groups import GROUP, describe_shared_group, find_shared_groups
from pipeline.format.manifest import Manifest
from pipeline.format.models import TRAIN, Shard
from pipeline.format.summary import GenerationSummary, summary_path
from pipeline.inspection.verify_counts import Counts, RecordCounter, compare_split, compare_sums
from pipeline.inspection.verify_log import Sources
from pipeline.inspection.verify_records import KeyCheck, OriginCheck, TimeCheck
from pipeline.inspection.verify_report import Fault, Report
from pipeline.inspection.verify_shards import verify_shard
from pipeline.inspection.verify_strings import compare_strings
from pipeline.schema.schema import Schema
from pipeline.shuffle.hashing import range_of

# Most faults that are reported for the counts of each split.
MAX_FAULTS = 10


class Part(NamedTuple):
    """The shards of a dataset that one generation added.

    Attributes:
        summary: The summary of the generation. None for shards that no summary without fault lists, which are all
            shards of a dataset of format version 1.
        schema: The schema of the records.
        shards: For each split, the shards and the range [first, end) of the keys of each.
    """

    summary: GenerationSummary | None
    schema: Schema
    shards: dict[str, list[tuple[Shard, tuple[int, int]]]]


class Recount(NamedTuple):
    """What the shards of a part hold.

    Attributes:
        counts: The counts of each split.
        complete: The splits whose shards are all without fault. The counts of the others are too low.
        strings: For each feature with a vocabulary, the path of a file with the counts of its strings.
        groups: The path of a file with the number of records of each group; None if groups are not checked.
    """

    counts: dict[str, Counts]
    complete: set[str]
    strings: dict[str, str]
    groups: str | None = None


def list_parts(manifest: Manifest, summaries: Mapping[str, GenerationSummary]) -> list[Part]:
    """Returns the shards of a dataset by generation, in the order of the generations.

    Args:
        summaries: The summaries without fault, by generation.
    """
    summaries = {name: summary for name, summary in summaries.items() if _is_countable(summary.record_schema, manifest)}
    parts: dict[str | None, Part] = {
        name: Part(summary, summary.record_schema, {split: [] for split in manifest.splits})
        for name, summary in summaries.items()
    }
    owners = {
        shard.path: name
        for name, summary in summaries.items()
        for split in summary.splits.values()
        for shard in split.shards
    }
    parts[None] = Part(None, manifest.record_schema, {split: [] for split in manifest.splits})
    for name, split in manifest.splits.items():
        for shard in split.shards:
            parts[owners.get(shard.path)].shards[name].append((shard, range_of(shard.path)))
    return list(parts.values())


def _is_countable(schema: Schema, manifest: Manifest) -> bool:
    """Whether the counts of a generation can be added to those of the dataset: no other generation belongs to it."""
    same_strings = schema.vocabulary_sizes == manifest.record_schema.vocabulary_sizes
    return same_strings and schema.split_names == manifest.record_schema.split_names


def recount(dataset: str, manifest: Manifest, part: Part, sources: Sources, report: Report, *, folder: str) -> Recount:
    """Checks the shards of a part, and counts their records in the same pass.

    Memory holds the index of one shard, one record, and a bounded number of strings.

    Args:
        sources: The raw files; empty if they are unknown.
        folder: Folder for files of counts.
    """
    counts, complete = {}, set()
    strings = StringCounter(part.schema.vocabulary_sizes, part.schema.split_names, folder)
    groups = StringCounter([GROUP] if part.schema.checks_groups else [], part.schema.split_names, folder)
    for name, shards in part.shards.items():
        count_strings = functools.partial(strings.add, name)
        counter = RecordCounter(part.schema, with_sums=name == TRAIN, count_strings=count_strings)
        count_group = functools.partial(groups.add, name, GROUP) if part.schema.checks_groups else None
        origins = OriginCheck(manifest, name, sources, count_group)
        # Every shard is checked, also after a fault.
        are_whole = []
        for shard, keys in shards:
            of_shard = KeyCheck(manifest, keys), TimeCheck(manifest.windows, shard)
            are_whole.append(verify_shard(dataset, shard, counter, origins, *of_shard, report))
        counts[name] = counter.counts()
        if all(are_whole):
            complete.add(name)
    return Recount(counts, complete, strings.finish(), groups.finish().get(GROUP))


def find_faults_of_groups(
    dataset: str, manifest: Manifest, recounts: Sequence[Recount], *, folder: str
) -> Iterator[str]:
    """Yields a message for each group that is in two splits, if the schema says that groups must be checked.

    Args:
        folder: Folder for temporary files.
    """
    schema = manifest.record_schema
    files = [part.groups for part in recounts if part.groups is not None]
    shards = {name: split.shards for name, split in manifest.splits.items()}
    if files:
        for group in find_shared_groups(files, schema.split_names, folder=folder):
            yield describe_shared_group(group, schema.group, dataset, shards)


def compare_summary(dataset: str, part: Part, found: Recount, report: Report) -> None:
    """Compares the summary of a generation with the records of its shards.

    A split whose shards have a fault, or are others in the manifest, is left out: it has a fault of its own.
    """
    summary = part.summary
    if summary is None:
        return
    path, compared = summary_path(summary.generation), set()
    for name in found.complete:
        if summary.splits[name].shards == tuple(shard for shard, _ in part.shards[name]):
            compared.add(name)
            messages = itertools.islice(_compare(name, summary, found.counts[name]), MAX_FAULTS)
            report.faults += [Fault(path, None, message) for message in messages]
    if compared == {*summary.splits}:
        compare_strings(dataset, summary, found.strings, found.groups, report)


def _compare(split: str, summary: GenerationSummary, found: Counts) -> Iterator[str]:
    yield from compare_split(split, found, summary.splits[split], summary.record_schema)
    if split == TRAIN:
        yield from compare_sums(found.sums, summary.sums)


def add_up(recounts: Sequence[Recount], split: str) -> Counts | None:
    """Returns the counts of a split in all parts, or None if one of its shards has a fault."""
    if any(split not in part.complete for part in recounts):
        return None
    total = Counts()
    for part in recounts:
        total.add(part.counts[split])
    return total
