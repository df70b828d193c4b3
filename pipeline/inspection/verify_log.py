"""Checks the log of commits of a dataset: the chain, the summaries, and the manifest against both."""

import functools
import hashlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.files import join, list_files, read_bytes
from pipeline.format.commit import FOLDER, MAX_BYTES, Commit, commit_numbers, commit_path, sha256_of
from pipeline.format.history import live_generations
from pipeline.format.manifest import FILE_NAME, Manifest
from pipeline.format.sources import SPLIT, START, SourcesFile, WrittenSources, count_rows, read_sources
from pipeline.format.summary import GenerationSummary, summary_path
from pipeline.format.view import build_view
from pipeline.inspection.verify_report import Fault, FaultError, Report, check_sha256, collect_fault, read_verified
from pipeline.schema.record import Array

# Most overlaps that are reported.
_MAX_FAULTS = 10


class Log(NamedTuple):
    """The commits of a dataset, and the summary of each generation."""

    commits: list[Commit]
    summaries: dict[str, GenerationSummary]


def verify_log(dataset: str, manifest: Manifest, report: Report, *, is_newest: bool) -> Log:
    """Checks all commits, the summaries of the generations of a manifest, and the files that the summaries name.

    Returns what was without fault.

    Args:
        is_newest: Whether the manifest should be that of the newest commit. A newer commit is a note: a writer was
            killed, and the next one rebuilds the manifest.
    """
    assert manifest.commit is not None
    newest = max(commit_numbers(list_files(join(dataset, FOLDER))), default=0)
    if is_newest and newest > manifest.commit:
        report.notes.append(
            f"{FILE_NAME} is at commit {manifest.commit}, but the newest commit is {newest}. The next job that writes "
            "to the dataset, or `lengthwise clean`, rebuilds it."
        )
    commits = _check_chain(dataset, manifest, max(newest, manifest.commit), report)
    summaries = dict(_read_summaries(dataset, manifest, report))
    for summary in summaries.values():
        _check_files(dataset, summary, report)
    return Log(commits, summaries)


def compare_with_log(manifest: Manifest, log: Log, report: Report) -> None:
    """Compares a manifest with what its commits and summaries give.

    Call it last. A part that is damaged has a fault of its own, which would cause others here.
    """
    if report.faults:
        return
    live = live_generations(log.commits[: manifest.commit])
    if list(live.items()) != list(manifest.summaries.items()):
        report.faults.append(Fault(FILE_NAME, None, "lists other generations than its commits leave"))
        return
    parts = [(log.summaries[generation], sha256) for generation, sha256 in live.items()]
    assert manifest.commit is not None and manifest.commit_sha256 is not None
    try:
        view = build_view(log.commits[manifest.commit - 1], manifest.commit_sha256, parts)
    except UserError as error:
        report.faults.append(Fault(commit_path(manifest.commit), None, str(error)))
        return
    for place, found, expected in _differences(manifest.model_dump(), view.model_dump(), ""):
        message = f"{place} is {str(found)[:60]}, but its commits and summaries give {str(expected)[:60]}"
        report.faults.append(Fault(FILE_NAME, None, message))


class _Paths(Container[str]):
    """A set of paths that holds eight bytes of the digest of each, for there may be millions.

    Args:
        digests: Arrays of `_digest`.
    """

    def __init__(self, digests: Iterable[Array]) -> None:
        self._digests = np.unique(np.concatenate([np.zeros(0, np.uint64), *digests]))

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, path: object) -> bool:
        place = int(np.searchsorted(self._digests, np.uint64(_short_digest(str(path)))))
        return place < len(self._digests) and int(self._digests[place]) == _short_digest(str(path))


def _digest(paths: Iterable[str]) -> Array:
    """Returns uint64[paths], the first eight bytes of the SHA-256 of each path."""
    return np.fromiter(map(_short_digest, paths), np.uint64)


@functools.lru_cache(maxsize=2**16)
def _short_digest(path: str) -> int:
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big")


class Sources(NamedTuple):
    """The paths of the raw files of a dataset.

    Attributes:
        paths: All of them; empty if they are unknown.
        by_split: Those that were given for each split; empty if files are not given by split.
    """

    paths: Container[str] = frozenset()
    by_split: Mapping[str, Container[str]] = {}  # never changed


