"""Checks that no group of a dataset is in two splits, if the records and not a hash of the group choose the split."""

from collections.abc import Sequence

import numpy as np

from pipeline.errors import UserError
from pipeline.files import join
from pipeline.format.groups import describe_shared_group, find_shared_groups
from pipeline.format.string_counts import count_arrays, read_counts
from pipeline.format.summary import GenerationSummary
from pipeline.schema.record import Array
from pipeline.writing.sorted_entries import SortedEntries


class KnownGroups:
    """The groups of a dataset in memory, 8 bytes for each group of a generation, so that a stream reads them once.

    Args:
        max_bytes: Largest memory of the groups. For more of them, it is never certain.
    """

    def __init__(self, max_bytes: int = 256 * 2**20) -> None:
        self._max_bytes = max_bytes
        # The generations whose groups were read, and for each group the number of its split.
        self._generations: set[str] = set()
        self._splits = SortedEntries()

    def are_apart(self, output: str, summaries: Sequence[GenerationSummary]) -> bool:
        """Whether it is certain that no group of the last generation is in two splits.

        Args:
            summaries: All generations of the dataset. No group is in two splits in those before the last one.

        Raises:
            ValueError: A file of counts is missing or damaged.
        """
        if self._splits.num_bytes > self._max_bytes:
            return False
        *others, added = summaries
        if not self._generations <= {other.generation for other in others}:  # some of them were merged
            self._generations, self._splits = set(), SortedEntries()
        for other in others:
            if other.generation not in self._generations:
                self._splits.add(_read_entries(output, other))
                self._generations.add(other.generation)
        new = np.unique(_read_entries(output, added))
        both = np.unique(np.concatenate([new, self._splits.find(new)])) & SortedEntries.KEY_BITS
        return bool((both[1:] != both[:-1]).all())


def _read_entries(output: str, summary: GenerationSummary) -> Array:
    """Returns uint64[groups], an entry for each group and split: bits of its hash, and the number of the split."""
    file, splits = summary.groups, summary.record_schema.split_names
    found = [np.zeros(0, np.uint64)]
    for rows in () if file is None else read_counts(join(output, file.path), splits, sha256=file.sha256):
        hashes = np.array([hash(name) for name in rows["string"].to_pylist()], np.int64).astype(np.uint64)
        for number, counts in enumerate(count_arrays(rows)):
            found.append(hashes[counts > 0] & SortedEntries.KEY_BITS | np.uint64(number))
    return np.concatenate(found)


def check_groups(
    output: str, summaries: Sequence[GenerationSummary], *, folder: str, known: KnownGroups | None = None
) -> None:
    """Checks that no group is in two splits. Memory is bounded, and only groups are read, no record.

    Args:
        summaries: All generations of the dataset, which have the same schema; at least one.
        folder: Folder for temporary files.
        known: The groups of the generations before the last one, which were checked. Only if a group of the last one
            may be in another split, all are read.

    Raises:
        UserError: A group is in two splits, or a file of counts is missing or damaged.
    """
    schema = summaries[-1].record_schema
    if not schema.checks_groups:
        return
    counts = [summary.groups for summary in summaries if summary.groups is not None]
    files = {join(output, file.path): file.sha256 for file in counts}
    try:
        if known is not None and known.are_apart(output, summaries):
            return
        found = find_shared_groups(files, schema.split_names, folder=folder, digests=files)
        first = next(found, None)
        others = sum(1 for _ in found)
    except ValueError as error:
        raise UserError(
            f"{error} So the groups cannot be checked, and nothing was published. `lengthwise verify` lists all "
            "errors; restore the file from a copy, or prepare the dataset again."
        ) from None
    if first is None:
        return
    shards = {name: [s for summary in summaries for s in summary.splits[name].shards] for name in schema.split_names}
    more = f", and so are {others:,} other groups" if others > 1 else ", and so is 1 other group" if others else ""
    raise UserError(
        f"{output}: {describe_shared_group(first, schema.group, output, shards)}{more}; expected all records of a "
        "group in one split. Nothing was published. Correct the splits of these records, leave them out, or remove "
        "`group` from the schema."
    )
