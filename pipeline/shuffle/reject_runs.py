"""Sorts rejects through files, as `runs` sorts encoded records."""

import base64
import contextlib
import heapq
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from pipeline.files import create, join, open_read
from pipeline.raw.rejects import Reject

REJECT_RUN_ENDING = ".rejects"
# Rejects that a buffer sorts in memory.
_BUFFER_REJECTS = 32_768
# Files that are merged at the same time. Some systems allow a process 256 open files.
_MAX_OPEN = 64


class RejectRun(NamedTuple):
    """A file of rejects sorted by place, one JSON object on each line."""

    path: str


class RejectRunWriter:
    """Writes rejects that arrive sorted by place to one new file in a folder. Without rejects it writes no file."""

    def __init__(self, folder: str) -> None:
        self._path = join(folder, f"{uuid.uuid4().hex}{REJECT_RUN_ENDING}")
        self._files = contextlib.ExitStack()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "RejectRunWriter":
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._files.__exit__(*error)

    def add(self, reject: Reject) -> None:
        """Writes the next reject."""
        self.add_row(_to_row(reject))

    def add_row(self, row: dict[str, Any]) -> None:
        """Writes the next reject, given as a row of a reject run."""
        if self._file is None:
            self._file = self._files.enter_context(create(self._path))
        self._file.write(json.dumps(row).encode() + b"\n")

    @property
    def reject_runs(self) -> list[RejectRun]:
        """The run that was written; empty if there was no reject."""
        return [] if self._file is None else [RejectRun(self._path)]


def write_reject_run(rejects: Iterable[Reject], folder: str) -> list[RejectRun]:
    """Sorts rejects and writes them to a new run in `folder`. Returns the run, or an empty list without rejects."""
    with RejectRunWriter(folder) as writer:
        for row in sorted(map(_to_row, rejects), key=_sort_key):
            writer.add_row(row)
    return writer.reject_runs


class RejectBuffer:
    """Buffers rejects in any order, and writes a run to a folder every 32,768 of them."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._rejects: list[Reject] = []

    def add(self, reject: Reject) -> list[RejectRun]:
        """Adds a reject. Returns the run that was written if the buffer was full, else an empty list."""
        self._rejects.append(reject)
        return self.flush() if len(self._rejects) >= _BUFFER_REJECTS else []

    def flush(self) -> list[RejectRun]:
        """Writes the buffered rejects. Returns their run, or an empty list if there are none."""
        rejects, self._rejects = self._rejects, []
        return write_reject_run(rejects, self._folder)


@contextlib.contextmanager
def merge_reject_runs(reject_runs: Iterable[RejectRun]) -> Iterator[Iterator[dict[str, Any]]]:
    """Opens any number of runs and gives an iterator over their rows, sorted by place.

    A row is the JSON object of a reject. Its `line` counts from the start of its `chunk`, from 0.
    """
    with _merge_open(_reduce(sorted(reject_runs))) as rows:
        yield rows


@contextlib.contextmanager
def _merge_open(reject_runs: Sequence[RejectRun]) -> Iterator[Iterator[dict[str, Any]]]:
    """Merges runs, with all of their files open at the same time."""
    with contextlib.ExitStack() as files:
        parts = [map(json.loads, files.enter_context(open_read(run.path))) for run in reject_runs]
        yield heapq.merge(*parts, key=_sort_key)


def _reduce(reject_runs: list[RejectRun]) -> list[RejectRun]:
    """Merges runs into larger ones, in passes, until all of them can be open at the same time."""
    while len(reject_runs) > _MAX_OPEN:
        larger = []
        for start in range(0, len(reject_runs), _MAX_OPEN):
            with (
                _merge_open(reject_runs[start : start + _MAX_OPEN]) as rows,
                RejectRunWriter(os.path.dirname(reject_runs[start].path)) as writer,
            ):
                for row in rows:
                    writer.add_row(row)
            larger += writer.reject_runs
        reject_runs = larger
    return reject_runs


def _to_row(reject: Reject) -> dict[str, Any]:
    """Returns the object of the final rejects file, except that `line` counts within `chunk`, which is added."""
    origin = reject.origin
    known = origin.path is not None
    row: dict[str, Any] = {
        "file": origin.path,
        "byte_offset": origin.byte_offset if known else None,
        "line": origin.number if known else None,
        "id": reject.id,
        "reason": reject.reason,
        "message": reject.message,
        "sha256": origin.sha256.hex(),
        "chunk": origin.chunk,
    }
    return row if origin.raw is None else row | _raw_field(origin.raw)


def _sort_key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["file"] or "", row["byte_offset"] or 0, row["sha256"], row["message"]


def _raw_field(line: bytes) -> dict[str, str]:
    try:
        return {"raw": line.decode()}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(line).decode()}