def known_sources(dataset: str, log: Log, report: Report) -> Sources:
    """Returns the paths of the raw files of all generations; nothing if a list of them is damaged or missing."""
    damaged = report.files()
    files = [summary.sources for summary in log.summaries.values()]
    if any(file.path in damaged for file in files):
        return Sources()
    digests: dict[str | None, list[Array]] = {}
    parts = _Parts(files)
    for number, file in enumerate(files):
        for block in _read_blocks(dataset, file, report):
            for split, paths in _by_split(block):
                digests.setdefault(split, []).append(_digest(paths))
            parts.add(number, block)
    if report.files() != damaged:
        return Sources()
    report.faults += parts.find_overlaps(dataset)
    by_split = {split: _Paths(parts) for split, parts in digests.items() if split is not None}
    return Sources(_Paths(part for parts in digests.values() for part in parts), by_split)


def _read_blocks(dataset: str, file: SourcesFile, report: Report) -> Iterator[pa.Table]:
    """Yields the blocks of a file of sources, whose digest was checked, and compares its counts with the summary."""
    total = WrittenSources(0, 0)
    with collect_fault(file.path, report):
        try:
            for block in read_sources(dataset, file):
                total = total.plus(count_rows(block))
                yield block
        except ValueError as error:
            raise FaultError(None, str(error).removeprefix(f"{join(dataset, file.path)}: ")) from None
        for name, noun in (
            ("bytes", "bytes of raw files"),
            ("parts", "parts of files"),
            ("later_parts", "later parts"),
        ):
            found, expected = getattr(total, name), getattr(file, name)
            if found != expected:
                raise FaultError(None, f"lists {found:,} {noun}, but the summary says {expected:,}")


def _by_split(block: pa.Table) -> Iterator[tuple[str | None, list[str]]]:
    """Yields the paths of the raw files in a block of sources, with their split."""
    splits = pc.unique(block[SPLIT]).to_pylist() if SPLIT in block.column_names else []
    for split in splits:
        yield split, block.filter(pc.equal(block[SPLIT], split))["path"].to_pylist()
    if not splits:
        yield None, block["path"].to_pylist()


class _Parts:
    """The parts of files that streams have read. No byte may be in two of them. Memory holds 40 bytes for each.

    Args:
        files: The files of sources that list them.
    """

    def __init__(self, files: Sequence[SourcesFile]) -> None:
        self._files = files
        # The digest of the path, the number of rewrites, start and end, and the number of the file of sources.
        self._columns: list[list[Array]] = [[np.zeros(0, kind)] for kind in (np.uint64, *[np.int64] * 4)]

    def add(self, number: int, block: pa.Table) -> None:
        """Adds the rows of a block of the file of sources with this number."""
        if START not in block.column_names:
            return
        rows = block.filter(pc.is_valid(block[START]))
        start = rows[START].to_numpy()
        end, numbers = start + rows["stored_bytes"].to_numpy(), np.full(len(rows), number)
        values = [_digest(rows["path"].to_pylist()), rows["rewrites"].to_numpy(), start, end, numbers]
        for column, part in zip(self._columns, values, strict=True):
            column.append(part)

    def find_overlaps(self, dataset: str) -> Iterator[Fault]:
        """Yields a fault for each of the first parts that begins before another one of the same file has ended."""
        columns = [np.concatenate(parts) for parts in self._columns]
        order = np.lexsort(columns[3::-1])  # by the end last: a part may be empty
        paths, rewrites, starts, ends, numbers = (column[order] for column in columns)
        same = (paths[1:] == paths[:-1]) & (rewrites[1:] == rewrites[:-1])
        for place in np.flatnonzero(same & (starts[1:] < ends[:-1]))[:_MAX_FAULTS].tolist():
            file, other = (self._files[number] for number in numbers[[place + 1, place]].tolist())
            name = next(
                path
                for block in read_sources(dataset, file)
                for path in block["path"].to_pylist()
                if _short_digest(path) == int(paths[place])
            )
            unit = "offset" if name.startswith("kafka://") else "byte"
            message = (
                f"lists a part of {name} from {unit} {int(starts[place + 1]):,} on, but a part in {other.path} ends at "
                f"{unit} {int(ends[place]):,}: records between them were read twice"
            )
            yield Fault(file.path, None, message)


def _check_chain(dataset: str, manifest: Manifest, last: int, report: Report) -> list[Commit]:
    """Returns the commits from 1 on, up to the first one with a fault."""
    commits: list[Commit] = []
    before: str | None = None
    is_intact = True
    for number in range(1, last + 1):
        path, commit, sha256 = commit_path(number), None, ""
        with collect_fault(path, report):
            try:
                data = read_bytes(join(dataset, path), MAX_BYTES)
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
    files |= {file.path: file.sha256 for file in summary.count_files()}
    for path, sha256 in files.items():
        with collect_fault(path, report):
            check_sha256(join(dataset, path), sha256)


def _differences(found: Any, expected: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in {**found, **expected}:
            yield from _differences(found.get(key), expected.get(key), f"{place}.{key}" if place else str(key))
    elif found != expected:
        yield place, found, expected
