"""Up to where each file was read, and what the newest rounds rejected: all of it from the commits of the dataset."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pipeline.format.sources import SourceRow, SourcesFile, read_sources, rows_of
from pipeline.format.summary import GenerationSummary
from pipeline.writing.commit_log import read_summaries
from pipeline.writing.job import Recent
from pipeline.writing.publish import take_recent


class Position(NamedTuple):
    """The place up to which a file was read.

    Attributes:
        rewrites: How often the file had been read from its start before, since other content took its place.
        end: Offset of the next byte to read.
        lines: Number of lines before it.
        tail: SHA-256 of the last bytes before it.
    """

    rewrites: int
    end: int
    lines: int
    tail: bytes


class _Known(NamedTuple):
    """What is kept of the summary of a generation."""

    sources: SourcesFile
    recent: Recent


class Positions:
    """The positions of all files that a dataset was made from.

    Attributes:
        by_path: The positions of each file that is followed: the newest one, and the last one before each rewrite, by
            `rewrites`.
        whole: The rows of the files that `prepare` took as a whole.
        version: Another number after each change.
    """

    def __init__(self, output: str) -> None:
        self._output = output
        self._known: dict[str, _Known] = {}
        self.by_path: dict[str, dict[int, Position]] = {}
        self.whole: dict[str, list[SourceRow]] = {}
        self.version = 0
        # All parts, by path and `rewrites`, if they were asked for since the last change.
        self._parts: dict[tuple[str, int], list[SourceRow]] | None = None

    def update(self, digests: Mapping[str, str]) -> list[GenerationSummary]:
        """Reads the generations that were added since the last call, and returns their summaries.

        Args:
            digests: The generations of the dataset, the oldest first, and the SHA-256 of their summaries.

        Raises:
            UserError: A summary is damaged.
            ValueError: A list of raw files is damaged.
        """
        if not self.is_known(digests):
            # A merged generation has the rows of its parts.
            self.by_path.clear()
            self.whole.clear()
            self._known = {}
        self.version += 1
        self._parts = None
        new = {name: sha256 for name, sha256 in digests.items() if name not in self._known}
        summaries = read_summaries(self._output, new)
        for summary in summaries:
            self._add(row for block in read_sources(self._output, summary.sources) for row in rows_of(block))
            self._known[summary.generation] = _Known(summary.sources, Recent.of(summary))
        return summaries

    @property
    def has_generations(self) -> bool:
        """Whether there is a dataset."""
        return bool(self._known)

    def is_known(self, digests: Mapping[str, str]) -> bool:
        """Whether a dataset still has all generations that were read: none of them was merged or replaced."""
        return self._known.keys() <= digests.keys()

    def _add(self, rows: Iterable[SourceRow]) -> None:
        for row in rows:
            if row.start is None or row.rewrites is None or row.lines is None or row.tail is None:
                self.whole.setdefault(row.path, []).append(row)
                continue
            # Not the newest row: a merged generation comes after generations with newer rows.
            found = self.by_path.setdefault(row.path, {})
            end, before = row.start + row.stored_bytes, found.get(row.rewrites)
            if before is None or end > before.end:
                found[row.rewrites] = Position(row.rewrites, end, row.lines, row.tail)

    def newest(self, path: str) -> Position | None:
        """Returns the place up to which a file was read, or None if it was not."""
        found = self.by_path.get(path)
        return found[max(found)] if found else None

    def parts(self, path: str, rewrites: int) -> list[SourceRow]:
        """Returns the parts of a file that were read, in their order. The first call reads all lists of raw files."""
        if self._parts is None:
            self._parts = {}
            for known in self._known.values():
                for row in (row for block in read_sources(self._output, known.sources) for row in rows_of(block)):
                    if row.rewrites is not None:
                        self._parts.setdefault((row.path, row.rewrites), []).append(row)
        return sorted(self._parts.get((path, rewrites), ()), key=lambda row: row.start or 0)

    def recent(self) -> tuple[Recent, ...]:
        """Returns what the newest rounds read, the newest first, as far as `take_recent` takes them."""
        return take_recent(known.recent for known in reversed(self._known.values()))
