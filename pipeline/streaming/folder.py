"""Follows the files of folders: plain files grow like logs, and compressed files are taken when they are complete."""

import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pipeline.errors import TryAgain, UserError
from pipeline.files import absolute, is_local
from pipeline.raw.compression import ENDINGS as COMPRESSED
from pipeline.raw.compression import MAGIC_BYTES, find_compression
from pipeline.raw.find_files import FileRange, RawFile, choose_by_name, describe_left_out, has_utf8_name
from pipeline.raw.json_lines import hash_file, tail_digest
from pipeline.raw.records import LIMITS
from pipeline.streaming.followed_file import START, FollowedFile, cut_part, find_line_end, has_position
from pipeline.streaming.positions import Position, Positions
from pipeline.streaming.source import OnRewrite
from pipeline.writing.job import JobFiles

# A new file is compared with at most this number of files that are no longer there, to find out whether it is one of
# them under another name. Those that have exactly its size are compared as well.
_MAX_GONE = 1000


class FolderSource:
    """The files of folders. It implements `Source`.

    Args:
        folders: Local folders, which exist. They may be empty.
        settle: Seconds for which a compressed file must stay as it is before it is taken.
        on_rewrite: What to do with a file whose part that was read is no longer there: `error`, or `reread` from its
            start.
        has_id: Whether the records have ids of their own, so that a copy of a file holds only duplicates.
        record_bytes: Largest record.

    Raises:
        UserError: A folder does not exist, or is no local folder.
    """

    noun, unit, awaited = "file", "byte", "the line"

    def __init__(
        self,
        folders: Sequence[str],
        *,
        settle: float,
        on_rewrite: OnRewrite,
        has_id: bool,
        record_bytes: int = LIMITS.record_bytes,
    ) -> None:
        self._folders = [_check_folder(folder) for folder in folders]
        self._settle, self._on_rewrite, self._has_id = settle, on_rewrite, has_id
        self._record_bytes = record_bytes
        self._files: dict[str, FollowedFile] = {}
        self._named: set[str] = set()
        # The version of the positions at the last look.
        self._version = -1
        self._has_more = False

    def look(self, positions: Positions) -> None:
        """Lists the folders, and looks into the files that have changed. See `Source`."""
        now, listed = time.monotonic(), dict(self._list())
        replaced: list[str] = []
        unknown: list[str] = []
        for path in self._files.keys() - listed.keys():
            del self._files[path]
        for path, status in listed.items():
            before = self._files.get(path)
            key = status.st_size, status.st_mtime_ns, status.st_ino
            is_same = before is not None and key == (before.num_bytes, before.modified, before.inode)
            if before is not None and not before.position.end and path in positions.whole:
                is_same = is_same and positions.version == self._version  # else `prepare` may have taken it meanwhile
            if before is not None and is_same:
                file = before
                position = positions.newest(path) if positions.version != self._version else None
                if position is not None and position[:2] > file.position[:2]:
                    file.position = position  # a part of it was committed
                if file.is_settled:
                    continue
            else:
                file = FollowedFile(*key, since=now)
            file.is_settled = now - file.since >= self._settle or time.time() - status.st_mtime >= self._settle
            try:
                self._inspect(path, file, positions, replaced, unknown)
            except FileNotFoundError:  # it was renamed or removed after it was listed
                continue
            self._files[path] = file
        self._version = positions.version
        self._find_old_names([*unknown, *replaced], replaced, positions)
        self._begin_anew(replaced, positions)

    def _list(self) -> Iterator[tuple[str, os.stat_result]]:
        left_out = set()
        for folder in self._folders:
            if not os.path.isdir(folder):
                raise UserError(f"{folder}: is no longer there. Make or mount it, and start the stream again.")
            for path, status in _walk(folder):
                if path in self._files:  # there may be many, and this is done in every round
                    yield path, status
                    continue
                choice = choose_by_name(path, folder)
                if choice == "read" and has_utf8_name(path):
                    yield path, status
                elif choice != "hidden":
                    left_out.add(path)
        if left_out - self._named:
            print(f"prepare: {describe_left_out(sorted(left_out - self._named))}", file=sys.stderr)
            self._named |= left_out

    def _inspect(
        self, path: str, file: FollowedFile, positions: Positions, replaced: list[str], unknown: list[str]
    ) -> None:
        """Finds out what a file that is new or has changed holds."""
        with open(path, "rb") as stream:
            file.is_compressed = find_compression(stream.read(MAGIC_BYTES)) is not None
            if path.lower().endswith(COMPRESSED) and not file.is_settled:
                file.is_compressed = True  # its first bytes may not be there yet
            if not file.is_compressed:
                file.is_settled = True
            known = positions.newest(path)
            if known is None:
                before = self._files.get(path)
                if before is not None and before.taken_from is not None and has_position(stream, file, before.position):
                    file.position, file.taken_from = before.position, before.taken_from
                elif path in positions.whole:
                    file.position = self._check_whole(path, file, positions) or START
                    if file.position is START:
                        replaced.append(path)
                elif file.num_bytes:
                    unknown.append(path)
            elif has_position(stream, file, known):
                file.position = known
            elif not file.is_compressed or file.is_settled:
                replaced.append(path)
            if not file.is_compressed:
                file.line_end = find_line_end(stream, file.position.end, file.num_bytes)

    def _check_whole(self, path: str, file: FollowedFile, positions: Positions) -> Position | None:
        """Returns the end of a file that `prepare` took as a whole, or None if its content is another one."""
        for row in reversed(positions.whole[path]):
            if row.stored_bytes > file.num_bytes or (file.is_compressed and row.stored_bytes < file.num_bytes):
                continue
            found = hash_file(RawFile(path, row.stored_bytes), record_bytes=self._record_bytes)
            if found.sha256 == row.sha256:
                end = file.num_bytes if file.is_compressed else found.num_bytes
                with open(path, "rb") as stream:
                    return Position(0, end, found.num_lines, tail_digest(stream, end))
        return None

    def _find_old_names(self, paths: Sequence[str], replaced: Sequence[str], positions: Positions) -> None:
        """Finds out which files were read under another name: a log that was renamed, or a copy.

        Args:
            paths: The files whose content is not the one that was read under their own name.
            replaced: Those of them that had another content before.
        """
        if not paths or not positions.by_path:
            return
        sizes = {self._files[path].num_bytes for path in paths}
        same_size: dict[int, list[tuple[str, Position]]] = {}
        gone: list[str] = []
        for path, found in positions.by_path.items():
            for position in found.values():
                if position.end in sizes:
                    same_size.setdefault(position.end, []).append((path, position))
            if path not in self._files and len(gone) < _MAX_GONE and not os.path.exists(path):
                gone.append(path)
        free = {*gone, *replaced} & positions.by_path.keys()
        others = [(old, position) for old in sorted(free) for position in positions.by_path[old].values()]
        # What a file had before it was replaced may be in any other one, and not be read to its end.
        others += [
            (old, position)
            for old, found in positions.by_path.items()
            if len(found) > 1 and old not in free
            for position in found.values()
            if position.rewrites < max(found)
        ]
        for path in paths:
            file = self._files[path]
            if file.is_compressed and not file.is_settled:
                continue
            candidates = [
                (old, position) for old, position in same_size.get(file.num_bytes, ()) if self._has_id or old in free
            ]
            # A file that was renamed while it was read has the content of several, up to different places.
            for old, position in sorted([*candidates, *others], key=lambda found: -found[1].end):
                if self._has_parts(path, old, position, positions):
                    known = positions.newest(path)
                    rewrites = 0 if known is None else known.rewrites + 1
                    self._set_position(path, position._replace(rewrites=rewrites))
                    file.taken_from = old, position.rewrites
                    break

    def _begin_anew(self, replaced: Iterable[str], positions: Positions) -> None:
        """Lets files be read from their start whose part that was read is no longer there.

        A file that has the content of another one, or whose content another one has, was renamed.

        Raises:
            UserError: That part is in no other file either, and `on_rewrite` is `error`.
        """
        for path in replaced:
            file, known = self._files[path], positions.newest(path)
            if file.taken_from is not None:
                continue
            before = known or Position(0, max(row.stored_bytes for row in positions.whole[path]), 0, b"")
            if self._on_rewrite == "error" and not any(
                self._has_parts(other, path, before, positions) for other in self._files if other != path
            ):
                raise UserError(
                    f"{path}: was read up to byte {before.end:,}, but now it has {file.num_bytes:,} bytes, and other "
                    "content before that place: it was truncated, replaced or rewritten, and no other file in the "
                    "folder has what was read. Put it back, or read it from its start with --on_rewrite reread."
                )
            self._set_position(path, Position(before.rewrites + 1, 0, 0, b""))

    def _set_position(self, path: str, position: Position) -> None:
        file = self._files[path]
        file.position = position
        if not file.is_compressed:
            with open(path, "rb") as stream:
                file.line_end = find_line_end(stream, position.end, file.num_bytes)

    def _has_parts(self, path: str, old: str, position: Position, positions: Positions) -> bool:
        """Whether a file has every line that was read of another file, up to a position."""
        try:
            with open(path, "rb") as stream:
                if path == old or not has_position(stream, self._files[path], position):
                    return False
            parts = positions.parts(old, position.rewrites)
            if not parts or parts[0].start != 0:  # the first parts were read under another name
                return bool(parts)
            for row in parts:
                assert row.start is not None and row.tail is not None
                if row.joined is not None:  # its digest needs the places of its parts
                    with open(path, "rb") as stream:
                        if tail_digest(stream, row.start + row.stored_bytes) != row.tail:
                            return False
                    continue
                part = RawFile(path, row.stored_bytes, None, FileRange(row.start, 0, 0, row.tail))
                if hash_file(part, record_bytes=self._record_bytes).sha256 != row.sha256:
                    return False
        except (TryAgain, FileNotFoundError):  # a part has another end
            return False
        return True

    def forget(self) -> None:
        """Lets the next look inspect all files: the dataset has other positions."""
        self._files.clear()

    def plan(self, files: JobFiles, *, max_bytes: int, max_records: int | None) -> list[RawFile]:
        """Returns a part of each file that has whole lines to read, in equal shares. See `Source`."""
        ready = sorted((file.num_ready, path) for path, file in self._files.items() if file.num_ready)
        bytes_left, lines_left = max_bytes, max_records
        parts: list[RawFile] = []
        for number, (num_ready, path) in enumerate(ready):
            if bytes_left <= 0 or (lines_left is not None and lines_left <= 0):
                break
            file, shares = self._files[path], len(ready) - number
            if file.is_compressed and num_ready > bytes_left and parts:
                continue
            lines = None if lines_left is None else max(1, lines_left // shares)
            try:
                part, num_lines = cut_part(path, file, max(1, bytes_left // shares), lines)
            except FileNotFoundError:
                continue
            parts.append(part)
            bytes_left -= part.num_bytes
            if lines_left is not None:
                lines_left -= num_lines
        self._has_more = sum(num_ready for num_ready, _ in ready) > sum(part.num_bytes for part in parts)
        return sorted(parts)

    def has_more(self) -> bool:
        """Whether the last plan left whole lines, or complete compressed files."""
        return self._has_more

    def is_settling(self) -> bool:
        """Whether a compressed file is not known to be complete yet."""
        return any(not file.is_settled for file in self._files.values())

    def lags(self) -> Mapping[str, int]:
        """Returns the number of bytes that are not read yet, by file, for those that have any."""
        found = {path: file.num_bytes - file.position.end for path, file in self._files.items()}
        return {path: lag for path, lag in found.items() if lag > 0}

    def close(self) -> None:
        """Does nothing: no file stays open."""

    def num_nulls(self) -> None:
        """Returns None: a line always has a value."""

    def waiting(self) -> Mapping[str, int]:
        """Returns the number of bytes of lines that are not complete, by file."""
        return {
            path: file.num_bytes - file.line_end
            for path, file in self._files.items()
            if not file.is_compressed and file.num_bytes > file.line_end
        }


def _check_folder(folder: str) -> str:
    if not is_local(folder):
        raise UserError(f"{folder}: --streaming follows local folders only. Mount the store, or use --append.")
    if not os.path.isdir(folder):
        is_other = os.path.exists(folder)
        raise UserError(
            f"{folder}: {'is no folder' if is_other else 'there is no such folder'}; --streaming expects folders, "
            f"whose files it follows. {'Give the folder of the file' if is_other else 'Make it first'}."
        )
    return absolute(folder)


def _walk(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yields all files below a folder, except temporary ones, and those that are hidden or in a hidden folder."""
    folders = [folder]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except FileNotFoundError:
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name.endswith(".tmp"):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
                continue
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                yield entry.path, status
