"""Counts strings exactly, in bounded memory: spills sorted files of counts."""

import collections
import itertools
from collections.abc import Iterable, Mapping, Sequence

from pipeline.files import remove
from pipeline.format.merge_counts import merge_counts, write_counts_run
from pipeline.format.string_counts import tabulate_counts
from pipeline.schema.record import MISSING_STRING

# A counter writes the strings of a feature to a file when all of its strings take about this number of bytes of memory.
_BUFFER_BYTES = 24 * 2**20
# Memory of a string beside its bytes: the bytes object, its count, and their place in the hash table.
_STRING_BYTES = 160


class StringCounter:
    """Counts strings by feature and split.

    Args:
        features: Names of the features.
        splits: Names of the splits.
        folder: Folder for the files of counts.
    """

    def __init__(self, features: Iterable[str], splits: Sequence[str], folder: str) -> None:
        self._splits = splits
        self._folder = folder
        self._features = {name: _FeatureCounter(splits) for name in features}
        # Memory of the strings of all features, about.
        self._num_bytes = 0

    def add(self, split: str, feature: str, strings: list[bytes]) -> None:
        """Counts strings. Missing strings are not counted."""
        self._num_bytes += self._features[feature].add(split, strings)
        if self._num_bytes > _BUFFER_BYTES:
            self._spill(max(self._features.values(), key=lambda counter: counter.num_bytes))

    def finish(self) -> dict[str, str]:
        """Writes the counts to one file for each feature. Returns the path of each file.

        The bytes of the files depend only on the strings. A retried job writes them under other names.
        """
        paths = {}
        for name, counter in self._features.items():
            self._spill(counter)
            if len(counter.runs) == 1:
                (paths[name],) = counter.runs
            else:
                merged = merge_counts(counter.runs, self._splits, folder=self._folder)
                paths[name] = write_counts_run(merged, self._splits, self._folder)
                remove(counter.runs)
        return paths

    def _spill(self, counter: "_FeatureCounter") -> None:
        """Writes the strings of a feature to a sorted file, and forgets them."""
        self._num_bytes -= counter.num_bytes
        rows = tabulate_counts(counter.take(), self._splits)
        counter.runs.append(write_counts_run([rows], self._splits, self._folder))


class _FeatureCounter:
    """The strings of one feature that are in memory.

    Attributes:
        num_bytes: Memory of the strings, about.
        runs: Paths of the files of counts that were written.
    """

    def __init__(self, splits: Sequence[str]) -> None:
        self.runs: list[str] = []
        self.num_bytes = 0
        self._counts = {split: collections.Counter[bytes]() for split in splits}

    def add(self, split: str, strings: list[bytes]) -> int:
        """Counts strings. Returns the number of bytes of memory that they add, about."""
        counts = self._counts[split]
        before = len(counts)
        counts.update(strings)
        counts.pop(MISSING_STRING, None)
        # A dictionary keeps the order of insertion, so the new strings are the last.
        added = len(counts) - before
        num_bytes = added * _STRING_BYTES + sum(map(len, itertools.islice(reversed(counts), added)))
        self.num_bytes += num_bytes
        return num_bytes

    def take(self) -> Mapping[str, Mapping[bytes, int]]:
        """Returns the counts of each split, and forgets them."""
        counts, self.num_bytes = self._counts, 0
        self._counts = {split: collections.Counter() for split in counts}
        return counts
