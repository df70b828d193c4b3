"""Sorts rejects through files, as `runs` sorts records."""

import base64
import contextlib
import heapq
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from pipeline.files import create, join, open_read
from pipeline.raw.origin import Reject

# Rejects of any order that are sorted in memory at once.
_SORTED = 32_768

# Files that are merged at once. A system may allow a process no more than 256.
_OPEN = 64


class Spill(NamedTuple):
    """A file of some rejects in order, to be merged with others."""

    path: str


class Spiller:
    """Writes rejects that come in the order of their places to one new file in a folder, if there is any."""

    def __init__(self, folder: str) -> None:
        self._path = join(folder, f"{uuid.uuid4().hex}.rejects")
        self._files = contextlib.ExitStack()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "Spiller":
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._files.__exit__(*error)

    def add(self, reject: Reject) -> None:
        self._write(_to_row(reject))

    def _write(self, row: dict[str, Any]) -> None:
        if self._file is None:
            self._file = self._files.enter_context(create(self._path))
        self._file.write(json.dumps(row).encode() + b"\n")

    @property
    def spills(self) -> list[Spill]:
        return [] if self._file is None else [Spill(self._path)]


def spill_rejects(rejects: Iterable[Reject], folder: str) -> list[Spill]:
    """Writes rejects of any order to a new file in a folder, if there is any."""
    with Spiller(folder) as spiller:
        for row in sorted(map(_to_row, rejects), key=_order):
            spiller._write(row)
    return spiller.spills


class GatheredRejects:
    """Rejects of any order that wait to be a spill in a folder, which they are when they are many."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._rejects: list[Reject] = []

    def add(self, reject: Reject) -> list[Spill]:
        """The spill that was written, if it was time."""
        self._rejects.append(reject)
        return self.write() if len(self._rejects) >= _SORTED else []

    def write(self) -> list[Spill]:
        """The spill of what is left, if anything is."""
        rejects, self._rejects = self._rejects, []
        return spill_rejects(rejects, self._folder)


@contextlib.contextmanager
def _merged(spills: Sequence[Spill]) -> Iterator[Iterator[dict[str, Any]]]:
    """The rows of all spills in order."""
    with contextlib.ExitStack() as files:
        parts = [map(json.loads, files.enter_context(open_read(spill.path))) for spill in spills]
        yield heapq.merge(*parts, key=_order)


def _merge_many(spills: list[Spill]) -> list[Spill]:
    """The same rows in so few files that all can be open at once."""
    while len(spills) > _OPEN:
        larger = []
        for start in range(0, len(spills), _OPEN):
            with (
                _merged(spills[start : start + _OPEN]) as rows,
                Spiller(os.path.dirname(spills[start].path)) as spiller,
            ):
                for row in rows:
                    spiller._write(row)
            larger += spiller.spills
        spills = larger
    return spills


def _to_row(reject: Reject) -> dict[str, Any]:
    """As it is written in the end, but with the line's number in its chunk, and the chunk."""
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
    return row if origin.raw is None else row | _raw(origin.raw)


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["file"] or "", row["byte_offset"] or 0, row["sha256"], row["message"]


def _raw(line: bytes) -> dict[str, str]:
    try:
        return {"raw": line.decode()}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(line).decode()}
