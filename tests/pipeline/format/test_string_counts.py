"""A file of counts is sorted, is read and written in blocks, and a damaged one is refused."""

import collections
import io
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.format import string_counts
from pipeline.format.string_counts import (
    MAX_COUNT,
    CountsReader,
    add_counts,
    counts_schema,
    read_counts,
    tabulate_counts,
    write_counts,
)

# The name of the first column is also a valid name of a split.
SPLITS = ("train", "string")
STRINGS = st.binary(max_size=6) | st.sampled_from([b"", b"\0", b"a\0", b"a", "é".encode(), b"\xff\xff", b"x" * 300])
COUNTS = st.fixed_dictionaries({split: st.dictionaries(STRINGS, st.integers(1, 9), max_size=30) for split in SPLITS})


def rows_of(counts, splits=SPLITS):
    """The slow twin: the rows of a file of counts, sorted by string."""
    strings = sorted(set().union(*counts.values()))
    return [(string, *(counts[split].get(string, 0) for split in splits)) for string in strings]


def rows(tables):
    return [row for table in tables for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]


def serialize(tables, splits=SPLITS):
    file = io.BytesIO()
    write_counts(file, tables, splits)
    return file.getvalue()


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(string_counts, "BLOCK_STRINGS", 7)
    monkeypatch.setattr(string_counts, "BLOCK_BYTES", 20)


@given(COUNTS)
def test_a_table_has_one_sorted_row_for_each_string(counts):
    table = tabulate_counts(counts, SPLITS)
    assert table.schema.equals(counts_schema(SPLITS))
    assert rows([table]) == rows_of(counts)


@given(st.lists(COUNTS, min_size=1, max_size=4))
def test_counts_are_added_up(parts):
    total = {
        split: sum((collections.Counter(part[split]) for part in parts), collections.Counter()) for split in SPLITS
    }
    assert rows([add_counts([tabulate_counts(part, SPLITS) for part in parts])]) == rows_of(total)


