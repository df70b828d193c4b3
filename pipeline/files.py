"""Opens, lists, moves and removes files on any file system that Beam knows; local ones without Beam."""

import contextlib
import glob
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from typing import IO, Any

from pipeline.errors import UserError


def is_local(path: str) -> bool:
    return "://" not in path


def absolute(path: str) -> str:
    """`path` as it means the same on every machine and in every folder."""
    return os.path.abspath(path) if is_local(path) else path


def join(folder: str, *parts: str) -> str:
    return "/".join([folder.rstrip("/") or "/", *parts])


def beam_filesystems() -> Any:
    # Imported late: it costs a second, and only remote paths and workers need it.
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


@contextlib.contextmanager
def open_read(path: str) -> Iterator[IO[bytes]]:
    """The bytes of `path` as they are stored, for reading and seeking."""
    if is_local(path):
        with open(path, "rb") as file:
            yield file
    else:
        from apache_beam.io.filesystem import CompressionTypes

        # AUTO would decompress by the name's ending; offsets are offsets of stored bytes here.
        with beam_filesystems().open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            yield file


def read_bytes(path: str) -> bytes:
    """All of `path`.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    try:
        with open_read(path) as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from None


def exists(path: str) -> bool:
    return os.path.exists(path) if is_local(path) else bool(beam_filesystems().exists(path))


def size(path: str) -> int:
    return (
        os.path.getsize(path)
        if is_local(path)
        else int(beam_filesystems().match([path])[0].metadata_list[0].size_in_bytes)
    )


@contextlib.contextmanager
def create(path: str) -> Iterator[IO[bytes]]:
    """A new file to write, of a name that no other has; gone if the block does not end well."""
    if not is_local(path):
        with beam_filesystems().create(path, "application/octet-stream") as file:
            yield file
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "xb") as file:
        try:
            yield file
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            raise


@contextlib.contextmanager
def replace(path: str) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` at once when the block ends well, and is gone when it does not.

    The name is new for every attempt, so a bundle that is tried twice never writes into its twin's file.
    """
    if is_local(path):
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # a name that survives a power cut must not point to lost bytes
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    else:
        # An object store shows an object when all of it is there, and renames by copying: so it is written in one go,
        # and only when the block has ended well (closing a file there after an error would show half of it).
        with tempfile.TemporaryFile() as spool:
            yield spool
            spool.seek(0)
            with beam_filesystems().create(path, "application/octet-stream") as file:
                shutil.copyfileobj(spool, file)


def move(source: str, target: str) -> None:
    """Renames a file within a file system; one that is at `target` is replaced."""
    if is_local(source):
        os.replace(source, target)
    else:
        beam_filesystems().rename([source], [target])


def list_files(folder: str) -> list[str]:
    """Every file below `folder`, sorted; none when there is no such folder."""
    if is_local(folder):
        return sorted(join(root, name) for root, _, names in os.walk(folder) for name in names)
    matches = beam_filesystems().match([join(folder, "**")])
    return sorted(metadata.path for match in matches for metadata in match.metadata_list)


def list_named(prefix: str, suffix: str) -> list[str]:
    """The files whose paths begin with `prefix` and end with `suffix`, with no folder between, sorted."""
    if is_local(prefix):
        return sorted(glob.glob(f"{glob.escape(prefix)}*{suffix}"))
    return sorted(
        metadata.path for match in beam_filesystems().match([f"{prefix}*{suffix}"]) for metadata in match.metadata_list
    )


def list_temporary(path: str) -> list[str]:
    """The files that `replace(path)` left when its process was killed."""
    return list_named(f"{path}.", ".tmp")


def remove(paths: list[str]) -> None:
    """Removes files, and local folders that are empty then; one that is gone already is no error."""
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


def remove_folder(folder: str) -> None:
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(folder))  # where nothing else is in it
    else:
        remove(list_files(folder))
