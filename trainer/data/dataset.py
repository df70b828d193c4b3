"""Opens a dataset for reading, and trusts none of its files before their frames were checked against the index."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import IO, Any

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.format.index import read_index
from pipeline.format.manifest import FILE_NAME, Manifest, Shard, Split, Vocabulary
from pipeline.format.tfrecord import FOOTER_BYTES, FRAME_BYTES, HEADER_BYTES, CorruptRecord, check_frames
from pipeline.format.vocabulary import parse_terms
from pipeline.schema.record import Array
from pipeline.schema.schema import Schema

# Headers that are compared at once.
_BLOCK = 1 << 16


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """How long the records of a shard are, in its order: int64[records] bytes of data and int32[records] steps."""

    path: str
    num_bytes: Array
    num_steps: Array

    @functools.cached_property
    def offset(self) -> Array:
        """int64[records + 1]: where each record's frame begins, and where the file ends."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.num_bytes + FRAME_BYTES)])

    def read(self, records: Array) -> tuple[bytes, Array, Array]:
        """Reads records and checks their frames.

        Args:
            records: int64[records], ascending: which of the shard's.

        Returns:
            Bytes, and where in them each record's payload begins and ends: int64[records].

        Raises:
            UserError: they cannot be read, or are not those that were written.
        """
        offset, ends = self.offset[records], self.offset[records + 1]
        # Neighbours are read at once.
        breaks = np.flatnonzero(offset[1:] != ends[:-1]) + 1
        runs = zip(offset[[0, *breaks]].tolist(), ends[[*(breaks - 1), -1]].tolist(), strict=True)
        try:
            data = _read_runs(self.path, runs)
        except _read_errors(self.path) as error:
            raise self.damaged(f"cannot be read: {_why(error)}") from None
        stop = np.cumsum(ends - offset)
        begin = stop - (ends - offset)
        if len(data) != stop[-1]:
            raise self.damaged("ends before its last record")
        try:
            check_frames(data, begin, self.num_bytes[records])
        except CorruptRecord as error:
            at = offset[np.searchsorted(begin, error.offset)]
            raise self.damaged(f"record at offset {at}: {error.message}") from None
        return data, begin + HEADER_BYTES, stop - FOOTER_BYTES

    def damaged(self, what: str) -> UserError:
        """What to raise where the file is another one than was written."""
        return _damaged(self.path, what)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset by its manifest."""

    path: str
    manifest: Manifest

    @property
    def schema(self) -> Schema:
        return self.manifest.record_schema

    def split(self, name: str) -> Split:
        """Raises a UserError if there is no such split, that says which there are."""
        return self.manifest.split(name, origin=self.path)

    def has_labels(self, name: str) -> bool:
        """Whether there is such a split, and anything in it to learn or to measure."""
        return name in self.manifest.splits and self.manifest.splits[name].labels > 0

    def vocabularies(self) -> dict[str, tuple[bytes, ...]]:
        """The strings of each feature with a vocabulary; the number of a string is its position.

        Raises:
            UserError: a file is missing, or not the one that the manifest lists.
        """
        return read_vocabularies(self.path, self.manifest)

    def index(self, name: str) -> pa.Table:
        """The indexes of a split's shards as one table, its rows in the order of `numbered_batches`."""
        tables = [read_index(_read_checked(self.path, s.index_path, s.index_sha256)) for s in self.split(name).shards]
        return pa.concat_tables(tables) if tables else pa.table({})

    def indexes(self, name: str) -> list[ShardIndex]:
        """The shards of a split that hold a record, by their indexes alone: no shard is opened.

        Raises:
            UserError: an index is missing, or not the one that the manifest lists.
        """
        counts = self.split(name).length_counts
        return list(_indexes_of(self.path, tuple(self._filled(name)), tuple(sorted(counts.items()))))

    def sized_shards(self, name: str) -> list[ShardIndex]:
        """`indexes`, each of a file that is there and as large as it should be.

        Raises:
            UserError: a file is missing, or not the one that the manifest lists.
        """
        for shard in self._filled(name):
            _check_size(self.path, shard)
        return self.indexes(name)

    def shards(self, name: str) -> list[ShardIndex]:
        """`sized_shards`, in which every record's header fits the index.

        TensorFlow dies by a signal on some crafted lengths and takes some cuts for the end of a file, so it opens no
        file before this.

        Raises:
            UserError: a file is missing, or not the one that the manifest lists.
        """
        found = self.sized_shards(name)
        for shard in self._filled(name):
            _check_headers(self.path, shard)
        return found

    def _filled(self, name: str) -> list[Shard]:
        return [shard for shard in self.split(name).shards if shard.records]


def open_dataset(path: str | os.PathLike[str]) -> Dataset:
    """The dataset in a folder, local or on any file system that TensorFlow knows.

    Raises:
        UserError: there is none, or this version cannot read it.
    """
    path = os.fspath(path).rstrip("/") or "/"
    manifest_path = f"{path}/{FILE_NAME}"
    try:
        with _open(manifest_path) as file:
            data = file.read()
    except _read_errors(path):
        raise UserError(
            f"{path}: not a dataset: it has no {FILE_NAME} that can be read. Make one with `lengthwise prepare`."
        ) from None
    return Dataset(path, Manifest.parse(data, origin=manifest_path))


