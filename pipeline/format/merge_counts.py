"""Adds up files of counts of strings, and chooses a vocabulary from the sums, in bounded memory."""

import bisect
import collections
import contextlib
import operator
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.files import create, join, remove
from pipeline.format.models import TRAIN
from pipeline.format.string_counts import (
    BLOCK_STRINGS,
    CountsReader,
    add_counts,
    count_arrays,
    string_array,
    write_counts,
)
from pipeline.schema.features import Feature
from pipeline.schema.record import Array

# The ending of a temporary file of counts.
COUNTS_RUN_ENDING = ".strings"
# Files that are merged at the same time. Some systems allow a process 256 open files.
_MAX_OPEN = 64
# Fewer files are merged at the same time if their largest blocks have more bytes than this together. Measured: a file
# takes 4 MB, seven times its largest block, so that 38 files took 150 MB.
_MAX_BYTES = 8 * 2**20
# Rows that are sorted at the same time, at most.
_MERGED_ROWS = 8 * BLOCK_STRINGS


def merge_counts(
    paths: Iterable[str], splits: Sequence[str], *, folder: str, digests: Mapping[str, str] | None = None
) -> Iterator[pa.Table]:
    """Yields the sums of any number of files of counts as sorted tables, which no string shares.

    Memory holds one block of each of at most 64 files. More files are merged in passes.

    Args:
        paths: Files of counts. They are not changed.
        splits: The splits of each of them.
        folder: Folder for temporary files, which are removed at the end.
        digests: SHA-256 of the files for which it is known, by path.

    Raises:
        ValueError: A file is damaged or has other splits, or a sum exceeds MAX_COUNT in a temporary file.
    """
    digests = digests or {}
    pending = collections.deque(paths)
    temporary: set[str] = set()
    try:
        while True:
            with contextlib.ExitStack() as files:
                done, readers = _open_some(pending, splits, digests, files)
                if not pending:
                    yield from _merge_open(readers)
                    return
                merged = write_counts_run(_merge_open(readers), splits, folder)
            pending.append(merged)
            temporary.add(merged)
            remove(sorted(temporary.intersection(done)))
            temporary.difference_update(done)
    finally:
        remove(sorted(temporary))


def write_counts_run(blocks: Iterable[pa.Table], splits: Sequence[str], folder: str) -> str:
    """Writes tables of counts to a new file in `folder` and returns its path. See `write_counts`."""
    path = join(folder, f"{uuid.uuid4().hex}{COUNTS_RUN_ENDING}")
    with create(path) as file:
        write_counts(file, blocks, splits)
    return path


def _open_some(
    pending: "collections.deque[str]", splits: Sequence[str], digests: Mapping[str, str], files: contextlib.ExitStack
) -> tuple[list[str], list[CountsReader]]:
    """Takes as many paths from `pending` as can be merged at the same time, and opens them. Takes two at least."""
    paths: list[str] = []
    readers: list[CountsReader] = []
    num_bytes = 0
    while pending and len(readers) < _MAX_OPEN:
        reader = CountsReader(pending[0], splits, sha256=digests.get(pending[0]))
        files.enter_context(contextlib.closing(reader))
        num_bytes += reader.largest_block
        if num_bytes > _MAX_BYTES and len(readers) >= 2:
            reader.close()
            break
        paths.append(pending.popleft())
        readers.append(reader)
    return paths, readers


class _Head:
    """What is left of the current block of a file in a merge. `last` is None at the end of the file."""

    def __init__(self, blocks: Iterator[pa.Table]) -> None:
        self._blocks = blocks
        self.last: bytes | None = None
        self._next_block()

    def _next_block(self) -> None:
        block = next(self._blocks, None)
        self.last = None
        if block is not None:
            self._rows, self._strings, self._start = block, string_array(block), 0
            self.last = self._strings[-1].as_py()

    def string_after(self, rows: int) -> bytes:
        """Returns the last of the next `rows` strings, or of the rest of the block."""
        string: bytes = self._strings[min(self._start + rows, len(self._strings)) - 1].as_py()
        return string

    def count_to(self, bound: bytes) -> int:
        """Returns how many strings of the rest of the block are not after `bound`."""
        key = operator.methodcaller("as_py")
        return bisect.bisect_right(self._strings, bound, self._start, key=key) - self._start

    def take(self, rows: int) -> pa.Table:
        """Removes the next rows from the block and returns them."""
        taken = self._rows[self._start : self._start + rows]
        self._start += rows
        if self._start == len(self._rows):
            self._next_block()
        return taken


