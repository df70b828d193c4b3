"""Finds the raw files that paths, globs and folders match."""

import os
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from pipeline.errors import UserError, show
from pipeline.files import absolute, beam_filesystems, is_local, list_files

# Endings of the raw files in a folder. A file given by its path or by a glob may have any name.
ENDINGS = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")

_OTHER_COMPRESSION = (".bz2", ".zst", ".xz", ".zip", ".lz4", ".7z")


class RawFile(NamedTuple):
    """The path of a raw file, and its stored size in bytes."""

    path: str
    num_bytes: int


# A path, a glob or a folder, or a list of them; a file that was found already stands for itself.
RawFiles: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str] | RawFile]


def find_files(patterns: RawFiles) -> list[RawFile]:
    """Returns the files that paths, globs and folders match, sorted by path and without duplicates.

    The paths of the files are absolute, because the working folder of a Beam worker is a different one.

    Args:
        patterns: A path, a glob or a folder, or a list of them. A RawFile in the list is returned as it is.

    Raises:
        UserError: A pattern matches no file, or a file whose compression is not supported.
    """
    given = [patterns] if isinstance(patterns, str | os.PathLike) else patterns
    files: dict[str, RawFile] = {}
    for pattern in given:
        found = [pattern] if isinstance(pattern, RawFile) else _match(absolute(os.fspath(pattern)))
        files.update((file.path, file) for file in found)
    for path in files:
        if any("\ud800" <= character <= "\udfff" for character in path):  # os.fsdecode makes them of other bytes
            raise UserError(f"{show(path, max_characters=500)}: the name is not valid UTF-8. Rename the file first.")
        if path.endswith(_OTHER_COMPRESSION):
            raise UserError(
                f"{path}: this compression is not supported; expected plain JSON Lines or .gz. Decompress it first."
            )
    return sorted(files.values())


def _match(pattern: str) -> list[RawFile]:
    found = _list_matches(pattern)
    if not found:
        raise UserError(
            f"{pattern}: matches no file. Expected a file, a glob, or a folder with files named "
            f"*{', *'.join(ENDINGS[:3])} (or the same with .gz)."
        )
    return found


def _list_matches(pattern: str) -> list[RawFile]:
    # An existing file is taken literally, even if its name is also a glob: "run[1].jsonl".
    if is_local(pattern) and os.path.isfile(pattern):
        return [RawFile(pattern, os.path.getsize(pattern))]
    folder = pattern.rstrip("/") or "/"
    if _is_folder(folder):
        return [RawFile(path, os.path.getsize(path)) for path in list_files(folder) if _is_raw(path, folder)]
    filesystems = beam_filesystems()
    try:
        direct = [m for result in filesystems.match([folder]) for m in result.metadata_list]
        files = [RawFile(m.path, m.size_in_bytes) for m in direct if not _is_folder(m.path)]
        if files:
            return files
        inside = [m for result in filesystems.match([f"{folder}/**"]) for m in result.metadata_list]
    except Exception as error:  # each file system raises its own; Beam wraps only some of them
        raise UserError(f"{pattern}: cannot be listed: {' '.join(str(error).split())}.") from None
    return [RawFile(m.path, m.size_in_bytes) for m in inside if _is_raw(m.path, folder) and not _is_folder(m.path)]


def _is_raw(path: str, folder: str) -> bool:
    """Whether a file in a folder has a raw file's ending, and is not hidden or temporary (`_tmp/`, `.a.jsonl`)."""
    return path.endswith(ENDINGS) and not any(p.startswith((".", "_")) for p in path[len(folder) :].split("/"))


def _is_folder(path: str) -> bool:
    return is_local(path) and os.path.isdir(path)
