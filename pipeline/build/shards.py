"""Writes the files of one shard: records sorted by hash, doubles found, statistics taken, an index beside them."""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable
from typing import IO, Any, TypeAlias

import numpy as np
import pyarrow as pa

from pipeline.build.paths import shard_paths
from pipeline.files import join, replace
from pipeline.format.batch_decoding import decode_columns
from pipeline.format.examples import decode_example
from pipeline.format.index import build_index, index_label, serialize_index
from pipeline.format.manifest import TRAIN, Shard
from pipeline.format.statistics import BLOCK_BYTES, BLOCK_RECORDS, Moments, merge_moments
from pipeline.format.stored_fields import stored_fields
from pipeline.format.tfrecord import FOOTER_BYTES, FRAME_BYTES, frames
from pipeline.raw.rejects import Origin, Reject
from pipeline.schema.labels import class_name
from pipeline.schema.record import MISSING_STRING, Array, is_missing, named_classes
from pipeline.schema.schema import Schema
from pipeline.shuffle.encoded_records import COLUMNS, Block, EncodedRecord, from_rows

# Of each field, the values of some records one after the other, and how many each has.
_Columns: TypeAlias = dict[str, tuple[Any, Array]]
# Columns of a record that its shard's index needs, and that stay in memory until it is written.
_KEPT = ["path", "id", "group", "num_steps"]


@dataclasses.dataclass(frozen=True)
class ShardSummary:
    """What the manifest needs to know of one shard; sums that can be added up.

    Attributes:
        missing: Missing values of each feature that may miss.
        strings: How often each string occurs, of each feature with a vocabulary.
        moments: In the shards of the train split only.
    """

    split: str
    number: int
    shard: Shard
    labels: int
    truncated: int
    length_counts: dict[int, int]
    label_counts: dict[str, int]
    missing: dict[str, int]
    strings: dict[str, dict[bytes, int]]
    moments: dict[str, Moments]


@dataclasses.dataclass(frozen=True)
class ShardWriter:
    """Writes the shards of one number, one for each split, into a generation of a dataset."""

    schema: Schema
    output: str
    generation: str

    def write(
        self, number: int, blocks: Iterable[Block], *, num_shards: int, reject: Callable[[Reject], None]
    ) -> list[ShardSummary]:
        """Writes all records whose hash chose shard `number`; a second time it writes the same bytes.

        Of the records with one id, that with the smallest content digest stays, in whichever split; the others are
        rejects.

        Args:
            blocks: Records in the order of `rank`.
            reject: Is given the rejects.
        """
        kept: EncodedRecord | None = None
        with contextlib.ExitStack() as files:
            shards = {}
            for name in self.schema.split_names:
                path, index_path = shard_paths(self.generation, name, number, num_shards=num_shards)
                file = files.enter_context(replace(join(self.output, path)))
                shards[name] = _Shard(self.schema, name, number, path, index_path, file)
            for block in blocks:
                stays, kept = _refuse_doubles(block.rows, kept, reject)
                splits = block.rows["split"].to_numpy(zero_copy_only=False)
                for name, shard in shards.items():
                    places = np.flatnonzero(stays & (splits == name))
                    shard.add(block.rows.take(pa.array(places)), [block.examples[i] for i in places.tolist()])
            for shard in shards.values():
                shard.flush()
        return [shard.close(self.output) for shard in shards.values()]


def _refuse_doubles(
    rows: pa.Table, kept: EncodedRecord | None, reject: Callable[[Reject], None]
) -> tuple[Array, EncodedRecord | None]:
    """bool[rows], which of them are the first with their id; and the last of these, for the rows that come after."""
    ids = rows["id"].to_pylist()
    stays = np.array([a != b for a, b in zip([kept and kept.id, *ids], ids, strict=False)], bool)
    first = np.maximum.accumulate(np.where(stays, np.arange(len(ids)), -1))
    doubles = np.flatnonzero(~stays)
    if len(doubles):
        firsts, which = np.unique(first[doubles], return_inverse=True)
        staying = from_rows(rows.take(pa.array(firsts[firsts >= 0])))
        if firsts[0] < 0:
            assert kept is not None
            staying = [kept, *staying]
        for record, number in zip(from_rows(rows.take(pa.array(doubles))), which.tolist(), strict=True):
            message = f"the id {record.id!r} is also that of {_place(staying[number].origin)}, which stays"
            reject(Reject("duplicate_id", message, record.id, record.origin))
    if stays.any():
        (kept,) = from_rows(rows.slice(first[-1], 1))
    return stays, kept


def _kept(rows: pa.Table) -> pa.Table:
    kept = rows.select(_KEPT)
    # The raw file of every record is most of what there is of a short one.
    return kept.set_column(0, "path", kept["path"].dictionary_encode())


