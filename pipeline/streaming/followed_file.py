"""What a stream knows of one file that it follows, and how a part of whole lines is cut from it."""

import dataclasses
from typing import IO

from pipeline.raw.find_files import FileRange, RawFile
from pipeline.raw.json_lines import tail_digest
from pipeline.streaming.positions import Position

# Bytes per read when the end of a line is searched.
_BLOCK_BYTES = 2**16
START = Position(0, 0, 0, b"")


@dataclasses.dataclass
class FollowedFile:
    """A file in a folder, as it was when it was last looked at.

    Attributes:
        num_bytes, modified, inode: What a change shows in.
        since: When the file was first seen like that, by the monotonic clock.
        position: Up to where it was read.
        is_compressed: Whether it is taken as a whole.
        is_settled: Whether a compressed file is complete.
        line_end: Of a plain file, the offset after its last whole line.
        taken_from: Path of the file, and its `rewrites`, whose content this file has: it was renamed, or is a copy.
    """

    num_bytes: int
    modified: int
    inode: int
    since: float
    position: Position = START
    is_compressed: bool = False
    is_settled: bool = True
    line_end: int = 0
    taken_from: tuple[str, int] | None = None

    @property
    def num_ready(self) -> int:
        """Bytes that can be read now."""
        if self.is_compressed:
            return self.num_bytes if self.is_settled and not self.position.end else 0
        return max(0, self.line_end - self.position.end)


def has_position(stream: IO[bytes], file: FollowedFile, position: Position) -> bool:
    """Whether a file still has what was read of it, by its size and its last bytes."""
    if file.num_bytes < position.end or (file.is_compressed and file.num_bytes > position.end > 0):
        return False
    return tail_digest(stream, position.end) == position.tail


def find_line_end(stream: IO[bytes], start: int, stop: int) -> int:
    """Returns the offset after the last line break in [start, stop), or `start` if there is none."""
    end = stop
    while end > start:
        begin = max(start, end - _BLOCK_BYTES)
        stream.seek(begin)
        found = stream.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return start


def cut_part(path: str, file: FollowedFile, max_bytes: int, max_lines: int | None) -> tuple[RawFile, int]:
    """Returns the next part of a file: whole lines, at least one, and about `max_bytes`; and the lines it may have."""
    position = file.position
    with open(path, "rb") as stream:
        if file.is_compressed:
            end, num_lines = file.num_bytes, 0
        else:
            end = file.line_end
            if end - position.end > max_bytes:
                end = find_line_end(stream, position.end, position.end + max_bytes)
                if end == position.end:
                    end, _ = _skip_lines(stream, position.end, file.line_end, 1)
            num_lines = 0
            if max_lines is not None:
                end, num_lines = _skip_lines(stream, position.end, end, max_lines)
        place = FileRange(position.end, position.lines, position.rewrites, tail_digest(stream, end))
    return RawFile(path, end - position.end, None, place), num_lines


def _skip_lines(stream: IO[bytes], start: int, stop: int, most: int) -> tuple[int, int]:
    """Returns the offset after the first `most` lines in [start, stop), or `stop`, and the number of these lines."""
    stream.seek(start)
    count, place = 0, start
    while place < stop:
        block = stream.read(min(_BLOCK_BYTES, stop - place))
        if not block:
            break
        if count + (found := block.count(b"\n")) >= most:
            end = -1
            for _ in range(most - count):
                end = block.index(b"\n", end + 1)
            return place + end + 1, most
        count += found
        place += len(block)
    return place, count
