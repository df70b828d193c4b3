"""Adds up the counts of strings, and those of groups, of all shards of a generation."""

from collections.abc import Iterable, Mapping

from pipeline.files import exists, file_sha256, join, replace
from pipeline.format.merge_counts import merge_counts
from pipeline.format.models import CountsFile
from pipeline.format.string_counts import read_counts, write_counts
from pipeline.format.vocabulary import vocabulary_file_names
from pipeline.schema.schema import Schema
from pipeline.writing.open_shard import ShardSummary
from pipeline.writing.paths import groups_path, runs_folder, strings_path


def merge_strings(
    schema: Schema, shards: Iterable[ShardSummary], *, output: str, generation: str
) -> dict[str, CountsFile]:
    """Writes one file of counts for each feature with a vocabulary.

    The files of the shards are not removed, and a file that exists is not written again: a call that is retried after
    the files of the shards were removed returns the same.

    Args:
        shards: All shards of the generation.
    """
    shards = list(shards)
    # The shards of one number share a file.
    return {
        name: merge_count_files(
            schema,
            {shard.strings[name] for shard in shards},
            strings_path(generation, file_name),
            output=output,
            generation=generation,
        )
        for name, file_name in vocabulary_file_names(schema.vocabulary_sizes).items()
    }


def merge_groups(schema: Schema, shards: Iterable[ShardSummary], *, output: str, generation: str) -> CountsFile | None:
    """Writes the file with the number of records of each group, as `merge_strings` does, if groups must be checked."""
    if not schema.checks_groups:
        return None
    parts = {shard.groups for shard in shards if shard.groups is not None}
    return merge_count_files(schema, parts, groups_path(generation), output=output, generation=generation)


def merge_count_files(
    schema: Schema,
    parts: Iterable[str],
    path: str,
    *,
    output: str,
    generation: str,
    digests: Mapping[str, str] | None = None,
) -> CountsFile:
    """Writes the sums of the files of counts `parts` to the file `path` of the dataset, if there is none.

    Args:
        digests: SHA-256 of the parts for which it is known, by path.
    """
    splits = schema.split_names
    if exists(join(output, path)):
        strings = sum(map(len, read_counts(join(output, path), splits)))
    else:
        blocks = merge_counts(sorted(parts), splits, folder=runs_folder(output, generation), digests=digests)
        with replace(join(output, path)) as file:
            strings = write_counts(file, blocks, splits)
    return CountsFile(path=path, sha256=file_sha256(join(output, path)), strings=strings)