class _Shard:
    """A shard while it is written, some records at a time."""

    def __init__(self, schema: Schema, split: str, number: int, path: str, index_path: str, file: IO[bytes]) -> None:
        self._schema, self._split, self._number, self._file = schema, split, number, file
        self._path, self._index_path = path, index_path
        self._contents = _Contents(schema, with_moments=split == TRAIN)
        self._digest = hashlib.sha256()
        self._block: list[bytes] = []
        self._block_bytes = 0
        self._sizes: list[int] = []
        self._rows = [_kept(COLUMNS.empty_table())]
        self._labels = self._truncated = 0

    def add(self, rows: pa.Table, examples: list[bytes]) -> None:
        """Writes records that come after those before."""
        self._rows.append(_kept(rows))
        self._labels += int(rows["num_labels"].to_numpy().sum())
        self._truncated += int(rows["truncated"].to_numpy().sum())
        self._sizes += map(len, examples)
        for example in examples:
            self._block.append(example)
            self._block_bytes += len(example)
            if len(self._block) == BLOCK_RECORDS or self._block_bytes >= BLOCK_BYTES:
                self.flush()

    def close(self, output: str) -> ShardSummary:
        """Writes the index beside the file, which is in its place then."""
        contents, rows, sizes = self._contents, pa.concat_tables(self._rows), self._sizes
        index = serialize_index(
            build_index(
                self._schema.label,
                num_bytes=sizes,
                num_steps=rows["num_steps"],
                ids=rows["id"],
                labels=contents.labels,
                groups=rows["group"],
                sources=rows["path"],
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
            label_counts=dict(contents.label_counts),
            missing=contents.missing,
            strings={name: dict(counts) for name, counts in contents.strings.items()},
            moments={name: m for name, m in contents.moments.items() if m is not None},
        )

    def flush(self) -> None:
        """Writes what `add` kept back until there is a block of it."""
        if self._block:
            framed = b"".join(frames(self._block))
            self._digest.update(framed)
            self._file.write(framed)
            self._contents.add(framed, self._block)
            self._block, self._block_bytes = [], 0


class _Contents:
    """What lies in the records of a shard: labels for the index, counts of classes and strings, moments of numbers."""

    def __init__(self, schema: Schema, *, with_moments: bool) -> None:
        self._label = schema.label
        self._fields = stored_fields(schema)
        self._only_numbers = all(field.dtype != "string" for field in self._fields)
        self._names = [class_name(c) for c in schema.label.classes]
        self._widths = schema.statistics_widths if with_moments else {}
        self.labels: list[Any] = []
        self.label_counts: collections.Counter[str] = collections.Counter()
        self.missing = {name: 0 for name, feature in schema.features.items() if feature.allows_nulls}
        self.strings: dict[str, collections.Counter[bytes]] = {
            name: collections.Counter() for name, feature in schema.features.items() if feature.vocabulary is not None
        }
        self.moments: dict[str, Moments | None] = dict.fromkeys(self._widths)

    def add(self, framed: bytes, records: list[bytes]) -> None:
        """Counts records, which lie in `framed` too, each in its frame."""
        if self._only_numbers:
            sizes = np.array([len(record) for record in records])
            end = np.cumsum(sizes + FRAME_BYTES) - FOOTER_BYTES
            columns = decode_columns(framed, end - sizes, end, self._fields)
        else:
            columns = _decode_strings(records)
        self._add_labels(columns, len(records))
        for name in self.missing:
            self.missing[name] += int(is_missing(columns[name][0]).sum())
        for name, counts in self.strings.items():
            counts.update(columns[name][0])
            counts.pop(MISSING_STRING, None)
        for name, width in self._widths.items():
            rows = columns[name][0].reshape(-1, width)
            # A record may be much larger than a block.
            most = max(1, BLOCK_BYTES // (4 * width))
            parts = [Moments.of(rows[start : start + most]) for start in range(0, len(rows), most)]
            self.moments[name] = merge_moments([self.moments[name], *parts])

    def _add_labels(self, columns: _Columns, num_records: int) -> None:
        label = self._label
        if label.name is None:
            self.labels += [None] * num_records
            return
        values, counts = columns[label.name]
        classes, totals = np.unique(named_classes(values, label), return_counts=True)
        for position, total in zip(classes.tolist(), totals.tolist(), strict=True):
            self.label_counts[self._names[position]] += total
        if label.kind == "class":  # as below, for all at once
            self.labels += [self._names[position] for position in values.tolist()]
        else:
            self.labels += [index_label(part, label) for part in np.split(values, np.cumsum(counts)[:-1])]


def _decode_strings(records: list[bytes]) -> _Columns:
    """As `decode_columns`, where some fields are strings, of which it makes a list."""
    examples = list(map(decode_example, records))
    columns: _Columns = {}
    for name, first in examples[0].items():
        parts: Any = [example[name] for example in examples]
        joined = [*itertools.chain(*parts)] if isinstance(first, list) else np.concatenate(parts)
        columns[name] = joined, np.array([len(part) for part in parts])
    return columns


def _place(origin: Origin) -> str:
    return "another record" if origin.path is None else f"the record at byte {origin.byte_offset} of {origin.path}"
