"""The index of a shard: a Parquet file with the place, length, id and label of each record, in the shard's order."""

import io
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.format.models import Shard
from pipeline.format.tfrecord import FRAME_BYTES
from pipeline.schema.labels import Label, class_name
from pipeline.schema.record import Array, named_classes

KEY = "key"
# The columns of the index of a shard that has a window.
EVENT_TIME, NUM_LABELS = "event_time", "num_labels"
# The types of the columns. That of the label depends on its kind.
_TYPES = {
    "offset": pa.int64(),
    "num_bytes": pa.int64(),
    "num_steps": pa.int32(),
    "id": pa.string(),
    "label": None,
    "part": pa.int32(),
    "num_parts": pa.int32(),
    "group": pa.string(),
    "source": pa.string(),
    KEY: pa.uint64(),
    EVENT_TIME: pa.int64(),
    NUM_LABELS: pa.int32(),
}
_OPTIONAL = {KEY, EVENT_TIME, NUM_LABELS}
# The unit in which a part of an index is read.
_ROW_GROUP_ROWS = 65_536
# Tables that wait to be written. Each takes several kB beside its rows.
_MAX_TABLES = 64
# Columns with few distinct values. A dictionary of the others would only be an additional copy of them.
_REPEATED = ("num_bytes", "num_steps", "label", "label.list.element", "part", "num_parts", "group", "source")
# Ascending columns, stored as differences. Measured: 5.9 bytes a key instead of 7.8, and the file is read sooner.
_ASCENDING = ("offset", KEY)
# Memory that the strings of one record may take on average, beside what follows from the size of the shard.
_STRING_BYTES, _FILE_BYTES = 4096, 16 * 2**20


def index_schema(label: Label, *, with_key: bool = True, with_window: bool = False) -> pa.Schema:
    """Returns the columns of an index, which has a row for each Example: a record, or a part of a long one.

    offset: Where the frame begins, in bytes.
    num_bytes: Size of the data. The next frame begins at offset + FRAME_BYTES + num_bytes.
    num_steps: Number of steps of the record or part.
    id: Id of the record.
    label: Class, list of classes, probabilities or number, by the kind of the label; null for labels per step. The
        parts of a record repeat it, and all other columns but the first three and `num_labels`.
    part, num_parts: Number of the part, from 0, and number of parts of the record. 0 and 1 for a complete record. The
        parts of a record follow one another.
    group: Value of the schema's group field; null if the schema has no group.
    source: Path of the raw file; null if it is unknown.
    key: The `key_number` of the record's order key, ascending. Format version 1 has no such column.
    event_time: Event time of the record in microseconds since 1970, in UTC; only in a shard with a window.
    num_labels: Number of labelled steps; for a label per record, 1 in the first part and 0 in the others. Only in a
        shard with a window.

    Args:
        with_key: False for the columns of format version 1.
        with_window: Whether the shard has a window.
    """
    label_type = {
        "class": pa.string(),
        "multilabel": pa.list_(pa.string()),
        "distribution": pa.list_(pa.float32()),
        "regression": pa.float32(),
    }.get(label.kind, pa.null())
    types = {name: label_type if name == "label" else type for name, type in _TYPES.items()}
    for name in _OPTIONAL - ({KEY} if with_key else set()) - ({EVENT_TIME, NUM_LABELS} if with_window else set()):
        del types[name]
    return pa.schema(types)


def index_label(values: Any, label: Label) -> Any:
    """Returns the label of a record as the index stores it; None for labels per step.

    Args:
        values: int64[values] or float32[values], the label as the Example stores it.
    """
    if label.per_step:
        return None
    if label.kind == "class":
        return class_name(label.classes[int(values[0])])
    if label.kind == "multilabel":
        return [class_name(label.classes[position]) for position in named_classes(values, label)]
    return values.tolist() if label.kind == "distribution" else float(values[0])


