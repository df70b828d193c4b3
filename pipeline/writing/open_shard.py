"""Writes one shard: its TFRecord file, its index and its totals, block by block."""

import collections
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.files import join, replace
from pipeline.format.index import IndexWriter, build_index, index_schema
from pipeline.format.models import Shard
from pipeline.format.parts import Part, cut_blocks, divide
from pipeline.format.sums import PackedSums
from pipeline.format.tfrecord import FRAME_BYTES, frames
from pipeline.schema.record import Array
from pipeline.schema.schema import Schema
from pipeline.shuffle.copies import count_copies, numbers_copies
from pipeline.shuffle.encoded_records import COLUMNS
from pipeline.shuffle.sorted_rows import key_numbers
from pipeline.writing.many_files import Writer
from pipeline.writing.shard_statistics import ShardStatistics

# Records are written, and counted, in blocks that end at this number of records, or of bytes: large enough for NumPy to
# be fast, and small enough for the cache of a core.
_BLOCK_RECORDS, _BLOCK_BYTES = 1024, 2**20
# The columns that the index of a shard needs.
INDEX_COLUMNS = ["path", "id", "group", "num_steps", "key", "event_time", "num_labels", "truncated"]


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
        sums: The sums of each feature (or label) that has statistics; only in shards of the train split. Of the shards
            of one number in several windows, the first one has the sums of all.
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

    @property
    def order(self) -> tuple[int, int, int]:
        """The key by which the shards of a split are sorted: by window, and then by number."""
        window = self.shard.window
        return int(window is not None), window or 0, self.number


class OpenShard:
    """A shard that is being written.

    Attributes:
        waiting_bytes: Bytes of the records that are not written yet.
    """

    def __init__(
        self,
        schema: Schema,
        split: str,
        number: int,
        window: int | None,
        path: str,
        index_path: str,
        file: Writer,
        statistics: ShardStatistics,
    ) -> None:
        self._schema, self._split, self._number, self._window, self._file = schema, split, number, window, file
        self._path, self._index_path, self._statistics = path, index_path, statistics
        self._digest = hashlib.sha256()
        # The records that are not written yet, a part of a block, each as one Example, and their rows.
        self._block: list[Part] = []
        self._rows = select_index_columns(COLUMNS.empty_table())
        self.waiting_bytes = 0
        # int64[examples, 3], the bytes, steps and labels of the Examples of the block that is written, in pieces.
        self._sizes: list[Array] = []
        self._index = IndexWriter(index_schema(schema.label, with_window=window is not None))
        self._totals = _Totals()

    def add(self, rows: pa.Table, examples: list[bytes]) -> None:
        """Writes the next records.

        Args:
            rows: The columns of INDEX_COLUMNS.
        """
        self._rows = pa.concat_tables([self._rows, rows])
        counts = (rows[name].to_pylist() for name in ("num_steps", "num_labels"))
        for record in map(Part._make, zip(examples, *counts, strict=True)):
            self._block.append(record)
            self.waiting_bytes += len(record.example)
            if len(self._block) == _BLOCK_RECORDS or self.waiting_bytes >= _BLOCK_BYTES:
                self.flush()

    def flush(self) -> None:
        """Writes the records that `add` holds back until a block is full."""
        if self._block:
            records, self._block, self.waiting_bytes = self._block, [], 0
            rows, self._rows = self._rows[: len(records)], self._rows[len(records) :]
            examples = [record.example for record in records]
            framed = _frame(examples)
            # Counts and statistics are those of whole records.
            labels = self._statistics.add(examples, framed)
            if any(self._schema.count_parts(record.num_steps) > 1 for record in records):
                del framed, examples  # may be large
                for parts in cut_blocks(
                    (part for record in records for part in divide(record, self._schema)), _BLOCK_BYTES
                ):
                    self._write(parts, _frame([part.example for part in parts]))
            else:
                self._write(records, framed)
            self._add_to_index(rows, labels)

    def _write(self, parts: list[Part], framed: Sequence[bytes]) -> None:
        self._sizes.append(np.array([(len(part.example), *part[1:]) for part in parts], np.int64))
        for data in framed:
            self._digest.update(data)
            self._file.write(data)

    def _add_to_index(self, rows: pa.Table, labels: list[Any]) -> None:
        """Adds the records that were written to the index and to the totals."""
        (num_bytes, part_steps, part_labels), self._sizes = np.concatenate(self._sizes).T, []
        has_window = self._window is not None
        num_steps = rows["num_steps"].to_numpy()
        index = build_index(
            self._schema.label,
            num_bytes=num_bytes,
            num_steps=part_steps,
            ids=rows["id"],
            labels=labels,
            groups=rows["group"],
            sources=rows["path"],
            keys=rows["key"],
            event_times=rows["event_time"] if has_window else None,
            num_labels=part_labels if has_window else None,
            num_parts=np.array([self._schema.count_parts(steps) for steps in num_steps.tolist()], np.int32),
            start=self._totals.bytes,
        )
        self._index.add(index)
        self._totals.add(rows, num_bytes, copies=numbers_copies(self._schema), windows=has_window)

    def finish(self, output: str, strings: dict[str, str], groups: str | None) -> ShardSummary:
        """Writes the index, after the TFRecord file was closed.

        Args:
            strings, groups: The attributes of ShardSummary.
        """
        statistics, totals, index = self._statistics, self._totals, self._index.finish()
        with replace(join(output, self._index_path)) as file:
            file.write(index)
        return ShardSummary(
            split=self._split,
            number=self._number,
            shard=Shard(
                path=self._path,
                records=totals.records,
                steps=totals.steps,
                bytes=totals.bytes,
                sha256=self._digest.hexdigest(),
                index_path=self._index_path,
                index_sha256=hashlib.sha256(index).hexdigest(),
                parts=totals.examples if self._schema.stores_parts else None,
                window=self._window,
                oldest=totals.oldest,
                newest=totals.newest,
            ),
            labels=totals.labels,
            truncated=totals.truncated,
            length_counts=dict(sorted(totals.lengths.items())),
            label_counts=dict(statistics.label_counts),
            missing=statistics.missing,
            strings=strings,
            sums={},
            copies=totals.copies,
            groups=groups,
        )