def _merge_open(readers: Sequence[CountsReader]) -> Iterator[pa.Table]:
    """Merges files, with all of them open at the same time."""
    if len(readers) == 1:
        yield from readers[0].blocks()
        return
    heads = [_Head(reader.blocks()) for reader in readers]
    while heads := [head for head in heads if head.last is not None]:
        # No string up to here is in a block that was not read yet.
        bound = min(head.last for head in heads if head.last is not None)
        counts = [head.count_to(bound) for head in heads]
        if sum(counts) > _MERGED_ROWS:  # the files have almost the same strings
            bound = min(head.string_after(max(1, _MERGED_ROWS // len(heads))) for head in heads)
            counts = [head.count_to(bound) for head in heads]
        yield add_counts([head.take(count) for head, count in zip(heads, counts, strict=True)])


class VocabularyChooser:
    """Chooses a vocabulary from sorted tables of counts, and counts the strings that are not in it.

    The results are those of `choose_terms` and `count_unknown` on the same counts. Memory holds twice as many strings
    as the vocabulary, and one table.

    Args:
        size: Largest number of terms.
        splits: The splits of the counts. Without a split `train`, the vocabulary is empty.
        min_count: Strings with fewer occurrences in the train split are not in the vocabulary.
    """

    def __init__(self, size: int, splits: Sequence[str], *, min_count: int = 1) -> None:
        self._size = size
        self._splits = list(splits)
        self._train = self._splits.index(TRAIN) if TRAIN in self._splits else None
        self._totals = dict.fromkeys(self._splits, 0)
        # Rows that may be in the vocabulary, sorted by string. The first is the `_size` most frequent so far.
        self._candidates: list[pa.Table] = []
        self._num_candidates = 0
        # A string with this count, or less, is not in the vocabulary.
        self._threshold = min_count - 1

    def watch(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yields the same tables. Adds each of them."""
        for table in tables:
            self.add(table)
            yield table

    def add(self, table: pa.Table) -> None:
        """Adds the next table. Its strings come after those that were added before."""
        counts = count_arrays(table)
        for split, of_split in zip(self._splits, counts, strict=True):
            self._totals[split] += int(of_split.sum())
        if self._train is None:
            return
        # Of equally frequent strings, the ones before are chosen: the tables are sorted.
        places = np.flatnonzero(counts[self._train] > self._threshold)
        if len(places):
            self._candidates.append(table.take(pa.array(places)))
            self._num_candidates += len(places)
            if self._num_candidates >= 2 * self._size:
                self._keep_most_frequent()

    def terms(self) -> list[bytes]:
        """Returns the vocabulary: the most frequent strings of the train split, the most frequent first.

        Equally frequent strings are sorted by bytes.
        """
        rows = self._keep_most_frequent()
        if rows is None:
            return []
        terms: list[bytes] = rows["string"].take(pa.array(self._rank(rows))).to_pylist()
        return terms

    def unknown(self) -> dict[str, int]:
        """Returns, for each split, the number of occurrences of strings that are not in the vocabulary."""
        rows = self._keep_most_frequent()
        known = [0] * len(self._splits) if rows is None else [int(counts.sum()) for counts in count_arrays(rows)]
        return {split: self._totals[split] - count for split, count in zip(self._splits, known, strict=True)}

    def _rank(self, rows: pa.Table) -> Array:
        """Returns int64[rows], the places of the rows from the most frequent to the least."""
        assert self._train is not None
        return np.argsort(-count_arrays(rows)[self._train], kind="stable")

    def _keep_most_frequent(self) -> pa.Table | None:
        """Drops all candidates but the `_size` most frequent, and returns them, sorted by string."""
        if not self._candidates:
            return None
        rows = pa.concat_tables(self._candidates).combine_chunks()
        if len(rows) >= self._size:
            kept = self._rank(rows)[: self._size]
            assert self._train is not None
            if len(kept):
                self._threshold = int(count_arrays(rows)[self._train][kept[-1]])
            rows = rows.take(pa.array(np.sort(kept)))
        self._candidates, self._num_candidates = [rows], len(rows)
        return rows


class Vocabularies(NamedTuple):
    """The vocabularies of a dataset.

    Attributes:
        terms: The strings of each feature that has a vocabulary.
        unknown: For each split, the number of strings of each of these features that are not in its vocabulary.
    """

    terms: dict[str, list[bytes]]
    unknown: dict[str, dict[str, int]]

    def add(self, name: str, chooser: VocabularyChooser) -> None:
        """Adds the vocabulary of a feature."""
        self.terms[name] = chooser.terms()
        for split, count in chooser.unknown().items():
            self.unknown.setdefault(split, {})[name] = count


def choose_vocabulary(
    paths: Iterable[str],
    feature: Feature,
    splits: Sequence[str],
    *,
    folder: str,
    digests: Mapping[str, str] | None = None,
) -> VocabularyChooser:
    """Returns a chooser to which the sums of all files of counts were added.

    Args:
        feature: Has a vocabulary.
        paths, splits, folder, digests: See `merge_counts`, also for the errors.
    """
    assert feature.vocabulary is not None
    chooser = VocabularyChooser(feature.vocabulary, splits, min_count=feature.min_count or 1)
    for table in merge_counts(paths, splits, folder=folder, digests=digests):
        chooser.add(table)
    return chooser