def build_index(
    label: Label,
    *,
    num_bytes: Any,
    num_steps: Any,
    ids: Any,
    labels: Sequence[Any],
    groups: Any,
    sources: Any,
    keys: Any,
    num_parts: Array | None = None,
    event_times: Any = None,
    num_labels: Any = None,
    start: int = 0,
) -> pa.Table:
    """Returns the index of records that follow one another in a file.

    Args:
        num_bytes, num_steps: Columns of the index, with a value for each part of each record: Arrow arrays, or values
            that convert to them.
        num_labels: The same, for a shard that has a window.
        ids, groups, sources, keys: Columns of the index, with a value for each record.
        event_times: The same, for a shard that has a window.
        labels: The result of `index_label` for each record.
        num_parts: int[records], the number of parts of each record. By default, each record is complete.
        start: Where the first frame begins in the file, in bytes.
    """
    num_parts = np.ones(len(ids), np.int32) if num_parts is None else num_parts
    sizes = np.asarray(num_bytes, np.int64)
    offsets = start + np.cumsum(sizes + FRAME_BYTES) - (sizes + FRAME_BYTES)
    parts = number_parts(num_parts)
    of_record = {"id": ids, "label": labels, "group": groups, "source": sources, KEY: keys}
    of_part = {"offset": offsets, "num_bytes": sizes, "num_steps": num_steps, "part": parts[0], "num_parts": parts[1]}
    if event_times is not None:
        of_record[EVENT_TIME], of_part[NUM_LABELS] = event_times, num_labels
    schema = index_schema(label, with_window=event_times is not None)
    arrays = []
    for field in schema:
        column = of_part[field.name] if field.name in of_part else of_record[field.name]
        array = column.cast(field.type) if isinstance(column, pa.ChunkedArray) else pa.array(column, field.type)
        if field.name in of_record and len(ids) < len(sizes):
            array = array.take(pa.array(np.repeat(np.arange(len(ids)), num_parts)))
        arrays.append(array)
    return pa.table(arrays, schema)


def number_parts(num_parts: Array) -> tuple[Array, Array]:
    """Returns the columns `part` and `num_parts`: int32[parts] each.

    Args:
        num_parts: int[records], the number of parts of each record.

    >>> [column.tolist() for column in number_parts(np.array([2, 1]))]
    [[0, 1, 0], [2, 2, 1]]
    """
    ends = np.cumsum(num_parts)
    part = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - num_parts, num_parts)
    return part.astype(np.int32), np.repeat(num_parts, num_parts).astype(np.int32)


def serialize_index(table: pa.Table) -> bytes:
    """Returns the bytes of an index file. Equal tables give equal bytes with the same version of pyarrow."""
    writer = IndexWriter(table.schema)
    writer.add(table)
    data: bytes = writer.finish().to_pybytes()
    return data


