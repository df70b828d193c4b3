"""Chooses the vocabularies of a dataset from the strings of all of its generations, and writes their files."""

import hashlib
from collections.abc import Mapping, Sequence

from pipeline.errors import UserError
from pipeline.files import exists, file_sha256, join, read_bytes, replace
from pipeline.format.merge_counts import Vocabularies, choose_vocabulary
from pipeline.format.models import Vocabulary
from pipeline.format.summary import GenerationSummary
from pipeline.format.vocabulary import serialize_terms, vocabulary_file_names
from pipeline.writing.paths import vocabulary_copy_path, vocabulary_path


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
