"""Gathers rejects through files: spilled where they are found, then merged into one file for each raw file."""

from pipeline.shuffle.spills import Spill, _merged, _merge_many

import base64
import bisect
import collections
import contextlib
import hashlib
import heapq
import itertools
import json
import operator
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from pipeline.raw.origin import Reject
from pipeline.raw.json_lines import ReadChunk
from pipeline.files import create, join, open_read, replace



class RejectsFile(NamedTuple):
    """A file of rejects and what is in it."""

    path: str
    by_reason: dict[str, int]










def write_rejects(
    spills: Sequence[Spill], chunks: Iterable[ReadChunk], *, output: str, generation: str
) -> list[RejectsFile]:
    """Writes the rejects of each raw file to a file named after a hash, in the order of their places.

    Args:
        chunks: What was read of all files: the lines of the chunks before give a reject its line number.
    """
    written = []
    lines = _Lines(chunks)
    with _merged(_merge_many(sorted(spills))) as merged:
        for source, rows in itertools.groupby(merged, key=operator.itemgetter("file")):
            path = f"rejected/{generation}-{hashlib.sha256((source or '').encode()).hexdigest()[:16]}.jsonl"
            reasons: collections.Counter[str] = collections.Counter()
            with replace(join(output, path)) as file:
                for row in rows:
                    reasons[row["reason"]] += 1
                    row["line"] = lines.number(source, row.pop("chunk"), row["line"])
                    file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
            written.append(RejectsFile(path, dict(reasons)))
    return written










class _Lines:
    """The numbers of lines in their files."""

    def __init__(self, chunks: Iterable[ReadChunk]) -> None:
        self._starts: dict[str, list[int]] = collections.defaultdict(list)
        self._before: dict[str, list[int]] = collections.defaultdict(list)
        total: collections.Counter[str] = collections.Counter()
        for chunk in sorted(chunks):
            self._starts[chunk.path].append(chunk.start)
            self._before[chunk.path].append(total[chunk.path])
            total[chunk.path] += chunk.num_lines

    def number(self, source: str | None, chunk: int, line: int | None) -> int | None:
        """The number, from 1, of a line whose number in its chunk is known."""
        if source not in self._starts or source is None or line is None:
            return None
        return self._before[source][bisect.bisect_right(self._starts[source], chunk) - 1] + line + 1


