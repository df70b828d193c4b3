"""Checks the strings: each file of counts against the records that were counted again, and the vocabularies."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from pipeline.files import file_sha256, join
from pipeline.format.commit import Commit
from pipeline.format.manifest import Manifest
from pipeline.format.merge_counts import Vocabularies, choose_vocabulary
from pipeline.format.models import TRAIN, CountsFile
from pipeline.format.string_counts import CountsReader, count_not_in, read_counts
from pipeline.format.summary import GenerationSummary, summary_path
from pipeline.format.vocabulary import parse_terms, serialize_terms
from pipeline.inspection.verify_report import FaultError, Report, collect_fault, read_verified


def compare_strings(
    dataset: str, summary: GenerationSummary, recounted: Mapping[str, str], groups: str | None, report: Report
) -> None:
    """Compares the files of counts of a generation with its records.

    A file whose digest is that of the recount is not opened. A dataset that was written with another version of pyarrow
    has other bytes, so then the rows are compared.

    Args:
        recounted: For each feature with a vocabulary, the path of a file with the counts of the records.
        groups: The path of such a file with the counts of the groups; None if groups are not checked.
    """
    splits, damaged = summary.record_schema.split_names, report.files()
    files = [(f"strings.{name}", file, recounted[name]) for name, file in summary.strings.items()]
    if summary.groups is not None and groups is not None:
        files.append(("groups", summary.groups, groups))
    for place, file, again in files:
        if file.path in damaged:
            continue
        with collect_fault(summary_path(summary.generation), report):
            found = _count(again, splits)
            if found != file.strings:
                message = f"{place}.strings is {file.strings:,}, but the shards hold {found:,} distinct strings"
                raise FaultError(None, message)
        if file_sha256(again) != file.sha256:
            with collect_fault(file.path, report):
                _compare_rows(dataset, file, again, splits)


def _count(path: str, splits: Sequence[str]) -> int:
    reader = CountsReader(path, splits)
    reader.close()
    return reader.strings


def _compare_rows(dataset: str, file: CountsFile, recounted: str, splits: Sequence[str]) -> None:
    """Raises a FaultError for the first string whose counts in a file are not those of the records."""
    stored = read_counts(join(dataset, file.path), splits, sha256=file.sha256)
    found = read_counts(recounted, splits)
    try:
        for one, other in _align(stored, found):
            if not one.equals(other):
                string, wrong, right = _first_difference(one, other, splits)
                raise FaultError(None, f"counts the string {string!r} {wrong}, but the shards hold it {right}")
    except ValueError as error:
        raise FaultError(None, str(error).removeprefix(f"{join(dataset, file.path)}: ")) from None


def _align(left: Iterator[pa.Table], right: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yields the rows of both sides in pairs of tables of equal size. Only in the last pair may one side be empty."""
    one, other = next(left, None), next(right, None)
    while one is not None and other is not None:
        rows = min(len(one), len(other))
        yield one[:rows], other[:rows]
        one = one[rows:] if rows < len(one) else next(left, None)
        other = other[rows:] if rows < len(other) else next(right, None)
    rest = other if one is None else one
    if rest is not None:
        yield (rest[:0], rest) if one is None else (rest, rest[:0])


def _first_difference(one: pa.Table, other: pa.Table, splits: Sequence[str]) -> tuple[bytes, str, str]:
    """Returns the first string with different counts in two sorted tables, and both counts as text."""
    pairs = itertools.zip_longest(_rows(one), _rows(other))
    stored, found = next((a, b) for a, b in pairs if a != b)
    string = min(row[0] for row in (stored, found) if row is not None)
    wrong, right = (_describe(row, string, splits) for row in (stored, found))
    return string, wrong, right


def _rows(table: pa.Table) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    for string, *counts in zip(*(column.to_pylist() for column in table.columns), strict=True):
        yield string, tuple(counts)


def _describe(row: tuple[bytes, tuple[int, ...]] | None, string: bytes, splits: Sequence[str]) -> str:
    counts = row[1] if row is not None and row[0] == string else (0,) * len(splits)
    return ", ".join(f"{count:,} times in {split}" for split, count in zip(splits, counts, strict=True))


def choose_again(manifest: Manifest, recounted: Sequence[Mapping[str, str]], *, folder: str) -> Vocabularies:
    """Returns the vocabularies of a dataset, chosen from the strings of its records.

    Args:
        recounted: For each part of the dataset, the file of counts of each feature with a vocabulary.
        folder: Folder for temporary files.
    """
    schema = manifest.record_schema
    chosen = Vocabularies({}, {split: {} for split in schema.split_names})
    for name in schema.vocabulary_sizes:
        paths = [counts[name] for counts in recounted]
        chosen.add(name, choose_vocabulary(paths, schema.features[name], schema.split_names, folder=folder))
    return chosen


def count_unknown_again(
    manifest: Manifest, recounted: Sequence[Mapping[str, str]], vocabularies: Mapping[str, list[bytes]]
) -> Vocabularies:
    """Returns vocabularies that an older commit chose, with the unknown strings of all records.

    Args:
        recounted: See `choose_again`.
    """
    splits = manifest.record_schema.split_names
    unknown = {split: dict.fromkeys(vocabularies, 0) for split in splits}
    for name, terms in vocabularies.items():
        known = pa.array(terms, pa.binary())
        for counts in recounted:
            for split, count in count_not_in(known, counts[name], splits).items():
                unknown[split][name] += count
    return Vocabularies(dict(vocabularies), unknown)


def find_wrong_choice(commits: Sequence[Commit], manifest: Manifest) -> Iterator[str]:
    """Yields a message if the vocabularies are not those of the commit that is said to have chosen them."""
    number = manifest.vocabularies_of
    if number is None or manifest.commit is None or len(commits) < manifest.commit:
        return
    if number >= manifest.commit or commits[number - 1].vocabularies_of is not None:
        yield f"vocabularies_of is {number}, expected an older commit that chose vocabularies"
    elif commits[number - 1].vocabularies != manifest.vocabularies:
        yield f"its vocabularies are not those of commit {number}, which chose them"


def read_vocabularies(dataset: str, manifest: Manifest, report: Report) -> dict[str, list[bytes]]:
    """Returns the vocabularies whose files match the manifest, by feature."""
    found = {}
    for name, vocabulary in manifest.vocabularies.items():
        with collect_fault(vocabulary.path, report):
            data = read_verified(join(dataset, vocabulary.path), vocabulary.sha256)
            terms = parse_terms(data)
            if serialize_terms(terms) != data:
                raise FaultError(None, "is not in the format of a vocabulary, which is one escaped string per line")
            if len(terms) != vocabulary.size:
                raise FaultError(None, f"has {len(terms):,} strings, but the manifest says {vocabulary.size:,}")
            found[name] = terms
    return found


def compare_vocabularies(
    manifest: Manifest, vocabularies: Mapping[str, list[bytes]], chosen: Vocabularies, report: Report
) -> None:
    """Compares the vocabularies with those that were chosen again from the strings of the train split."""
    for name, terms in vocabularies.items():
        with collect_fault(manifest.vocabularies[name].path, report):
            for line, (term, expected) in enumerate(itertools.zip_longest(terms, chosen.terms[name]), 1):
                if term != expected:
                    raise FaultError(None, f"line {line} is {term!r}, but the records of {TRAIN} give {expected!r}")
