"""Opens, lists, moves and removes files on any file system that Beam supports. Local files and S3 do not need Beam."""

import contextlib
import errno
import glob
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from pipeline import s3
from pipeline.beam_files import beam_filesystems, store_errors
from pipeline.errors import UserError


def is_local(path: str) -> bool:
    """Whether `path` is on the local file system: it has no scheme such as `gs://`."""
    return "://" not in path


def absolute(path: str) -> str:
    """Returns a local path as an absolute path, and any other path unchanged. Raises a UserError for a bare scheme."""
    if path.endswith("://"):
        raise UserError(f"{path}: has no bucket or host, expected {path}BUCKET/PATH.")
    return os.path.abspath(path) if is_local(path) else path


def join(folder: str, *parts: str) -> str:
    """Joins a folder and names with slashes, for local and remote paths."""
    return "/".join([folder.rstrip("/") or "/", *parts])


@contextlib.contextmanager
def open_read(path: str) -> Iterator[IO[bytes]]:
    """Opens the stored bytes of `path` for reading and seeking."""
    if is_local(path):
        with open(path, "rb") as file:
            yield file
    elif s3.is_s3(path):
        with s3.open_read(path) as file:
            yield file
    else:
        from apache_beam.io.filesystem import CompressionTypes

        # AUTO would decompress by the ending of the name, but offsets here are offsets of stored bytes.
        with store_errors(path):
            stored = beam_filesystems().open(path, compression_type=CompressionTypes.UNCOMPRESSED)
        with stored as file:
            yield file


def read_bytes(path: str, max_bytes: int | None = None) -> bytes:
    """Returns the bytes of a file.

    Args:
        max_bytes: Largest size of the file. A larger file is not read. None for any size.

    Raises:
        UserError: The file does not exist, cannot be read, or is larger.
    """
    try:
        with open_read(path) as file:
            if max_bytes is not None:
                check_max_bytes(file, max_bytes, path=path)
            return file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from None


def check_max_bytes(file: IO[bytes], max_bytes: int, *, path: str) -> None:
    """Raises a UserError if an open file has more than `max_bytes`. The next read begins at its start.

    Args:
        path: Path of the file, for the message.
    """
    file.seek(0, os.SEEK_END)
    num_bytes = file.tell()
    if num_bytes > max_bytes:
        raise UserError(
            f"{path}: has {num_bytes:,} bytes, expected at most {max_bytes:,}: it is not the file that was written. "
            "Restore it from a copy, or prepare the dataset again."
        )
    file.seek(0)


def file_sha256(path: str) -> str:
    """Returns the SHA-256 of a file, as hexadecimal digits. Memory holds a megabyte of it."""
    with open_read(path) as file:
        return stream_sha256(file)


def stream_sha256(file: IO[bytes]) -> str:
    """Returns the SHA-256 of the rest of an open file."""
    digest = hashlib.sha256()
    while data := file.read(2**20):
        digest.update(data)
    return digest.hexdigest()


def exists(path: str) -> bool:
    """Whether there is a file or a folder at `path`."""
    if is_local(path):
        return os.path.exists(path)
    if s3.is_s3(path):
        return s3.exists(path)
    with store_errors(path):
        return bool(beam_filesystems().exists(path))


def size(path: str) -> int:
    """Returns the size of a file in bytes."""
    if is_local(path):
        return os.path.getsize(path)
    if s3.is_s3(path):
        return s3.size(path)
    with store_errors(path):
        found = beam_filesystems().match([path])[0].metadata_list
    if not found:
        raise FileNotFoundError(errno.ENOENT, "no such file", path)
    return int(found[0].size_in_bytes)


def modified(path: str) -> float | None:
    """Returns the time of the last change of a file in seconds since 1970, or None if there is no such file."""
    if s3.is_s3(path):
        return s3.modified(path)
    if not is_local(path):
        with store_errors(path):
            return float(beam_filesystems().last_updated(path)) if exists(path) else None
    try:
        return os.stat(path).st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None


def open_new(path: str) -> IO[bytes]:
    """Creates a local file, and the folders that contain it. The file must not exist yet."""
    for _ in range(9):
        # Another process may remove a folder while it is still empty. `makedirs` raises FileExistsError if it does so
        # between the attempt to make the folder and the check that it is one.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            return open(path, "xb")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return open(path, "xb")


@contextlib.contextmanager
def create(path: str) -> Iterator[IO[bytes]]:
    """Opens a new file for writing. Removes a local file if the block raises. A local file must not exist yet."""
    if not is_local(path):
        with replace(path) as file:
            yield file
        return
    with open_new(path) as file:
        try:
            yield file
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            raise


@contextlib.contextmanager
def replace(path: str) -> Iterator[IO[bytes]]:
    """Opens a temporary file for writing, which replaces `path` atomically after the block, or is removed if it raises.

    Every call has its own temporary name, so a retried bundle never writes to the file of the first attempt.
    """
    if is_local(path):
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        try:
            with open_new(temporary) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # else a power failure may keep the new name and lose the bytes
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    else:
        # An object store publishes an object when it is closed, even after an error, and renames it by copying it. So
        # the bytes are collected locally and written at once, after the block.
        with tempfile.TemporaryFile() as spool:
            yield spool
            spool.seek(0)
            _upload(path, spool)


