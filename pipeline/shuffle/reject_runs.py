"""Sorts rejects through files, by their place in the raw files."""

import base64
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

from pipeline.raw.rejects import Reject
from pipeline.shuffle.row_runs import Row, RowBuffer, RowRun, RowRunWriter, merge_row_runs, write_lines

REJECT_RUN_ENDING = ".rejects"
RejectRun: TypeAlias = RowRun


class RejectRunWriter(RowRunWriter):
    """Writes rejects that arrive sorted by place to one new file in a folder. Without rejects it writes no file."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder, REJECT_RUN_ENDING)

    def add(self, reject: Reject) -> None:
        """Writes the next reject."""
        self.add_row(_to_row(reject))


class RejectBuffer(RowBuffer[Reject]):
    """Buffers rejects in any order, and writes runs to a folder."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder, REJECT_RUN_ENDING, _to_row, _sort_key)


class RejectLinesBuffer(RowBuffer[Row]):
    """Buffers rows of `write_reject_lines` in any order, and writes runs to a folder."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder, REJECT_RUN_ENDING, lambda row: row, _sort_key)


def write_reject_lines(rejects: Iterable[Reject]) -> bytes:
    """Returns rejects as a block of lines."""
    return write_lines(map(_to_row, rejects))


def merge_reject_runs(reject_runs: Iterable[RejectRun]) -> AbstractContextManager[Iterator[Row]]:
    """Opens any number of runs and gives an iterator over their rows, sorted by place.

    A row is the JSON object of a reject. Its `line` counts from the start of its `chunk`, from 0.
    """
    return merge_row_runs(reject_runs, _sort_key)


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
    if origin.input_split is not None:
        row["split"] = origin.input_split
    return row if origin.raw is None else row | _raw_field(origin.raw)


def _sort_key(row: Row) -> tuple[Any, ...]:
    return row["file"] or "", row["byte_offset"] or 0, row["sha256"], row["message"]


def _raw_field(line: bytes | bytearray) -> dict[str, str]:
    try:
        return {"raw": line.decode()}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(line).decode()}
