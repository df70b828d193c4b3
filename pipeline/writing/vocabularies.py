"""Chooses the vocabularies of a dataset from the strings of all of its generations, and writes their files."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from pipeline.errors import UserError
from pipeline.files import exists, file_sha256, join, read_bytes, replace
from pipeline.format.manifest import Manifest
from pipeline.format.merge_counts import Vocabularies, choose_vocabulary
from pipeline.format.models import Vocabulary
from pipeline.format.string_counts import count_not_in
from pipeline.format.summary import GenerationSummary
from pipeline.format.vocabulary import parse_terms, serialize_terms, vocabulary_file_names
from pipeline.writing.paths import vocabulary_copy_path, vocabulary_path


class DatasetVocabularies(NamedTuple):
    """The vocabularies of a commit. The attributes are those of Commit."""

    vocabularies: dict[str, Vocabulary]
    unknown: dict[str, dict[str, int]]
    vocabularies_of: int | None = None


def choose_and_write(output: str, summaries: Sequence[GenerationSummary], *, folder: str) -> DatasetVocabularies:
    """Chooses the vocabularies of a dataset, and writes their files. See `choose_vocabularies`."""
    chosen = choose_vocabularies(output, summaries, folder=folder)
    return DatasetVocabularies(write_vocabularies(output, chosen.terms), chosen.unknown)


def keep_vocabularies(output: str, manifest: Manifest, added: GenerationSummary) -> DatasetVocabularies:
    """Returns the vocabularies of a dataset that gains a generation, and keeps those that it has.

    Of the strings, only those of the new generation are read.

    Raises:
        UserError: A vocabulary, or a file of counts of the generation, is missing or damaged.
    """
    unknown = {name: dict(split.unknown) for name, split in manifest.splits.items()}
    splits = added.record_schema.split_names
    for name, vocabulary in manifest.vocabularies.items():
        counts = added.strings[name]
        try:
            terms = _read_terms(join(output, vocabulary.path), vocabulary.sha256)
            found = count_not_in(terms, join(output, counts.path), splits, strings=counts.strings, sha256=counts.sha256)
        except ValueError as error:
            raise UserError(
                f"{error} So the unknown strings of {name!r} cannot be counted, and nothing was published. "
                "`lengthwise verify` lists all errors; restore the file from a copy, or prepare the dataset again."
            ) from None
        for split, count in found.items():
            unknown[split][name] += count
    of = (manifest.vocabularies_of or manifest.commit) if manifest.vocabularies else None
    return DatasetVocabularies(dict(manifest.vocabularies), unknown, of)


# A stream reads the same vocabulary in each of its commits.
@functools.lru_cache(maxsize=32)
def _read_terms(path: str, sha256: str) -> pa.Array:
    """Returns the strings of a vocabulary, binary[terms]. Raises ValueError if its file has another digest."""
    data = read_bytes(path)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(f"{path}: has the SHA-256 {found}, expected {sha256}.")
    return pa.array(parse_terms(data), pa.binary())


def choose_vocabularies(output: str, summaries: Sequence[GenerationSummary], *, folder: str) -> Vocabularies:
    """Returns the most frequent strings of the train split of all generations, for each feature with a vocabulary.

    Args:
        summaries: The generations, which have the same schema; at least one.
        folder: Folder for temporary files.

    Raises:
        UserError: A file of counts is missing or damaged.
    """
    schema = summaries[0].record_schema
    splits = schema.split_names
    chosen = Vocabularies({}, {split: {} for split in splits})
    for name in schema.vocabulary_sizes:
        files = {join(output, summary.strings[name].path): summary.strings[name].sha256 for summary in summaries}
        try:
            chooser = choose_vocabulary(files, schema.features[name], splits, folder=folder, digests=files)
        except ValueError as error:
            raise UserError(
                f"{error} So the vocabulary of {name!r} cannot be chosen, and nothing was published. "
                "`lengthwise verify` lists all errors; restore the file from a copy, or prepare the dataset again."
            ) from None
        chosen.add(name, chooser)
    return chosen


def write_vocabularies(output: str, terms: Mapping[str, Sequence[bytes]]) -> dict[str, Vocabulary]:
    """Writes a file for each vocabulary, and returns their entries for the manifest.

    The path of a file contains the digest of its contents, so a file never changes, and commits whose vocabularies are
    equal share a file.
    """
    written = {}
    for name, file_name in vocabulary_file_names(terms).items():
        data = serialize_terms(terms[name])
        sha256 = hashlib.sha256(data).hexdigest()
        path = vocabulary_path(sha256, file_name)
        if not exists(join(output, path)):
            _write(output, path, data)
        written[name] = Vocabulary(path=path, sha256=sha256, size=len(terms[name]))
    return written


def copy_vocabularies(output: str, vocabularies: Mapping[str, Vocabulary]) -> None:
    """Writes a copy of each vocabulary of the newest commit under a plain name, for people. No code reads it.

    Raises:
        UserError: The file of a vocabulary does not exist or cannot be read.
    """
    for vocabulary in vocabularies.values():
        _write(output, vocabulary_copy_path(vocabulary.path), read_bytes(join(output, vocabulary.path)))


def are_copied(output: str, vocabularies: Mapping[str, Vocabulary]) -> bool:
    """Whether the copies of all vocabularies are there, with the same contents."""
    paths = {join(output, vocabulary_copy_path(each.path)): each.sha256 for each in vocabularies.values()}
    return all(exists(path) and file_sha256(path) == sha256 for path, sha256 in paths.items())


def _write(output: str, path: str, data: bytes) -> None:
    with replace(join(output, path)) as file:
        file.write(data)
