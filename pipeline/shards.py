"""Writes the files of one shard: records sorted by hash, doubles found, statistics taken, an index beside them."""

import collections
import contextlib
import dataclasses
import hashlib
from collections.abc import Iterable
from typing import IO, Any, NamedTuple

import numpy as np

from pipeline.decode import decode_examples
from pipeline.examples import Value, decode_example, encode_sequence
from pipeline.fields import stored_fields
from pipeline.hashing import choose_split, order_key
from pipeline.index import build_index, index_label, write_index
from pipeline.manifest import TRAIN, Shard
from pipeline.reasons import Reason
from pipeline.records import Sequence, num_labels
from pipeline.schema import Schema, SplitFromField, class_name
from pipeline.statistics import BLOCK_BYTES, BLOCK_RECORDS, Moments, merge
from pipeline.storage import join, replace
from pipeline.tfrecord import FRAME_BYTES, frame
from pipeline.values import MISSING_STRING, is_missing, named_classes


class Origin(NamedTuple):
    """Where a record comes from, as far as it is known, for the day it is rejected.

    Attributes:
        path: The raw file; None where the record came from elsewhere.
        chunk: Where the chunk of the file starts, in bytes.
        byte_offset: Where the line starts, in bytes of the decompressed file.
        number: Lines before it in its chunk.
        sha256: Digest of the raw line; of one that is too large, of its beginning.
        raw: The line itself, only where it is to be kept.
    """

    path: str | None
    chunk: int
    byte_offset: int
    number: int
    sha256: bytes
    raw: bytes | None


class Reject(NamedTuple):
    """A record that cannot be used, and why."""

    reason: Reason
    message: str
    id: str | None
    origin: Origin


class Encoded(NamedTuple):
    """A record as it travels to its shard."""

    key: bytes
    digest: bytes
    origin: Origin
    id: str
    group: str | None
    split: str
    num_steps: int
    num_labels: int
    truncated: bool
    example: bytes


def encode(sequence: Sequence, origin: Origin, schema: Schema, *, seed: int) -> Encoded:
    """A sequence as bytes, with the split and the place that follow from its id."""
    group = None if schema.group is None else sequence.group
    if isinstance(schema.splits, SplitFromField):
        if sequence.split is None:
            raise ValueError(
                f"Sequence {sequence.id!r} names no split, but the schema takes it from {schema.splits.field!r}."
            )
        split = sequence.split
    else:
        if schema.group is not None and sequence.group is None:
            raise ValueError(f"Sequence {sequence.id!r} has no group, but the schema has one: {schema.group!r}.")
        split = choose_split(sequence.id if group is None else group, schema.splits, seed=seed)
    example = encode_sequence(sequence, schema)
    return Encoded(
        key=order_key(sequence.id, seed=seed),
        digest=hashlib.sha256(example).digest(),
        origin=origin,
        id=sequence.id,
        group=group,
        split=split,
        num_steps=sequence.num_steps,
        num_labels=num_labels(sequence, schema),
        truncated=sequence.truncated,
        example=example,
    )


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
        self, number: int, records: Iterable[Encoded], *, num_shards: int
    ) -> tuple[list[ShardSummary], list[Reject]]:
        """Writes all records whose hash chose shard `number`; a second time it writes the same bytes.

        Of the records with one id, that with the smallest content digest stays, in whichever split; the others come
        back as rejects.

        Args:
            records: In the order of `rank`.
        """
        rejects: list[Reject] = []
        kept: Encoded | None = None
        with contextlib.ExitStack() as files:
            shards = {}
            for name in self.schema.split_names:
                stem = f"data/{self.generation}/{name}-{number:05d}-of-{num_shards:05d}"
                file = files.enter_context(replace(join(self.output, f"{stem}.tfrecord")))
                shards[name] = _Shard(self.schema, name, number, stem, file)
            for record in records:
                if kept is not None and kept.id == record.id:
                    message = f"the id {record.id!r} is also that of {_place(kept.origin)}, which stays"
                    rejects.append(Reject("duplicate_id", message, record.id, record.origin))
                    continue
                shards[record.split].add(record)
                # What is told of it needs no Example.
                kept = record._replace(example=b"")
        return [shard.close(self.output) for shard in shards.values()], rejects