class IndexWriter:
    """Makes the bytes of an index file. Memory holds them and the rows of one row group.

    The bytes do not depend on how the rows are divided into tables.

    Args:
        schema: The result of `index_schema`.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._source = schema.get_field_index("source")
        self._waiting = schema.set(self._source, pa.field("source", pa.dictionary(pa.int32(), pa.string())))
        self._buffer = pa.BufferOutputStream()
        self._file: pq.ParquetWriter | None = None
        # The rows that are not written yet.
        self._tables: list[pa.Table] = []
        self._num_rows = 0

    def add(self, table: pa.Table) -> None:
        """Adds the next rows of the index."""
        # The path of the raw file would take most of the memory of the row of a short record.
        self._tables.append(table.set_column(self._source, "source", table["source"].dictionary_encode()))
        self._num_rows += len(table)
        if self._num_rows >= _ROW_GROUP_ROWS or len(self._tables) >= _MAX_TABLES:
            rows = self._join()
            full = self._num_rows // _ROW_GROUP_ROWS * _ROW_GROUP_ROWS
            if full:
                self._write(rows[:full])
            self._tables, self._num_rows = [rows[full:]], len(rows) - full

    def finish(self) -> pa.Buffer:
        """Returns the bytes of the file. Nothing can be added any more."""
        if self._num_rows or self._file is None:
            self._write(self._join())
        assert self._file is not None
        self._file.close()
        return self._buffer.getvalue()

    def _join(self) -> pa.Table:
        # In one chunk: chunks decide where the pages of the file end.
        return pa.concat_tables([self._waiting.empty_table(), *self._tables]).unify_dictionaries().combine_chunks()

    def _write(self, rows: pa.Table) -> None:
        if self._file is None:
            self._file = pq.ParquetWriter(
                self._buffer,
                self._schema,
                compression="zstd",
                use_dictionary=list(_REPEATED),
                column_encoding=dict.fromkeys(_ASCENDING, "DELTA_BINARY_PACKED"),
            )
        rows = rows.set_column(self._source, "source", rows["source"].cast(pa.string()))
        self._file.write_table(rows, row_group_size=_ROW_GROUP_ROWS)


def read_index(data: bytes, shard: Shard, columns: list[str] | None = None) -> pa.Table:
    """Returns the index in the bytes of its file, or only some of its columns.

    Args:
        shard: The manifest's entry of the shard. It limits the memory that a file can take.

    Raises:
        ValueError: The bytes are not a Parquet file, a column of an index is missing or has another type, there is not
            one row for each Example of the shard, or the rows are too large for this shard.
    """
    try:
        reader = IndexReader(io.BytesIO(data), rows=shard.examples, shard_bytes=shard.bytes, columns=columns)
        return pa.concat_tables([reader.read(number, columns) for number in range(reader.num_row_groups)])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not a Parquet file: {error}") from None


class IndexReader:
    """Reads an index row group by row group. Its size is checked first.

    A small file can claim, or compress, any number of rows and bytes. So both are compared with the manifest.

    Args:
        rows: Number of Examples of the shard, which are its records or their parts.
        shard_bytes: Size of the shard's TFRecord file.
        columns: The columns that will be read; None for all.

    Attributes:
        num_row_groups: Number of row groups.
        has_keys: Whether there is a column of keys. Format version 1 has none.

    Raises:
        ValueError: A column of an index is missing or has another type, there is not one row for each Example, or the
            rows are too large. `read` raises this error too.
        pyarrow.ArrowException, OSError: The file is not a Parquet file.
    """

    def __init__(self, source: IO[bytes], *, rows: int, shard_bytes: int, columns: list[str] | None = None) -> None:
        parquet = pq.ParquetFile(source)
        # `metadata.schema` would be a cycle of references, which stays in memory until the garbage is collected.
        metadata, fields = parquet.metadata, parquet.schema_arrow
        _check_columns(fields)
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        for found in (metadata.num_rows, sum(group.num_rows for group in groups)):
            if found != rows:
                raise ValueError(f"has {found:,} rows, but the manifest says {rows:,} records or parts of records")
        # The ids and labels of the index are in the shard too, where the name of a class takes a byte.
        self._limit = 16 * shard_bytes + _STRING_BYTES * rows + _FILE_BYTES
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        self._check_size(
            sum(
                chunk.total_uncompressed_size + 8 * chunk.num_values
                for chunk in chunks
                if columns is None or chunk.path_in_schema.split(".")[0] in columns
            )
        )
        # A file can name a long string of its dictionary in each row. As a dictionary of Arrow, it takes memory once.
        # Other strings are read as they are, which takes a third of the time.
        strings = {
            chunk.path_in_schema
            for chunk in chunks
            if chunk.physical_type == "BYTE_ARRAY"
            and (chunk.has_dictionary_page or any("DICTIONARY" in encoding for encoding in chunk.encodings))
        }
        self._file = pq.ParquetFile(source, metadata=metadata, read_dictionary=sorted(strings))
        self._num_bytes = 0
        self.num_row_groups: int = metadata.num_row_groups
        self.has_keys = KEY in fields.names

    def key_range(self, number: int) -> tuple[int, int]:
        """Returns the first and the last key of a row group, from the file's statistics."""
        group = self._file.metadata.row_group(number)
        (column,) = [c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == KEY]
        if not column.is_stats_set or not column.statistics.has_min_max:
            raise ValueError(f"has no statistics of the keys of row group {number}")
        return int(column.statistics.min), int(column.statistics.max)

    def read(self, number: int, columns: list[str] | None = None) -> pa.Table:
        """Returns the rows of a row group, or only some of their columns."""
        # One row group at a time: pyarrow does not read lists of dictionaries from several.
        # Threads are not faster here, and each thread keeps its own memory.
        rows = self._file.read_row_group(number, columns, use_threads=False)
        self._num_bytes += sum(map(_dictionary_bytes, rows.columns))
        self._check_size(self._num_bytes)
        return rows.cast(pa.schema([field.with_type(_without_dictionary(field.type)) for field in rows.schema]))

    def _check_size(self, size: int) -> None:
        if size > self._limit:
            raise ValueError(
                f"takes {size:,} bytes in memory, but the index of this shard takes at most {self._limit:,}"
            )


def _check_columns(fields: pa.Schema) -> None:
    missing = _TYPES.keys() - _OPTIONAL - set(fields.names)
    if missing:
        raise ValueError(f"has no column {', '.join(sorted(missing))}")
    if any(field.type != (_TYPES.get(field.name) or field.type) for field in fields):
        raise ValueError(f"has columns of other types than an index: {fields.types}")
    if len(set(fields.names)) < len(fields):
        raise ValueError(f"has several columns of the same name: {', '.join(fields.names)}")


def _without_dictionary(type: pa.DataType) -> pa.DataType:
    if pa.types.is_list(type):
        return pa.list_(_without_dictionary(type.value_type))
    return type.value_type if pa.types.is_dictionary(type) else type


def _dictionary_bytes(column: pa.ChunkedArray) -> int:
    """Returns the bytes of the strings of a column of dictionaries or lists of them, or 0 for another column."""
    items = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    if not pa.types.is_dictionary(items.type):
        return 0
    lengths = [pc.take(pc.binary_length(chunk.dictionary), chunk.indices) for chunk in items.chunks]
    return sum(pc.sum(chunk.cast(pa.int64())).as_py() or 0 for chunk in lengths)
