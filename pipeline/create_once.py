"""Creates a file only if there is none, in one step: what a commit needs."""

import contextlib
import errno
import os
import uuid

from pipeline import gcs, s3
from pipeline.errors import UserError
from pipeline.files import is_local, open_new

# What os.link raises on a file system without hard links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def create_once(path: str, data: bytes) -> None:
    """Creates a file with all of its content, or raises FileExistsError if there is a file at `path`.

    Of several processes that call this at once, exactly one succeeds. A killed process never leaves an incomplete file
    at `path`, and the name of its temporary file is that of `replace`. (Opening `path` with O_EXCL and replacing it
    would not do: a process that is killed in between leaves an empty file, and no one else could use the name.)

    Raises:
        FileExistsError: There is a file at `path` already.
        UserError: The file system has no hard links, or `path` is neither local nor on S3 or GCS.
        OSError: The file could not be written, or, after it was created, its folder could not be synced.
    """
    if s3.is_s3(path):
        return s3.create_once(path, data)
    if gcs.is_gcs(path):
        return gcs.create_once(path, data)
    if not is_local(path):
        raise UserError(f"{path}: this store has no writes that only create a file. Choose a local folder.")
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with open_new(temporary) as file:
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
    """Whether `create_once(path, ...)` works there; found out with two temporary files beside `path`.

    Some local file systems have no hard links, for example FAT, and many of those that mount an object store. S3 and
    GCS create an object under the condition that there is none, but some stores with the interface of S3 ignore the
    condition. Beam's FileSystems for other stores have no such writes.
    """
    if s3.is_s3(path):
        return s3.supports_create_once(path)
    if gcs.is_gcs(path):
        return True
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
