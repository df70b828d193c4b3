"""Merges the sorted shards of several generations into larger ones, without decoding a record."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import progress
from pipeline.files import join, open_read, replace, stream_sha256
from pipeline.format.index import EVENT_TIME, KEY, index_schema, read_index, serialize_index
from pipeline.format.models import Shard
from pipeline.format.tfrecord import FRAME_BYTES, check_frames
from pipeline.schema.record import Array
from pipeline.schema.schema import Schema
from pipeline.shuffle.copies import first_of_each, numbers_copies, split_copy_id
from pipeline.shuffle.hashing import order_key, range_of, shard_range
from pipeline.writing.paths import shard_paths

# Bytes of records that are in memory at once (or one record).
_PART_BYTES = 8 * 2**20
# Files that are open at once. Some systems allow a process 256 open files.
_MAX_OPEN = 64


class _Slice(NamedTuple):
    """Records of one shard that follow one another.

    Attributes:
        path: Path of the shard's TFRecord file, inside the dataset.
        rows: Their rows of the index.
    """

    path: str
    rows: pa.Table


def merge_shards(
    output: str,
    shards: Sequence[Shard],
    split: str,
    *,
    schema: Schema,
    seed: int,
    generation: str,
    num_shards: int,
) -> Iterator[Shard]:
    """Writes the records of shards of one split as shards of a new generation, and yields the new shards.

    They have the same bytes as those that one job writes from all of these records.

    Args:
        shards: Shards of several generations, all of one window or all without a window. No id is in two generations.
            Copies of a record may be in several.
        schema, seed: Those of the dataset.
        num_shards: Number of shards to write. Those without a record are left out.

    Raises:
        ValueError: An index is damaged.
        CorruptRecord: A record is damaged.
    """
    (window,) = {shard.window for shard in shards}
    sources = [(shard, range_of(shard.path)) for shard in shards]
    copies = numbers_copies(schema)
    empty = index_schema(schema.label, with_window=window is not None).empty_table()
    for number in range(num_shards):
        first, end = shard_range(number, num_shards=num_shards)
        slices = [
            slice
            for shard, (begin, stop) in sources
            if begin < end and first < stop and (slice := _read_slice(output, shard, first, end)).rows.num_rows
        ]
        if not slices:
            continue
        paths = shard_paths(generation, split, number, num_shards=num_shards, window=window)
        shard = _write_shard(output, *paths, slices, seed=seed, empty=empty, copies=copies)
        yield shard.model_copy(update={"window": window} | ({} if schema.stores_parts else {"parts": None}))


def _read_slice(output: str, shard: Shard, first: int, end: int) -> _Slice:
    """Returns the records of a shard whose key is in [first, end)."""
    rows = read_index(_read_checked(join(output, shard.index_path), shard.index_sha256), shard)
    keys = rows[KEY].to_numpy()
    begin = int(np.searchsorted(keys, np.uint64(first)))
    stop = len(keys) if end > int(np.iinfo(np.uint64).max) else int(np.searchsorted(keys, np.uint64(end)))
    return _Slice(shard.path, rows[begin:stop])


def _read_checked(path: str, sha256: str) -> bytes:
    """Returns the bytes of a file. Raises a ValueError if it has another digest."""
    with open_read(path) as file:
        # In chunks, so that a replaced file costs no memory.
        if stream_sha256(file) != sha256:
            raise ValueError(f"{path}: is not the file that was written")
        file.seek(0)
        return file.read()


def _write_shard(
    output: str, path: str, index_path: str, slices: Sequence[_Slice], *, seed: int, empty: pa.Table, copies: bool
) -> Shard:
    """Writes the records of all slices, sorted by their order keys, and their index. Leaves out the window."""
    rows = pa.concat_tables([empty, *(slice.rows for slice in slices)]).combine_chunks()
    which = np.repeat(np.arange(len(slices)), [slice.rows.num_rows for slice in slices])
    order = _sort(rows, seed, copies=copies)
    rows, which = rows.take(pa.array(order)), which[order]
    if copies:
        rows = _sort_sources(rows)
    offsets, sizes = rows["offset"].to_numpy(), rows["num_bytes"].to_numpy()
    ends = np.cumsum(sizes + FRAME_BYTES)
    digest = hashlib.sha256()
    with contextlib.ExitStack() as files:
        file = files.enter_context(replace(join(output, path)))
        # Some systems allow a process 256 open files.
        keep_open = files if len(slices) <= _MAX_OPEN else None
        readers = [_FrameReader(join(output, slice.path), keep_open) for slice in slices]
        start = 0
        while start < len(rows):
            limit = ends[start] - sizes[start] + _PART_BYTES
            stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
            frames = _read_frames(readers, which[start:stop], offsets[start:stop], sizes[start:stop])
            digest.update(frames)
            file.write(frames)
            progress.add_records(stop - start)
            progress.add_bytes(len(frames))
            start = stop
    new_offsets = pa.array(ends - sizes - FRAME_BYTES, pa.int64())
    rows = rows.set_column(rows.schema.get_field_index("offset"), rows.schema.field("offset"), new_offsets)
    index = serialize_index(rows)
    with replace(join(output, index_path)) as file:
        file.write(index)
    return Shard(
        path=path,
        records=int((rows["part"].to_numpy() == 0).sum()),
        parts=len(rows),
        steps=int(rows["num_steps"].to_numpy().sum()),
        bytes=int(ends[-1]) if len(rows) else 0,
        sha256=digest.hexdigest(),
        index_path=index_path,
        index_sha256=hashlib.sha256(index).hexdigest(),
        **_find_ends(rows),
    )


def _find_ends(rows: pa.Table) -> dict[str, int]:
    """Returns the event times of the oldest and the newest record, if the rows of an index have any."""
    if EVENT_TIME not in rows.column_names:
        return {}
    return {"oldest": pc.min(rows[EVENT_TIME]).as_py(), "newest": pc.max(rows[EVENT_TIME]).as_py()}


def _sort(rows: pa.Table, seed: int, *, copies: bool) -> Array:
    """Returns int64[rows], the places of the rows in the order of their order keys and ids.

    Args:
        copies: Whether equal records are numbered. Their order key is that of the first one.
    """
    keys = rows[KEY].to_numpy()
    order = np.argsort(keys, kind="stable")
    shared = np.append(False, keys[order][1:] == keys[order][:-1])
    shared[:-1] |= shared[1:]
    places = np.flatnonzero(shared)
    if len(places):
        # The index holds only the first half of an order key.
        ids = rows["id"].take(pa.array(order[places])).to_pylist()
        parts = [split_copy_id(record_id) if copies else (record_id, 1) for record_id in ids]
        # One key for each record, of which there may be many copies.
        key_of = {first: order_key(first, seed=seed) for first in {first for first, _ in parts}}
        by_key = sorted(range(len(places)), key=lambda place: (key_of[parts[place][0]], *parts[place]))
        order[places] = order[places][by_key]
    return order


def _sort_sources(rows: pa.Table) -> pa.Table:
    """Sorts the sources of the copies of each record, as one job does that reads all raw files.

    Which of several equal records is the first one depends on the order of the generations otherwise.
    """
    starts = first_of_each(rows["id"])
    sizes = np.diff(np.append(starts, len(rows)))
    if (sizes < 2).all():
        return rows
    sources = rows["source"].to_pylist()
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        sources[start : start + size] = sorted(sources[start : start + size], key=lambda source: source or "")
    number = rows.schema.get_field_index("source")
    return rows.set_column(number, rows.schema.field("source"), pa.array(sources, pa.string()))


class _FrameReader:
    """Reads frames of a TFRecord file.

    Args:
        keep_open: Where the file is entered when it is opened first. None opens it for each read.
    """

    def __init__(self, path: str, keep_open: contextlib.ExitStack | None) -> None:
        self._path, self._keep_open = path, keep_open
        self._file: IO[bytes] | None = None

    def read(self, offset: int, num_bytes: int) -> bytes:
        if self._keep_open is None:
            with open_read(self._path) as file:
                return self._read_from(file, offset, num_bytes)
        if self._file is None:
            self._file = self._keep_open.enter_context(open_read(self._path))
        return self._read_from(self._file, offset, num_bytes)

    @staticmethod
    def _read_from(file: IO[bytes], offset: int, num_bytes: int) -> bytes:
        file.seek(offset)
        return file.read(num_bytes)


def _read_frames(readers: Sequence[_FrameReader], which: Array, offsets: Array, sizes: Array) -> bytes:
    """Returns the frames of records, joined.

    Args:
        which: int64[records], the reader of each record.
        offsets, sizes: int64[records], where its frame begins, and the size of its data.

    Raises:
        CorruptRecord: A frame is damaged.
    """
    frames: list[bytes] = [b""] * len(which)
    for number in np.unique(which).tolist():
        # The records of one shard lie in the same order in its file, one directly after the other.
        places = np.flatnonzero(which == number)
        begin, size = offsets[places], sizes[places]
        start, stop = int(begin[0]), int(begin[-1] + size[-1]) + FRAME_BYTES
        data = readers[number].read(start, stop - start)
        check_frames(data, begin - start, size)
        for place, a, b in zip(places.tolist(), (begin - start).tolist(), size.tolist(), strict=True):
            frames[place] = data[a : a + b + FRAME_BYTES]
    return b"".join(frames)
