"""Writes the files of one shard: records sorted by hash, doubles found, statistics taken, an index beside them."""

import collections
import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from pipeline.examples import decode_example, encode_sequence
from pipeline.hashing import choose_split, order_key
from pipeline.index import build_index, write_index
from pipeline.manifest import TRAIN, Shard
from pipeline.reasons import Reason
from pipeline.records import Sequence
from pipeline.schema import Schema, SplitFromField, class_name
from pipeline.statistics import BLOCK_RECORDS, Moments, merge
from pipeline.storage import join, replace
from pipeline.tfrecord import frame
from pipeline.values import NO_LABEL


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
    split: str
    num_steps: int
    num_labels: int
    truncated: bool
    example: bytes


def encode(sequence: Sequence, origin: Origin, schema: Schema, *, seed: int) -> Encoded:
    """A sequence as bytes, with the split and the place that follow from its id."""
    if isinstance(schema.splits, SplitFromField):
        if sequence.split is None:
            raise ValueError(
                f"Sequence {sequence.id!r} names no split, but the schema takes it from {schema.splits.field!r}."
            )
        split = sequence.split
    else:
        group = sequence.id if sequence.group is None else sequence.group
        split = choose_split(group, schema.splits, seed=seed)
    example = encode_sequence(sequence, schema)
    return Encoded(
        key=order_key(sequence.id, seed=seed),
        digest=hashlib.sha256(example).digest(),
        origin=origin,
        id=sequence.id,
        split=split,
        num_steps=sequence.num_steps,
        num_labels=int((sequence.label != NO_LABEL).sum()) if schema.label.per_step else 1,
        truncated=sequence.truncated,
        example=example,
    )


@dataclasses.dataclass(frozen=True)
class ShardSummary:
    """What the manifest needs to know of one shard; sums that can be added up."""

    split: str
    number: int
    shard: Shard
    labels: int
    truncated: int
    length_counts: dict[int, int]
    label_counts: dict[str, int]
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
            moments={name: m for name, m in contents.moments.items() if m is not None},
        )


class _Contents:
    """What lies in the records of a shard: labels for the index, counts of classes, moments of the numbers."""

    def __init__(self, schema: Schema, *, with_moments: bool) -> None:
        self._label = schema.label
        self._names = [class_name(c) for c in schema.label.classes]
        self._widths = schema.measured_widths if with_moments else {}
        self.labels: list[Any] = []
        self.label_counts: collections.Counter[str] = collections.Counter()
        self.moments: dict[str, Moments | None] = dict.fromkeys(self._widths)

    def add(self, records: list[Encoded]) -> None:
        examples = [decode_example(record.example) for record in records]
        for example in examples:
            self._add_label(np.asarray(example[self._label.name]))
        for name, width in self._widths.items():
            rows = np.concatenate([np.asarray(example[name]).reshape(-1, width) for example in examples])
            self.moments[name] = merge([self.moments[name], Moments.of(rows)])

    def _add_label(self, label: np.ndarray[Any, Any]) -> None:
        if self._label.kind in ("class", "step_class"):
            self.label_counts.update(self._names[c] for c in label.tolist() if c != NO_LABEL)
        self.labels.append(self._indexed(label))

    def _indexed(self, label: np.ndarray[Any, Any]) -> Any:
        """A label as the index holds it."""
        if self._label.per_step:
            return None
        if self._label.kind == "class":
            return self._names[int(label[0])]
        return label if self._label.kind == "distribution" else label[0]


def _rank(record: Encoded) -> tuple[Any, ...]:
    # The origin comes last: which of two doubles stays must not hang on the order of the input as long as they differ.
    origin = record.origin
    content = (record.digest, record.split, record.truncated)
    return record.key, record.id, *content, origin.path or "", origin.byte_offset, origin.sha256


def _place(origin: Origin) -> str:
    return "another record" if origin.path is None else f"the record at byte {origin.byte_offset} of {origin.path}"
