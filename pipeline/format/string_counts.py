"""Exact counts of the strings of a feature: a Parquet file sorted by string, read and written in blocks.

The file has one row for each distinct string and these columns: `string`, and `num_<split>` for each split of the
schema, the number of occurrences in that split. A block is one row group of the file, and one pyarrow Table in memory.
`merge_counts` adds up any number of such files.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.files import open_read, stream_sha256
from pipeline.schema.record import Array

# A block has at most this number of strings, and this number of bytes in its strings (or one string). Smaller blocks
# make a merge of many files slower, larger ones let it take more memory.
BLOCK_STRINGS, BLOCK_BYTES = 2**14, 2**19
# Largest count of one string. It leaves room in an int64 for the sum of a block, and of 64 blocks.
MAX_COUNT = 2**48 - 1
# What the pages and the counts of a row group may add to BLOCK_BYTES for each split, and for the strings.
_COLUMN_BYTES = 16 * BLOCK_STRINGS


def counts_schema(splits: Sequence[str]) -> pa.Schema:
    """Returns the columns of a file of counts: `string` (binary) and `num_<split>` (int64) for each split."""
    counts = [pa.field(f"num_{split}", pa.int64(), nullable=False) for split in splits]
    return pa.schema([pa.field("string", pa.binary(), nullable=False), *counts])


def tabulate_counts(counts: Mapping[str, Mapping[bytes, int]], splits: Sequence[str]) -> pa.Table:
    """Returns the table of counts in memory, sorted by string.

    Args:
        counts: For each split, the number of occurrences of each string.
    """
    schema = counts_schema(splits)
    parts = [schema.empty_table()]
    for split in splits:
        columns = {name: np.zeros(len(counts[split]), np.int64) for name in schema.names[1:]}
        columns[f"num_{split}"] = np.fromiter(counts[split].values(), np.int64, len(counts[split]))
        parts.append(pa.table({"string": pa.array(counts[split].keys(), pa.binary()), **columns}, schema=schema))
    return add_counts(parts)


def add_counts(tables: Sequence[pa.Table]) -> pa.Table:
    """Returns one row for each distinct string in `tables`, with the sums of its counts, sorted by string.

    Args:
        tables: At least one; all with the same columns. Their rows may be in any order.
    """
    rows = pa.concat_tables(tables)
    if len(rows) < 2:
        return rows
    # Three other ways were measured: `group_by` and a sort of Python objects reach half the speed of this sort.
    strings = string_array(rows)
    order = pc.sort_indices(strings)
    strings = strings.take(order)
    is_first = np.append(True, pc.not_equal(strings[1:], strings[:-1]).to_numpy(zero_copy_only=False))
    starts = np.flatnonzero(is_first)
    places = order.to_numpy()
    sums = [np.add.reduceat(column.to_numpy()[places], starts) for column in rows.columns[1:]]
    if len(starts) < len(rows):
        strings = strings.take(pa.array(starts))
    return pa.Table.from_arrays([strings, *map(pa.array, sums)], schema=rows.schema)


def write_counts(file: IO[bytes], blocks: Iterable[pa.Table], splits: Sequence[str]) -> int:
    """Writes tables of counts to a file that is open for writing. Returns the number of strings.

    The bytes of the file do not depend on how the rows are divided into tables.

    Args:
        blocks: Tables of any sizes, sorted by string, also from one table to the next.

    Raises:
        ValueError: The tables are not sorted, a string occurs twice, or a count is not from 0 to MAX_COUNT.
    """
    schema = counts_schema(splits)
    # Measured: with these encodings, writing and reading are twice as fast as with PLAIN counts, and files are smaller.
    encodings = {name: "DELTA_BINARY_PACKED" if name != "string" else "PLAIN" for name in schema.names}
    options = {"compression": "zstd", "use_dictionary": False, "column_encoding": encodings}
    strings = 0
    with pq.ParquetWriter(file, schema, write_statistics=False, store_schema=False, **options) as writer:
        for block in _check_rows(_cut_into_blocks(blocks), schema, "The counts to write"):
            writer.write_table(block, row_group_size=len(block))
            strings += len(block)
    return strings


class CountsReader:
    """Reads a file of counts from start to end, one block at a time. Keeps the file open until `close`.

    Memory holds the file's footer and one block. Use `contextlib.closing`.

    Args:
        path: Path of the file, on any file system that Beam knows.
        splits: The splits that the file must have, in order.
        strings: Number of strings that the file must have; None for any.
        sha256: SHA-256 that the file must have; None for any. It is checked first: pyarrow aborts the process at some
            damaged footers.

    Attributes:
        strings: Number of strings of the file.
        largest_block: Size of the largest block in bytes.

    Raises:
        ValueError: The file is not a file of counts, or has other columns, another number of strings or another digest.
    """

    def __init__(
        self, path: str, splits: Sequence[str], strings: int | None = None, *, sha256: str | None = None
    ) -> None:
        self._path = path
        self._schema = counts_schema(splits)
        self._files = contextlib.ExitStack()
        try:
            file = self._files.enter_context(open_read(path))
            if sha256 is not None:
                found = stream_sha256(file)
                if found != sha256:
                    raise ValueError(f"{path}: has the SHA-256 {found}, expected {sha256}.")
                file.seek(0)
            with self._refuse_damage():
                self._parquet = pq.ParquetFile(file)
                self.largest_block = self._check_footer(self._parquet, strings)
            self.strings: int = self._parquet.metadata.num_rows
        except BaseException:
            self._files.close()
            raise

    def close(self) -> None:
        self._files.close()

    def blocks(self) -> Iterator[pa.Table]:
        """Yields the blocks, which are not empty, sorted by string.

        Raises:
            ValueError: The rows are not sorted, a string occurs twice, a count is not from 0 to MAX_COUNT, or the bytes
                are damaged.
        """
        yield from _check_rows(self._read(), self._schema, self._path)

    def _read(self) -> Iterator[pa.Table]:
        for number in range(self._parquet.num_row_groups):
            with self._refuse_damage():
                # Threads are not faster here, and each thread keeps its own memory.
                block = self._parquet.read_row_group(number, use_threads=False)
                # Checks the offsets in the columns, for damaged bytes may give any.
                block.validate(full=True)
            if len(block) != self._parquet.metadata.row_group(number).num_rows:
                raise ValueError(f"{self._path}: block {number} does not have the rows that the footer lists.")
            yield block

    def _check_footer(self, parquet: pq.ParquetFile, strings: int | None) -> int:
        """Checks all that the footer claims, before any block is read. Returns the bytes of the largest block."""
        found, expected = parquet.schema_arrow, self._schema
        if not found.equals(expected):
            raise ValueError(
                f"{self._path}: has the columns {_describe(found)}, expected {_describe(expected)} of a file of counts."
            )
        metadata = parquet.metadata
        if strings is not None and metadata.num_rows != strings:
            raise ValueError(f"{self._path}: has {metadata.num_rows:,} strings, expected {strings:,}.")
        largest = 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            rows, num_bytes = group.num_rows, group.total_byte_size
            most_bytes = BLOCK_BYTES + _COLUMN_BYTES * len(expected)
            # Strings in a dictionary, or in another encoding, could unpack to much more than `total_byte_size`.
            encodings = set(group.column(0).encodings)
            if not 0 < rows <= BLOCK_STRINGS or (rows > 1 and num_bytes > most_bytes) or encodings - {"PLAIN", "RLE"}:
                raise ValueError(
                    f"{self._path}: block {number} has {rows:,} rows and {num_bytes:,} bytes ({', '.join(encodings)}), "
                    f"expected 1 to {BLOCK_STRINGS:,} rows and at most {most_bytes:,} bytes (PLAIN)."
                )
            largest = max(largest, num_bytes)
        return largest

    @contextlib.contextmanager
    def _refuse_damage(self) -> Iterator[None]:
        """Turns an error of pyarrow into a ValueError; an error of the file system remains an OSError."""
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError(f"{self._path}: not a file of counts: {error}") from None


def read_counts(
    path: str, splits: Sequence[str], *, strings: int | None = None, sha256: str | None = None
) -> Iterator[pa.Table]:
    """Yields the blocks of a file of counts. See CountsReader for the arguments and errors."""
    with contextlib.closing(CountsReader(path, splits, strings, sha256=sha256)) as reader:
        yield from reader.blocks()


def count_not_in(
    terms: pa.Array, path: str, splits: Sequence[str], *, strings: int | None = None, sha256: str | None = None
) -> dict[str, int]:
    """Returns, for each split, the number of occurrences of strings that are not among some terms: binary[terms].

    See CountsReader for the other arguments and the errors.
    """
    totals = dict.fromkeys(splits, 0)
    for block in read_counts(path, splits, strings=strings, sha256=sha256):
        is_other = pc.invert(pc.is_in(string_array(block), value_set=terms)).to_numpy(zero_copy_only=False)
        for split, counts in zip(splits, count_arrays(block), strict=True):
            totals[split] += int(counts[is_other].sum())
    return totals


def string_array(rows: pa.Table) -> pa.Array:
    """Returns the strings of a table of counts as one array, binary[rows]."""
    strings = rows["string"].combine_chunks()
    # Chunks of more than 2 GiB in all, which no block has, would remain chunks.
    assert isinstance(strings, pa.Array)
    return strings


def count_arrays(rows: pa.Table) -> list[Array]:
    """Returns int64[rows] for each split."""
    return [column.to_numpy() for column in rows.columns[1:]]


def _cut_into_blocks(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yields the same rows in blocks, each as large as the limits allow."""
    pending: list[pa.Table] = []
    rows = num_bytes = 0
    for table in tables:
        pending.append(table)
        rows += len(table)
        num_bytes += _string_bytes(table)
        if rows >= BLOCK_STRINGS or num_bytes >= BLOCK_BYTES:
            *full, last = _cut(pa.concat_tables(pending))
            yield from full
            # The last block may not be full yet.
            pending, rows, num_bytes = [last], len(last), _string_bytes(last)
    if rows:
        yield from _cut(pa.concat_tables(pending))


