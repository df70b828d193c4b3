"""Packs sorted rows into bytes, which an engine can move between workers, and merges packed blocks in memory."""

import io
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from pipeline.schema.record import Array
from pipeline.shuffle.hashing import END_NUMBER, shard_range
from pipeline.shuffle.merge_runs import count_less, merge_rows, read_payloads
from pipeline.shuffle.runs import PLACE_COLUMNS
from pipeline.shuffle.sorted_rows import Block, RowKind, key_numbers, payload_size

# Bytes of payloads in one packed block, or one row. Large enough that an engine moves few elements, and small enough
# that it can buffer several.
PACKED_BYTES = 2**20
# The first bytes of a packed block: the size of its table, little-endian. The table and the payloads follow.
_SIZE_BYTES = 8
# The names of the raw files, and much else, repeat from row to row. To compress each column of a few rows takes longer
# than all the rest, and gains nothing.
_COMPRESSED, _PLAIN = pa.ipc.IpcWriteOptions(compression="lz4"), pa.ipc.IpcWriteOptions()
_FEW_ROWS = 64


class PackedBlock:
    """A packed block that was opened. Its payloads are read only when they are asked for.

    Attributes:
        rows: A table of sorted rows, with the columns of their kind and PLACE_COLUMNS.
    """

    def __init__(self, data: bytes) -> None:
        self._payloads = _SIZE_BYTES + int.from_bytes(data[:_SIZE_BYTES], "little")
        self._data = data
        # A copy of the table's bytes: buffers of the table would be those of all of the data, unaligned.
        self.rows: pa.Table = pa.ipc.open_stream(data[_SIZE_BYTES : self._payloads]).read_all()

    def read_payloads(self, offset: int, num_bytes: int) -> bytes:
        """Returns the payload of one row, or those of several that follow one another."""
        start = self._payloads + offset
        return self._data[start : start + num_bytes]

    def unpack(self) -> Block:
        """Returns the rows with the columns of their kind, and the payload of each row."""
        places = zip(*(self.rows[field.name].to_pylist() for field in PLACE_COLUMNS), strict=True)
        names = self.rows.column_names[: -len(PLACE_COLUMNS)]
        return Block(self.rows.select(names), [self.read_payloads(*place) for place in places])


def pack_block(block: Block) -> bytes:
    """Returns sorted rows and their payloads as bytes: a table in the stream format of Arrow IPC, and the payloads."""
    sizes = np.array(list(map(payload_size, block.payloads)), np.int64)
    rows = block.rows
    for field, column in zip(PLACE_COLUMNS, (np.cumsum(sizes) - sizes, sizes), strict=True):
        rows = rows.append_column(field, pa.array(column))
    table, options = io.BytesIO(), _COMPRESSED if len(rows) >= _FEW_ROWS else _PLAIN
    with pa.ipc.new_stream(table, rows.schema, options=options) as stream:
        stream.write_table(rows)
    parts: list[bytes | memoryview] = [table.tell().to_bytes(_SIZE_BYTES, "little"), table.getbuffer()]
    for payload in block.payloads:
        parts += payload if isinstance(payload, tuple) else (payload,)
    return b"".join(parts)


def pack_in_pieces(block: Block) -> Iterator[bytes]:
    """Yields sorted rows as packed blocks of about PACKED_BYTES each, or of one row."""
    ends = np.cumsum(np.array(list(map(payload_size, block.payloads)), np.int64))
    start = 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + PACKED_BYTES, side="right")))
        yield pack_block(Block(block.rows[start:stop], block.payloads[start:stop]))
        start = stop


def cut_by_shard(block: Block, *, num_shards: int) -> Iterator[tuple[int, Block]]:
    """Yields the rows of a sorted block by the number of their shard, ascending. No block is empty."""
    numbers = key_numbers(block.rows["key"])[:, 0]
    start = 0
    while start < len(numbers):
        number = int(numbers[start]) * num_shards // END_NUMBER
        stop = count_less(numbers, shard_range(number, num_shards=num_shards)[1])
        yield number, Block(block.rows[start:stop], block.payloads[start:stop])
        start = stop


def merge_packed(blocks: Sequence[PackedBlock], kind: RowKind) -> Iterator[Block]:
    """Yields the rows of packed blocks in the order of their kind, some megabytes of payloads at a time."""
    if blocks:
        yield from read_payloads(blocks, *merge_rows([[block.rows] for block in blocks], kind), kind)


def unique_key_numbers(blocks: Sequence[PackedBlock]) -> Array:
    """Returns uint64[keys], the key numbers of all rows, ascending, each once."""
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *(key_numbers(b.rows["key"])[:, 0] for b in blocks)]))
