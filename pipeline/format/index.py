"""The index of a shard: where each record lies and how long it is, one row a record, in the shard's order."""

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
    """The columns of an index.

    `offset` is of the record's frame and `num_bytes` of its data, so the next record begins FRAME_BYTES + num_bytes
    further on. `label` is the class, the list of classes, the probabilities or the number; null for labels per step.
    `group` is null where the schema has none, and `source`, the raw file, where it is not known.
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
    """What the index holds of a stored label, int64 or float32[numbers]; None for labels per step."""
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
    """The index of records that lie one after the other from the start of a file; each is whole (part 0 of 1).

    Args:
        num_bytes, num_steps, ids, groups, sources: Arrow arrays, or what they can be made of.
        labels: As `index_label` gives them.
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
    # The same rows are the same bytes, from one version of pyarrow.
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_index(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """The index in the bytes of its file, or only some of its columns.

    Raises:
        ValueError: not a Parquet file, or not one with the columns of an index.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        missing = set(_COLUMNS) - set(file.schema_arrow.names)
        if missing:
            raise ValueError(f"has no column {', '.join(sorted(missing))}")
        # Threads are no faster here, and each keeps memory of its own.
        return file.read(columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not a Parquet file: {error}") from None
