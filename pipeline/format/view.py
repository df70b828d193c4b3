"""Adds up the summaries of generations to the manifest of a dataset: the view of a commit."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from pipeline.errors import UserError
from pipeline.format.commit import Commit
from pipeline.format.manifest import FORMAT_VERSION, InputTotals, Manifest, fingerprint
from pipeline.format.models import Rejected, Split
from pipeline.format.summary import GenerationSummary
from pipeline.format.sums import merge_sums
from pipeline.schema.compatibility import find_widest
from pipeline.schema.labels import class_name
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows

Key = TypeVar("Key", int, str)


def build_view(commit: Commit, sha256: str, summaries: Sequence[tuple[GenerationSummary, str]]) -> Manifest:
    """Returns the manifest of a dataset as of a commit.

    Args:
        sha256: SHA-256 of the file of the commit.
        summaries: The summary of each generation of the dataset, in the order in which they were added, and the
            SHA-256 of its file.

    Raises:
        UserError: The generations have schemas that store the same record differently, or different seeds, or there
            is no generation.
    """
    parts = [summary for summary, _ in summaries]
    if not parts:
        raise UserError(f"Commit {commit.number} leaves no generation in the dataset.")
    newest = parts[-1]
    for part in parts:
        if part.seed != newest.seed:
            raise UserError(
                f"The generations {part.generation} and {newest.generation} of commit {commit.number} have different "
                "seeds."
            )
    try:
        # A generation of replayed rejects may have a schema that accepts more. Compaction moves generations, so it
        # need not be the newest one.
        schema = find_widest(part.record_schema for part in parts)
    except ValueError as error:
        raise UserError(f"The generations of commit {commit.number} have different schemas: {error}.") from None
    splits = {
        name: add_splits(schema, [part.splits[name] for part in parts], commit.unknown.get(name, {}))
        for name in schema.split_names
    }
    sums = {name: merge_sums([part.sums.get(name) for part in parts]) for name in schema.statistics_widths}
    try:
        windows = find_windows(parts)
    except ValueError as error:
        raise UserError(f"The generations of commit {commit.number} have different windows: {error}.") from None
    return Manifest(
        format_version=FORMAT_VERSION,
        commit=commit.number,
        commit_sha256=sha256,
        record_schema=schema,
        seed=newest.seed,
        fingerprint=fingerprint(
            schema,
            seed=newest.seed,
            shards={name: [shard.sha256 for shard in split.shards] for name, split in splits.items()},
        ),
        generations=tuple(part.generation for part in parts),
        summaries={part.generation: digest for part, digest in summaries},
        splits=splits,
        statistics={name: total.statistics() for name, total in sums.items() if total is not None},
        vocabularies=commit.vocabularies,
        vocabularies_of=commit.vocabularies_of,
        rejected=_add_rejects(parts),
        inputs=InputTotals(
            files=sum(part.sources.files - part.sources.later_parts for part in parts),
            bytes=sum(part.sources.bytes for part in parts),
        ),
        windows=windows,
        software=newest.software,
    )


def find_windows(parts: Iterable[GenerationSummary]) -> EventWindows | None:
    """Returns the windows that generations have in common, or None if none of them has any.

    Raises:
        ValueError: Two generations have different windows.
    """
    found: EventWindows | None = None
    for part in parts:
        if found is not None and part.windows is not None and part.windows != found:
            raise ValueError(f"{found.describe()} and {part.windows.describe()}")
        found = found or part.windows
    return found


def add_splits(schema: Schema, parts: Sequence[Split], unknown: dict[str, int]) -> Split:
    """Returns the sum of several splits.

    Args:
        schema: The schema of the sum. A part may have been made with fewer classes.
        unknown: The number of unknown strings of each feature with a vocabulary.
    """
    labels = add_counts(part.label_counts for part in parts)
    return Split(
        records=sum(part.records for part in parts),
        parts=sum(shard.examples for part in parts for shard in part.shards) if schema.stores_parts else None,
        steps=sum(part.steps for part in parts),
        labels=sum(part.labels for part in parts),
        truncated=sum(part.truncated for part in parts),
        copies=sum(part.copies for part in parts),
        shards=tuple(shard for part in parts for shard in part.shards),
        length_counts=dict(sorted(add_counts(part.length_counts for part in parts).items())),
        label_counts={name: labels.get(name, 0) for name in map(class_name, schema.label.classes)} if labels else {},
        missing=add_counts(part.missing for part in parts),
        unknown=unknown,
    )


def _add_rejects(parts: Sequence[GenerationSummary]) -> Rejected:
    """Returns all rejects except those that a later generation took back."""
    by_reason = add_counts(part.rejected.by_reason for part in parts)
    replayed = add_counts(part.replayed.by_reason for part in parts)
    for reason, count in replayed.items():
        if count > by_reason.get(reason, 0):
            raise UserError(f"{count:,} rejects because of {reason} were taken back, but there were fewer.")
    left = {reason: by_reason[reason] - replayed.get(reason, 0) for reason in sorted(by_reason)}
    gone = {file.path for part in parts for file in part.replayed.files}
    return Rejected(
        total=sum(left.values()),
        by_reason={reason: count for reason, count in left.items() if count},
        files=tuple(file.path for part in parts for file in part.rejected.files if file.path not in gone),
    )


def add_counts(counts: Iterable[Mapping[Key, int]]) -> dict[Key, int]:
    """Returns the sum of the counts of each key, in the order in which the keys first appear.

    >>> add_counts([{"b": 1, "a": 2}, {"a": 3}])
    {'b': 1, 'a': 5}
    """
    total: collections.Counter[Key] = collections.Counter()
    for part in counts:
        total.update(part)
    return dict(total)
