"""Writes shards: TFRecord files and their indexes, from sorted records without their duplicates."""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import IO

import numpy as np
import pyarrow as pa

from pipeline.errors import quote
from pipeline.files import join, replace
from pipeline.format.count_strings import StringCounter
from pipeline.format.groups import GROUP
from pipeline.format.index import build_index, serialize_index
from pipeline.format.models import TRAIN, Shard
from pipeline.format.sums import PackedSums
from pipeline.format.tfrecord import FRAME_BYTES, frames
from pipeline.format.view import add_counts
from pipeline.raw.rejects import Origin, Reject
from pipeline.schema.record import Array
from pipeline.schema.schema import Schema
from pipeline.shuffle.copies import count_copies, numbers_copies
from pipeline.shuffle.encoded_records import COLUMNS, Block, EncodedRecord, from_rows, key_numbers
from pipeline.writing.paths import runs_folder, shard_paths
from pipeline.writing.published_ids import PublishedShard
from pipeline.writing.shard_statistics import ShardStatistics

# Records are written, and counted, in blocks that end at this number of records, or of bytes: large enough for NumPy to
# be fast, and small enough for the cache of a core.
_BLOCK_RECORDS, _BLOCK_BYTES = 1024, 2**20
# Default size of a shard in bytes: large enough for few reads, small enough that several readers can share the work.
SHARD_BYTES = 64 * 2**20
# The columns that the index of a shard needs. They stay in memory until the shard is complete.
_INDEX_COLUMNS = ["path", "id", "group", "num_steps", "key"]


def choose_num_shards(split_bytes: Iterable[Mapping[str, int]]) -> int:
    """Returns the number of shards of each split with which those of the largest one have about SHARD_BYTES.

    Args:
        split_bytes: The bytes of parts of each split.
    """
    return max(1, round(max(add_counts(split_bytes).values(), default=0) / SHARD_BYTES))


@dataclasses.dataclass(frozen=True)
class ShardSummary:
    """The numbers of one shard that the manifest needs. Those of several shards can be added up.

    Attributes:
        number: Number of the shard within its split.
        labels: Number of labels.
        truncated: Number of records that were shortened to max_length.
        length_counts: Number of records of each length.
        label_counts: Number of labels of each class.
        missing: Number of missing values of each feature that allows nulls.
        strings: Path of the file of counts of each feature with a vocabulary. The shards of one number share it.
        sums: The sums of each feature (or label) that has statistics; only in shards of the train split.
        copies: Number of records that are equal to another one, without the first of each; 0 if the schema has an id.
        groups: Path of the file with the number of records of each group, which the shards of one number share. None
            unless groups must be checked.
    """

    split: str
    number: int
    shard: Shard
    labels: int
    truncated: int
    length_counts: dict[int, int]
    label_counts: dict[str, int]
    missing: dict[str, int]
    strings: dict[str, str]
    sums: dict[str, PackedSums]
    copies: int = 0
    groups: str | None = None


@dataclasses.dataclass(frozen=True)
class ShardWriter:
    """Writes the shards of a generation. All shards of one number, one for each split, are written together.

    Attributes:
        output: Folder of the dataset.
        published: Shards of earlier generations, whose ids no new record may have. `merge_into_shards` rejects these
            records. Their keys are comparable only if both have the same seed.
    """

    schema: Schema
    output: str
    generation: str
    published: tuple[PublishedShard, ...] = ()

    def write(
        self, number: int, blocks: Iterable[Block], *, num_shards: int, reject: Callable[[Reject], None]
    ) -> list[ShardSummary]:
        """Writes the shards with this number. A retried call writes the same bytes.

        Of the records with the same id, the record with the smallest content digest is kept, whatever its split. The
        others are rejected as duplicates.

        Args:
            blocks: The records of these shards, sorted by `sort_key`.
            reject: Called with each reject.
        """
        kept: EncodedRecord | None = None
        splits = self.schema.split_names
        folder = runs_folder(self.output, self.generation)
        strings = StringCounter(self.schema.vocabulary_sizes, splits, folder)
        groups = StringCounter([GROUP] if self.schema.checks_groups else [], splits, folder)
        with contextlib.ExitStack() as files:
            shards = {}
            for name in splits:
                path, index_path = shard_paths(self.generation, name, number, num_shards=num_shards)
                file = files.enter_context(replace(join(self.output, path)))
                shards[name] = _OpenShard(self.schema, name, number, path, index_path, file, strings)
            for block in blocks:
                is_kept, kept = _reject_duplicates(block.rows, kept, reject)
                split_of = block.rows["split"].to_numpy(zero_copy_only=False)
                for name, shard in shards.items():
                    places = np.flatnonzero(is_kept & (split_of == name))
                    rows = block.rows.take(pa.array(places))
                    shard.add(rows, [block.examples[i] for i in places.tolist()])
                    if self.schema.checks_groups:
                        groups.add(name, GROUP, rows["group"].cast(pa.binary()).to_pylist())
            for shard in shards.values():
                shard.flush()
        counts_files, groups_file = strings.finish(), groups.finish().get(GROUP)
        return [shard.finish(self.output, counts_files, groups_file) for shard in shards.values()]


