"""Ids of equal records: without an id in the schema, the id of a record is a hash, and its copies are numbered.

The first copy has the hash as its id, and the k-th copy has `<hash>-k`. All copies share the order key and the split of
the hash, so that they follow one another in one shard. Since they are equal in all but this id, only their number
matters, and it does not matter which of the raw records becomes which copy.
"""

import re
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema.record import Array
from pipeline.schema.schema import Schema

# The hash of a record, and its number from the second copy on.
_HASH = re.compile(r"([0-9a-f]{32})(?:-([1-9][0-9]*))?")
_ANCHORED = rf"^{_HASH.pattern}$"


def numbers_copies(schema: Schema) -> bool:
    """Whether equal records are kept and numbered. With an id in the schema, they are duplicates, and one is kept."""
    return schema.id is None


def is_hash(record_id: str) -> bool:
    """Whether an id is the hash of a record, with or without a number. Records from a program may have other ids."""
    return _HASH.fullmatch(record_id) is not None


def copy_id(first: str, number: int) -> str:
    """Returns the id of a copy.

    >>> [copy_id("0" * 32, number)[31:] for number in (1, 2, 10)]
    ['0', '0-2', '0-10']
    """
    return first if number == 1 else f"{first}-{number}"


def split_copy_id(record_id: str) -> tuple[str, int]:
    """Returns the id of the first copy, and the number of this one. The number of an id that is no hash is 1.

    >>> split_copy_id("ab" * 16 + "-12")[1], split_copy_id("ab-12")
    (12, ('ab-12', 1))
    """
    match = _HASH.fullmatch(record_id)
    return (record_id, 1) if match is None else (match[1], int(match[2] or 1))


def first_id(record_id: str, schema: Schema) -> str:
    """Returns the id that the order key and the split of a record depend on: that of its first copy."""
    return split_copy_id(record_id)[0] if numbers_copies(schema) else record_id


def is_numbered_copy(record_id: str, schema: Schema) -> bool:
    """Whether a record is equal to another one, which is the first of them."""
    return numbers_copies(schema) and split_copy_id(record_id)[1] > 1


def count_copies(ids: pa.ChunkedArray) -> int:
    """Returns how many of string[ids] have a number, which are all copies of a record but the first."""
    return sum(pc.sum(_have_numbers(chunk)).as_py() or 0 for chunk in ids.chunks)


def first_of_each(ids: pa.ChunkedArray) -> Array:
    """Returns int64[places], the first place of each run of copies of one record in string[ids]."""
    return np.flatnonzero(np.append(True, _changes(ids))[: len(ids)])


def last_of_each(ids: pa.ChunkedArray) -> Array:
    """Returns int64[places], the last place of each run of copies of one record in string[ids]."""
    return np.flatnonzero(np.append(_changes(ids), True)[: len(ids)])


def last_numbers(ids: Iterable[str]) -> dict[str, int]:
    """Returns the largest number among some copies of each record, by the id of its first copy."""
    numbers: dict[str, int] = {}
    for first, number in map(split_copy_id, ids):
        numbers[first] = max(number, numbers.get(first, 0))
    return numbers


def _changes(ids: pa.ChunkedArray) -> Array:
    """Returns bool[ids - 1], whether each id but the last one is followed by that of another record."""
    firsts = ids.combine_chunks()
    firsts = pc.if_else(_have_numbers(firsts), pc.utf8_slice_codeunits(firsts, 0, 32), firsts)
    changes: Array = pc.not_equal(firsts[1:], firsts[:-1]).to_numpy(zero_copy_only=False)
    return changes


def _have_numbers(ids: pa.Array) -> pa.Array:
    return pc.and_(pc.match_substring_regex(ids, _ANCHORED), pc.greater(pc.utf8_length(ids), 32))