@given(COUNTS, st.lists(st.integers(0, 70), max_size=5), st.integers(1, 9), st.integers(1, 400))
def test_a_file_has_the_rows_that_were_written_and_its_bytes_depend_on_nothing_else(
    tmp_path_factory, counts, cuts, block_strings, block_bytes
):
    table = tabulate_counts(counts, SPLITS)
    edges = [0, *sorted(cuts), len(table)]
    parts = [table[a : max(a, b)] for a, b in zip(edges, edges[1:], strict=False)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(string_counts, "BLOCK_STRINGS", block_strings)
        patch.setattr(string_counts, "BLOCK_BYTES", block_bytes)
        data = serialize(parts)
        assert data == serialize([table])
        path = tmp_path_factory.getbasetemp() / "counts"
        path.write_bytes(data)
        blocks = list(read_counts(str(path), SPLITS, strings=len(table)))
    assert rows(blocks) == rows_of(counts)
    sizes = [[len(string) for string in block["string"].to_pylist()] for block in blocks]
    assert all(len(size) <= block_strings and (sum(size) <= block_bytes or len(size) == 1) for size in sizes)
    # Each block is as large as possible.
    for size, following in zip(sizes, sizes[1:], strict=False):
        assert len(size) == block_strings or sum(size) + following[0] > block_bytes


def test_strings_of_many_megabytes_have_blocks_of_their_own(tmp_path):
    counts = {"train": {b"a": 1, b"b" * 5_000_000: 2, b"c" * 3_000_000: 3, b"d": 4, b"e": 5}}
    path = tmp_path / "counts"
    path.write_bytes(serialize([tabulate_counts(counts, ["train"])], ["train"]))
    blocks = list(read_counts(str(path), ["train"]))
    assert [len(block) for block in blocks] == [1, 1, 1, 2]
    assert rows(blocks) == rows_of(counts, ["train"])


def table_of(strings, *counts, schema=None):
    schema = schema or counts_schema(SPLITS)
    return pa.Table.from_arrays(
        [pa.array(values, field.type) for values, field in zip([strings, *counts], schema, strict=True)], schema=schema
    )


ONES = [1, 1, 1]
WRONG_ROWS = {
    "unsorted": (table_of([b"b", b"a", b"c"], ONES, ONES), "not sorted"),
    "twice": (table_of([b"a", b"b", b"b"], ONES, ONES), "occurs twice"),
    "negative": (table_of([b"a", b"b", b"c"], ONES, [1, -2, 1]), "a count of -2 in num_string, expected 0 to"),
    "too large": (table_of([b"a", b"b", b"c"], [1, 2**48, 1], ONES), "a count of 281,474,976,710,656 in num_train"),
    "never": (table_of([b"a", b"b", b"c"], [1, 0, 1], [1, 0, 1]), "all counts of a string are 0"),
}


@pytest.mark.parametrize(("table", "message"), WRONG_ROWS.values(), ids=WRONG_ROWS)
@pytest.mark.parametrize("block_strings", [1, 2, 100])
def test_wrong_rows_are_neither_written_nor_read(tmp_path, monkeypatch, table, message, block_strings):
    monkeypatch.setattr(string_counts, "BLOCK_STRINGS", block_strings)
    with pytest.raises(ValueError, match=message):
        serialize([table])
    path = tmp_path / "counts"
    write_parquet(path, table, row_group_size=block_strings)
    with pytest.raises(ValueError, match=message) as error:
        list(read_counts(str(path), SPLITS))
    assert str(path) in str(error.value)


def test_the_largest_counts_are_read(tmp_path):
    path = tmp_path / "counts"
    table = table_of([b"a", b"b", b"c"], [MAX_COUNT] * 3, [0, MAX_COUNT, 0])
    path.write_bytes(serialize([table]))
    assert rows(read_counts(str(path), SPLITS)) == rows([table])


def write_parquet(path, table, **options):
    pq.write_table(table, path, **{"use_dictionary": False, "store_schema": False} | options)


GOOD = table_of([b"a", b"b", b"c"], ONES, ONES)
OPTIONAL = pa.schema([field.with_nullable(True) for field in counts_schema(SPLITS)])
WRONG_FILES = {
    "columns": (table_of([b"a"], [1], schema=counts_schema(["train"])), {}, "has the columns 'string' .*, expected"),
    "splits": (table_of([b"a"], [1], [1], schema=counts_schema(["train", "test"])), {}, "'num_test'"),
    "type": (GOOD.set_column(0, "string", pa.array(["a", "b", "c"])), {}, r"'string' \(string\?\)"),
    "nulls": (table_of([b"a", None], [1, 1], [1, None], schema=OPTIONAL), {}, r"\(binary\?\)"),
    "dictionary": (GOOD, {"use_dictionary": ["string"]}, "RLE_DICTIONARY"),
    "prefixes": (GOOD, {"column_encoding": {"string": "DELTA_BYTE_ARRAY"}}, "DELTA_BYTE_ARRAY"),
}


@pytest.mark.parametrize(("table", "options", "message"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_other_parquet_files_are_refused(tmp_path, table, options, message):
    write_parquet(tmp_path / "counts", table, **options)
    with pytest.raises(ValueError, match=message):
        list(read_counts(str(tmp_path / "counts"), SPLITS))


@pytest.mark.parametrize("change", [{"strings": 2}, {"strings": 4}])
def test_a_file_with_another_number_of_strings_than_claimed_is_refused(tmp_path, change):
    (tmp_path / "counts").write_bytes(serialize([GOOD]))
    with pytest.raises(ValueError, match=f"has 3 strings, expected {change['strings']}"):
        CountsReader(str(tmp_path / "counts"), SPLITS, **change)


def test_large_blocks_are_refused_before_they_are_read(tmp_path, monkeypatch):
    (tmp_path / "rows").write_bytes(serialize([GOOD]))
    big = table_of([b"%d" % digit * 3_000_000 for digit in range(3)], ONES, ONES)
    write_parquet(tmp_path / "bytes", big, compression="zstd")
    monkeypatch.setattr(string_counts, "BLOCK_STRINGS", 2)
    with pytest.raises(ValueError, match="block 0 has 3 rows"):
        CountsReader(str(tmp_path / "rows"), SPLITS)
    monkeypatch.setattr(string_counts, "BLOCK_STRINGS", 3)
    with pytest.raises(ValueError, match="block 0 has 3 rows and 9,000,[0-9]+ bytes"):
        CountsReader(str(tmp_path / "bytes"), SPLITS)


def test_files_that_are_not_parquet_are_refused_and_a_missing_one_is_missing(tmp_path):
    for data in (b"", b"PAR1", b"a,b\n1,2\n" * 100):
        (tmp_path / "counts").write_bytes(data)
        with pytest.raises(ValueError, match="not a file of counts"):
            CountsReader(str(tmp_path / "counts"), SPLITS)
    with pytest.raises(FileNotFoundError):
        CountsReader(str(tmp_path / "missing"), SPLITS)


@pytest.mark.parametrize("number", [300, pytest.param(20_000, marks=pytest.mark.proof)])
def test_damaged_files_are_refused_or_read_as_valid_counts(tmp_path, small_blocks, number):
    """Flipped bits in the counts may give other valid counts: only the file's digest tells."""
    chance = random.Random(0)
    counts = {split: {b"%d" % chance.randrange(100): chance.randrange(1, 300) for _ in range(40)} for split in SPLITS}
    good = serialize([tabulate_counts(counts, SPLITS)])
    path, refused = tmp_path / "counts", 0
    for _ in range(number):
        data = bytearray(good)
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        for _ in range(chance.randrange(1, 4)):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data)
        try:
            found = rows(read_counts(str(path), SPLITS))
        except ValueError:
            refused += 1
            continue
        assert [row[0] for row in found] == sorted({row[0] for row in found})
        assert all(0 <= count <= MAX_COUNT for row in found for count in row[1:])
    assert refused > number / 2
