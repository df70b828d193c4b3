"""Checks the log of commits of a dataset: the chain, the summaries of its generations, and the manifest against both."""

import re
from collections.abc import Iterator
from typing import Any

from pipeline.errors import UserError
from pipeline.files import join, list_files, read_bytes
from pipeline.format.commit import FOLDER, Commit, commit_path, sha256_of
from pipeline.format.history import live_generations
from pipeline.format.manifest import FILE_NAME, Manifest
from pipeline.format.summary import GenerationSummary, summary_path
from pipeline.format.view import build_view
from pipeline.inspection.verify_report import Fault, FaultError, Report, check_sha256, collect_fault, read_verified

_COMMIT_NAME = re.compile(r"(\d{8})\.json", re.ASCII)


def verify_log(dataset: str, manifest: Manifest, report: Report, *, is_newest: bool) -> None:
    """Checks all commits, the summaries of the generations of a manifest, and the files that the summaries name.

    Args:
        is_newest: Whether the manifest should be that of the newest commit. A newer commit is a note: a writer was
            killed, and the next one rebuilds the manifest.
    """
    assert manifest.commit is not None
    names = (path.rsplit("/", 1)[-1] for path in list_files(join(dataset, FOLDER)))
    numbers = {int(found[1]) for found in map(_COMMIT_NAME.fullmatch, names) if found}
    newest = max(numbers, default=0)
    if is_newest and newest > manifest.commit:
        report.notes.append(
            f"{FILE_NAME} is at commit {manifest.commit}, but the newest commit is {newest}. The next job that writes "
            "to the dataset, or `lengthwise clean`, rebuilds it."
        )
    commits = _check_chain(dataset, manifest, max(newest, manifest.commit), report)
    summaries = dict(_read_summaries(dataset, manifest, report))
    for summary in summaries.values():
        _check_files(dataset, summary, report)
    is_complete = len(commits) >= manifest.commit and len(summaries) == len(manifest.summaries)
    if is_complete and not report.faults:
        # Only if all parts are as they were written: a damaged part has its own fault.
        live = live_generations(commit for commit in commits[: manifest.commit])
        if list(live.items()) != list(manifest.summaries.items()):
            report.faults.append(Fault(FILE_NAME, None, "lists other generations than its commits leave"))
            return
        parts = [(summaries[generation], sha256) for generation, sha256 in live.items()]
        _compare(manifest, build_view(commits[manifest.commit - 1], manifest.commit_sha256 or "", parts), report)


def _check_chain(dataset: str, manifest: Manifest, last: int, report: Report) -> list[Commit]:
    """Returns the commits from 1 on, up to the first one with a fault."""
    commits: list[Commit] = []
    before: str | None = None
    is_intact = True
    for number in range(1, last + 1):
        path, commit, sha256 = commit_path(number), None, ""
        with collect_fault(path, report):
            try:
                data = read_bytes(join(dataset, path))
                commit, sha256 = Commit.parse(data, origin=path), sha256_of(data)
            except UserError as error:
                raise FaultError(
                    None, str(error).removeprefix(f"{join(dataset, path)}: ").removeprefix(f"{path}: ")
                ) from None
            if commit.number != number:
                raise FaultError(None, f"is commit {commit.number}, expected {number}")
        if commit is None or commit.number != number:
            is_intact, before = False, None
            continue
        if (number == 1 or before is not None) and commit.previous_sha256 != before:
            # The commit before was edited, or this one was: the next one names it, or the manifest does.
            message = f"has the SHA-256 {before}, but commit {number} names {commit.previous_sha256}"
            report.faults.append(Fault(commit_path(max(1, number - 1)), None, message))
            is_intact = False
        if number == manifest.commit and sha256 != manifest.commit_sha256:
            message = f"has the SHA-256 {sha256}, but {FILE_NAME} names {manifest.commit_sha256}"
            report.faults.append(Fault(path, None, message))
            is_intact = False
        before = sha256
        if is_intact:
            commits.append(commit)
    return commits


def _read_summaries(dataset: str, manifest: Manifest, report: Report) -> Iterator[tuple[str, GenerationSummary]]:
    """Yields the generations of the manifest whose summaries are the ones that it names."""
    for generation, sha256 in manifest.summaries.items():
        path = summary_path(generation)
        with collect_fault(path, report):
            data = read_verified(join(dataset, path), sha256)
            try:
                summary = GenerationSummary.parse(data, origin=path)
            except UserError as error:
                raise FaultError(None, str(error).removeprefix(f"{path}: ")) from None
            if summary.generation != generation:
                raise FaultError(None, f"is the summary of {summary.generation}, expected {generation}")
            yield generation, summary


def _check_files(dataset: str, summary: GenerationSummary, report: Report) -> None:
    """Checks the digests of the files of a generation that a summary names, except those of its shards."""
    files: dict[str, str] = {file.path: file.sha256 for file in summary.rejected.files}
    files[summary.sources.path] = summary.sources.sha256
    files |= {file.path: file.sha256 for file in summary.strings.values()}
    for path, sha256 in files.items():
        with collect_fault(path, report):
            check_sha256(join(dataset, path), sha256)


def _compare(manifest: Manifest, view: Manifest, report: Report) -> None:
    """Adds a fault for each value of the manifest that is not the one that its commits and summaries give."""
    for place, found, expected in _differences(manifest.model_dump(), view.model_dump(), ""):
        message = f"{place} is {str(found)[:60]}, but its commits and summaries give {str(expected)[:60]}"
        report.faults.append(Fault(FILE_NAME, None, message))


def _differences(found: Any, expected: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in {**found, **expected}:
            yield from _differences(found.get(key), expected.get(key), f"{place}.{key}" if place else str(key))
    elif found != expected:
        yield place, found, expected
