"""A Beam step that calls a function with the chunks of raw files, in worker processes if there are any."""

from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam

from pipeline.beam.outputs import in_global_window
from pipeline.beam.parse_ahead import job_options
from pipeline.beam.workers import PendingCalls, WorkerPool
from pipeline.raw.json_lines import CHUNK_BYTES, COMPRESSED_BATCH_BYTES, Chunk, ChunkSummary, LineBatch, read_chunk
from pipeline.raw.spooled_messages import MessageChunk
from pipeline.writing.job import DatasetJob
from pipeline.writing.parse_rejects import RejectsChunk

# What a chunk counts for in a batch, at least, so that the summaries of a batch of tiny files take little memory.
_MIN_BYTES = 2**12


class CallOnChunks(beam.DoFn):
    """Calls a function with lists of chunks of any kind: a chunk -> what `outputs` makes of each result.

    Args:
        function: Takes a list of chunks (of a compressed file, batches of its lines) and the options. It is defined in
            a module.
        options: Keyword arguments of the function; `limits` must be one of them. If the step gets a job, what `of_job`
            returns is added.
        pool: Worker processes that call the function. None calls it in the workers of Beam.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any], pool: WorkerPool | None) -> None:
        self._options = options
        self._function = function
        self._record_bytes = options["limits"].record_bytes
        self._pool = pool

    def outputs(self, result: Any) -> Iterator[Any]:
        """Yields the outputs for a result of the function, or for the ChunkSummary of a chunk that was read before."""
        raise NotImplementedError

    def of_job(self, job: DatasetJob) -> dict[str, Any]:
        """Returns the arguments of the function that the job gives."""
        return job_options(job)

    def start_bundle(self) -> None:
        self._calls = PendingCalls(self._pool)
        # Input of the next call, and its size in bytes.
        self._batch: list[Chunk | LineBatch | MessageChunk | RejectsChunk] = []
        self._batch_bytes = 0

    def process(self, chunk: Chunk | MessageChunk | RejectsChunk, job: DatasetJob | None = None) -> Iterator[Any]:
        if job is not None:
            self._options = self._options | self.of_job(job)
        if not isinstance(chunk, Chunk) or not chunk.compressed or self._pool is None:
            num_bytes = chunk.num_bytes if isinstance(chunk, MessageChunk) else chunk.stop - chunk.start
            yield from self._add(chunk, max(_MIN_BYTES, num_bytes))
            return
        # Only one process can read a compressed file, so this one reads and the others parse.
        for item in read_chunk(chunk, batch_bytes=COMPRESSED_BATCH_BYTES, record_bytes=self._record_bytes):
            if isinstance(item, ChunkSummary):
                yield from self.outputs(item)
            else:
                # These lines are in memory already, so a call takes fewer bytes of them.
                yield from self._add(item, item.num_bytes * CHUNK_BYTES // COMPRESSED_BATCH_BYTES)
            del item  # may be most of the memory of this process

    def _add(self, item: Chunk | LineBatch | MessageChunk | RejectsChunk, num_bytes: int) -> Iterator[Any]:
        """Adds an item to the batch. Small files share a batch, so that there are fewer calls than files."""
        if self._batch_bytes + num_bytes > CHUNK_BYTES:
            yield from self._call()
        self._batch.append(item)
        self._batch_bytes += num_bytes
        del item
        if self._batch_bytes >= CHUNK_BYTES:
            yield from self._call()

    def _call(self) -> Iterator[Any]:
        held = sum(item.num_bytes for item in self._batch if isinstance(item, LineBatch))
        for result in self._calls.make_room(held):
            yield from self.outputs(result)
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        if batch:
            for result in self._calls.call_with(held, self._function, batch, **self._options):
                yield from self.outputs(result)

    def finish_bundle(self) -> Iterator[Any]:
        yield from map(in_global_window, self._call())
        for result in self._calls.finish():
            yield from map(in_global_window, self.outputs(result))
