"""Publishes a generation: decides whether it may become part of the dataset, and adds a commit in one step."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.errors import NothingNew, UserError, counted
from pipeline.files import join, list_details, list_files, remove, remove_folder
from pipeline.format.commit import Operation
from pipeline.format.manifest import Manifest
from pipeline.format.models import Rejected
from pipeline.format.sources import SourcesFile
from pipeline.format.summary import NO_LEFT_OUT, NO_REJECTS, GenerationSummary, LeftOut, Rejects
from pipeline.format.summary import RejectsFile as ListedRejects
from pipeline.format.view import add_counts
from pipeline.schema.schema import Schema
from pipeline.writing.base import Base
from pipeline.writing.build_summary import build_summary
from pipeline.writing.commit_log import Change, commit, find_published, write_summary
from pipeline.writing.job import Recent
from pipeline.writing.lock import DEFAULT_LOCK_TIMEOUT
from pipeline.writing.merge_strings import merge_groups, merge_strings
from pipeline.writing.open_shard import ShardSummary
from pipeline.writing.paths import is_written_by_prepare, marker_path
from pipeline.writing.rejects import RejectsFile, count_rejects, find_first
from pipeline.writing.retention import DEFAULT_RETAIN
from pipeline.writing.summary_cache import SummaryCache

# Default of --max_rejected: the share of the records that may be rejected.
DEFAULT_MAX_REJECTED = 0.01
# A stream applies it to at least this number of records.
STREAM_RECORDS = 1000


def take_recent(newest_first: Iterable[Recent]) -> tuple[Recent, ...]:
    """Returns the first of some rounds, until they have STREAM_RECORDS records. Takes no more of them."""
    found: list[Recent] = []
    total = 0
    for recent in newest_first:
        found.append(recent)
        total += recent.records
        if total >= STREAM_RECORDS:
            break
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Publisher:
    """Publishes one generation.

    Attributes:
        output: Folder of the dataset.
        generation: Name of the generation, which no other generation has.
        base: The dataset as it was when the job began, and what may be done to it.
        max_rejected: Share of the records, from 0 to 1, that may be rejected.
        retain: How long the generations that this one replaces are kept, in seconds. None removes no old files now.
        lock_timeout: Longest time to wait for the lock of the dataset, in seconds.
        replayed: Rejects of earlier generations that this one takes back.
        left_out: The files beside the raw files that were not read.
        recent: For a round of a stream, what the rounds before it read, the newest first. Its commit also says up to
            where each file was read, so it is made even if there is no record.
        pane: Name of the pane that the generation holds. If another generation with it is published already, this one
            is not.
        keep_vocabularies: For a round of a stream, whether the dataset keeps its vocabularies. See Change.
        known: Summaries of the dataset that were read before.
    """

    schema: Schema
    output: str
    generation: str
    base: Base
    max_rejected: float = DEFAULT_MAX_REJECTED
    retain: float | None = DEFAULT_RETAIN
    lock_timeout: float = DEFAULT_LOCK_TIMEOUT
    replayed: Rejects = NO_REJECTS
    left_out: LeftOut = NO_LEFT_OUT
    recent: Sequence[Recent] | None = None
    pane: str | None = None
    keep_vocabularies: bool = False
    known: SummaryCache | None = None

    def publish(
        self, shards: Iterable[ShardSummary], rejects: Iterable[RejectsFile], sources: Iterable[SourcesFile]
    ) -> Manifest:
        """Checks the generation, writes its summary and adds a commit.

        A call that is retried finds its own commit, and returns the same manifest.

        Raises:
            UserError: Too many records were rejected, there is no record, a shard has changed, or another job published
                a dataset in the meantime. Nothing is published then, and the rejects files remain.
            TryAgain: Another job added the same records or raw files in the meantime. Nothing is published.
            LockTimeout: The lock of the dataset could not be had in time. Nothing is published.
            NothingNew: The raw files have no records, or all replayed records were rejected again. Or it would be the
                first commit of a stream, and has no record.
        """
        published = find_published(self.output, self.generation, after=self.base.number)
        if published is not None:
            return published
        shards, rejects = sorted(shards, key=lambda shard: shard.order), list(rejects)
        records = sum(shard.shard.records for shard in shards)
        if self.recent is not None:
            self._check_stream(rejects, records, self.recent)
        elif not records and not rejects and self.base.mode == "append":
            raise NothingNew(f"{self.output}: the new raw files contain no records. Nothing was published.")
        else:
            self._check_rejects(rejects, records)
        summary = self._summarize(shards, rejects, list(sources))
        self._check_shard_sizes(summary)
        write_summary(self.output, summary)
        operation: Operation = self.base.mode if self.recent is None else "stream"
        change = Change(operation, self.base, summary, pane=self.pane, keep_vocabularies=self.keep_vocabularies)
        more: dict[str, Any] = {"lock_timeout": self.lock_timeout, "retain": self.retain, "known": self.known}
        manifest = commit(self.output, change, **more)
        self._remove_temporary_files(summary)
        return manifest

    def _check_rejects(self, rejects: list[RejectsFile], records: int) -> None:
        """Enforces `--max_rejected`. Replayed records do not count: they did when they were rejected first.

        Args:
            records: Number of records that were not rejected.

        Raises:
            UserError: Too many records of the raw files were rejected, or there is no record.
            NothingNew: There are only replayed records, and all of them were rejected again.
        """
        again = add_counts(file.replayed for file in rejects)
        fresh = {name: count - again.get(name, 0) for name, count in add_counts(f.by_reason for f in rejects).items()}
        fresh = {name: count for name, count in sorted(fresh.items()) if count}
        num_fresh, num_again = sum(fresh.values()), sum(again.values())
        if num_again and not records and not num_fresh:
            example = next(file.example for file in rejects if file.example)
            remove([join(self.output, file.path) for file in rejects])  # repeats what the dataset has
            raise NothingNew(
                f"{self.output}: all {num_again:,} replayed records were rejected again, the first one because of "
                f"{example}. Nothing was published."
            )
        records -= self.replayed.total - num_again
        if num_fresh or records or not self.replayed.files:
            paths = tuple(file.path for file in rejects)
            rejected = Rejected(total=num_fresh, by_reason=fresh, files=paths)
            first = find_first(rejects)
            check_rejected(rejected, records, first=first, max_rejected=self.max_rejected, output=self.output)

    def _check_stream(self, rejects: list[RejectsFile], records: int, recent: Sequence[Recent]) -> None:
        """Enforces `--max_rejected` over the newest rounds of a stream that have at least STREAM_RECORDS records.

        Raises:
            UserError: Too many of these records were rejected.
            NothingNew: There is no record, and the dataset does not exist yet.
        """
        found = count_rejects(rejects)
        rejected, total = found.total, found.total + records
        for before in recent:
            if total >= STREAM_RECORDS:
                break
            rejected, total = rejected + before.rejected, total + before.records
        if total >= STREAM_RECORDS and rejected / total > self.max_rejected:
            first = find_first(rejects)
            raise _too_many_rejected(self.output, found, first, rejected, total, "the last ", self.max_rejected)
        if not records and not self.base.number:
            remove([join(self.output, file.path) for file in rejects])  # they are read again
            reasons = f" (rejected: {_list_reasons(found)})" if rejects else ""
            raise NothingNew(
                f"{self.output}: does not exist yet, and no record was accepted{reasons}. Nothing was published."
            )

    def _summarize(
        self, shards: list[ShardSummary], rejects: list[RejectsFile], sources: list[SourcesFile]
    ) -> GenerationSummary:
        strings = merge_strings(self.schema, shards, output=self.output, generation=self.generation)
        groups = merge_groups(self.schema, shards, output=self.output, generation=self.generation)
        return build_summary(
            self.schema,
            shards,
            strings=strings,
            groups=groups,
            rejected=_list_rejects(rejects),
            sources=sources[0],
            seed=self.base.seed,
            generation=self.generation,
            replayed=self.replayed,
            left_out=self.left_out,
            windows=self.base.windows,
        )

    def _check_shard_sizes(self, summary: GenerationSummary) -> None:
        # One list of the folder: there may be a hundred thousand shards on an object store.
        found = {file.path: file.num_bytes for file in list_details(join(self.output, "data", self.generation))}
        for split in summary.splits.values():
            for shard in split.shards:
                if found.get(join(self.output, shard.path)) != shard.bytes:
                    raise UserError(
                        f"{self.output}: {shard.path} changed while the dataset was made. Run prepare again."
                    )

    def _remove_temporary_files(self, summary: GenerationSummary) -> None:
        """Removes the files of the generation that its summary does not list: for example runs."""
        folder = join(self.output, "data", self.generation)
        inside = {path.removeprefix(join(self.output, "")) for path in list_files(folder)}
        listed = summary.paths() | {marker_path(self.generation)}
        remove([join(self.output, path) for path in sorted(inside - listed) if is_written_by_prepare(path)])


def _list_rejects(files: list[RejectsFile]) -> Rejects:
    """Returns the entry of the summary for the rejects of a generation."""
    rejected = count_rejects(files)
    return Rejects(
        total=rejected.total,
        by_reason=rejected.by_reason,
        files=tuple(ListedRejects(path=file.path, sha256=file.sha256) for file in files),
    )


def check_rejected(rejected: Rejected, records: int, *, first: str | None, max_rejected: float, output: str) -> None:
    """Enforces `--max_rejected`.

    Args:
        records: Number of records that were not rejected.
        first: Place, reason and message of the first reject.
        max_rejected: Share of all records, from 0 to 1, that may be rejected.

    Raises:
        UserError: More than `max_rejected` of the records were rejected, or no record is left.
    """
    total = records + rejected.total
    if total == 0:
        raise UserError(
            "The input contains no records: its files are empty, or all lines are blank. Nothing was published."
        )
    # A quotient: 29 of 100 gives exactly the float 0.29, but 0.29 × 100 gives less than 29.
    if rejected.total / total > max_rejected:
        raise _too_many_rejected(output, rejected, first, rejected.total, total, "", max_rejected)
    if records == 0:
        all_of_them = "The only record was" if total == 1 else f"All {total:,} records were"
        raise UserError(
            f"{all_of_them} rejected: {_list_reasons(rejected)}.{_describe_first(first)} Nothing was published. The "
            f"rejects are in {_list_files(output, rejected)}."
        )


def _too_many_rejected(
    output: str, found: Rejected, first: str | None, rejected: int, total: int, which: str, max_rejected: float
) -> UserError:
    """Returns the error for `rejected` of `total` records, of which `found` are in files of this job."""
    were = "was" if rejected == 1 else "were"
    return UserError(
        f"{rejected:,} of {which}{counted(total, 'record')} ({rejected / total:.2%}) {were} rejected: "
        f"{_list_reasons(found)}; at most {max_rejected:.2%} may be.{_describe_first(first)} Nothing was published. "
        f"The rejects are in {_list_files(output, found)}; correct the records or the schema, or allow more with "
        "--max_rejected."
    )


def _describe_first(first: str | None) -> str:
    return "" if first is None else f" The first one is {first}."


def _list_reasons(rejected: Rejected) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in rejected.by_reason.items())


def _list_files(output: str, rejected: Rejected) -> str:
    return ", ".join(join(output, path) for path in rejected.files)


def discard_generation(output: str, generation: str) -> None:
    """Removes the files of a generation that was not published, except its rejects files, which users may read."""
    for folder in ("data", "vocabulary"):
        remove_folder(join(output, folder, generation))
