"""Opens a dataset for reading, and trusts none of its files before their frames were checked against the index."""

import collections
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import IO, Any

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.index import read_index
from pipeline.manifest import FILE_NAME, Manifest, Shard, Split, Vocabulary
from pipeline.schema import Schema
from pipeline.tfrecord import FRAME_BYTES, HEADER_BYTES
from pipeline.vocabulary import parse_terms

# Headers that are compared at once.
_BLOCK = 1 << 16


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """Where the records of a shard lie and how long they are: int64[records] each, in the shard's order."""

    path: str
    offset: np.ndarray[Any, Any]
    num_bytes: np.ndarray[Any, Any]
    num_steps: np.ndarray[Any, Any]


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

    def shards(self, name: str) -> list[ShardIndex]:
        """The shards of a split that hold a record, checked: size and every record's header fit the index.

        TensorFlow dies by a signal on some crafted lengths and takes some cuts for the end of a file, so it opens no
        file before this.

        Raises:
            UserError: a file is missing, or not the one that the manifest lists.
        """
        split = self.split(name)
        found = [_check_shard(self.path, shard) for shard in split.shards if shard.records]
        counts = collections.Counter(np.concatenate([s.num_steps for s in found]).tolist() if found else [])
        if counts != split.length_counts:
            raise _damaged(self.path, "the lengths in the indexes are not those that the manifest counts")
        return found


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
        raise _damaged(root, f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _damaged(root, f"{path} is not the file that was written")
    return data


# A shard is checked once a process: an epoch later it is still the same file, or the CRCs tell.
@functools.lru_cache(maxsize=1 << 16)
def _check_shard(root: str, shard: Shard) -> ShardIndex:
    path = f"{root}/{shard.path}"
    try:
        table = read_index(_read_checked(root, shard.index_path, shard.index_sha256))
        columns = (table[name].to_numpy().astype(np.int64) for name in ("offset", "num_bytes", "num_steps"))
        index = ShardIndex(path, *columns)
        _check_index(root, shard, index)
        with _open(path) as file:
            _check_headers(root, shard, index, file)
    except _read_errors(root) as error:
        raise _damaged(root, f"{shard.path} or its index cannot be read: {error}") from None
    except ValueError as error:
        raise _damaged(root, f"{shard.index_path} {error}") from None
    return index


def _check_index(root: str, shard: Shard, index: ShardIndex) -> None:
    ends = index.offset + index.num_bytes + FRAME_BYTES
    adjoining = len(ends) == shard.records and index.offset[0] == 0 and (ends[:-1] == index.offset[1:]).all()
    if not adjoining or ends[-1] != shard.bytes or min(index.num_steps.min() - 1, index.num_bytes.min()) < 0:
        raise _damaged(root, f"{shard.index_path} does not fit what the manifest says of {shard.path}")


def _check_headers(root: str, shard: Shard, index: ShardIndex, file: IO[bytes]) -> None:
    """Compares the size of the file, and the length that each record claims, with the index."""
    size = file.seek(0, 2) or file.tell()
    if size != shard.bytes:
        raise _damaged(root, f"{shard.path} has {size:,} bytes, expected {shard.bytes:,}")
    for start in range(0, shard.records, _BLOCK):
        offsets = index.offset[start : start + _BLOCK]
        claimed = np.frombuffer(b"".join(_headers(file, offsets)), "<u8")
        wrong = np.flatnonzero(claimed != index.num_bytes[start : start + _BLOCK].astype(np.uint64))
        if len(wrong):
            raise _damaged(
                root,
                f"{shard.path}: the record at offset {offsets[wrong[0]]} claims {claimed[wrong[0]]:,} bytes, expected "
                f"{index.num_bytes[start + wrong[0]]:,}",
            )


def _headers(file: IO[bytes], offsets: np.ndarray[Any, Any]) -> Iterator[bytes]:
    for offset in offsets.tolist():
        file.seek(offset)
        yield file.read(HEADER_BYTES)[:8].ljust(8, b"\xff")


def _damaged(root: str, what: str) -> UserError:
    return UserError(f"{root}: {what}. `lengthwise verify` says all that is wrong; make the dataset again.")


def _open(path: str) -> AbstractContextManager[IO[bytes]]:
    if "://" not in path:
        return open(path, "rb")
    # Late: TensorFlow takes three seconds, and a plan of local files needs none of it.
    import tensorflow as tf

    opener: Callable[..., Any] = tf.io.gfile.GFile
    return opener(path, "rb")


def _read_errors(path: str) -> tuple[type[Exception], ...]:
    if "://" not in path:
        return (OSError,)
    import tensorflow as tf

    return (OSError, tf.errors.OpError)
