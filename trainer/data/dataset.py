"""Opens a dataset for reading. Every file is checked against the manifest before its contents are used."""

import dataclasses
import functools
import os
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.files import check_max_bytes, is_local
from pipeline.format.history import view_of
from pipeline.format.manifest import FILE_NAME, MAX_BYTES, Manifest
from pipeline.format.models import Shard, Split, Vocabulary
from pipeline.format.vocabulary import parse_terms
from pipeline.schema.record import Array
from pipeline.schema.schema import Schema
from trainer.data.dataset_files import (
    damage_error,
    open_file,
    read_checked,
    read_errors,
    read_file,
    reason,
    refuse_unknown_store,
)
from trainer.data.shard_index import (
    ShardIndex,
    check_headers,
    check_size,
    forget_shards,
    join_parts,
    read_shard_index,
    read_table,
)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An opened dataset.

    Attributes:
        path: The folder of the dataset.
        manifest: The manifest in this folder.
    """

    path: str
    manifest: Manifest

    @property
    def schema(self) -> Schema:
        """The schema of the records."""
        return self.manifest.record_schema

    def split(self, name: str) -> Split:
        """Returns a split by its name.

        Raises:
            UserError: There is no split of this name. The message lists the names.
        """
        return self.manifest.split(name, origin=self.path)

    def has_labels(self, name: str) -> bool:
        """Returns whether the split exists and has at least one label."""
        return name in self.manifest.splits and self.manifest.splits[name].labels > 0

    def vocabularies(self) -> dict[str, tuple[bytes, ...]]:
        """Returns the strings of each feature that has a vocabulary. The index of a string is its position.

        Raises:
            UserError: A file is missing, or is not the one that the manifest lists.
        """
        return read_vocabularies(self.path, self.manifest.vocabularies)

    def index(self, name: str) -> pa.Table:
        """Returns the indexes of the shards of a split as one table, with one row per record in the split's order.

        The columns of shards with a window (`event_time`, `num_labels`) are null in the rows of those without. The row
        of a record in parts has the sums of their `num_bytes`, `num_steps` and `num_labels`.

        Raises:
            UserError: An index is missing, or is not the one that the manifest lists.
        """
        tables = [
            read_table(self.path, shard) if shard.parts is None else join_parts(read_table(self.path, shard))
            for shard in self.split(name).shards
        ]
        return pa.concat_tables(tables, promote_options="default") if tables else pa.table({})

    def indexes(self, name: str) -> list[ShardIndex]:
        """Returns the indexes of the shards of a split that hold a record. No shard is opened.

        Raises:
            UserError: An index is missing, or is not the one that the manifest lists.
        """
        counts = self.split(name).length_counts
        return list(_read_indexes(self.path, tuple(self._filled_shards(name)), tuple(sorted(counts.items()))))

    def lengths(self, name: str) -> Array:
        """Returns the steps of each record of a split: int64[records].

        Raises:
            UserError: An index is missing, or is not the one that the manifest lists.
        """
        return np.concatenate([np.zeros(0, np.int64), *(index.lengths for index in self.indexes(name))])

    def size_checked_indexes(self, name: str) -> list[ShardIndex]:
        """Returns `indexes`, after a check that each shard's file exists and has its size.

        Raises:
            UserError: A file is missing, or is not the one that the manifest lists.
        """
        for shard in self._filled_shards(name):
            check_size(self.path, shard)
        return self.indexes(name)

    def header_checked_indexes(self, name: str) -> list[ShardIndex]:
        """Returns `size_checked_indexes`, after a check of the header of every record against the index.

        TensorFlow crashes on some crafted lengths, and takes some truncated files for complete ones. So this check is
        necessary before TensorFlow opens a shard.

        Raises:
            UserError: A file is missing, or is not the one that the manifest lists.
        """
        found = self.size_checked_indexes(name)
        for shard in self._filled_shards(name):
            check_headers(self.path, shard)
        return found

    def _filled_shards(self, name: str) -> list[Shard]:
        return [shard for shard in self.split(name).shards if shard.records]


def open_dataset(path: str | os.PathLike[str], *, commit: int | None = None) -> Dataset:
    """Returns the dataset in a folder.

    Args:
        path: A folder on a local disk, on S3, or on any file system that TensorFlow supports.
        commit: Number of the commit to open. None opens the newest one. An older commit can be opened while the files
            of its generations exist.

    Raises:
        UserError: The folder holds no dataset, this version cannot read it, or the commit cannot be opened.
    """
    path = os.fspath(path).rstrip("/") or "/"
    manifest_path = f"{path}/{FILE_NAME}"
    refuse_unknown_store(path)
    try:
        with open_file(manifest_path) as file:
            check_max_bytes(file, MAX_BYTES, path=manifest_path)
            data = file.read()
    except read_errors(path) as error:
        if not is_local(path) and type(error).__name__ not in ("FileNotFoundError", "NotFoundError"):
            raise UserError(f"{manifest_path}: cannot be read: {reason(error)}.") from None
        raise UserError(
            f"{path}: not a dataset: it has no {FILE_NAME} that can be read. Make one with `lengthwise prepare`."
        ) from None
    manifest = Manifest.parse(data, origin=manifest_path)
    return Dataset(path, view_of(manifest, commit, functools.partial(read_file, path), origin=path))


def read_vocabularies(folder: str, vocabularies: Mapping[str, Vocabulary]) -> dict[str, tuple[bytes, ...]]:
    """Returns the strings of each vocabulary, from the files in the folder of a dataset or of a run.

    Raises:
        UserError: A file is missing, or has another digest.
    """
    return {name: _read_terms(folder, vocabulary) for name, vocabulary in vocabularies.items()}


def forget_indexes() -> None:
    """Frees the memory of the indexes of all shards. They are read again when they are needed."""
    _read_indexes.cache_clear()
    forget_shards()


# Every epoch needs the vocabularies. A file that was checked once is not read again.
@functools.lru_cache(maxsize=64)
def _read_terms(folder: str, vocabulary: Vocabulary) -> tuple[bytes, ...]:
    return tuple(parse_terms(read_checked(folder, vocabulary.path, vocabulary.sha256)))


# Every epoch needs the indexes twice: for its plan and for its batches.
@functools.lru_cache(maxsize=64)
def _read_indexes(
    folder: str, shards: tuple[Shard, ...], length_counts: tuple[tuple[int, int], ...]
) -> tuple[ShardIndex, ...]:
    """Returns the indexes of shards, after a check that their lengths are those that the manifest counts."""
    found = tuple(read_shard_index(folder, shard) for shard in shards)
    lengths, counts = np.unique(
        np.concatenate([np.zeros(0, np.int32), *(index.lengths for index in found)]), return_counts=True
    )
    if tuple(zip(lengths.tolist(), counts.tolist(), strict=True)) != length_counts:
        raise damage_error(folder, "the lengths in the indexes are not those that the manifest counts")
    return found
