"""Counts the records that share their id with another record, in bounded memory: an external sort of all ids.

The ids are in files of counts, as those of strings (see pipeline/format/string_counts.py), one file for each part.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import counted, show
from pipeline.format.merge_counts import merge_counts, write_counts_run
from pipeline.format.string_counts import add_counts, count_arrays, counts_schema

# The only column of counts.
_COLUMN = ("records",)
# Most ids that a summary and a message list.
_MAX_EXAMPLES = 3


def pack_ids(ids: Sequence[str]) -> pa.Array:
    """Returns ids as binary[ids], which takes little more memory than their characters."""
    return pa.array(ids, pa.binary())


def write_ids(packed: Iterable[pa.Array], folder: str) -> str:
    """Counts packed ids, writes the counts to a new sorted file in a folder, and returns its path."""
    strings = pa.chunked_array(packed, pa.binary())
    rows = pa.table([strings, pa.array(np.ones(len(strings), np.int64))], schema=counts_schema(_COLUMN))
    return write_counts_run([add_counts([rows])], _COLUMN, folder)


def count_duplicates(paths: Iterable[str], *, folder: str) -> dict[str, Any]:
    """Returns how many ids several records have, how many records these are, and the first of the ids.

    Args:
        paths: Files that `write_ids` wrote.
        folder: Folder for temporary files.
    """
    ids = records = 0
    examples: list[str] = []
    for rows in merge_counts(paths, _COLUMN, folder=folder):
        (counts,) = count_arrays(rows)
        places = np.flatnonzero(counts > 1)
        ids += len(places)
        records += int(counts[places].sum())
        few = places[: _MAX_EXAMPLES - len(examples)]
        examples += [value.decode() for value in rows["string"].take(pa.array(few)).to_pylist()]
    return {"ids": ids, "records": records, "examples": examples}


def describe_duplicates(duplicates: dict[str, Any], *, are_equal: bool) -> str:
    """Returns a line about the records that share an id.

    Args:
        duplicates: The result of `count_duplicates`; there are some.
        are_equal: Whether ids are hashes of the records, so that these records are equal.
    """
    ids, listed = duplicates["ids"], ", ".join(map(show, duplicates["examples"]))
    more = ", …" if ids > len(duplicates["examples"]) else ""
    names = f"{counted(ids, 'id')}: {listed}{more}"
    if are_equal:
        return (
            f"{duplicates['records']:,} records are equal to another one and so have the same id and prediction "
            f"({names}). Each has a line."
        )
    return (
        f"{duplicates['records']:,} records share their id with another record ({names}). Each has a line, in no "
        "particular order; give each record an id of its own to tell their lines apart."
    )
