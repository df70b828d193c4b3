"""The worker processes of a stream, which stay from round to round."""

from pipeline.beam.workers import WorkerPool, count_cores

# A smaller round is done in this process before workers have started.
_SMALL_BYTES = 4 * 2**20
# A process holds 150 MB, and 250 MB with the largest records. Use --processes for more of them.
_MAX_WORKERS = 2


class KeptWorkers:
    """Starts worker processes in the first round that is large enough for them, and keeps them until `close`.

    Args:
        processes: Number of processes. 0 does all work in this process. None chooses.
    """

    def __init__(self, processes: int | None = None) -> None:
        self._processes = processes
        self._pool: WorkerPool | None = None

    def get(self, num_bytes: int) -> WorkerPool | None:
        """Returns the processes for a round with this number of raw bytes. None: do it in this process."""
        if self._pool is None:
            processes = self._processes
            if processes is None:
                processes = min(count_cores(), _MAX_WORKERS) if num_bytes >= _SMALL_BYTES else 0
            if processes:
                self._pool = WorkerPool(processes, "pipeline.writing.stages")
        return self._pool

    def close(self) -> None:
        """Kills the processes, also in the middle of a call. The next round starts others."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()
