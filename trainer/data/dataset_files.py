"""Reads the files of a dataset from a local disk, from S3, or from any file system that TensorFlow supports.

TensorFlow supports gs:// itself, and had a file system for s3:// in another package, which does not fit the versions of
today. So S3 is read with boto3, as `prepare` writes it.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import IO, Any

from pipeline import s3
from pipeline.errors import UserError
from pipeline.files import check_max_bytes


def open_file(path: str) -> AbstractContextManager[IO[bytes]]:
    """Opens a file for reading."""
    if "://" not in path:
        return open(path, "rb")
    if s3.is_s3(path):
        return _open_s3(path)
    # Imported here because TensorFlow takes three seconds to load, and local files do not need it.
    import tensorflow as tf

    opener: Callable[..., Any] = tf.io.gfile.GFile
    return opener(path, "rb")


@contextlib.contextmanager
def _open_s3(path: str) -> Iterator[IO[bytes]]:
    with _no_answer(path), s3.open_read(path) as file:
        yield file


@contextlib.contextmanager
def _no_answer(path: str) -> Iterator[None]:
    """Turns the error of a store that does not answer into a UserError: the dataset is not damaged."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}.") from None


def read_errors(path: str) -> tuple[type[Exception], ...]:
    """Returns the exceptions that reading a file at this path may raise if the file is missing or damaged."""
    if "://" not in path or s3.is_s3(path):
        return (OSError,)
    import tensorflow as tf

    return (OSError, tf.errors.OpError)


def file_exists(path: str) -> bool:
    """Returns whether there is a file at a path."""
    if "://" not in path:
        return os.path.exists(path)
    if s3.is_s3(path):
        with _no_answer(path):
            return s3.exists(path)
    import tensorflow as tf

    return bool(tf.io.gfile.exists(path))


def read_file(folder: str, path: str, max_bytes: int | None = None) -> bytes:
    """Returns the contents of a file of the dataset in `folder`.

    Args:
        max_bytes: Largest size of the file. A larger file is not read. None for any size.

    Raises:
        UserError: The file cannot be read, or is larger.
    """
    try:
        with open_file(f"{folder}/{path}") as file:
            if max_bytes is not None:
                check_max_bytes(file, max_bytes, path=f"{folder}/{path}")
            return file.read()
    except read_errors(folder) as error:
        raise damage_error(folder, f"{path} cannot be read: {reason(error)}") from None


def read_checked(folder: str, path: str, sha256: str) -> bytes:
    """Returns the contents of a file of the dataset in `folder`.

    Raises:
        UserError: The file cannot be read, or has another digest.
    """
    data = read_file(folder, path)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise damage_error(folder, f"{path} is not the file that was written")
    return data


def file_size(path: str) -> int:
    """Returns the size of a file in bytes."""
    if s3.is_s3(path):
        with _no_answer(path):
            return s3.size(path)
    with open_file(path) as file:
        return file.seek(0, 2) or file.tell()


def read_ranges(path: str, ranges: Iterable[tuple[int, int]]) -> bytes:
    """Returns the bytes of the ranges (begin, end) of a file, joined. They are fewer if the file ends early."""
    if s3.is_s3(path):
        with _no_answer(path):
            return b"".join([s3.read_range(path, begin, end) for begin, end in ranges])
    if "://" in path:
        with open_file(path) as file:
            parts = []
            for begin, end in ranges:
                file.seek(begin)
                parts.append(file.read(end - begin))
            return b"".join(parts)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return b"".join([os.pread(descriptor, end - begin, begin) for begin, end in ranges])
    finally:
        os.close(descriptor)


def refuse_unknown_store(path: str) -> None:
    """Raises a UserError if a path is on a store that neither this module nor TensorFlow can read."""
    scheme, separator, _ = path.partition("://")
    if not separator or s3.is_s3(path):
        return
    import tensorflow as tf

    known = [name for name in map(tf.compat.as_str, tf.io.gfile.get_registered_schemes()) if name != "ram"]
    if scheme not in known:
        stores = ", ".join(f"{name}://" for name in sorted({"s3", *known} - {"", "file"}))
        raise UserError(
            f"{path}: TensorFlow has no file system for {scheme}://, expected a local folder, or one of {stores}. Copy "
            "the folder to one of them."
        )


def damage_error(path: str, problem: str) -> UserError:
    """Returns the error to raise if a dataset or one of its files is damaged.

    Args:
        path: The dataset, or its file.
        problem: What is wrong, as the end of a sentence that begins with the path.
    """
    return UserError(f"{path}: {problem}. `lengthwise verify` lists all errors; prepare the dataset again.")


def reason(error: Exception) -> Any:
    """Returns the reason of an exception without the path of the file."""
    return getattr(error, "strerror", None) or error