def _string_bytes(table: pa.Table) -> int:
    return int(pc.sum(pc.binary_length(table["string"]), min_count=0).as_py())


def _cut(table: pa.Table) -> Iterator[pa.Table]:
    sizes = pc.binary_length(table["string"]).to_numpy().astype(np.int64)
    ends = np.cumsum(sizes)
    start = 0
    while start < len(table):
        limit = ends[start] - sizes[start] + BLOCK_BYTES
        stop = min(start + BLOCK_STRINGS, max(start + 1, int(np.searchsorted(ends, limit, side="right"))))
        yield table[start:stop]
        start = stop


def _check_rows(blocks: Iterable[pa.Table], schema: pa.Schema, name: str) -> Iterator[pa.Table]:
    """Yields the blocks that are not empty. Raises a ValueError if they are not sorted, or a count is out of range."""
    last: Any = None
    for block in blocks:
        if not block.schema.equals(schema):
            raise ValueError(f"{name}: the columns {_describe(block.schema)}, expected {_describe(schema)}.")
        if not len(block):
            continue
        strings, counts = string_array(block), count_arrays(block)
        first = strings[0].as_py()
        if (last is not None and first <= last) or not pc.all(pc.less(strings[:-1], strings[1:]), min_count=0).as_py():
            raise ValueError(f"{name}: the strings are not sorted, or one of them occurs twice.")
        last = strings[-1].as_py()
        for column, of_split in zip(schema.names[1:], counts, strict=True):
            smallest, largest = int(of_split.min()), int(of_split.max())
            if smallest < 0 or largest > MAX_COUNT:
                wrong = smallest if smallest < 0 else largest
                raise ValueError(f"{name}: a count of {wrong:,} in {column}, expected 0 to {MAX_COUNT:,}.")
        if counts and not np.logical_or.reduce([of_split > 0 for of_split in counts]).all():
            raise ValueError(f"{name}: all counts of a string are 0, expected at least one occurrence.")
        yield block


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name[:40]!r} ({field.type}{'?' if field.nullable else ''})" for field in schema)[:400]
