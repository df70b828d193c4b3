"""The raw files of a generation: a Parquet file sorted by path, written and read in blocks of bounded size.

The file has one row for each raw file and these columns: `path`; `bytes`, the number of bytes of its lines,
decompressed; `stored_bytes`, its size when it was listed; and `sha256`, 32 bytes. The digest of a file is the SHA-256
of the joined digests of its chunks, and that of a chunk is computed from the digests of its lines that are not blank
(see pipeline/raw/json_lines.py). So two files have the same digest if their lines are the same, whatever their line
breaks, blank lines and compression. (A compressed file is one chunk: above the size of a chunk, its digest differs from
that of the plain file.)

If raw files are given by split, the column `split` has the split for which a file was given.

A stream reads a file in parts, and has a row for each part in the generation that took it. Four more columns say which
part it is; they are null for a file that was not followed:
- `start`: offset of the part in the file. The stream goes on at `start` + `stored_bytes`.
- `lines`: number of lines of the file before the end of the part.
- `rewrites`: how often the file had been read from its start before, since other content took its place. Of all rows of
  a path, the one with the largest `rewrites` and then the largest end is the place up to which the file was read.
- `tail`: SHA-256 of the last 4,096 bytes before that end (or of all, if there are fewer), as they are stored.
`bytes`, `stored_bytes` and `sha256` are those of the part. A compressed file is one part.

`compact` joins the rows of neighbouring parts of a file to one, so that their number does not grow with the rounds of a
stream. The column `joined` has the number of rows that were joined; it is null for a single part. `sha256` is then the
SHA-256 of the joined digests of these rows, so that it can be computed again only from the same parts.

A partition of a Kafka topic is a file with the path `kafka://TOPIC/PARTITION`, for which columns mean other things:
- `start` and `stored_bytes` are offsets: the stream goes on at the offset `start` + `stored_bytes`. Not every offset in
  between has a message that was read: others were removed by a compaction, aborted, or had no value.
- `bytes` counts the bytes of the values, and `lines` the messages before the end of the part that had a value.
- `rewrites`: how often the partition had been read from its start before, since other content took its place.
- `tail`: SHA-256 of the ids of the cluster and of the topic. A topic that is deleted and made anew has another one.
- `sha256`: see pipeline/raw/spooled_messages.py. No other part has the same.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.files import join, open_read, stream_sha256
from pipeline.format.models import Count, InsidePath, Model, Sha256

# A block, which is one row group, has at most this number of rows, and this number of bytes in its paths (or one path).
BLOCK_FILES, BLOCK_BYTES = 2**14, 2**20
# What the other columns and the headers of pages take in a block, at most.
_OTHER_BYTES = 2**16 + 128 * BLOCK_FILES

COLUMNS = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("stored_bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
    ]
)
SPLIT = "split"
COLUMNS_WITH_SPLIT = COLUMNS.append(pa.field(SPLIT, pa.string(), nullable=False))
START = "start"
_RANGE_COLUMNS = [
    pa.field(START, pa.int64()),
    pa.field("lines", pa.int64()),
    pa.field("rewrites", pa.int64()),
    pa.field("tail", pa.binary(32)),
]
_JOINED_COLUMNS = [*_RANGE_COLUMNS, pa.field("joined", pa.int64())]
_ALL_COLUMNS = [
    pa.schema([*some, *more])
    for some in (COLUMNS, COLUMNS_WITH_SPLIT)
    for more in ([], _RANGE_COLUMNS, _JOINED_COLUMNS)
]


class SourcesFile(Model):
    """The file that lists the raw files of a generation.

    Attributes:
        path: Path of the file, inside the dataset.
        sha256: SHA-256 of the file.
        files: Number of rows: raw files, or parts of them.
        bytes: Number of bytes of their lines, decompressed.
        parts: Number of rows that are parts of files which a stream follows.
        later_parts: Number of those that do not begin at the start of their file.
    """

    path: InsidePath
    sha256: Sha256
    files: Count
    bytes: Count
    parts: Count = 0
    later_parts: Count = 0

    @property
    def unused(self) -> set[str]:
        """Fields to leave out, so that a list without parts has the same JSON as before there were any."""
        return set() if self.parts else {"parts", "later_parts"}


class SourceRow(NamedTuple):
    """A raw file, or a part of one, as it was read. The description of this module says what each value is."""

    path: str
    num_bytes: int
    stored_bytes: int
    sha256: bytes
    split: str | None = None
    start: int | None = None
    lines: int | None = None
    rewrites: int | None = None
    tail: bytes | None = None
    joined: int | None = None


class WrittenSources(NamedTuple):
    """The counts of a SourcesFile."""

    files: int
    bytes: int
    parts: int = 0
    later_parts: int = 0

    def plus(self, other: "WrittenSources") -> "WrittenSources":
        """Returns the sums."""
        return WrittenSources(*map(sum, zip(self, other, strict=True)))


def write_sources(
    file: IO[bytes], rows: Iterable[SourceRow], *, with_parts: bool | None = None, with_joined: bool = False
) -> WrittenSources:
    """Writes rows to a file that is open for writing. Memory holds one block.

    Args:
        rows: Sorted by path. A path occurs again if its file was taken again with other content; the newest is last.
            All have a split, or none has.
        with_parts: Whether some rows are parts of files. None: if the first one is.
        with_joined: Whether some of these are several parts. Needs `with_parts`.

    Raises:
        ValueError: The rows are not sorted, a number is negative, or some of the rows have no split.
    """
    total = WrittenSources(0, 0)
    options = {"use_dictionary": False, "write_statistics": False, "store_schema": False}
    rows = iter(rows)
    first = next(rows, None)
    columns = COLUMNS if first is None or first.split is None else COLUMNS_WITH_SPLIT
    if with_parts or (with_parts is None and first is not None and first.start is not None):
        columns = pa.schema([*columns, *(_JOINED_COLUMNS if with_joined else _RANGE_COLUMNS)])
    blocks = _cut_into_blocks(itertools.chain([] if first is None else [first], rows))
    with pq.ParquetWriter(file, columns, compression="zstd", **options) as writer:
        for block in _check_rows((_to_table(block, columns) for block in blocks), "The sources to write"):
            writer.write_table(block, row_group_size=len(block))
            total = total.plus(count_rows(block))
    return total


def count_rows(block: pa.Table) -> WrittenSources:
    """Returns the counts of a block."""
    parts = later = 0
    if START in block.column_names:
        parts = len(block) - block[START].null_count
        later = pc.sum(pc.greater(block[START], 0)).as_py() or 0
    return WrittenSources(len(block), pc.sum(block["bytes"]).as_py(), parts, later)


def rows_of(block: pa.Table) -> Iterator[SourceRow]:
    """Yields the rows of a block."""
    names = [_FIELDS.get(name, name) for name in block.column_names]
    for values in zip(*(column.to_pylist() for column in block.columns), strict=True):
        yield SourceRow(**dict(zip(names, values, strict=True)))


# The field of SourceRow for a column with another name.
_FIELDS = {"bytes": "num_bytes"}


def read_sources(dataset: str, file: SourcesFile) -> Iterator[pa.Table]:
    """Yields the blocks of a file of sources: tables with the columns COLUMNS, and those for splits and parts if used.

    Memory holds one block.

    Args:
        dataset: Folder of the dataset, on any file system that Beam knows.

    Raises:
        ValueError: The file has another SHA-256, other columns or another number of rows, or its rows are not sorted.
        OSError: The file cannot be read.
    """
    path = join(dataset, file.path)
    with open_read(path) as stream:
        # pyarrow reads some damaged footers as other rows, and aborts the process at others (both tried).
        found = stream_sha256(stream)
        if found != file.sha256:
            raise ValueError(f"{path}: has the SHA-256 {found}, expected {file.sha256}.")
        stream.seek(0)
        with _refuse_damage(path):
            parquet = pq.ParquetFile(stream)
        _check_footer(path, parquet, file.files)
        yield from _check_rows(_read_blocks(path, parquet), path)


def _read_blocks(path: str, parquet: pq.ParquetFile) -> Iterator[pa.Table]:
    for number in range(parquet.num_row_groups):
        with _refuse_damage(path):
            # Threads are not faster here, and each thread keeps its own memory.
            block = parquet.read_row_group(number, use_threads=False)
            # Checks the offsets in the columns, for damaged bytes may give any.
            block.validate(full=True)
        if len(block) != parquet.metadata.row_group(number).num_rows:
            raise ValueError(f"{path}: block {number} does not have the rows that the footer lists.")
        yield block


def _check_footer(path: str, parquet: pq.ParquetFile, files: int) -> None:
    """Checks all that the footer claims, before any block is read."""
    found, metadata = parquet.schema_arrow, parquet.metadata
    if not any(map(found.equals, _ALL_COLUMNS)):
        raise ValueError(f"{path}: has the columns {_describe(found)}, expected {_describe(COLUMNS)}.")
    if metadata.num_rows != files:
        raise ValueError(f"{path}: lists {metadata.num_rows:,} raw files, expected {files:,}.")
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows, num_bytes = group.num_rows, group.total_byte_size
        # Paths in a dictionary, or in another encoding, could unpack to much more than `total_byte_size`.
        encodings = {name for column in range(len(found)) for name in group.column(column).encodings}
        too_large = rows > 1 and num_bytes > BLOCK_BYTES + _OTHER_BYTES
        if not 0 < rows <= BLOCK_FILES or too_large or encodings - {"PLAIN", "RLE"}:
            raise ValueError(
                f"{path}: block {number} has {rows:,} rows and {num_bytes:,} bytes ({', '.join(sorted(encodings))}), "
                f"expected 1 to {BLOCK_FILES:,} rows and at most {BLOCK_BYTES + _OTHER_BYTES:,} bytes (PLAIN)."
            )


def _check_rows(blocks: Iterable[pa.Table], name: str) -> Iterator[pa.Table]:
    """Yields the same blocks. Raises a ValueError if they are not sorted by path, or a number is negative."""
    last: str | None = None
    for block in blocks:
        paths = block["path"].combine_chunks()
        first = paths[0].as_py()
        if (last is not None and first < last) or not pc.all(pc.less_equal(paths[:-1], paths[1:]), min_count=0).as_py():
            raise ValueError(f"{name}: the paths are not sorted.")
        last = paths[-1].as_py()
        for column in ("bytes", "stored_bytes"):
            smallest = pc.min(block[column]).as_py()
            if smallest < 0:
                raise ValueError(f"{name}: {column} is {smallest:,}, expected at least 0.")
        if START in block.column_names:
            _check_parts(block, name)
        yield block


def _check_parts(block: pa.Table, name: str) -> None:
    """Raises a ValueError if a row has some of the values of a part, but not all, or a number is negative."""
    is_part = pc.is_valid(block[START])
    for column in ("lines", "rewrites", "tail"):
        if not pc.is_valid(block[column]).equals(is_part):
            raise ValueError(f"{name}: some parts of files have a {START} without {column}, or the reverse.")
    for column in (name for name in (START, "lines", "rewrites", "joined") if name in block.column_names):
        smallest = pc.min(block[column]).as_py()
        if smallest is not None and smallest < 0:
            raise ValueError(f"{name}: {column} is {smallest:,}, expected at least 0.")


def _cut_into_blocks(rows: Iterable[SourceRow]) -> Iterator[list[SourceRow]]:
    block: list[SourceRow] = []
    num_bytes = 0
    for row in rows:
        width = len(row.path.encode())
        if block and (len(block) == BLOCK_FILES or num_bytes + width > BLOCK_BYTES):
            yield block
            block, num_bytes = [], 0
        block.append(row)
        num_bytes += width
    if block:
        yield block


def _to_table(rows: list[SourceRow], columns: pa.Schema) -> pa.Table:
    has_split = SPLIT in columns.names
    if any((row.split is not None) != has_split for row in rows):
        raise ValueError("The sources to write: some of them have a split, and some have none.")
    if START not in columns.names and any(row.start is not None for row in rows):
        raise ValueError("The sources to write: some of them are parts of files, but the first one is not.")
    values = [[getattr(row, _FIELDS.get(name, name)) for row in rows] for name in columns.names]
    return pa.table([pa.array(column, field.type) for column, field in zip(values, columns, strict=True)], columns)


@contextlib.contextmanager
def _refuse_damage(path: str) -> Iterator[None]:
    """Turns an error of pyarrow into a ValueError; an error of the file system remains an OSError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path}: not a file of sources: {error}") from None


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name[:40]!r} ({field.type}{'?' if field.nullable else ''})" for field in schema)[:400]