@dataclasses.dataclass
class _Totals:
    """Totals of the records of a shard: see ShardSummary and Shard. `lengths` has the number of records by length."""

    records: int = 0
    examples: int = 0
    steps: int = 0
    bytes: int = 0
    labels: int = 0
    truncated: int = 0
    copies: int = 0
    oldest: int | None = None
    newest: int | None = None
    lengths: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)

    def add(self, rows: pa.Table, num_bytes: Array, *, copies: bool, windows: bool) -> None:
        """Adds records.

        Args:
            rows: The columns of INDEX_COLUMNS.
            num_bytes: int64[examples], the sizes of their Examples.
            copies, windows: Whether copies are counted, and whether event times are compared.
        """
        num_steps = rows["num_steps"].to_numpy()
        self.records += len(rows)
        self.examples += len(num_bytes)
        self.steps += int(num_steps.sum())
        self.bytes += int(num_bytes.sum()) + FRAME_BYTES * len(num_bytes)
        self.labels += int(rows["num_labels"].to_numpy().sum())
        self.truncated += int(rows["truncated"].to_numpy().sum())
        self.lengths.update(num_steps.tolist())
        if copies:
            self.copies += count_copies(rows["id"])
        if windows:
            times = rows["event_time"].to_pylist()
            self.oldest = min(times if self.oldest is None else (self.oldest, *times))
            self.newest = max(times if self.newest is None else (self.newest, *times))


def _frame(examples: list[bytes]) -> list[bytes]:
    """Returns the frames of Examples, joined; of a single large one, the three pieces of its frame."""
    pieces = frames(examples)
    return pieces if len(examples) == 1 and len(examples[0]) >= _BLOCK_BYTES else [b"".join(pieces)]


def select_index_columns(rows: pa.Table) -> pa.Table:
    selected = rows.select(INDEX_COLUMNS)
    # The path of the raw file would take most of the memory of a short record's row.
    selected = selected.set_column(0, "path", selected["path"].dictionary_encode())
    return selected.set_column(4, "key", pa.array(key_numbers(rows["key"])[:, 0]))
