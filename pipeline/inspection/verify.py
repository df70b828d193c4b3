"""Checks every byte of a dataset against its manifest. Each fault names its file and the offset in it."""

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence

from pipeline import progress
from pipeline.format.commit import commit_path
from pipeline.format.history import read_manifest_at
from pipeline.format.manifest import FILE_NAME, Manifest
from pipeline.format.merge_counts import Vocabularies
from pipeline.format.models import TRAIN
from pipeline.inspection.verify_counts import Counts, compare_counts, compare_split, compare_statistics
from pipeline.inspection.verify_generations import (
    MAX_FAULTS,
    Recount,
    add_up,
    compare_summary,
    find_faults_of_groups,
    list_parts,
    recount,
)
from pipeline.inspection.verify_log import Log, Sources, compare_with_log, known_sources, verify_log
from pipeline.inspection.verify_rejects import verify_rejects
from pipeline.inspection.verify_report import Fault, Report
from pipeline.inspection.verify_strings import (
    choose_again,
    compare_vocabularies,
    count_unknown_again,
    find_wrong_choice,
    read_vocabularies,
)


def verify(dataset: str, *, commit: int | None = None) -> Report:
    """Checks a dataset and returns a report. A fault in one file does not hide a fault in another file.

    The shards are read once. All counts are made again from their records: those of each summary from the shards of its
    generation, those of the manifest from all shards, and the vocabularies from all strings. Memory holds the index of
    one shard, one record, the vocabularies and a bounded number of strings; the counts of more strings go to temporary
    files.

    Args:
        commit: Number of the commit to check. None checks the newest one.

    Raises:
        UserError: There is no dataset, its manifest contradicts itself, or the commit cannot be opened.
    """
    manifest = read_manifest_at(dataset, commit)
    report = Report()
    total = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    # Not in the dataset, which the user may not be allowed to change.
    with progress.report("verify", total_bytes=total), tempfile.TemporaryDirectory(prefix="lengthwise-") as folder:
        log = Log([], {})
        sources = Sources(frozenset(source.path for source in manifest.sources))
        if manifest.format_version > 1:
            log = verify_log(dataset, manifest, report, is_newest=commit is None)
            sources = known_sources(dataset, log, report)
        vocabularies = read_vocabularies(dataset, manifest, report)
        recounts = []
        for part in list_parts(manifest, log.summaries):
            recounts.append(recount(dataset, manifest, part, sources, report, folder=folder))
            compare_summary(dataset, part, recounts[-1], report)
        shared = itertools.islice(find_faults_of_groups(dataset, manifest, recounts, folder=folder), MAX_FAULTS)
        report.faults += [Fault(FILE_NAME, None, message) for message in shared]
        chosen = _choose_again(manifest, recounts, vocabularies, folder)
        _compare_manifest(manifest, recounts, chosen, log, report)
        if chosen is not None:
            compare_vocabularies(manifest, vocabularies, chosen, report)
        verify_rejects(dataset, manifest, log.summaries, report)
        if manifest.format_version > 1:
            path = commit_path(manifest.commit or 0)
            report.faults += [Fault(path, None, message) for message in find_wrong_choice(log.commits, manifest)]
            compare_with_log(manifest, log, report)
    return report


def _choose_again(
    manifest: Manifest, recounts: Sequence[Recount], vocabularies: Mapping[str, list[bytes]], folder: str
) -> Vocabularies | None:
    """Returns the vocabularies that the records give, or None if a shard of the train split has a fault.

    If an older commit chose the vocabularies, returns these, or None if one of them has a fault.
    """
    strings = [part.strings for part in recounts]
    if manifest.vocabularies_of is not None:
        is_whole = vocabularies.keys() == manifest.vocabularies.keys()
        return count_unknown_again(manifest, strings, vocabularies) if is_whole else None
    if TRAIN in manifest.splits and any(TRAIN not in part.complete for part in recounts):
        return None
    return choose_again(manifest, strings, folder=folder)


def _compare_manifest(
    manifest: Manifest, recounts: Sequence[Recount], chosen: Vocabularies | None, log: Log, report: Report
) -> None:
    """Compares the counts and statistics of the manifest, and the counts of its commit, with the records.

    The counts of a split that could not be read completely are wrong for that reason alone, and are left out.
    """
    number = manifest.commit or 0
    commit = log.commits[number - 1] if 0 < number <= len(log.commits) else None
    for name in manifest.splits:
        total = add_up(recounts, name)
        if total is None:
            continue
        messages = itertools.islice(_compare_split(manifest, name, total, chosen), MAX_FAULTS)
        report.faults += [Fault(FILE_NAME, None, message) for message in messages]
        if commit is not None and chosen is not None:
            found = compare_counts(f"unknown.{name}", chosen.unknown[name], commit.unknown.get(name, {}))
            report.faults += [Fault(commit_path(number), None, message) for message in found]


def _compare_split(manifest: Manifest, name: str, total: Counts, chosen: Vocabularies | None) -> Iterator[str]:
    split, schema = manifest.splits[name], manifest.record_schema
    yield from compare_split(name, total, split, schema)
    if chosen is not None:
        yield from compare_counts(f"splits.{name}.unknown", chosen.unknown[name], split.unknown)
    if name == TRAIN:
        exact = manifest.format_version > 1
        yield from compare_statistics(total.sums, manifest.statistics, split=name, exact=exact)
