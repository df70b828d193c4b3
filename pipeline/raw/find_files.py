"""Finds the raw files that paths, globs and folders match."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from pipeline.errors import UserError, counted, show
from pipeline.files import absolute, is_local, list_files, list_matches
from pipeline.raw.compression import ENDINGS as COMPRESSED
from pipeline.schema.schema import FIELD_SPLITS

# Endings of the raw files in a folder, in small or capital letters, which compression may follow. A file given by its
# path or by a glob may have any name.
ENDINGS = (".jsonl", ".ndjson", ".json")

_RAW_NAME = re.compile(
    rf"({'|'.join(map(re.escape, ENDINGS))})({'|'.join(map(re.escape, COMPRESSED))})?$", re.IGNORECASE
)
_OTHER_COMPRESSION = (".zip", ".lz4", ".7z", ".tar", ".tgz")
# Most names of files that a message lists.
_MAX_NAMES = 20


class FileRange(NamedTuple):
    """The place of a part of a file that is followed: each part is read once, and begins where the last one ended.

    Attributes:
        start: Offset of the part in the file, in bytes; it is the start of a line. Of a partition of a topic, the
            offset of the first message that may be in the part.
        lines: Number of lines in the file before it, or of messages.
        rewrites: How often the file had been read from its start before, since other content took its place.
        tail: SHA-256 of the last bytes before the end of the part, at most TAIL_BYTES of them; or of what identifies
            the topic.
    """

    start: int
    lines: int
    rewrites: int
    tail: bytes


TAIL_BYTES = 4096

# What the paths of partitions of topics begin with.
TOPIC_SCHEME = "kafka://"


class Block(NamedTuple):
    """Some messages in a file of spooled messages.

    Attributes:
        place: Where the block begins in the file, in bytes.
        first: Offset of its first message in the partition.
        num_messages: Number of messages.
        num_bytes: Bytes of their values.
    """

    place: int
    first: int
    num_messages: int
    num_bytes: int


class Spool(NamedTuple):
    """The messages of a part of a partition, which were copied to a temporary file.

    Attributes:
        path: The file, which may have messages of other partitions too. Empty if there is no message.
        stop: Offset in the partition where the part ends.
        blocks: The messages, in their order.
    """

    path: str
    stop: int
    blocks: tuple[Block, ...]


class RawFile(NamedTuple):
    """A raw file, or a part of one, or a part of a partition of a topic.

    Attributes:
        path: The file, or `kafka://TOPIC/PARTITION`.
        num_bytes: Its stored size in bytes, or that of the part; of a partition, the bytes of the values.
        split: Split for which it was given; None if files are not given by split.
        range: Where the part is. None for a whole file that is not followed.
        spool: Where the messages of a partition are. None for a file.
    """

    path: str
    num_bytes: int
    split: str | None = None
    range: FileRange | None = None
    spool: Spool | None = None

    @property
    def start(self) -> int:
        """Offset of the first byte to read."""
        return 0 if self.range is None else self.range.start


# A path, a glob or a folder, or a list of them; a file that was found already stands for itself.
Patterns: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str] | RawFile]
# The same, or the patterns of each split.
RawFiles: TypeAlias = Patterns | Mapping[str, Patterns]


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
        patterns: A path, a glob or a folder, or a list of them, or these for each split. A RawFile in the list is
            returned as it is.

    Raises:
        UserError: A pattern matches no raw file, or a file whose compression is not supported. A file is given for two
            splits, or for one that is not train, validation or test.
    """
    if isinstance(patterns, Mapping):
        return _find_by_split(patterns)
    files: dict[str, RawFile] = {}
    left_out: set[str] = set()
    for pattern in list_patterns(patterns):
        found = FoundFiles([pattern], []) if isinstance(pattern, RawFile) else _match(absolute(os.fspath(pattern)))
        files.update((file.path, file) for file in found.files)
        left_out.update(found.left_out)
    for path in files:
        if not has_utf8_name(path):
            raise UserError(f"{show(path, max_characters=500)}: the name is not valid UTF-8. Rename the file first.")
        if path.lower().endswith(_OTHER_COMPRESSION):
            raise UserError(
                f"{path}: this compression is not supported; expected plain JSON Lines, or the same with "
                f"{', '.join(COMPRESSED)}. Decompress it first."
            )
    return FoundFiles(sorted(files.values()), sorted(left_out - files.keys()))


