"""Strings are counted exactly in bounded memory, and the files of counts do not depend on when memory was full."""

import collections
import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from pipeline.format import count_strings
from pipeline.format.count_strings import StringCounter
from pipeline.format.string_counts import read_counts, tabulate_counts
from pipeline.schema.record import MISSING_STRING

SPLITS = ("train", "test")
STRINGS = st.binary(max_size=2) | st.sampled_from([MISSING_STRING, b"", b"\0", b"a\0", "é".encode(), b"x" * 500])
ADDED = st.lists(st.tuples(st.sampled_from(SPLITS), st.sampled_from(["word", "tag"]), st.lists(STRINGS, max_size=20)))


def count(folder, added):
    """Returns the bytes of the file of each feature, and its counts."""
    counter = StringCounter(["word", "tag"], SPLITS, str(folder))
    for split, feature, strings in added:
        counter.add(split, feature, strings)
    paths = counter.finish()
    assert sorted(paths.values()) == sorted(map(str, folder.iterdir()))
    found = {name: list(read_counts(path, SPLITS)) for name, path in paths.items()}
    rows = {name: [row for table in tables for row in table.to_pylist()] for name, tables in found.items()}
    return {name: pathlib.Path(path).read_bytes() for name, path in paths.items()}, rows


@given(ADDED, st.integers(0, 3000))
def test_every_string_but_missing_ones_is_counted_whatever_the_memory(tmp_path_factory, added, buffer_bytes):
    expected = {name: {split: collections.Counter() for split in SPLITS} for name in ("word", "tag")}
    for split, feature, strings in added:
        expected[feature][split].update(string for string in strings if string != MISSING_STRING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(count_strings, "_BUFFER_BYTES", buffer_bytes)
        data, rows = count(tmp_path_factory.mktemp("counts"), added)
    assert rows == {name: tabulate_counts(counts, SPLITS).to_pylist() for name, counts in expected.items()}
    assert data == count(tmp_path_factory.mktemp("counts"), added)[0]


def test_a_full_counter_writes_the_feature_that_takes_most_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(count_strings, "_BUFFER_BYTES", 10_000)
    counter = StringCounter(["word", "tag"], SPLITS, str(tmp_path))
    counter.add("train", "tag", [b"a", b"b"])
    for number in range(1000):
        counter.add("train", "word", [b"same", b"%d" % (number % 40)])
    assert list(tmp_path.iterdir()) == []  # 41 words fit
    counter.add("test", "word", [b"%d" % number for number in range(60)])
    (run,) = tmp_path.iterdir()
    assert sum(len(block) for block in read_counts(str(run), SPLITS)) == 61
    counter.add("test", "word", [b"a new word"])
    assert list(tmp_path.iterdir()) == [run]  # what was written takes no memory any more


# Counts distinct strings of 20 bytes in a child, and prints its peak memory in MiB before and after.
PROGRAM = """
import sys
from pipeline.format.merge_counts import VocabularyChooser, merge_counts
from pipeline.format.count_strings import StringCounter
folder, number = sys.argv[1], int(sys.argv[2])
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
before, paths = peak(), []
for shard in range(3):
    counter = StringCounter(["word"], ["train", "test"], folder)
    for start in range(shard, number, 30_000):
        counter.add("train", "word", [b"%020d" % (n * 7919 % number) for n in range(start, start + 30_000, 3)])
    paths += counter.finish().values()
chooser = VocabularyChooser(1000, ["train", "test"])
total = sum(map(len, chooser.watch(merge_counts(paths, ["train", "test"], folder=folder))))
print(total, len(chooser.terms()), chooser.unknown()["train"], before, peak())
"""


@pytest.mark.parametrize("number", [60_000, pytest.param(3_000_000, marks=pytest.mark.proof)])
def test_memory_does_not_grow_with_the_number_of_distinct_strings(tmp_path, number):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(number)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    total, terms, unknown, before, after = map(float, done.stdout.split())
    print(f"\n{number:,} distinct strings: {after:,.0f} MiB peak, {before:,.0f} before")
    assert (total, terms, unknown) == (number, 1000, number - 1000)
    assert after - before < 130  # measured: 77; in a Counter, 3 million strings take 500