def _reject_duplicates(
    rows: pa.Table, last_kept: EncodedRecord | None, reject: Callable[[Reject], None]
) -> tuple[Array, EncodedRecord | None]:
    """Rejects all rows except the first row of each id.

    Args:
        last_kept: The last record that was kept of the rows before.

    Returns:
        bool[rows], whether each row is kept; and the last record that was kept.
    """
    ids = rows["id"].to_pylist()
    is_kept = np.array([a != b for a, b in zip([last_kept and last_kept.id, *ids], ids, strict=False)], bool)
    # For each row, the place of the first row with its id; -1 if that is `last_kept`.
    first = np.maximum.accumulate(np.where(is_kept, np.arange(len(ids)), -1))
    duplicates = np.flatnonzero(~is_kept)
    if len(duplicates):
        firsts, which = np.unique(first[duplicates], return_inverse=True)
        kept = from_rows(rows.take(pa.array(firsts[firsts >= 0])))
        if firsts[0] < 0:
            assert last_kept is not None
            kept = [last_kept, *kept]
        for record, number in zip(from_rows(rows.take(pa.array(duplicates))), which.tolist(), strict=True):
            message = f"the id {quote(record.id)} is also the id of {_describe(kept[number].origin)}, which is kept"
            reject(Reject("duplicate_id", message, record.id, record.origin))
    if is_kept.any():
        (last_kept,) = from_rows(rows.slice(first[-1], 1))
    return is_kept, last_kept


def _describe(origin: Origin) -> str:
    return "another record" if origin.path is None else f"the record at byte {origin.byte_offset} of {origin.path}"


class _OpenShard:
    """A shard that is being written."""

    def __init__(
        self,
        schema: Schema,
        split: str,
        number: int,
        path: str,
        index_path: str,
        file: IO[bytes],
        strings: StringCounter,
    ) -> None:
        self._schema, self._split, self._number, self._file = schema, split, number, file
        self._path, self._index_path = path, index_path
        self._statistics = ShardStatistics(
            schema, with_sums=split == TRAIN, count_strings=functools.partial(strings.add, split)
        )
        self._digest = hashlib.sha256()
        # The records that are not written yet, a part of a block.
        self._block: list[bytes] = []
        self._block_bytes = 0
        self._sizes: list[int] = []
        self._rows = [_select_index_columns(COLUMNS.empty_table())]
        self._labels = self._truncated = 0

    def add(self, rows: pa.Table, examples: list[bytes]) -> None:
        """Writes the next records."""
        self._rows.append(_select_index_columns(rows))
        self._labels += int(rows["num_labels"].to_numpy().sum())
        self._truncated += int(rows["truncated"].to_numpy().sum())
        self._sizes += map(len, examples)
        for example in examples:
            self._block.append(example)
            self._block_bytes += len(example)
            if len(self._block) == _BLOCK_RECORDS or self._block_bytes >= _BLOCK_BYTES:
                self.flush()

    def flush(self) -> None:
        """Writes the records that `add` holds back until a block is full."""
        if self._block:
            framed = b"".join(frames(self._block))
            self._digest.update(framed)
            self._file.write(framed)
            self._statistics.add(framed, self._block)
            self._block, self._block_bytes = [], 0

    def finish(self, output: str, strings: dict[str, str], groups: str | None) -> ShardSummary:
        """Writes the index, after the TFRecord file was closed.

        Args:
            strings, groups: The attributes of ShardSummary.
        """
        statistics, rows, sizes = self._statistics, pa.concat_tables(self._rows), self._sizes
        index = serialize_index(
            build_index(
                self._schema.label,
                num_bytes=sizes,
                num_steps=rows["num_steps"],
                ids=rows["id"],
                labels=statistics.labels,
                groups=rows["group"],
                sources=rows["path"],
                keys=rows["key"],
            )
        )
        with replace(join(output, self._index_path)) as file:
            file.write(index)
        num_steps = rows["num_steps"].to_numpy()
        lengths, counts = np.unique(num_steps, return_counts=True)
        return ShardSummary(
            split=self._split,
            number=self._number,
            shard=Shard(
                path=self._path,
                records=len(sizes),
                steps=int(num_steps.sum()),
                bytes=sum(sizes) + FRAME_BYTES * len(sizes),
                sha256=self._digest.hexdigest(),
                index_path=self._index_path,
                index_sha256=hashlib.sha256(index).hexdigest(),
            ),
            labels=self._labels,
            truncated=self._truncated,
            length_counts=dict(zip(lengths.tolist(), counts.tolist(), strict=True)),
            label_counts=dict(statistics.label_counts),
            missing=statistics.missing,
            strings=strings,
            sums={name: PackedSums.of(sums) for name, sums in statistics.sums().items()},
            copies=count_copies(rows["id"]) if numbers_copies(self._schema) else 0,
            groups=groups,
        )


def _select_index_columns(rows: pa.Table) -> pa.Table:
    selected = rows.select(_INDEX_COLUMNS)
    # The path of the raw file would take most of the memory of a short record's row.
    selected = selected.set_column(0, "path", selected["path"].dictionary_encode())
    return selected.set_column(4, "key", pa.array(key_numbers(rows["key"])[:, 0]))
