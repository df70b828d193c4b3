"""Plans epochs that read records chunk by chunk, with the state carried from chunk to chunk: batching `stateful`.

A batch has a row for each lane. A lane reads one record after the other, and of each record one chunk per update; where
a record ends, the lane begins the next one, with a state of zeros. This is truncated back-propagation through time
(Williams & Peng 1990) over records of any lengths: the memory of an update depends on lanes and chunk alone.

The lanes are filled so that they end at nearly the same update: from the longest record to the shortest, each goes to
the lane with the fewest chunks (Graham 1969). A lane that has ended leaves the batch. The records of a lane are in
random order. The plan needs only the lengths, so it knows the whole epoch before any record is read.
"""

import dataclasses
import heapq
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from pipeline.schema.record import Array
from trainer.batching.cut import Ints, check_limits
from trainer.batching.plan import Plan
from trainer.batching.random_bits import random_bits
from trainer.config import STATEFUL, TrainConfig

DEFAULT_CHUNK_STEPS, DEFAULT_LANES = 100, 64
# The streams of random numbers: which of two records of the same length comes first, and the order within a lane.
_TIES, _ORDER = range(2)


class Chunks(NamedTuple):
    """What the rows of one reader hold in an update, one row for each lane.

    Attributes:
        record: int64[rows], position of the record in the split; -1 for a filler row.
        first: int64[rows], the step of the record with which the chunk begins; 0 if the record begins.
        length: int64[rows], steps of the chunk; 1 for a filler row.
        ends: bool[rows], whether the record ends with the chunk.
    """

    record: Ints
    first: Ints
    length: Ints
    ends: Array


