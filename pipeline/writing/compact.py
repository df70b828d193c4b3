"""Merges small generations of a dataset into one with large shards. Records, ids and splits stay as they are."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline import progress
from pipeline.errors import UserError, check_unpublished
from pipeline.files import absolute, join
from pipeline.format.manifest import Manifest, read_manifest
from pipeline.format.models import CountsFile, Shard, Split
from pipeline.format.summary import GenerationSummary, LeftOut, Rejects
from pipeline.format.sums import merge_sums
from pipeline.format.tfrecord import CorruptRecord
from pipeline.format.view import add_counts, add_splits, find_windows
from pipeline.format.vocabulary import vocabulary_file_names
from pipeline.schema.compatibility import find_widest
from pipeline.writing.base import Base
from pipeline.writing.build_summary import software_versions
from pipeline.writing.choose_generations import choose_generations, count_needed, list_shards
from pipeline.writing.commit_log import Change, commit, find_published, read_summaries, recover_if_behind, write_summary
from pipeline.writing.lock import DEFAULT_LOCK_TIMEOUT
from pipeline.writing.marker import mark_writer
from pipeline.writing.merge_shards import merge_shards
from pipeline.writing.merge_strings import merge_count_files
from pipeline.writing.paths import groups_path, new_generation, strings_path
from pipeline.writing.publish import discard_generation
from pipeline.writing.retention import DEFAULT_RETAIN
from pipeline.writing.write_sources import merge_sources


@dataclasses.dataclass(frozen=True)
class Compacted:
    """What `compact` did.

    Attributes:
        generations: The generations that were merged; empty if there was nothing to merge.
        manifest: The manifest of the dataset.
    """

    generations: tuple[str, ...]
    manifest: Manifest


def compact(
    dataset: str,
    *,
    num_shards: int | None = None,
    min_share: float = 0,
    retain: float = DEFAULT_RETAIN,
    lock_timeout: float = DEFAULT_LOCK_TIMEOUT,
) -> Compacted:
    """Merges the small generations of a dataset into one generation with large shards, in one commit.

    A generation is small if its shards have less than half of the size of a large shard on average. With windows of
    event time, the shards of each window are merged separately, and a generation stays as it is if none of its windows
    has more shards than it needs. Other jobs may append at the same time. Readers keep the old shards for the time of
    `retain`.

    Args:
        num_shards: Number of shards of each split (and window). By default the shards of the largest split have about
            64 MB. If it is given, all generations are merged.
        min_share: With windows, the least share of the shards of a generation that it must be possible to merge.
        retain: How long the merged generations are kept, in seconds.
        lock_timeout: Longest time to wait for the lock of the dataset, in seconds.

    Raises:
        UserError: There is no dataset, it has format version 1, or one of its files is damaged.
        LockTimeout: The lock could not be had in time.
    """
    output = absolute(dataset)
    recover_if_behind(output, lock_timeout=lock_timeout)
    manifest = read_manifest(output)
    if manifest.commit is None:
        raise UserError(
            f"{dataset}: has format version 1, which cannot be compacted. Prepare all raw files again with --overwrite."
        )
    summaries = read_summaries(output, manifest.summaries)
    small = summaries if num_shards is not None else choose_generations(summaries, min_share=min_share)
    if len(small) < 2 and not (num_shards is None and small and small[0].windows):
        return Compacted((), manifest)
    generation = new_generation()
    base = Base("append", manifest.commit, manifest.seed)
    num_bytes = sum(shard.bytes for part in small for split in part.splits.values() for shard in split.shards)
    with mark_writer(output, generation, command="compact"), progress.report("compact", total_bytes=num_bytes):
        try:
            merged = _merge(output, small, generation, num_shards)
            write_summary(output, merged)
            removed = tuple(summary.generation for summary in small)
            change = Change("compact", base, merged, removed)
            manifest = commit(output, change, lock_timeout=lock_timeout, retain=retain)
        except BaseException as error:
            read_published = functools.partial(find_published, output, generation, after=base.number)
            check_unpublished(output, error, read_published, done="compacted")
            discard_generation(output, generation)
            if isinstance(error, ValueError | CorruptRecord):
                raise UserError(
                    f"{dataset}: {error}. `lengthwise verify` lists all errors. Nothing was changed."
                ) from None
            raise
    return Compacted(removed, manifest)


def _merge(
    output: str, summaries: Sequence[GenerationSummary], generation: str, num_shards: int | None
) -> GenerationSummary:
    """Writes the files of the merged generation and returns its summary. All of its numbers are sums."""
    newest = summaries[-1]
    schema = find_widest(summary.record_schema for summary in summaries)
    needed = count_needed(list_shards(summaries))
    splits: dict[str, Split] = {}
    for name in schema.split_names:
        total = add_splits(schema, [summary.splits[name] for summary in summaries], {})
        options: dict[str, Any] = {"schema": schema, "seed": newest.seed, "generation": generation}
        shards: list[Shard] = []
        for window, parts in _by_window(total.shards).items():
            shards += merge_shards(output, parts, name, num_shards=num_shards or needed[window], **options)
        splits[name] = total.model_copy(update={"shards": tuple(shards) if total.records else ()})
    sums = {name: merge_sums(summary.sums.get(name) for summary in summaries) for name in schema.statistics_widths}
    rejected, replayed = _merge_rejects(summaries)
    return GenerationSummary(
        generation=generation,
        record_schema=schema,
        seed=newest.seed,
        splits=splits,
        sums={name: total for name, total in sums.items() if total is not None},
        strings=_merge_strings(output, summaries, generation),
        groups=_merge_groups(output, summaries, generation),
        rejected=rejected,
        replayed=replayed,
        sources=merge_sources([summary.sources for summary in summaries], output=output, generation=generation),
        left_out=_add_left_out(summaries),
        windows=find_windows(summaries),
        software=software_versions(),
    )


def _by_window(shards: Iterable[Shard]) -> dict[int | None, list[Shard]]:
    """Returns shards by the start of their window, in this order; those without a window, under None, come first."""
    found: dict[int | None, list[Shard]] = {}
    for shard in shards:
        found.setdefault(shard.window, []).append(shard)
    return {start: found[start] for start in sorted(found, key=lambda start: (start is not None, start or 0))}


def _merge_strings(output: str, summaries: Sequence[GenerationSummary], generation: str) -> dict[str, CountsFile]:
    schema = summaries[0].record_schema
    return {
        name: _merge_counts(
            output,
            summaries[0],
            [summary.strings[name] for summary in summaries],
            generation,
            strings_path(generation, file_name),
        )
        for name, file_name in vocabulary_file_names(schema.vocabulary_sizes).items()
    }


def _merge_groups(output: str, summaries: Sequence[GenerationSummary], generation: str) -> CountsFile | None:
    counts = [summary.groups for summary in summaries if summary.groups is not None]
    path = groups_path(generation)
    return _merge_counts(output, summaries[0], counts, generation, path) if counts else None


def _merge_counts(
    output: str, summary: GenerationSummary, counts: Sequence[CountsFile], generation: str, path: str
) -> CountsFile:
    """Writes the sums of files of counts to the file `path` of a generation.

    Args:
        summary: One of the summaries, which have the same splits.
    """
    files = {join(output, file.path): file.sha256 for file in counts}
    schema = summary.record_schema
    return merge_count_files(schema, files, path, output=output, generation=generation, digests=files)


def _merge_rejects(summaries: Sequence[GenerationSummary]) -> tuple[Rejects, Rejects]:
    """Returns the rejects of generations, and those that they take back from generations that are not among them.

    What one of them rejected and another one took back is left out of both, so that no summary names its file any more.
    """
    rejected, left = _add_rejects(summary.rejected for summary in summaries), []
    for replayed in (summary.replayed for summary in summaries):
        paths = {file.path for file in replayed.files}
        # The counts of several files are known as a sum only.
        if paths <= {file.path for file in rejected.files}:
            counts = {name: count - replayed.by_reason.get(name, 0) for name, count in rejected.by_reason.items()}
            rejected = Rejects(
                total=rejected.total - replayed.total,
                by_reason={name: count for name, count in counts.items() if count},
                files=tuple(file for file in rejected.files if file.path not in paths),
            )
        else:
            left.append(replayed)
    return rejected, _add_rejects(left)


def _add_left_out(summaries: Sequence[GenerationSummary]) -> LeftOut:
    """Returns what the jobs of the generations left out. Jobs that saw the same file each count it."""
    paths = sorted({path for summary in summaries for path in summary.left_out.paths})
    return LeftOut.of(paths).model_copy(update={"files": sum(summary.left_out.files for summary in summaries)})


def _add_rejects(parts: Iterable[Rejects]) -> Rejects:
    """Returns the rejects of all parts. Their files keep their names."""
    parts = list(parts)
    return Rejects(
        total=sum(part.total for part in parts),
        by_reason=dict(sorted(add_counts(part.by_reason for part in parts).items())),
        files=tuple(file for part in parts for file in part.files),
    )
