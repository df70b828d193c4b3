"""Rows that can be sorted: a table with a key and any other columns, and a payload of bytes for each row."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.schema.record import Array

KEY_COLUMN = pa.field("key", pa.binary(16))


class Block(NamedTuple):
    """Sorted rows.

    Attributes:
        rows: A table with the columns of the kind of rows.
        payloads: The payload of each row: bytes, or a tuple of its parts, so that large parts are not joined in memory.
    """

    rows: pa.Table
    payloads: list[Any]


def payload_size(payload: bytes | tuple[bytes, ...]) -> int:
    """Returns the bytes of a payload, which may be in several parts."""
    return sum(map(len, payload)) if isinstance(payload, tuple) else len(payload)


@dataclasses.dataclass(frozen=True)
class RowKind:
    """A kind of rows: their columns and their order.

    Attributes:
        columns: The columns. One of them is KEY_COLUMN, by which the rows are sorted first. Keys are spread evenly, as
            hashes are.
        sort_keys: Returns the complete sort key of each row of a table. It begins with the key, and the rest decides
            between rows that share the key.
        last_part: Column with the number of bytes of the last part of a payload, which may be null. A large payload is
            read as a tuple of this part and what comes before. None if payloads are in one part.
    """

    columns: pa.Schema
    sort_keys: Callable[[pa.Table], Sequence[Any]]
    last_part: str | None = None

    def order(self, rows: pa.Table) -> Array:
        """Returns int64[rows], the places of the rows in their order. Only rows that share a key get a sort key."""
        keys = key_numbers(rows["key"])
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        keys = keys[order]
        shared = np.append(False, (keys[1:] == keys[:-1]).all(axis=1))
        shared[:-1] |= shared[1:]
        places = np.flatnonzero(shared)
        if len(places):
            sort_keys = self.sort_keys(rows.take(pa.array(order[places])))
            order[places] = order[places][sorted(range(len(places)), key=sort_keys.__getitem__)]
        return order


def sort_blocks(blocks: Sequence[Block], kind: RowKind) -> Block:
    """Returns the rows of several blocks, which are not sorted, as one sorted block."""
    rows = pa.concat_tables([block.rows for block in blocks]).combine_chunks()
    payloads = [payload for block in blocks for payload in block.payloads]
    order = kind.order(rows)
    return Block(rows.take(pa.array(order)), [payloads[place] for place in order.tolist()])


def key_numbers(keys: pa.ChunkedArray) -> Array:
    """Returns uint64[keys, 2] that sorts as the keys do: the `key_number` of each key, and its last 8 bytes."""
    array = keys.combine_chunks()
    numbers = np.frombuffer(array.buffers()[1], ">u8").astype(np.uint64)
    return numbers.reshape(-1, 2)[array.offset : array.offset + len(array)]
