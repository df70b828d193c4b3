"""The worker processes of a stream, which stay from round to round."""

from collections.abc import Sequence

from pipeline.beam.memory_budget import count_workers
from pipeline.beam.workers import WorkerPool
from pipeline.raw.estimate_size import estimate_memory
from pipeline.raw.find_files import RawFile

# A smaller round is done in this process before workers have started.
_SMALL_BYTES = 4 * 2**20


class KeptWorkers:
    """Starts worker processes in the first round that is large enough for them, and keeps them until `close`.

    Args:
        processes, memory: See `count_workers`, also for the error.
    """

    def __init__(self, processes: int | None = None, memory: int | None = None) -> None:
        self._processes, self._memory = processes, memory
        self._pool: WorkerPool | None = None

    def get(self, files: Sequence[RawFile]) -> WorkerPool | None:
        """Returns the processes for a round that reads these files. None: do it in this process."""
        if self._pool is None:
            is_small = self._processes is None and estimate_memory(files) < _SMALL_BYTES
            processes = 0 if is_small else count_workers(self._processes, self._memory)
            if processes:
                self._pool = WorkerPool(processes, "pipeline.writing.stages")
        return self._pool

    def close(self) -> None:
        """Kills the processes, also in the middle of a call. The next round starts others."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()
