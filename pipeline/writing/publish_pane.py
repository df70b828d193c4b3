"""Publishes the records of one pane of an unbounded source in one commit: once, however often it is tried."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence

from pipeline.errors import TryAgain
from pipeline.files import join, remove
from pipeline.format.manifest import Manifest
from pipeline.raw.rejects import Reject
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows
from pipeline.shuffle.encoded_records import RECORDS, EncodedRecord
from pipeline.shuffle.record_runs import RunBuffer
from pipeline.shuffle.reduce_runs import reduce_runs
from pipeline.shuffle.reject_runs import RejectBuffer, RejectRun
from pipeline.shuffle.runs import Run
from pipeline.writing.base import Base
from pipeline.writing.commit_log import find_pane, find_published, read_summaries
from pipeline.writing.job import Recent
from pipeline.writing.marker import mark_writer
from pipeline.writing.open_base import open_base
from pipeline.writing.paths import new_generation, rejects_path, runs_folder
from pipeline.writing.publish import Publisher, discard_generation, take_recent
from pipeline.writing.rejects import write_rejects
from pipeline.writing.shards import ShardWriter
from pipeline.writing.stages import choose_num_shards, merge_into_shards
from pipeline.writing.write_sources import list_sources

# How often a pane is merged before it gives up because others added the same records meanwhile.
_ATTEMPTS = 4


class _Sorted:
    """The records and rejects of a pane, in files.

    Attributes:
        runs, reject_runs: The sorted runs.
        digest: A number that depends on all of them, but not on their order.
    """

    def __init__(self, elements: Iterable[EncodedRecord | Reject], folder: str, windows: EventWindows | None) -> None:
        records, rejects = RunBuffer(folder, windows), RejectBuffer(folder)
        self.runs: list[Run] = []
        self.reject_runs: list[RejectRun] = []
        self.digest = 0
        for element in elements:
            if isinstance(element, EncodedRecord):
                self.runs += records.add(element)
                content = element.key + element.digest
            else:
                self.reject_runs += rejects.add(element)
                content = element.origin.sha256
            self.digest += int.from_bytes(hashlib.sha256(content).digest(), "big")
        self.runs += records.flush()
        self.reject_runs += rejects.flush()
        self.digest %= 2**128


@dataclasses.dataclass(frozen=True)
class PanePublisher:
    """Publishes panes.

    An engine repeats a step that has failed, or that it takes for dead, while the first try may still be at work. Each
    try writes files of its own, and the commit names the pane: under the lock of the dataset, a try that finds a commit
    with its name removes its own files.

    Attributes:
        output: Folder of the dataset.
        seed: Seed of the splits and of the order of the records.
        after: Number of the newest commit when the run of the pipeline began. The panes of the run come later.
        num_shards: Number of shards of each split. None chooses it by the size.
        max_rejected: Largest share of rejected records, in the newest commits that have at least 1,000 records.
        retain, lock_timeout: See Publisher.
        windows: The windows of event time to label the shards with. None for none.
    """

    schema: Schema
    output: str
    seed: int
    after: int
    num_shards: int | None
    max_rejected: float
    retain: float
    lock_timeout: float
    windows: EventWindows | None = None
    _known: dict[int, str | None] = dataclasses.field(default_factory=dict)

    def publish(self, name: str, elements: Iterable[EncodedRecord | Reject]) -> Manifest:
        """Publishes a pane, unless it is published, and returns the manifest of its commit.

        Args:
            name: Name of the run of the pipeline, of the window, and of the pane in it.
            elements: The records and rejects of the pane, in any order. They are read once. Memory holds one run.

        Raises:
            UserError: Too many records were rejected, or another dataset took the place of this one.
            NothingNew: It would be the first commit, and has no record.
            TryAgain: Other jobs added the same records again and again.
            LockTimeout: The lock of the dataset could not be had in time.
        """
        folder = new_generation()
        with mark_writer(self.output, folder, command="prepare"):
            try:
                pane = _Sorted(elements, runs_folder(self.output, folder), self.windows)
                # Not every runner numbers the panes of a window, so the content is a part of the name.
                name = f"{name}/{pane.digest:032x}"
                for _ in range(1, _ATTEMPTS):
                    with contextlib.suppress(TryAgain):
                        return self._try(name, pane)
                return self._try(name, pane)
            finally:
                discard_generation(self.output, folder)

    def _try(self, name: str, pane: _Sorted) -> Manifest:
        base = open_base(self.output, "append", self.schema, self.seed, windows=self.windows)
        # Later commits are searched under the lock.
        published = find_pane(self.output, name, after=self.after, known=self._known)
        if published is not None:
            return published
        generation = new_generation()
        with mark_writer(self.output, generation, command="prepare"):
            try:
                manifest = self._write(name, pane, base, generation)
            except BaseException as error:
                if find_published(self.output, generation, after=base.number) is None:
                    # After too many rejects, users read the file that lists them.
                    self._discard(generation, with_rejects=isinstance(error, TryAgain))
                raise
            if generation not in manifest.generations:
                self._discard(generation, with_rejects=True)
            return manifest

    def _write(self, name: str, pane: _Sorted, base: Base, generation: str) -> Manifest:
        writer = ShardWriter(self.schema, self.output, generation, base.published, base.windows)
        folder = runs_folder(self.output, generation)
        num_shards = self.num_shards or choose_num_shards(run.totals for run in pane.runs)
        runs = reduce_runs(pane.runs, folder, RECORDS)
        parts = [merge_into_shards(n, num_shards, runs, writer, folder=folder) for n in range(num_shards)]
        reject_runs = [*pane.reject_runs, *(run for part in parts for run in part.reject_runs)]
        rejects = write_rejects(reject_runs, [], output=self.output, generation=generation)
        sources = list_sources([], output=self.output, generation=generation)
        publisher = Publisher(
            self.schema,
            self.output,
            generation,
            base,
            max_rejected=self.max_rejected,
            retain=self.retain,
            lock_timeout=self.lock_timeout,
            recent=_read_recent(self.output, base.summaries),
            pane=name,
        )
        shards = [shard for part in parts for shard in part.shards]
        return publisher.publish(shards, [] if rejects is None else [rejects], [sources])

    def _discard(self, generation: str, *, with_rejects: bool) -> None:
        discard_generation(self.output, generation)
        if with_rejects:
            remove([join(self.output, rejects_path(generation))])


def _read_recent(output: str, digests: Mapping[str, str]) -> Sequence[Recent]:
    """Returns what the newest generations hold, as far as `take_recent` takes them. Reads no other summary.

    Args:
        digests: The generations of the dataset, the oldest first, and the SHA-256 of their summaries.
    """
    newest = reversed(list(digests.items()))
    return take_recent(Recent.of(*read_summaries(output, dict([each]))) for each in newest)
