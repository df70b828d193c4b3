"""Adds up the counts of strings of all shards of a generation."""

from collections.abc import Iterable

from pipeline.files import exists, file_sha256, join, replace
from pipeline.format.merge_counts import merge_counts
from pipeline.format.models import CountsFile
from pipeline.format.string_counts import read_counts, write_counts
from pipeline.format.vocabulary import vocabulary_file_names
from pipeline.schema.schema import Schema
from pipeline.writing.paths import runs_folder, strings_path
from pipeline.writing.shards import ShardSummary


def merge_strings(
    schema: Schema, shards: Iterable[ShardSummary], *, output: str, generation: str
) -> dict[str, CountsFile]:
    """Writes one file of counts for each feature with a vocabulary.

    The files of the shards are not removed, and a file that exists is not written again: a call that is retried after
    the files of the shards were removed returns the same.

    Args:
        shards: All shards of the generation.
    """
    splits, shards = schema.split_names, list(shards)
    merged = {}
    for name, file_name in vocabulary_file_names(schema.vocabulary_sizes).items():
        path = strings_path(generation, file_name)
        if exists(join(output, path)):
            strings = sum(map(len, read_counts(join(output, path), splits)))
        else:
            # The shards of one number share a file.
            parts = sorted({shard.strings[name] for shard in shards})
            blocks = merge_counts(parts, splits, folder=runs_folder(output, generation))
            with replace(join(output, path)) as file:
                strings = write_counts(file, blocks, splits)
        merged[name] = CountsFile(path=path, sha256=file_sha256(join(output, path)), strings=strings)
    return merged
