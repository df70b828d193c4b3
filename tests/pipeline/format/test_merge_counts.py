"""Merged files of counts give the same sums, and the same vocabulary, as a Counter of all strings in memory."""

import collections
import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.format import merge_counts as module
from pipeline.format import string_counts
from pipeline.format.merge_counts import VocabularyChooser, merge_counts, write_counts_run
from pipeline.format.string_counts import tabulate_counts
from pipeline.format.vocabulary import choose_terms, count_unknown

SPLITS = ("train", "test")
STRINGS = st.binary(max_size=2) | st.sampled_from([b"", b"\0", b"a\0", b"a", "é".encode(), b"\xff\xff", b"x" * 300])
COUNTS = st.fixed_dictionaries({split: st.dictionaries(STRINGS, st.integers(1, 5), max_size=25) for split in SPLITS})


def add_up(parts, splits=SPLITS):
    """The slow twin of a merge."""
    total = {split: collections.Counter() for split in splits}
    for part in parts:
        for split in splits:
            total[split].update(part[split])
    return total


def write_parts(folder, parts, splits=SPLITS):
    return [write_counts_run([tabulate_counts(part, splits)], splits, str(folder)) for part in parts]


def rows(tables):
    return [row for table in tables for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]


@contextlib.contextmanager
def limits(*, block_strings=5, max_open=64, max_bytes=2**26, merged_rows=2**17):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(string_counts, "BLOCK_STRINGS", block_strings)
        patch.setattr(module, "_MAX_OPEN", max_open)
        patch.setattr(module, "_MAX_BYTES", max_bytes)
        patch.setattr(module, "_MERGED_ROWS", merged_rows)
        yield


@given(st.lists(COUNTS, max_size=6), st.integers(1, 9), st.integers(2, 4), st.sampled_from([1, 1000, 2**26]), st.data())
def test_a_merge_gives_the_sums_of_all_files(tmp_path_factory, parts, block_strings, max_open, max_bytes, data):
    folder = tmp_path_factory.mktemp("counts")
    merged_rows = data.draw(st.sampled_from([1, 4, 1000]))
    with limits(block_strings=block_strings, max_open=max_open, max_bytes=max_bytes, merged_rows=merged_rows):
        paths = write_parts(folder, parts)
        merged = list(merge_counts(paths, SPLITS, folder=str(folder)))
    assert rows(merged) == rows([tabulate_counts(add_up(parts), SPLITS)])
    assert sorted(paths) == sorted(map(str, folder.iterdir()))  # temporary files are removed


def test_hundreds_of_files_are_merged_with_few_of_them_open(tmp_path, monkeypatch):
    chance = random.Random(0)
    parts = [
        {split: collections.Counter(b"%d" % chance.randrange(500) for _ in range(20)) for split in SPLITS}
        for _ in range(200)
    ]
    paths = write_parts(tmp_path, parts)
    open_now, most_open = set(), []
    read = module.CountsReader

    class Reader(read):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            open_now.add(id(self))
            most_open.append(len(open_now))

        def close(self):
            super().close()
            open_now.discard(id(self))

    monkeypatch.setattr(module, "CountsReader", Reader)
    assert rows(merge_counts(paths, SPLITS, folder=str(tmp_path))) == rows([tabulate_counts(add_up(parts), SPLITS)])
    assert (max(most_open), open_now) == (64, set())
    assert sorted(paths) == sorted(map(str, tmp_path.iterdir()))


def test_files_with_huge_strings_are_merged_two_at_a_time(tmp_path):
    parts = [{split: {bytes([97 + n]) * 2_000_000: 1, b"a": n} for split in SPLITS} for n in range(1, 5)]
    with limits(block_strings=1000, max_bytes=2**20):
        paths = write_parts(tmp_path, parts)
        assert rows(merge_counts(paths, SPLITS, folder=str(tmp_path))) == rows([tabulate_counts(add_up(parts), SPLITS)])


def test_a_file_that_is_named_twice_counts_twice(tmp_path):
    paths = write_parts(tmp_path, [{"train": {b"a": 1}, "test": {b"b": 2}}])
    assert rows(merge_counts(paths * 2, SPLITS, folder=str(tmp_path))) == [(b"a", 2, 0), (b"b", 0, 4)]


def test_an_abandoned_or_failed_merge_leaves_no_temporary_file(tmp_path):
    paths = write_parts(tmp_path, [{split: {b"%d" % n: 1} for split in SPLITS} for n in range(9)])
    with limits(max_open=2):
        merged = merge_counts(paths, SPLITS, folder=str(tmp_path))
        next(merged)
        merged.close()
        assert sorted(paths) == sorted(map(str, tmp_path.iterdir()))
        with open(paths[-1], "wb"):
            pass
        with pytest.raises(ValueError, match="not a file of counts"):
            list(merge_counts(paths, SPLITS, folder=str(tmp_path)))
    assert sorted(paths) == sorted(map(str, tmp_path.iterdir()))


@given(COUNTS, st.integers(0, 12), st.integers(1, 9), st.integers(1, 4))
def test_a_vocabulary_is_the_one_that_choose_terms_gives(counts, size, rows_per_table, min_count):
    table = tabulate_counts(counts, SPLITS)
    tables = [table[start : start + rows_per_table] for start in range(0, len(table), rows_per_table)]
    chooser = VocabularyChooser(size, SPLITS, min_count=min_count)
    assert list(chooser.watch(tables)) == tables
    terms = choose_terms(counts["train"], size, min_count=min_count)
    unknown = {split: count_unknown(counts[split], terms) for split in SPLITS}
    for _ in range(2):  # asking does not change the answer
        assert chooser.terms() == terms
        assert chooser.unknown() == unknown


def test_of_equally_frequent_strings_the_first_are_chosen():
    counts = {"train": {b"%04d" % n: 2 + n % 3 for n in range(3000)}}
    table = tabulate_counts(counts, ["train"])
    chooser = VocabularyChooser(1500, ["train"])
    for start in range(0, len(table), 100):
        chooser.add(table[start : start + 100])
    assert chooser.terms() == choose_terms(counts["train"], 1500)


def test_without_a_train_split_the_vocabulary_is_empty():
    chooser = VocabularyChooser(5, ["all"])
    chooser.add(tabulate_counts({"all": {b"a": 3, b"b": 4}}, ["all"]))
    assert (chooser.terms(), chooser.unknown()) == ([], {"all": 7})