# Schemes of file systems where a file that is written has its name before it is complete, and can be renamed at once.
_RENAMED = ("hdfs://",)


def _upload(path: str, content: IO[bytes]) -> None:
    """Writes a remote file. Readers see it when it is complete."""
    if s3.is_s3(path):
        s3.upload(path, content)
        return
    temporary = f"{path}.{uuid.uuid4().hex}.tmp" if path.startswith(_RENAMED) else path
    with store_errors(path):
        with beam_filesystems().create(temporary, "application/octet-stream") as file:
            shutil.copyfileobj(content, file)
        if temporary != path:
            move(temporary, path)


def move(source: str, target: str) -> None:
    """Renames a file within a file system. Replaces a file at `target`."""
    if is_local(source):
        os.replace(source, target)
    elif s3.is_s3(source):
        s3.move(source, target)
    else:
        with store_errors(source):
            if target.startswith(_RENAMED) and exists(target):  # which they do not replace
                beam_filesystems().delete([target])
            beam_filesystems().rename([source], [target])


def list_files(folder: str) -> list[str]:
    """Returns the paths of all files below `folder`, sorted. The list is empty if the folder does not exist."""
    if is_local(folder):
        return sorted(join(root, name) for root, _, names in os.walk(folder) for name in names)
    return [found.path for found in list_matches(join(folder, "**"))]


class FileDetails(NamedTuple):
    """A file as it is stored.

    Attributes:
        num_bytes: Size of the file.
        modified: Time of its last change in seconds since 1970. None if the store does not tell.
    """

    path: str
    num_bytes: int
    modified: float | None


def list_details(folder: str, *, skip: Callable[[str], bool] = lambda path: False) -> list[FileDetails]:
    """Returns all files below `folder` with their size and time, sorted by path. Empty if there is no such folder.

    Args:
        skip: Whether to leave out a path: a file, or a folder with everything in it.
    """
    found = []
    if is_local(folder):
        for root, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not skip(join(root, name))]
            for path in (join(root, name) for name in names):
                # Another process may remove the file meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    if not skip(path):
                        status = os.lstat(path)
                        found.append(FileDetails(path, status.st_size, status.st_mtime))
    else:
        found = [file for file in list_matches(join(folder, "**")) if not skip(file.path)]
    return sorted(found)


def list_matches(pattern: str) -> list[FileDetails]:
    """Returns the files that a path or a glob of a remote file system matches, sorted by path.

    As in Beam, `*` and `?` match within a folder, and `**` also the folders in it.

    Raises:
        UserError, OSError: The files cannot be listed.
    """
    if s3.is_s3(pattern):
        return [FileDetails(*found) for found in s3.find(pattern)]
    with store_errors(pattern):
        matches = [m for match in beam_filesystems().match([pattern]) for m in match.metadata_list]
    return sorted(FileDetails(m.path, m.size_in_bytes, m.last_updated_in_seconds or None) for m in matches)


def list_named(prefix: str, suffix: str) -> list[str]:
    """Returns the paths that begin with `prefix` and end with `suffix`, without a slash in between, sorted."""
    if is_local(prefix):
        return sorted(glob.glob(f"{glob.escape(prefix)}*{suffix}"))
    return [found.path for found in list_matches(f"{prefix}*{suffix}")]


def list_temporary(path: str) -> list[str]:
    """Returns the temporary files of `replace(path)` that a killed process left behind."""
    return list_named(f"{path}.", ".tmp")


def remove(paths: list[str]) -> None:
    """Removes files, and the local folders that become empty. A missing local file is not an error."""
    local = [path for path in paths if is_local(path)]
    for path in local:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    for folder in sorted({os.path.dirname(path) for path in local}, key=len, reverse=True):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    s3.remove([path for path in paths if s3.is_s3(path)])
    remote = [path for path in paths if not is_local(path) and not s3.is_s3(path)]
    if remote:
        with store_errors(remote[0]):
            beam_filesystems().delete(remote)


@contextlib.contextmanager
def local_folder(prefix: str) -> Iterator[str]:
    """Gives the path of a temporary folder of this machine, which is removed after the block.

    Whoever writes a file there makes the folder: most blocks need none, and a process that is killed leaves none then.

    Args:
        prefix: Beginning of its name.
    """
    path = os.path.join(tempfile.gettempdir(), f"{prefix}{uuid.uuid4().hex}")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def remove_empty(folder: str) -> None:
    """Removes a local folder if it is empty, and then its parent folder if that is empty."""
    for path in (folder, os.path.dirname(folder)) if is_local(folder) else ():
        with contextlib.suppress(OSError):
            os.rmdir(path)


def remove_folder(folder: str) -> None:
    """Removes a folder and its files, and its local parent folder if that becomes empty."""
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(folder))  # fails unless it is empty
    else:
        remove(list_files(folder))
