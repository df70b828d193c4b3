"""Opens, lists, moves and removes files on any file system that Beam supports. Local files do not need Beam."""

import contextlib
import errno
import glob
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from pipeline.errors import UserError


def is_local(path: str) -> bool:
    """Whether `path` is on the local file system: it has no scheme such as `gs://`."""
    return "://" not in path


def absolute(path: str) -> str:
    """Returns a local path as an absolute path, and any other path unchanged."""
    return os.path.abspath(path) if is_local(path) else path


def join(folder: str, *parts: str) -> str:
    """Joins a folder and names with slashes, for local and remote paths."""
    return "/".join([folder.rstrip("/") or "/", *parts])


def beam_filesystems() -> Any:
    """Returns Beam's class `FileSystems`."""
    # Imported here because the import takes a second, and only remote paths and globs need it.
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


@contextlib.contextmanager
def open_read(path: str) -> Iterator[IO[bytes]]:
    """Opens the stored bytes of `path` for reading and seeking."""
    if is_local(path):
        with open(path, "rb") as file:
            yield file
    else:
        from apache_beam.io.filesystem import CompressionTypes

        # AUTO would decompress by the ending of the name, but offsets here are offsets of stored bytes.
        with beam_filesystems().open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
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
    return os.path.exists(path) if is_local(path) else bool(beam_filesystems().exists(path))


def size(path: str) -> int:
    """Returns the size of a file in bytes."""
    return (
        os.path.getsize(path)
        if is_local(path)
        else int(beam_filesystems().match([path])[0].metadata_list[0].size_in_bytes)
    )


def modified(path: str) -> float | None:
    """Returns the time of the last change of a file in seconds since 1970, or None if there is no such file."""
    if not is_local(path):
        return float(beam_filesystems().last_updated(path)) if exists(path) else None
    try:
        return os.stat(path).st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None


def _open_new(path: str) -> IO[bytes]:
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
        with beam_filesystems().create(path, "application/octet-stream") as file:
            yield file
        return
    with _open_new(path) as file:
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
            with _open_new(temporary) as file:
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
            with beam_filesystems().create(path, "application/octet-stream") as file:
                shutil.copyfileobj(spool, file)


# What os.link raises on a file system without hard links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def create_once(path: str, data: bytes) -> None:
    """Creates a local file with all of its content, or raises FileExistsError if there is a file at `path`.

    Of several processes that call this at once, exactly one succeeds. A killed process never leaves an incomplete file
    at `path`, and the name of its temporary file is that of `replace`. (Opening `path` with O_EXCL and replacing it
    would not do: a process that is killed in between leaves an empty file, and no one else could use the name.)

    Raises:
        FileExistsError: There is a file at `path` already.
        UserError: The file system has no hard links, or `path` is not local.
        OSError: The file could not be written, or, after it was created, its folder could not be synced.
    """
    if not is_local(path):
        raise UserError(f"{path}: this store has no writes that only create a file. Choose a local folder.")
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with _open_new(temporary) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _link(temporary, path)
    finally:
        # The link decides. A temporary file that cannot be removed does no harm.
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    _sync_folder(os.path.dirname(path))


def _link(temporary: str, path: str) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        # NFS repeats a request whose answer was lost, and then reports the link that it made itself.
        if not os.path.samefile(temporary, path):
            raise
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise UserError(
                f"{path}: cannot be created, since the file system has no hard links ({error.strerror}). Choose a "
                "folder on another file system."
            ) from None
        raise


def _sync_folder(folder: str) -> None:
    """Makes a new name in a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def supports_create_once(path: str) -> bool:
    """Whether `create_once(path, ...)` works there; found out by a link between two temporary files beside `path`.

    An object store would need a conditional put, which Beam's FileSystems do not have. Some local file systems have no
    hard links, for example FAT, and many of those that mount an object store.
    """
    if not is_local(path):
        return False
    probe = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        create_once(probe, b"")
    except UserError:
        return False
    finally:
        with contextlib.suppress(OSError):
            os.unlink(probe)
    return True


def move(source: str, target: str) -> None:
    """Renames a file within a file system. Replaces a file at `target`."""
    if is_local(source):
        os.replace(source, target)
    else:
        beam_filesystems().rename([source], [target])


def list_files(folder: str) -> list[str]:
    """Returns the paths of all files below `folder`, sorted. The list is empty if the folder does not exist."""
    if is_local(folder):
        return sorted(join(root, name) for root, _, names in os.walk(folder) for name in names)
    matches = beam_filesystems().match([join(folder, "**")])
    return sorted(metadata.path for match in matches for metadata in match.metadata_list)


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
        for match in beam_filesystems().match([join(folder, "**")]):
            for metadata in match.metadata_list:
                if not skip(metadata.path):
                    modified = metadata.last_updated_in_seconds or None
                    found.append(FileDetails(metadata.path, metadata.size_in_bytes, modified))
    return sorted(found)


def list_named(prefix: str, suffix: str) -> list[str]:
    """Returns the paths that begin with `prefix` and end with `suffix`, without a slash in between, sorted."""
    if is_local(prefix):
        return sorted(glob.glob(f"{glob.escape(prefix)}*{suffix}"))
    return sorted(
        metadata.path for match in beam_filesystems().match([f"{prefix}*{suffix}"]) for metadata in match.metadata_list
    )


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
    remote = [path for path in paths if not is_local(path)]
    if remote:
        beam_filesystems().delete(remote)


def remove_empty(folder: str) -> None:
    """Removes a local folder if it is empty, and then its parent folder if that is empty."""
    if is_local(folder):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
            os.rmdir(os.path.dirname(folder))


def remove_folder(folder: str) -> None:
    """Removes a folder and its files, and its local parent folder if that becomes empty."""
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(folder))  # fails unless it is empty
    else:
        remove(list_files(folder))
