"""Shows the job of an engine while a command waits for it: its id, its state and its counters."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions

from pipeline import progress
from pipeline.beam.flink_rest import EMBEDDED, FlinkRest

_INTERVAL_SECONDS = 2.0
# Seconds until the id is printed without that of Flink. A job server sends 157 MB to Flink before a job begins there.
_PATIENCE = 30.0
# Seconds that a cancelled job may take to end.
_CANCEL_SECONDS = 20.0


@contextlib.contextmanager
def follow(result: Any, options: PipelineOptions, command: str) -> Iterator[None]:
    """Shows a job while the block waits for it. Does nothing for a job of a runner in this process.

    A line on stderr says the id of the job. `progress.report` shows its state and, on a Flink cluster with a REST
    service at --flink_master, the records that were parsed and rejected.

    Args:
        result: What `Pipeline.run` returned.
        options: The options of the pipeline.
        command: First word of the lines.
    """
    job_id = _job_id(result)
    if job_id is None:
        yield
        return
    address = options.view_as(FlinkRunnerOptions).flink_master
    job = _Followed(result, job_id, None if address in EMBEDDED else FlinkRest(address), command)
    ended = threading.Event()

    def look() -> None:
        waited = 0.0
        while not ended.wait(_INTERVAL_SECONDS):
            waited += _INTERVAL_SECONDS
            job.look()
            if job.is_found or waited >= _PATIENCE:
                job.announce()

    thread = threading.Thread(target=look, daemon=True)
    if job.rest is None:
        job.announce()
    thread.start()
    try:
        yield
    finally:
        ended.set()
        job.announce()
        progress.show_state("working")


def cancel_on_flink(result: Any, options: PipelineOptions) -> None:
    """Cancels a job on the Flink cluster at --flink_master, if there is one, and waits a little for its end.

    The job server of Flink only forgets a job that it is told to cancel. One that fails and starts again would keep its
    slots until Flink gives up. Does nothing if Flink does not answer.
    """
    job_id, address = _job_id(result), options.view_as(FlinkRunnerOptions).flink_master
    if job_id is None or address in EMBEDDED:
        return
    rest, end = FlinkRest(address), time.monotonic() + _CANCEL_SECONDS
    with contextlib.suppress(ConnectionError):
        job = rest.find_job(_flink_name(job_id))
        if job is not None and not job.has_ended:
            rest.cancel_job(job.id)
        # A worker that is ended while it writes leaves a file, which the driver can only remove after that.
        while job is not None and not job.has_ended and time.monotonic() < end:
            time.sleep(0.2)
            job = rest.find_job(_flink_name(job_id))


class _Followed:
    """A job of an engine, as it was when it was looked at last."""

    def __init__(self, result: Any, job_id: str, rest: FlinkRest | None, command: str) -> None:
        self._result, self._job_id, self.rest, self._command = result, job_id, rest, command
        self._flink_id: str | None = None
        self._counted: dict[str, int] = {}
        self._announced = False
        self._lock = threading.Lock()

    @property
    def is_found(self) -> bool:
        """Whether the job has begun on Flink."""
        return self._flink_id is not None

    def announce(self) -> None:
        """Prints the line with the id of the job, the first time."""
        with self._lock:
            if not self._announced:
                self._announced = True
                where = f" (Flink {self._flink_id})" if self._flink_id else ""
                where += f" at {self.rest.url}" if self.rest else ""
                print(f"{self._command}: job {self._job_id}{where}", file=sys.stderr, flush=True)

    def look(self) -> None:
        """Takes over the state and the counters, if the engine says them."""
        # Progress is no reason to end a job: nothing is shown of a service that does not answer.
        with contextlib.suppress(Exception):
            if self.rest is None:
                self._show(str(self._result.state))
                return
            job = self.rest.find_job(_flink_name(self._job_id))
            if job is None:
                self._show("STARTING")
                return
            self._flink_id = job.id
            self._show(job.state)
            counts = _count(self.rest.read_counters(job.id))
            progress.add_counts({name: count - self._counted.get(name, 0) for name, count in counts.items()})
            self._counted = counts

    def _show(self, state: str) -> None:
        progress.show_state("working" if state == "RUNNING" else state.lower())


def _count(counters: dict[str, dict[str, int]]) -> dict[str, int]:
    """Returns the counts for `progress` from the counters of each step: the records that were read, and the rejects."""
    rejects = sum(step.get("records_rejected", 0) for step in counters.values())
    # The step that writes rejects duplicates, which were counted when they were parsed.
    parsing = [step for step in counters.values() if "records_written" not in step]
    records = sum(step.get(name, 0) for step in parsing for name in ("records_parsed", "records_rejected"))
    return {"records": records, "rejects": rejects}


def _flink_name(job_id: str) -> str:
    """Returns the name of a job in Flink, to which the job server adds a number of its own."""
    return job_id.rpartition("_")[0]


def _job_id(result: Any) -> str | None:
    """Returns the id of a job, or None if it runs in this process."""
    found = getattr(result, "job_id", None)  # a method of the result of Dataflow
    found = found() if callable(found) else getattr(result, "_job_id", None)  # a portable runner
    return found if isinstance(found, str) and found else None
