"""The index of a shard, and checks of the shard against it before TensorFlow opens the file."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.format.index import NUM_LABELS, read_index
from pipeline.format.models import Shard
from pipeline.format.tfrecord import (
    FOOTER_BYTES,
    FRAME_BYTES,
    HEADER_BYTES,
    CorruptRecord,
    check_frames,
    check_large_frame,
)
from pipeline.schema.record import Array
from trainer.data.dataset_files import (
    damage_error,
    file_size,
    open_file,
    read_checked,
    read_errors,
    read_ranges,
    reason,
)

# Number of headers that are compared together.
_BLOCK_RECORDS = 1 << 16


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """The sizes of the Examples of a shard, in its order. Each is a record, or a part of a long one.

    Attributes:
        path: The shard's file.
        num_bytes: int64[examples], bytes of each Example.
        num_steps: int32[examples], steps of each Example.
        first: int64[records], the position of the first part of each record. None if each Example is a record.
    """

    path: str
    num_bytes: Array
    num_steps: Array
    first: Array | None = None

    @functools.cached_property
    def lengths(self) -> Array:
        """int[records]: steps of each record."""
        return self.num_steps if self.first is None else np.add.reduceat(self.num_steps, self.first, dtype=np.int64)

    def examples_of(self, record: int) -> range:
        """Returns the positions of the Examples of a record."""
        if self.first is None:
            return range(record, record + 1)
        ends = (*self.first[record + 1 : record + 2].tolist(), len(self.num_steps))
        return range(int(self.first[record]), ends[0])

    @functools.cached_property
    def offset(self) -> Array:
        """int64[examples + 1]: where the frame of each Example begins, and where the file ends."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.num_bytes + FRAME_BYTES)])

    def read(self, records: Array) -> tuple[bytes, Array, Array]:
        """Reads Examples and checks their frames.

        Args:
            records: int64[examples], positions in the shard, ascending.

        Returns:
            Bytes, and where the payload of each Example begins and ends in them: int64[examples] each.

        Raises:
            UserError: The records cannot be read, or are not those that were written.
        """
        offset, ends = self.offset[records], self.offset[records + 1]
        # Adjacent records are read together.
        breaks = np.flatnonzero(offset[1:] != ends[:-1]) + 1
        ranges = zip(offset[[0, *breaks]].tolist(), ends[[*(breaks - 1), -1]].tolist(), strict=True)
        try:
            data = read_ranges(self.path, ranges)
        except read_errors(self.path) as error:
            raise self.damage_error(f"cannot be read: {reason(error)}") from None
        stop = np.cumsum(ends - offset)
        begin = stop - (ends - offset)
        if len(data) != stop[-1]:
            raise self.damage_error("ends before its last record")
        try:
            check_frames(data, begin, self.num_bytes[records])
        except CorruptRecord as error:
            at = offset[np.searchsorted(begin, error.offset)]
            raise self.damage_error(f"record at offset {at}: {error.message}") from None
        return data, begin + HEADER_BYTES, stop - FOOTER_BYTES

    def open_example(self, position: int) -> Callable[[int, int], bytes]:
        """Returns a function that reads bytes of a large Example: (position of the first one, their number).

        The frame is checked once, in blocks.

        Raises:
            UserError: The Example cannot be read, or is not the one that was written. The function raises it too.
        """
        offset, num_bytes = int(self.offset[position]), int(self.num_bytes[position])

        def read(first: int, number: int) -> bytes:
            try:
                return read_ranges(self.path, [(offset + first, offset + first + number)])
            except read_errors(self.path) as error:
                raise self.damage_error(f"cannot be read: {reason(error)}") from None

        try:
            check_large_frame(read, num_bytes)
        except CorruptRecord as error:
            raise self.damage_error(f"record at offset {offset}: {error.message}") from None
        return lambda first, number: read(HEADER_BYTES + first, min(number, num_bytes - first))

    def damage_error(self, problem: str) -> UserError:
        """Returns the error to raise if the shard is not the file that was written."""
        return damage_error(self.path, problem)


def read_table(folder: str, shard: Shard, columns: list[str] | None = None) -> pa.Table:
    """Returns the rows of the index of a shard of the dataset in `folder`, or only some of its columns.

    Raises:
        UserError: The index is missing, or is not the one that the manifest lists.
    """
    data = read_checked(folder, shard.index_path, shard.index_sha256)
    try:
        return read_index(data, shard, columns)
    except ValueError as error:
        raise damage_error(folder, f"{shard.index_path} {error}") from None


