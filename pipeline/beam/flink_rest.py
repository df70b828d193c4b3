"""Asks the REST service of a Flink cluster what its jobs do."""

import base64
import http.client
import json
import urllib.error
import urllib.request
from typing import Any, NamedTuple

# The addresses with which FlinkRunner starts a cluster of its own inside the job server.
EMBEDDED = ("[auto]", "[local]")
# Seconds that an answer may take.
_TIMEOUT = 5
# The name under which Beam keeps its metrics in Flink, and the kind of those that count in a user's code.
_METRICS = "__metricscontainers"
_USER_COUNTER = "beam:metric:user:sum_int64:v1"


class FlinkJob(NamedTuple):
    """A job of a Flink cluster.

    Attributes:
        id: 32 hexadecimal digits.
        state: RUNNING, RESTARTING, FINISHED and others, as Flink names them.
    """

    id: str
    state: str

    @property
    def has_ended(self) -> bool:
        """Whether the job has ended, in whatever way."""
        return self.state in ("FINISHED", "CANCELED", "FAILED")


class FlinkRest:
    """The REST service of a job manager.

    Its methods raise ConnectionError if the service does not answer, or answers something else.

    Attributes:
        url: Where it is, for example http://127.0.0.1:8081.
    """

    def __init__(self, address: str) -> None:
        self.url = (address if "://" in address else f"http://{address}").rstrip("/")

    def count_task_managers(self) -> int:
        """Returns the number of task managers that have registered."""
        return int(self._get("/overview", "taskmanagers"))

    def find_job(self, name: str) -> FlinkJob | None:
        """Returns the job with a name, of several the one that started last, or None."""
        jobs = [job for job in self._get("/jobs/overview", "jobs") if job["name"] == name]
        newest = max(jobs, key=lambda job: job["start-time"], default=None)
        return newest and FlinkJob(newest["jid"], newest["state"])

    def read_counters(self, job_id: str) -> dict[str, dict[str, int]]:
        """Returns the counters of Beam in a job: the value of each counter that is not zero, for each step.

        They are attempted values: what a step counted that failed and was run again is in them, until Flink starts the
        job again, which sets them to zero.
        """
        found: dict[str, dict[str, int]] = {}
        for accumulator in self._get(f"/jobs/{job_id}/accumulators", "user-task-accumulators"):
            if accumulator["name"] == _METRICS:
                for step, name, value in _read_metrics(accumulator["value"]):
                    found.setdefault(step, {})[name] = value
        return found

    def cancel_job(self, job_id: str) -> None:
        """Asks for the end of a job, without waiting for it."""
        self._ask(f"/jobs/{job_id}?mode=cancel", "PATCH")

    def _get(self, path: str, key: str) -> Any:
        """Returns the value of a key of the answer to a request."""
        try:
            return self._ask(path, "GET")[key]
        except (KeyError, TypeError) as error:
            raise ConnectionError(f"{self.url}{path}: the answer lacks {error}") from None

    def _ask(self, path: str, method: str) -> Any:
        """Returns the answer to a request."""
        request = urllib.request.Request(self.url + path, method=method)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                return json.load(answer)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ConnectionError(f"{self.url}{path}: {getattr(error, 'reason', error)}") from None


def _read_metrics(text: str) -> list[tuple[str, str, int]]:
    """Returns the counters in Beam's JSON of its metrics: step, name and value."""
    try:
        attempted = json.loads(text)["metrics"]["attempted"]
        labels = [(each["labels"], each["payload"]) for each in attempted if each["urn"] == _USER_COUNTER]
        return [(label["PTRANSFORM"], label["NAME"], _read_varint(payload)) for label, payload in labels]
    except (ValueError, KeyError, TypeError):  # another version of Beam writes it in another way
        return []


def _read_varint(payload: str) -> int:
    """Returns the integer that Beam's coder of integers wrote, in base64.

    >>> _read_varint("txk=")
    3255
    """
    value = 0
    for position, byte in enumerate(base64.b64decode(payload)):
        value |= (byte & 127) << 7 * position
    return value
