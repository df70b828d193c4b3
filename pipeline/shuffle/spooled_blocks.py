"""Collects the packed blocks of one shard: in memory up to a bound, and beyond it in sorted runs on the local disk."""

import contextlib
from collections.abc import Iterator
from typing import Any

from pipeline.files import local_folder
from pipeline.schema.record import Array
from pipeline.shuffle.hashing import END_NUMBER
from pipeline.shuffle.merge_runs import merge_runs, read_key_numbers
from pipeline.shuffle.packed_blocks import PackedBlock, merge_packed, unique_key_numbers
from pipeline.shuffle.reduce_runs import reduce_runs
from pipeline.shuffle.runs import Run, new_run
from pipeline.shuffle.sorted_rows import Block, RowKind

# Bytes of packed blocks that are held in memory: more than the blocks of a shard of the default size.
SPOOL_BYTES = 256 * 2**20


class SpooledBlocks:
    """Collects packed blocks in any order, and then merges them. Use it as a context.

    Args:
        max_bytes: Bytes of packed blocks to hold in memory. More of them are sorted and written to a temporary folder
            of this machine. At most 64 of these runs are merged at a time, so this is an external sort of any size.
    """

    def __init__(self, kind: RowKind, *, max_bytes: int = SPOOL_BYTES) -> None:
        self._kind, self._max_bytes = kind, max_bytes
        self._blocks: list[PackedBlock] = []
        self._num_bytes = 0
        self._runs: list[Run] = []
        self._files = contextlib.ExitStack()
        self._folder: str | None = None

    def __enter__(self) -> "SpooledBlocks":
        return self

    def __exit__(self, *error: Any) -> None:
        self._files.close()

    def add(self, data: bytes) -> None:
        """Adds a packed block."""
        if self._blocks and self._num_bytes + len(data) > self._max_bytes:
            self._spool()
        self._blocks.append(PackedBlock(data))
        self._num_bytes += len(data)

    def finish(self) -> None:
        """Must be called after the last block, before the rows are read."""
        if self._runs:
            self._spool()
            assert self._folder is not None
            self._runs = reduce_runs(self._runs, self._folder, self._kind)

    def merge(self) -> Iterator[Block]:
        """Yields all rows in the order of their kind."""
        if self._runs:
            return merge_runs(self._runs, 0, END_NUMBER, self._kind)
        return merge_packed(self._blocks, self._kind)

    def key_numbers(self) -> Array:
        """Returns uint64[keys], the key numbers of all rows, ascending, each once."""
        if self._runs:
            return read_key_numbers(self._runs, 0, END_NUMBER, self._kind)
        return unique_key_numbers(self._blocks)

    def _spool(self) -> None:
        """Writes the blocks in memory to a run."""
        if self._folder is None:
            self._folder = self._files.enter_context(local_folder("lengthwise-shard-"))
        blocks, self._blocks, self._num_bytes = self._blocks, [], 0
        with new_run(self._folder, self._kind) as writer:
            for block in merge_packed(blocks, self._kind):
                writer.add(block)
        self._runs.append(writer.run({}))
