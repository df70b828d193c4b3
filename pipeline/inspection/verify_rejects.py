"""Checks the files of rejects: the counts by reason in the manifest, and in each summary, against their lines."""

import collections
from collections.abc import Iterable, Iterator, Mapping

from pipeline.files import join, open_read
from pipeline.format.manifest import FILE_NAME, Manifest
from pipeline.format.reject_rows import read_row
from pipeline.format.summary import GenerationSummary, Rejects, summary_path
from pipeline.inspection.verify_counts import compare_counts
from pipeline.inspection.verify_report import Fault, FaultError, Report, check_exists, collect_fault

_Reasons = collections.Counter[str]


def verify_rejects(
    dataset: str, manifest: Manifest, summaries: Mapping[str, GenerationSummary], report: Report
) -> None:
    """Compares the counts of rejects by reason with the files that list them. Reads each file once.

    Counts are not compared if one of their files has a fault of its own.

    Args:
        summaries: The summaries without fault, by generation. The digests of their files were checked.
    """
    listed = {file.path: file.sha256 for summary in summaries.values() for file in summary.rejected.files}
    damaged = report.files()
    reasons: dict[str, _Reasons] = {}
    for path in {**dict.fromkeys(manifest.rejected.files), **listed}:
        if path not in damaged:
            with collect_fault(path, report):
                reasons[path] = _count_reasons(join(dataset, path))
    for generation, summary in summaries.items():
        messages = [
            *_compare("rejected", summary.rejected, reasons),
            # A generation takes back all rejects of a file, which another generation lists.
            *_compare("replayed", summary.replayed, reasons),
            *(
                f"replayed names the SHA-256 {file.sha256} of {file.path}, but another summary {listed[file.path]}"
                for file in summary.replayed.files
                if listed.get(file.path, file.sha256) != file.sha256
            ),
        ]
        report.faults += [Fault(summary_path(generation), None, message) for message in messages]
    if set(manifest.rejected.files) <= reasons.keys():
        total = _add(reasons[path] for path in manifest.rejected.files)
        found = compare_counts("rejected.by_reason", total, manifest.rejected.by_reason, holder="its files")
        report.faults += [Fault(FILE_NAME, None, message) for message in found]


def _compare(place: str, rejects: Rejects, reasons: Mapping[str, _Reasons]) -> Iterator[str]:
    """Yields a message for each count of a summary that is not that of its files, if all of them were counted."""
    paths = [file.path for file in rejects.files]
    if set(paths) <= reasons.keys():
        total = _add(reasons[path] for path in paths)
        yield from compare_counts(f"{place}.by_reason", total, rejects.by_reason, holder="its files")


def _add(parts: Iterable[_Reasons]) -> _Reasons:
    total = _Reasons()
    for part in parts:
        total.update(part)
    return total


def _count_reasons(path: str) -> _Reasons:
    """Returns the number of rejects of each reason in a file."""
    check_exists(path)
    reasons, offset = _Reasons(), 0
    with open_read(path) as file:
        for line in file:
            try:
                reasons[read_row(line)["reason"]] += 1
            except ValueError:
                raise FaultError(offset, "is not a line of a rejects file") from None
            offset += len(line)
    return reasons
