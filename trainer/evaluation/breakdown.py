"""Divides the records of a split into parts, by length, group or raw file, each of which is measured alone."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema.record import Array

# Bands of length, of about equal numbers of records.
MAX_BANDS = 8
# Only the largest groups or raw files are measured. With very many classes, fewer: a part holds several numbers for
# each class.
MAX_PARTS = 1000
_MAX_NUMBERS = 2**22


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """A division of a split's records into parts.

    Attributes:
        titles: The name of each part in a report, such as {"group": "p17"}.
        part: int64[records of the split], the number of each record's part; len(titles) for a record in no part.
        left_out: Number of further parts, which are not measured.
    """

    name: str
    titles: tuple[dict[str, Any], ...]
    part: Array
    left_out: int = 0


def break_down(index: pa.Table, *, num_classes: int) -> list[Breakdown]:
    """Returns the breakdowns by length, by group if a record has one, and by source if there are several raw files.

    Args:
        index: The split's index, a row for each record.
    """
    limit = max(1, min(MAX_PARTS, _MAX_NUMBERS // num_classes))
    found = [by_length(index["num_steps"].to_numpy())]
    for name, least in (("group", 1), ("source", 2)):
        # The indexes of older datasets lack these columns.
        if name in index.column_names and index[name].null_count < len(index):
            parts = by_name(name, index[name], limit=limit)
            found += [parts] if len(parts.titles) + parts.left_out >= least else []
    return found


def by_length(num_steps: Array) -> Breakdown:
    """Returns the breakdown of int[records] steps into bands of length, each with "min_steps" and "max_steps".

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
    """Returns the breakdown by the `limit` most frequent names, ties in the names' order. Null counts as a name.

    >>> by_name("group", pa.chunked_array([["b", None, "c", "b", "a"]]), limit=2)
    Breakdown(name='group', titles=({'group': 'b'}, {'group': 'a'}), part=array([0, 2, 2, 0, 1]), left_out=2)
    """
    counted = column.value_counts()
    names = pa.table({"name": counted.field("values"), "records": counted.field("counts")})
    names = names.sort_by([("records", "descending"), ("name", "ascending")])["name"]
    listed = names[:limit].combine_chunks()
    part = pc.fill_null(pc.index_in(column, value_set=listed), len(listed)).to_numpy().astype(np.int64)
    return Breakdown(name, tuple({name: value} for value in listed.to_pylist()), part, len(names) - len(listed))
