"""Writes the files of one shard: records sorted by hash, doubles found, statistics taken, an index beside them."""

import collections
import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from pipeline.examples import Value, decode_example, encode_sequence
from pipeline.hashing import choose_split, order_key
from pipeline.index import build_index, index_label, write_index
from pipeline.manifest import TRAIN, Shard
from pipeline.reasons import Reason
from pipeline.records import Sequence, num_labels
from pipeline.schema import Schema, SplitFromField, class_name
from pipeline.statistics import BLOCK_RECORDS, Moments, merge
from pipeline.storage import join, replace
from pipeline.tfrecord import frame
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
    num_shards: int

    def write(self, number: int, records: Iterable[Encoded]) -> tuple[list[ShardSummary], list[Reject]]:
        """Writes all records whose hash chose shard `number`; a second time it writes the same bytes.

        Of the records with one id, that with the smallest content digest stays, in whichever split; the others come
        back as rejects.
        """
        by_split: dict[str, list[Encoded]] = {name: [] for name in self.schema.split_names}
        rejects = []
        kept: Encoded | None = None
        for record in sorted(records, key=_rank):
            if kept is not None and kept.id == record.id:
                message = f"the id {record.id!r} is also that of {_place(kept.origin)}, which stays"
                rejects.append(Reject("duplicate_id", message, record.id, record.origin))
                continue
            kept = record
            by_split[record.split].append(record)
        return [self._write_split(number, name, kept_records) for name, kept_records in by_split.items()], rejects

    def _write_split(self, number: int, split: str, records: list[Encoded]) -> ShardSummary:
        stem = f"data/{self.generation}/{split}-{number:05d}-of-{self.num_shards:05d}"
        digest, num_bytes = hashlib.sha256(), 0
        with replace(join(self.output, f"{stem}.tfrecord")) as file:
            for record in records:
                framed = frame(record.example)
                digest.update(framed)
                num_bytes += len(framed)
                file.write(framed)
        contents = _Contents(self.schema, with_moments=split == TRAIN)
        for start in range(0, len(records), BLOCK_RECORDS):
            contents.add(records[start : start + BLOCK_RECORDS])
        index = write_index(
            build_index(
                self.schema.label,
                num_bytes=[len(r.example) for r in records],
                num_steps=[r.num_steps for r in records],
                ids=[r.id for r in records],
                labels=contents.labels,
                groups=[r.group for r in records],
                sources=[r.origin.path for r in records],
            )
        )
        with replace(join(self.output, f"{stem}.index.parquet")) as file:
            file.write(index)
        return ShardSummary(
            split=split,
            number=number,
            shard=Shard(
                path=f"{stem}.tfrecord",
                records=len(records),
                steps=sum(r.num_steps for r in records),
                bytes=num_bytes,
                sha256=digest.hexdigest(),
                index_path=f"{stem}.index.parquet",
                index_sha256=hashlib.sha256(index).hexdigest(),
            ),
            labels=sum(r.num_labels for r in records),
            truncated=sum(r.truncated for r in records),
            length_counts=dict(collections.Counter(r.num_steps for r in records)),
            label_counts=dict(contents.label_counts),
            missing=contents.missing,
            strings={name: dict(counts) for name, counts in contents.strings.items()},
            moments={name: m for name, m in contents.moments.items() if m is not None},
        )


class _Contents:
    """What lies in the records of a shard: labels for the index, counts of classes and strings, moments of numbers."""

    def __init__(self, schema: Schema, *, with_moments: bool) -> None:
        self._label = schema.label
        self._names = [class_name(c) for c in schema.label.classes]
        self._widths = schema.measured_widths if with_moments else {}
        self.labels: list[Any] = []
        self.label_counts: collections.Counter[str] = collections.Counter()
        self.missing = {name: 0 for name, feature in schema.features.items() if feature.may_miss}
        self.strings: dict[str, collections.Counter[bytes]] = {
            name: collections.Counter() for name, feature in schema.features.items() if feature.vocabulary is not None
        }
        self.moments: dict[str, Moments | None] = dict.fromkeys(self._widths)

    def add(self, records: list[Encoded]) -> None:
        examples = [decode_example(record.example) for record in records]
        for example in examples:
            self._add_label(example)
            for name in self.missing:
                self.missing[name] += int(is_missing(example[name]).sum())
            for name, counts in self.strings.items():
                counts.update(example[name])
        for counts in self.strings.values():
            counts.pop(MISSING_STRING, None)
        for name, width in self._widths.items():
            rows = np.concatenate([np.asarray(example[name]).reshape(-1, width) for example in examples])
            self.moments[name] = merge([self.moments[name], Moments.of(rows)])

    def _add_label(self, example: dict[str, Value]) -> None:
        label = None if self._label.name is None else np.asarray(example[self._label.name])
        if label is not None:
            self.label_counts.update(self._names[c] for c in named_classes(label, self._label).tolist())
        self.labels.append(index_label(label, self._label))


def _rank(record: Encoded) -> tuple[Any, ...]:
    # The origin comes late: which of two doubles stays must not hang on the order of the input as long as they differ.
    origin = record.origin
    content = (record.digest, record.split, record.truncated)
    return record.key, record.id, *content, origin.path or "", origin.byte_offset, origin.sha256, record.group or ""


def _place(origin: Origin) -> str:
    return "another record" if origin.path is None else f"the record at byte {origin.byte_offset} of {origin.path}"