def join_parts(rows: pa.Table) -> pa.Table:
    """Returns the rows of an index with one row for each record: that of its first part, with the sums of all parts."""
    first = np.flatnonzero(rows["part"].to_numpy() == 0)
    records = rows.take(pa.array(first))
    for name in ("num_bytes", "num_steps", NUM_LABELS):
        place = rows.schema.get_field_index(name)
        if place >= 0 and len(first):
            sums = np.add.reduceat(rows[name].to_numpy(), first, dtype=np.int64)
            records = records.set_column(place, pa.field(name, pa.int64()), pa.array(sums))
    return records


# The index of a shard is read once per process. If the file changes later, the checksums of the records show it.
@functools.lru_cache(maxsize=1 << 16)
def read_shard_index(folder: str, shard: Shard) -> ShardIndex:
    """Returns the index of a shard of the dataset in `folder`.

    Raises:
        UserError: The index is missing, or is not the one that the manifest lists.
    """
    names = ["offset", "num_bytes", "num_steps"]
    table = read_table(folder, shard, names if shard.parts is None else [*names, "part"])
    offset, num_bytes, num_steps = (np.array(table[name]) for name in names)
    first = None if shard.parts is None else np.flatnonzero(table["part"].to_numpy() == 0)
    # Arrow would keep ten times the memory of these columns.
    del table
    pa.default_memory_pool().release_unused()
    index = ShardIndex(f"{folder}/{shard.path}", num_bytes, num_steps, first)
    adjacent = len(offset) == shard.examples and (offset == index.offset[:-1]).all()
    complete = first is None or (len(first) == shard.records and first[:1].sum() == 0)
    if (
        not adjacent
        or not complete
        or index.offset[-1] != shard.bytes
        or min(index.num_steps.min() - 1, index.num_bytes.min()) < 0
    ):
        raise damage_error(folder, f"{shard.index_path} does not match the manifest's entry of {shard.path}")
    return index


# Each epoch of a run that follows a dataset reads most of the shards of the epoch before.
@functools.lru_cache(maxsize=1 << 16)
def count_shard(folder: str, shard: Shard, *, per_step: bool) -> tuple[int, dict[int, int]]:
    """Returns the number of labels of a shard with a window, and the number of its records of each length.

    Args:
        per_step: Whether there is a label per step. Otherwise each record has one.

    Raises:
        UserError: The index is missing, or is not the one that the manifest lists.
    """
    lengths, counts = np.unique(read_shard_index(folder, shard).lengths, return_counts=True)
    labels = shard.records
    if per_step:
        labels = int(read_table(folder, shard, [NUM_LABELS])[NUM_LABELS].to_numpy().sum())
    return labels, dict(zip(lengths.tolist(), counts.tolist(), strict=True))


@functools.lru_cache(maxsize=1 << 16)
def check_size(folder: str, shard: Shard) -> None:
    """Raises a UserError if the shard's file is missing or has another size."""
    try:
        size = file_size(f"{folder}/{shard.path}")
    except read_errors(folder) as error:
        raise damage_error(folder, f"{shard.path} cannot be read: {reason(error)}") from None
    if size != shard.bytes:
        raise damage_error(folder, f"{shard.path} has {size:,} bytes, expected {shard.bytes:,}")


@functools.lru_cache(maxsize=1 << 16)
def check_headers(folder: str, shard: Shard) -> None:
    """Raises a UserError if the header of a record has another length than the index."""
    index = read_shard_index(folder, shard)
    with open_file(index.path) as file:
        for start in range(0, shard.examples, _BLOCK_RECORDS):
            offsets = index.offset[start : min(start + _BLOCK_RECORDS, shard.examples)]
            claimed = np.frombuffer(b"".join(_headers(file, offsets)), "<u8")
            wrong = np.flatnonzero(claimed != index.num_bytes[start : start + _BLOCK_RECORDS].astype(np.uint64))
            if len(wrong):
                raise damage_error(
                    folder,
                    f"{shard.path}: the record at offset {offsets[wrong[0]]} claims {claimed[wrong[0]]:,} bytes, "
                    f"expected {index.num_bytes[start + wrong[0]]:,}",
                )


def forget_shards() -> None:
    """Frees the memory of what this module remembers about shards."""
    for function in (read_shard_index, count_shard, check_size, check_headers):
        function.cache_clear()


def _headers(file: IO[bytes], offsets: Array) -> Iterator[bytes]:
    for offset in offsets.tolist():
        file.seek(offset)
        yield file.read(HEADER_BYTES)[:8].ljust(8, b"\xff")
