"""Splits blocks of a file into lines, of which very large ones are truncated."""

from collections.abc import Iterator
from typing import TypeAlias

# Bytes per read.
BLOCK_BYTES = 2**18
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Line: TypeAlias = bytes | bytearray


class LineSplitter:
    """Splits contiguous blocks into lines. The incomplete line at the end of a block waits for the next block.

    A line that spans blocks keeps about `record_bytes + 2` bytes, which exceeds the limit even without a final "\\r".
    The bytes after that are read and dropped. If only blanks are kept of a line that has more, then the last of them is
    replaced, so that the line is not taken for a blank line.
    """

    def __init__(self, record_bytes: int) -> None:
        self._kept_bytes = record_bytes + 2
        # The incomplete line: its offset, the bytes that are kept, the number of all its bytes, and whether they are
        # blank so far.
        self._offset, self._kept, self._width, self._is_blank = 0, bytearray(), 0, True

    def split(self, position: int, block: bytes) -> Iterator[tuple[int, Line]]:
        """Yields (offset, line) for each line that ends in `block`, which begins at the offset `position`."""
        lines = block.split(b"\n")
        rest = lines.pop()
        offset = position
        if lines and self._width:
            first = lines.pop(0)
            self._append(first)
            yield self._take()
            offset += len(first) + 1
        for line in lines:
            yield offset, line
            offset += len(line) + 1
        if not self._width:
            self._offset = offset
        if offset > position:
            self._kept += rest  # whole: it is shorter than a block
            self._width = len(rest)
            self._is_blank = not rest.strip()
        else:
            self._append(rest)

    def finish(self) -> Iterator[tuple[int, Line]]:
        """Yields (offset, line) for the last line if no line break ends it."""
        if self._width:
            yield self._take()

    def _append(self, part: bytes) -> None:
        # A byte order mark is removed from the line later, and is not blank for `strip`.
        has_mark = self._offset == 0 and (self._kept or part).startswith(BYTE_ORDER_MARK)
        begin = len(BYTE_ORDER_MARK) if has_mark and not self._width else 0
        kept = part[: max(0, self._kept_bytes + len(BYTE_ORDER_MARK) * has_mark - len(self._kept))]
        self._kept += kept
        self._width += len(part)
        if self._is_blank and part[begin:].strip():
            self._is_blank = False
            if not kept[begin:].strip():
                self._kept[-1:] = part[begin:].strip()[:1]

    def _take(self) -> tuple[int, Line]:
        # A large line is not copied: only the consumer holds it then.
        line = self._kept if self._width > BLOCK_BYTES else bytes(self._kept)
        self._kept, self._width, self._is_blank = bytearray(), 0, True
        return self._offset, line
