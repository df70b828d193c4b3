"""Divides the records of a split into parts that are measured alone: by length, by group, by raw file."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema.record import Array

# Bands of length: as many records in each as can be.
MAX_BANDS = 8
# Groups, or raw files: the largest are measured. Where there are very many classes fewer are, for every part has some
# numbers for each class.
MAX_PARTS = 1000
_MAX_NUMBERS = 2**22


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """Parts of a split's records.

    Attributes:
        titles: What names each part in a report, as {"group": "p17"}.
        part: int64[records of the split]: the number of its part, or len(titles) for a record in none.
        left_out: Parts there are beside these.
    """

    name: str
    titles: tuple[dict[str, Any], ...]
    part: Array
    left_out: int = 0


def break_down(index: pa.Table, *, num_classes: int) -> list[Breakdown]:
    """By `length`, and where the index knows any, by `group`; by `source`, where it knows more than one raw file.

    Args:
        index: A row for each record of the split.
    """
    limit = max(1, min(MAX_PARTS, _MAX_NUMBERS // num_classes))
    found = [by_length(index["num_steps"].to_numpy())]
    for name, least in (("group", 1), ("source", 2)):
        # A dataset that was written before there were such columns has none.
        if name in index.column_names and index[name].null_count < len(index):
            parts = by_name(name, index[name], limit=limit)
            found += [parts] if len(parts.titles) + parts.left_out >= least else []
    return found


def by_length(num_steps: Array) -> Breakdown:
    """Bands of length, of int[records]; each with "min_steps" and "max_steps".

    >>> by_length(np.array([5, 5, 7])).titles
    ({'min_steps': 5, 'max_steps': 5}, {'min_steps': 7, 'max_steps': 7})
    """
    lengths, counts = np.unique(num_steps, return_counts=True)
    bands: list[dict[str, int]] = []
    first, records = None, 0
    for steps, count in zip(lengths.tolist(), counts.tolist(), strict=True):
        first = steps if first is None else first
        records += count
        if records >= len(num_steps) * (len(bands) + 1) / MAX_BANDS:
            bands.append({"min_steps": first, "max_steps": steps})
            first = None
    part = np.searchsorted([band["max_steps"] for band in bands], num_steps)
    return Breakdown("length", tuple(bands), part)


def by_name(name: str, column: pa.ChunkedArray, *, limit: int) -> Breakdown:
    """The `limit` names that most records have, then in the order of the names; null, which is unknown, is one too.

    >>> by_name("group", pa.chunked_array([["b", None, "c", "b", "a"]]), limit=2)
    Breakdown(name='group', titles=({'group': 'b'}, {'group': 'a'}), part=array([0, 2, 2, 0, 1]), left_out=2)
    """
    counted = column.value_counts()
    names = pa.table({"name": counted.field("values"), "records": counted.field("counts")})
    names = names.sort_by([("records", "descending"), ("name", "ascending")])["name"]
    listed = names[:limit].combine_chunks()
    part = pc.fill_null(pc.index_in(column, value_set=listed), len(listed)).to_numpy().astype(np.int64)
    return Breakdown(name, tuple({name: value} for value in listed.to_pylist()), part, len(names) - len(listed))