@dataclasses.dataclass(frozen=True, eq=False)
class StatefulPlan(Plan):
    """An epoch of chunks.

    Attributes:
        chunk_steps: Largest number of steps of a chunk.
        lanes: Number of lanes, over all readers. It is at most the number of records.
        num_readers: Number of readers. Reader i has the lanes i, i + num_readers, …, all for the same updates.
        lengths: int64[records], steps of each record in the order of the split.
        order: int64[records], the records lane by lane, in the order in which the lane reads them. A record is given as
            its position in the split.
        begin: int64[records], for each record of `order`, the update with its first chunk.
        lane_first: int64[lanes + 1], position in `order` of the first record of each lane. The lanes are sorted from
            the one with the most chunks to the one with the fewest.
    """

    chunk_steps: int
    lanes: int
    num_readers: int
    lengths: Ints
    order: Ints
    begin: Ints
    lane_first: Ints
    batch_steps: int | None = None
    batch_size: int | None = None
    batching: Literal["stateful"] = "stateful"

    @property
    def num_chunks(self) -> Ints:
        """int64[lanes], chunks of each lane."""
        ends = self.begin + _chunks_of(self.lengths[self.order], self.chunk_steps)
        return ends[self.lane_first[1:] - 1] if self.lanes else np.zeros(0, np.int64)

    @property
    def num_batches(self) -> int:
        return int(self.num_chunks[0]) if self.lanes else 0

    @property
    def records(self) -> int:
        return len(self.order)

    @property
    def steps(self) -> int:
        return int(self.lengths.sum())

    def rows(self) -> Ints:
        """Returns the rows of one reader in each update, filler rows included: int64[updates]."""
        ended = np.bincount(self.num_chunks, minlength=self.num_batches + 1)
        active = self.lanes - np.cumsum(ended)[: self.num_batches]
        return -(-active // self.num_readers)

    def times(self) -> Ints:
        """Returns the steps to which the chunks of each update are padded: int64[updates]."""
        lengths = self.lengths[self.order]
        full, rest = lengths // self.chunk_steps, lengths % self.chunk_steps
        edges = np.zeros(self.num_batches + 1, np.int64)
        np.add.at(edges, self.begin[full > 0], 1)
        np.add.at(edges, (self.begin + full)[full > 0], -1)
        times = np.where(np.cumsum(edges)[: self.num_batches] > 0, self.chunk_steps, 0)
        np.maximum.at(times, (self.begin + full)[rest > 0], rest[rest > 0])
        return times

    @property
    def padded_steps(self) -> int:
        return int((self.rows() * self.times()).sum()) * self.num_readers

    @property
    def shapes(self) -> set[tuple[int, int]]:
        found = np.unique(np.stack([self.rows() * self.num_readers, self.times()], axis=1), axis=0)
        return {(int(rows), int(steps)) for rows, steps in found}

    def describe_smaller(self, padded_steps: int) -> str:
        return f"fewer --lanes than {self.lanes}, or fewer --chunk_steps than {self.chunk_steps}"

    @property
    def bound(self) -> float:
        """Largest possible share of useful steps if every lane is computed in every update.

        The longest record alone takes its length in some lane, so that all lanes together take at least lanes × its
        length. 1 if other lanes are no shorter.
        """
        longest = int(self.lengths.max(initial=0))
        return min(1.0, self.steps / (self.lanes * longest)) if longest else 1.0

    @property
    def better_lanes(self) -> int:
        """The largest number of lanes that can end together: that of the chunks of all records ÷ the longest."""
        chunks = _chunks_of(self.lengths, self.chunk_steps)
        return max(1, int(chunks.sum() // chunks.max(initial=1)))

    def chunks(self, first_batch: int = 0, reader_index: int = 0) -> Iterator[Chunks]:
        """Yields what the rows of a reader hold in each update from `first_batch` on."""
        lanes = np.arange(reader_index, self.lanes, self.num_readers)
        ends = self.begin + _chunks_of(self.lengths[self.order], self.chunk_steps)
        place = np.array(
            [
                first + np.searchsorted(ends[first:stop], first_batch, side="right")
                for first, stop in zip(
                    self.lane_first[lanes].tolist(), self.lane_first[lanes + 1].tolist(), strict=True
                )
            ],
            np.int64,
        )
        num_chunks, rows = self.num_chunks[lanes], self.rows()
        for batch in range(first_batch, self.num_batches):
            active = int(np.searchsorted(-num_chunks, -batch))  # lanes with more chunks than `batch`
            place = place[:active]
            place += ends[place] <= batch
            record = self.order[place]
            first = (batch - self.begin[place]) * self.chunk_steps
            length = np.minimum(self.lengths[record] - first, self.chunk_steps)
            yield _fill(Chunks(record, first, length, first + length == self.lengths[record]), int(rows[batch]))

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {
            "chunk_steps": self.chunk_steps,
            "lanes": self.lanes,
            "bound": self.bound,
            "better_lanes": self.better_lanes,
        }


def _fill(chunks: Chunks, rows: int) -> Chunks:
    """Returns the same rows, and filler rows after them: a reader whose lanes have ended has as many as the others."""
    missing = rows - len(chunks.record)
    if not missing:
        return chunks
    fillers = Chunks(
        np.full(missing, -1), np.zeros(missing, np.int64), np.ones(missing, np.int64), np.zeros(missing, np.bool_)
    )
    return Chunks(*(np.concatenate(parts) for parts in zip(chunks, fillers, strict=True)))


def make_stateful_plan(
    lengths: Array,
    *,
    chunk_steps: int | None = None,
    lanes: int | None = None,
    num_readers: int = 1,
    seed: int = 0,
    epoch: int = 0,
) -> StatefulPlan:
    """Returns the plan of an epoch. The same arguments give the same plan.

    Args:
        lengths: int[records], steps of each record, in the order of the split.
        chunk_steps: Largest number of steps of a chunk. Default: 100.
        lanes: Number of rows of a batch, over all readers. Default: 64. There are no more lanes than records.
        num_readers: Number of readers that share the lanes.
        seed, epoch: Determine which lane reads which records, and in which order.

    Raises:
        ValueError: An argument is wrong. The message has its name, its value and what was expected.
    """
    check_limits(chunk_steps=chunk_steps, lanes=lanes, num_readers=num_readers)
    chunk_steps, lanes = chunk_steps or DEFAULT_CHUNK_STEPS, lanes or DEFAULT_LANES
    lengths = lengths.astype(np.int64)
    lanes = min(lanes, len(lengths))
    chunks = _chunks_of(lengths, chunk_steps)
    lane = _assign(chunks, lanes, random_bits(len(lengths), seed, epoch, _TIES))
    load = np.bincount(lane, chunks, minlength=lanes).astype(np.int64)
    rank = np.empty(lanes, np.int64)
    rank[np.argsort(-load, kind="stable")] = np.arange(lanes)
    order = np.lexsort((random_bits(len(lengths), seed, epoch, _ORDER), rank[lane]))
    lane_first = np.concatenate([[0], np.cumsum(np.bincount(rank[lane], minlength=lanes))]).astype(np.int64)
    before = np.concatenate([[0], np.cumsum(chunks[order])]).astype(np.int64)
    begin = before[:-1] - np.repeat(before[lane_first[:-1]], np.diff(lane_first))
    return StatefulPlan(chunk_steps, lanes, num_readers, lengths, order, begin, lane_first)


def _chunks_of(lengths: Ints, chunk_steps: int) -> Ints:
    return -(-lengths // chunk_steps)


def chunk_options(
    config: TrainConfig, chunk_steps: int | None = None, reset_state: str | None = None
) -> dict[str, Any]:
    """Returns whether a run with this configuration reads chunks: {"chunk_steps": N or None, "reset_state": …}.

    Args:
        chunk_steps: Steps of a chunk. By default, those of the configuration if it reads chunks.
        reset_state: `record` or `chunk`. By default, that of the configuration.
    """
    if config.batching == STATEFUL and chunk_steps is None:
        chunk_steps = config.chunk_steps or DEFAULT_CHUNK_STEPS
    return {"chunk_steps": chunk_steps, "reset_state": reset_state or config.reset_state}


def _assign(chunks: Ints, lanes: int, random: Array) -> Ints:
    """Returns the lane of each record: int64[records]."""
    found = np.zeros(len(chunks), np.int64)
    loads = [(0, lane) for lane in range(lanes)]
    order = np.lexsort((random, -chunks))
    for record, size in zip(order.tolist(), chunks[order].tolist(), strict=True):
        load, lane = loads[0]
        found[record] = lane
        heapq.heapreplace(loads, (load + size, lane))
    return found