def read_vocabularies(folder: str, manifest: Manifest) -> dict[str, tuple[bytes, ...]]:
    """The vocabularies that lie beside a manifest: in a dataset, or in a run that was trained on it.

    Raises:
        UserError: a file is missing, or not the one that the manifest lists.
    """
    return {name: _read_terms(folder, vocabulary) for name, vocabulary in manifest.vocabularies.items()}


# Every epoch asks for them, and what was read and checked once is still what the manifest lists.
@functools.lru_cache(maxsize=64)
def _read_terms(folder: str, vocabulary: Vocabulary) -> tuple[bytes, ...]:
    return tuple(parse_terms(_read_checked(folder, vocabulary.path, vocabulary.sha256)))


def _read_checked(root: str, path: str, sha256: str) -> bytes:
    try:
        with _open(f"{root}/{path}") as file:
            data = file.read()
    except _read_errors(root) as error:
        raise _damaged(root, f"{path} cannot be read: {_why(error)}") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _damaged(root, f"{path} is not the file that was written")
    return data


# Every epoch asks for them twice, for its plan and for its batches.
@functools.lru_cache(maxsize=64)
def _indexes_of(
    root: str, shards: tuple[Shard, ...], length_counts: tuple[tuple[int, int], ...]
) -> tuple[ShardIndex, ...]:
    """The indexes of a split, whose lengths must be those that the manifest counts."""
    found = tuple(_index_of(root, shard) for shard in shards)
    lengths, counts = np.unique(
        np.concatenate([np.zeros(0, np.int32), *(index.num_steps for index in found)]), return_counts=True
    )
    if tuple(zip(lengths.tolist(), counts.tolist(), strict=True)) != length_counts:
        raise _damaged(root, "the lengths in the indexes are not those that the manifest counts")
    return found


# A shard is checked once a process: an epoch later it is still the same file, or the CRCs tell.
@functools.lru_cache(maxsize=1 << 16)
def _index_of(root: str, shard: Shard) -> ShardIndex:
    try:
        data = _read_checked(root, shard.index_path, shard.index_sha256)
        table = read_index(data, ["offset", "num_bytes", "num_steps"])
        offset, num_bytes, num_steps = (np.array(table[name]) for name in ("offset", "num_bytes", "num_steps"))
        # Arrow would keep ten times what these take.
        del table
        pa.default_memory_pool().release_unused()
        index = ShardIndex(f"{root}/{shard.path}", num_bytes, num_steps)
    except ValueError as error:
        raise _damaged(root, f"{shard.index_path} {error}") from None
    adjoining = len(offset) == shard.records and (offset == index.offset[:-1]).all()
    if not adjoining or index.offset[-1] != shard.bytes or min(index.num_steps.min() - 1, index.num_bytes.min()) < 0:
        raise _damaged(root, f"{shard.index_path} does not fit what the manifest says of {shard.path}")
    return index


@functools.lru_cache(maxsize=1 << 16)
def _check_size(root: str, shard: Shard) -> None:
    try:
        with _open(f"{root}/{shard.path}") as file:
            size = file.seek(0, 2) or file.tell()
    except _read_errors(root) as error:
        raise _damaged(root, f"{shard.path} cannot be read: {_why(error)}") from None
    if size != shard.bytes:
        raise _damaged(root, f"{shard.path} has {size:,} bytes, expected {shard.bytes:,}")


@functools.lru_cache(maxsize=1 << 16)
def _check_headers(root: str, shard: Shard) -> None:
    """Compares the length that each record claims with the index."""
    index = _index_of(root, shard)
    with _open(index.path) as file:
        for start in range(0, shard.records, _BLOCK):
            offsets = index.offset[start : min(start + _BLOCK, shard.records)]
            claimed = np.frombuffer(b"".join(_headers(file, offsets)), "<u8")
            wrong = np.flatnonzero(claimed != index.num_bytes[start : start + _BLOCK].astype(np.uint64))
            if len(wrong):
                raise _damaged(
                    root,
                    f"{shard.path}: the record at offset {offsets[wrong[0]]} claims {claimed[wrong[0]]:,} bytes, "
                    f"expected {index.num_bytes[start + wrong[0]]:,}",
                )


def _headers(file: IO[bytes], offsets: Array) -> Iterator[bytes]:
    for offset in offsets.tolist():
        file.seek(offset)
        yield file.read(HEADER_BYTES)[:8].ljust(8, b"\xff")


def _why(error: Exception) -> Any:
    return getattr(error, "strerror", None) or error


def _damaged(root: str, what: str) -> UserError:
    return UserError(f"{root}: {what}. `lengthwise verify` says all that is wrong; make the dataset again.")


def _open(path: str) -> AbstractContextManager[IO[bytes]]:
    if "://" not in path:
        return open(path, "rb")
    # Late: TensorFlow takes three seconds, and a plan of local files needs none of it.
    import tensorflow as tf

    opener: Callable[..., Any] = tf.io.gfile.GFile
    return opener(path, "rb")


def _read_runs(path: str, runs: Iterable[tuple[int, int]]) -> bytes:
    """The bytes from each begin to its end, one after the other; fewer where the file ends before."""
    if "://" in path:
        with _open(path) as file:
            parts = []
            for begin, end in runs:
                file.seek(begin)
                parts.append(file.read(end - begin))
            return b"".join(parts)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return b"".join([os.pread(descriptor, end - begin, begin) for begin, end in runs])
    finally:
        os.close(descriptor)


def _read_errors(path: str) -> tuple[type[Exception], ...]:
    if "://" not in path:
        return (OSError,)
    import tensorflow as tf

    return (OSError, tf.errors.OpError)