class _Shard:
    """A shard while it is written, record by record."""

    def __init__(self, schema: Schema, split: str, number: int, stem: str, file: IO[bytes]) -> None:
        self._schema, self._split, self._number, self._stem, self._file = schema, split, number, stem, file
        self._contents = _Contents(schema, with_moments=split == TRAIN)
        self._digest = hashlib.sha256()
        self._block: list[bytes] = []
        self._block_bytes = 0
        self._columns: dict[str, list[Any]] = {
            name: [] for name in ("num_bytes", "num_steps", "ids", "groups", "sources")
        }
        self._labels = self._truncated = 0

    def add(self, record: Encoded) -> None:
        framed = frame(record.example)
        self._digest.update(framed)
        self._file.write(framed)
        values = (len(record.example), record.num_steps, record.id, record.group, record.origin.path)
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)
        self._labels += record.num_labels
        self._truncated += record.truncated
        self._block.append(record.example)
        self._block_bytes += len(record.example)
        if len(self._block) == BLOCK_RECORDS or self._block_bytes >= BLOCK_BYTES:
            self._flush()

    def close(self, output: str) -> ShardSummary:
        """Writes the index beside the file, which is in its place then."""
        self._flush()
        contents, num_steps, sizes = self._contents, self._columns["num_steps"], self._columns["num_bytes"]
        index = write_index(build_index(self._schema.label, labels=contents.labels, **self._columns))
        with replace(join(output, f"{self._stem}.index.parquet")) as file:
            file.write(index)
        return ShardSummary(
            split=self._split,
            number=self._number,
            shard=Shard(
                path=f"{self._stem}.tfrecord",
                records=len(num_steps),
                steps=sum(num_steps),
                bytes=sum(sizes) + FRAME_BYTES * len(sizes),
                sha256=self._digest.hexdigest(),
                index_path=f"{self._stem}.index.parquet",
                index_sha256=hashlib.sha256(index).hexdigest(),
            ),
            labels=self._labels,
            truncated=self._truncated,
            length_counts=dict(collections.Counter(num_steps)),
            label_counts=dict(contents.label_counts),
            missing=contents.missing,
            strings={name: dict(counts) for name, counts in contents.strings.items()},
            moments={name: m for name, m in contents.moments.items() if m is not None},
        )

    def _flush(self) -> None:
        if self._block:
            self._contents.add(self._block)
            self._block, self._block_bytes = [], 0


class _Contents:
    """What lies in the records of a shard: labels for the index, counts of classes and strings, moments of numbers."""

    def __init__(self, schema: Schema, *, with_moments: bool) -> None:
        self._label = schema.label
        self._fields = stored_fields(schema)
        self._only_numbers = all(field.dtype != "string" for field in self._fields)
        self._names = [class_name(c) for c in schema.label.classes]
        self._widths = schema.measured_widths if with_moments else {}
        self.labels: list[Any] = []
        self.label_counts: collections.Counter[str] = collections.Counter()
        self.missing = {name: 0 for name, feature in schema.features.items() if feature.may_miss}
        self.strings: dict[str, collections.Counter[bytes]] = {
            name: collections.Counter() for name, feature in schema.features.items() if feature.vocabulary is not None
        }
        self.moments: dict[str, Moments | None] = dict.fromkeys(self._widths)

    def add(self, records: list[bytes]) -> None:
        examples: Any = decode_examples(records, self._fields) if self._only_numbers else map(decode_example, records)
        examples = list(examples)
        self._add_labels(examples)
        for example in examples:
            for name in self.missing:
                self.missing[name] += int(is_missing(example[name]).sum())
            for name, counts in self.strings.items():
                counts.update(example[name])
        for counts in self.strings.values():
            counts.pop(MISSING_STRING, None)
        for name, width in self._widths.items():
            rows = np.concatenate([np.asarray(example[name]).reshape(-1, width) for example in examples])
            self.moments[name] = merge([self.moments[name], Moments.of(rows)])

    def _add_labels(self, examples: list[dict[str, Value]]) -> None:
        if self._label.name is None:
            self.labels += [None] * len(examples)
            return
        labels = [np.asarray(example[self._label.name]) for example in examples]
        classes, counts = np.unique(named_classes(np.concatenate(labels), self._label), return_counts=True)
        for position, count in zip(classes.tolist(), counts.tolist(), strict=True):
            self.label_counts[self._names[position]] += count
        self.labels += [index_label(label, self._label) for label in labels]


def rank(record: Encoded) -> tuple[Any, ...]:
    """The order of records: by key, and of doubles by what is in them."""
    # The origin comes late: which of two doubles stays must not hang on the order of the input as long as they differ.
    origin = record.origin
    content = (record.digest, record.split, record.truncated)
    return record.key, record.id, *content, origin.path or "", origin.byte_offset, origin.sha256, record.group or ""


def _place(origin: Origin) -> str:
    return "another record" if origin.path is None else f"the record at byte {origin.byte_offset} of {origin.path}"
