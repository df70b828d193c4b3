"""Writes the rejects of one raw file, with the line on which each of them stands."""

import base64
import bisect
import collections
import hashlib
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from pipeline.encoded import Reject
from pipeline.lines import ReadChunk
from pipeline.storage import join, replace


class RejectsFile(NamedTuple):
    """A file of rejects and what is in it."""

    path: str
    by_reason: dict[str, int]


def write_rejects(
    source: str, rejects: Iterable[Reject], chunks: Iterable[ReadChunk], *, output: str, generation: str
) -> RejectsFile:
    """Writes the rejects of `source` (a raw file, or "") to a file named after a hash, sorted by their place.

    Args:
        chunks: What was read of all files: the lines of the chunks before give a reject its line number.
    """
    starts, lines_before = _count_lines(source, chunks)
    rows = []
    for reject in rejects:
        origin = reject.origin
        known = origin.path is not None
        position = bisect.bisect_right(starts, origin.chunk) - 1
        row: dict[str, Any] = {
            "file": origin.path,
            "byte_offset": origin.byte_offset if known else None,
            "line": lines_before[position] + origin.number + 1 if known and starts else None,
            "id": reject.id,
            "reason": reject.reason,
            "message": reject.message,
            "sha256": origin.sha256.hex(),
        }
        if origin.raw is not None:
            row |= _raw(origin.raw)
        rows.append(row)
    rows.sort(key=lambda row: (row["byte_offset"] or 0, row["sha256"], row["message"]))
    path = f"rejected/{generation}-{hashlib.sha256(source.encode()).hexdigest()[:16]}.jsonl"
    with replace(join(output, path)) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    return RejectsFile(path, dict(collections.Counter(row["reason"] for row in rows)))


def _count_lines(source: str, chunks: Iterable[ReadChunk]) -> tuple[list[int], list[int]]:
    """Where the chunks of a file start, and how many lines of the file come before each."""
    starts, lines_before, total = [], [], 0
    for chunk in sorted(chunk for chunk in chunks if chunk.path == source):
        starts.append(chunk.start)
        lines_before.append(total)
        total += chunk.num_lines
    return starts, lines_before


def _raw(line: bytes) -> dict[str, str]:
    try:
        return {"raw": line.decode()}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(line).decode()}