def list_patterns(patterns: RawFiles) -> Sequence[str | os.PathLike[str] | RawFile]:
    """Returns the patterns as a list, without their splits."""
    if isinstance(patterns, Mapping):
        return [pattern for some in patterns.values() for pattern in list_patterns(some)]
    return [patterns] if isinstance(patterns, str | os.PathLike) else patterns


def _find_by_split(patterns: Mapping[str, Patterns]) -> FoundFiles:
    """Returns the files that the patterns of each split match."""
    files: list[RawFile] = []
    left_out: set[str] = set()
    split_of: dict[str, str] = {}
    for split, some in patterns.items():
        if split not in FIELD_SPLITS:
            raise UserError(f"raw files of the split {show(split)}: expected the splits {', '.join(FIELD_SPLITS)}.")
        found = find_all_files(some)
        left_out.update(found.left_out)
        for file in found.files:
            # A link to a file is the same file here, so that no record gets into two splits.
            place = os.path.realpath(file.path) if is_local(file.path) else file.path
            other = split_of.setdefault(place, split)
            if other != split:
                raise UserError(
                    f"{file.path}: is in two inputs, {other} and {split}; expected each raw file in one. Give the "
                    "files by paths or globs that do not overlap."
                )
            files.append(file._replace(split=split))
    return FoundFiles(sorted(files), sorted(left_out - {file.path for file in files}))


def describe_left_out(left_out: Sequence[str]) -> str:
    """Returns a line that counts and names the files that are left out of folders: the first of them, if many."""
    names = ", ".join(show(path, max_characters=500) for path in left_out[:_MAX_NAMES])
    more = f" and {len(left_out) - _MAX_NAMES:,} more" if len(left_out) > _MAX_NAMES else ""
    return (
        f"{counted(len(left_out), 'file')} left out: {names}{more}. Of a folder, only files named "
        f"*{', *'.join(ENDINGS)} (or these with {', '.join(COMPRESSED)}) are read, and none whose name begins with . "
        "or _. Give other files by their paths, or by a glob."
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
    try:
        direct = list_matches(folder)
        files = [RawFile(found.path, found.num_bytes) for found in direct if not _is_folder(found.path)]
        if files:
            return FoundFiles(files, [])
        inside = list_matches(f"{folder}/**")
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise UserError(f"{pattern}: cannot be listed: {reason.removesuffix('.')}.") from None
    return _select((RawFile(found.path, found.num_bytes) for found in inside if not _is_folder(found.path)), folder)


def _select(inside: Iterable[RawFile], folder: str) -> FoundFiles:
    """Divides the files in a folder into those that are read and those that are left out.

    Args:
        inside: The files. A size of -1 is looked up.
    """
    found = FoundFiles([], [])
    for path, num_bytes, *_ in inside:
        choice = choose_by_name(path, folder)
        if choice == "read":
            found.files.append(RawFile(path, os.path.getsize(path) if num_bytes < 0 else num_bytes))
        elif choice == "left out":
            found.left_out.append(path)
    return found


def choose_by_name(path: str, folder: str) -> Literal["read", "left out", "hidden"]:
    """Returns what is done with a file in a folder: a file that is left out is named, a hidden one is not."""
    has_ending = _RAW_NAME.search(path) is not None
    is_hidden = any(part.startswith((".", "_")) for part in path[len(folder) :].split("/"))
    if has_ending and not is_hidden:
        return "read"
    return "left out" if has_ending or not is_hidden else "hidden"


def has_utf8_name(path: str) -> bool:
    """Returns whether the name of a file is valid UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in path)  # os.fsdecode makes them of other bytes


def _is_folder(path: str) -> bool:
    return is_local(path) and os.path.isdir(path)
