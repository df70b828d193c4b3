"""The index of a shard: a Parquet file with the place, length, id and label of each record, in the shard's order."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.format.tfrecord import FRAME_BYTES
from pipeline.schema.labels import Label, class_name
from pipeline.schema.record import named_classes

_COLUMNS = ("offset", "num_bytes", "num_steps", "id", "label", "part", "num_parts", "group", "source")


def index_schema(label: Label) -> pa.Schema:
    """Returns the columns of an index.

    offset: Where the record's frame begins, in bytes.
    num_bytes: Size of the record's data. The next frame begins at offset + FRAME_BYTES + num_bytes.
    num_steps: Length of the record.
    id: Id of the record.
    label: Class, list of classes, probabilities or number, by the kind of the label; null for labels per step.
    part, num_parts: Always 0 and 1: each record is complete.
    group: Value of the schema's group field; null if the schema has no group.
    source: Path of the raw file; null if it is unknown.
    """
    label_type = {
        "class": pa.string(),
        "multilabel": pa.list_(pa.string()),
        "distribution": pa.list_(pa.float32()),
        "regression": pa.float32(),
    }.get(label.kind, pa.null())
    return pa.schema(
        [
            ("offset", pa.int64()),
            ("num_bytes", pa.int64()),
            ("num_steps", pa.int32()),
            ("id", pa.string()),
            ("label", label_type),
            ("part", pa.int32()),
            ("num_parts", pa.int32()),
            ("group", pa.string()),
            ("source", pa.string()),
        ]
    )


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
) -> pa.Table:
    """Returns the index of a file whose records follow one another from its start.

    Args:
        num_bytes, num_steps, ids, groups, sources: Columns of the index: Arrow arrays, or values that convert to them.
        labels: The result of `index_label` for each record.
    """
    sizes = np.asarray(num_bytes, np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes + FRAME_BYTES)[:-1]]) if len(sizes) else sizes
    parts = np.zeros(len(ids), np.int32), np.ones(len(ids), np.int32)
    columns = [offsets, sizes, num_steps, ids, labels, *parts, groups, sources]
    schema = index_schema(label)
    arrays = [
        column.cast(field.type) if isinstance(column, pa.ChunkedArray) else pa.array(column, field.type)
        for column, field in zip(columns, schema, strict=True)
    ]
    return pa.table(arrays, schema)


def serialize_index(table: pa.Table) -> bytes:
    """Returns the bytes of an index file. Equal tables give equal bytes with the same version of pyarrow."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_index(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """Returns the index in the bytes of its file, or only some of its columns.

    Raises:
        ValueError: The bytes are not a Parquet file, or a column of an index is missing.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        missing = set(_COLUMNS) - set(file.schema_arrow.names)
        if missing:
            raise ValueError(f"has no column {', '.join(sorted(missing))}")
        # Threads are not faster here, and each thread keeps its own memory.
        return file.read(columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not a Parquet file: {error}") from None
