"""Finds the raw files that paths, globs and folders match."""

import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from pipeline.errors import UserError, show
from pipeline.files import absolute, beam_filesystems, is_local, list_files
from pipeline.raw.compression import ENDINGS as COMPRESSED

# Endings of the raw files in a folder, in small or capital letters, which compression may follow. A file given by its
# path or by a glob may have any name.
ENDINGS = (".jsonl", ".ndjson", ".json")

_RAW_NAME = re.compile(
    rf"({'|'.join(map(re.escape, ENDINGS))})({'|'.join(map(re.escape, COMPRESSED))})?$", re.IGNORECASE
)
_OTHER_COMPRESSION = (".zip", ".lz4", ".7z", ".tar", ".tgz")
# Most names of files that a message lists.
_MAX_NAMES = 20


class RawFile(NamedTuple):
    """The path of a raw file, and its stored size in bytes."""

    path: str
    num_bytes: int


# A path, a glob or a folder, or a list of them; a file that was found already stands for itself.
RawFiles: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str] | RawFile]


class FoundFiles(NamedTuple):
    """The raw files that patterns match.

    Attributes:
        files: The files, sorted by path and without duplicates.
        left_out: Paths of the other files in the folders, sorted: those whose name does not have the ending of a raw
            file, and raw files that are hidden or temporary. Other hidden files, for example `_SUCCESS`, do not count.
    """

    files: list[RawFile]
    left_out: list[str]


def find_files(patterns: RawFiles) -> list[RawFile]:
    """Returns the files of `find_all_files`, without those that are left out."""
    return find_all_files(patterns).files


def find_all_files(patterns: RawFiles) -> FoundFiles:
    """Returns the files that paths, globs and folders match.

    The paths of the files are absolute, because the working folder of a Beam worker is a different one.

    Args:
        patterns: A path, a glob or a folder, or a list of them. A RawFile in the list is returned as it is.

    Raises:
        UserError: A pattern matches no raw file, or a file whose compression is not supported.
    """
    given = [patterns] if isinstance(patterns, str | os.PathLike) else patterns
    files: dict[str, RawFile] = {}
    left_out: set[str] = set()
    for pattern in given:
        found = FoundFiles([pattern], []) if isinstance(pattern, RawFile) else _match(absolute(os.fspath(pattern)))
        files.update((file.path, file) for file in found.files)
        left_out.update(found.left_out)
    for path in files:
        if any("\ud800" <= character <= "\udfff" for character in path):  # os.fsdecode makes them of other bytes
            raise UserError(f"{show(path, max_characters=500)}: the name is not valid UTF-8. Rename the file first.")
        if path.lower().endswith(_OTHER_COMPRESSION):
            raise UserError(
                f"{path}: this compression is not supported; expected plain JSON Lines, or the same with "
                f"{', '.join(COMPRESSED)}. Decompress it first."
            )
    return FoundFiles(sorted(files.values()), sorted(left_out - files.keys()))


def describe_left_out(left_out: Sequence[str]) -> str:
    """Returns a line that counts and names the files that are left out of folders: the first of them, if many."""
    count = f"{len(left_out):,} file{'s' if len(left_out) > 1 else ''}"
    names = ", ".join(show(path, max_characters=500) for path in left_out[:_MAX_NAMES])
    more = f" and {len(left_out) - _MAX_NAMES:,} more" if len(left_out) > _MAX_NAMES else ""
    return (
        f"{count} left out: {names}{more}. Of a folder, only files named *{', *'.join(ENDINGS)} (or these with "
        f"{', '.join(COMPRESSED)}) are read, and none whose name begins with . or _. Give other files by their paths, "
        "or by a glob."
    )


def _match(pattern: str) -> FoundFiles:
    found = _list_matches(pattern)
    if not found.files:
        raise UserError(
            f"{pattern}: matches no file. Expected a file, a glob, or a folder with files named "
            f"*{', *'.join(ENDINGS)} (or the same with {', '.join(COMPRESSED)})."
            + (f" {describe_left_out(found.left_out)}" if found.left_out else "")
        )
    return found


def _list_matches(pattern: str) -> FoundFiles:
    # An existing file is taken literally, even if its name is also a glob: "run[1].jsonl".
    if is_local(pattern) and os.path.isfile(pattern):
        return FoundFiles([RawFile(pattern, os.path.getsize(pattern))], [])
    folder = pattern.rstrip("/") or "/"
    if _is_folder(folder):
        return _select((RawFile(path, -1) for path in list_files(folder)), folder)
    filesystems = beam_filesystems()
    try:
        direct = [m for result in filesystems.match([folder]) for m in result.metadata_list]
        files = [RawFile(m.path, m.size_in_bytes) for m in direct if not _is_folder(m.path)]
        if files:
            return FoundFiles(files, [])
        inside = [m for result in filesystems.match([f"{folder}/**"]) for m in result.metadata_list]
    except Exception as error:  # each file system raises its own; Beam wraps only some of them
        raise UserError(f"{pattern}: cannot be listed: {' '.join(str(error).split())}.") from None
    return _select((RawFile(m.path, m.size_in_bytes) for m in inside if not _is_folder(m.path)), folder)


def _select(inside: Iterable[RawFile], folder: str) -> FoundFiles:
    """Divides the files in a folder into those that are read and those that are left out.

    Args:
        inside: The files. A size of -1 is looked up.
    """
    found = FoundFiles([], [])
    for path, num_bytes in inside:
        has_ending = _RAW_NAME.search(path) is not None
        is_hidden = any(part.startswith((".", "_")) for part in path[len(folder) :].split("/"))
        if has_ending and not is_hidden:
            found.files.append(RawFile(path, os.path.getsize(path) if num_bytes < 0 else num_bytes))
        elif has_ending or not is_hidden:
            found.left_out.append(path)
    return found


def _is_folder(path: str) -> bool:
    return is_local(path) and os.path.isdir(path)
