"""Reads, writes, lists and removes objects on S3, and creates an object only if there is none.

Beam has a file system for S3, but it makes a client for each operation (0.1 s of processor time), takes three requests
for a small object, refuses an empty one, leaves the parts of an upload that failed, and cannot create an object only if
there is none, which a commit needs. So S3 is accessed through boto3 here, with Beam's options and one client per
process. The trainer reads S3 through this module too: TensorFlow has no file system for it. fsspec was tried: beside a
new boto3, pip installs s3fs of 2020, since later releases need other versions of botocore.
"""

import errno
import functools
import io
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

from pipeline.errors import UserError
from pipeline.s3_client import SCHEME, call, client_arguments, explain, request, split_path

# Bytes of a request: the first one after a seek, and the largest one of a file that is read from front to back.
_LEAST_BYTES, _MOST_BYTES = 2**18, 2**23
# An object of more bytes is uploaded in parts of this size. S3 takes 10,000 parts.
_PART_BYTES = 2**24
# Objects that one request can remove.
_MAX_DELETED = 1000
# A store answers so if another request changes the same object at the same time.
_MAX_CONFLICTS = 5
# How often a range is read. boto3 repeats a request that was refused, but not one whose answer breaks off.
_READS = 3
_GLOB = re.compile(r"[*?\[]")
_PARTS = re.compile(r"\*\*|\[[^\]]+\]|.", re.DOTALL)


def is_s3(path: str) -> bool:
    """Returns whether a path begins with s3://."""
    return path.startswith(SCHEME)


class ObjectDetails(NamedTuple):
    """An object as it is stored.

    Attributes:
        num_bytes: Its size.
        modified: Time of its last change in seconds since 1970.
    """

    path: str
    num_bytes: int
    modified: float


def open_read(path: str) -> IO[bytes]:
    """Opens an object for reading and seeking. This reads its first bytes, and so all of a small object.

    Raises:
        FileNotFoundError: There is no such object.
        UserError, OSError: It cannot be read; reading the file raises them too.
    """
    return io.BufferedReader(_Object(path), _LEAST_BYTES)


def read_range(path: str, begin: int, end: int) -> bytes:
    """Returns the bytes of an object from `begin` to `end`, without the end. They are fewer if the object ends early.

    Raises:
        UserError, OSError: The object cannot be read.
    """
    return _get(path, begin, end)[0] if begin < end else b""


def _get(path: str, begin: int, end: int) -> tuple[bytes, int]:
    """Returns the bytes of a range, and the size of the object; (b"", 0) if the object ends before `begin`."""
    bucket, key = split_path(path)
    if not key:
        raise FileNotFoundError(errno.ENOENT, "is a bucket, expected an object in it", path)

    def read(client: Any) -> tuple[bytes, int]:
        answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={begin}-{end - 1}")
        with answer["Body"] as body:
            # A store that ignores the range returns the whole object.
            in_range = answer.get("ContentRange", "")
            data = bytes(body.read())
            return (data, int(in_range.rpartition("/")[2])) if in_range else (data[begin:end], len(data))

    for left in reversed(range(_READS)):
        try:
            return call(path, read)
        except OSError as error:
            if error.errno == errno.ESPIPE:
                return b"", 0
            if error.errno != errno.EIO or not left:
                raise
    raise AssertionError("not reached")


class _Object(io.RawIOBase):
    """The bytes of an object. Reading from front to back takes few requests, and reading here and there few bytes."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._position = self._start = 0
        self._data, self._num_bytes = _get(path, 0, _LEAST_BYTES)
        self._next_bytes = _LEAST_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._num_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        if self._position >= self._num_bytes or not len(buffer):
            return 0
        end = self._start + len(self._data)
        if not self._start <= self._position < end:
            is_next = self._position == end and end > 0
            self._next_bytes = min(2 * self._next_bytes, _MOST_BYTES) if is_next else _LEAST_BYTES
            self._data = b""  # before the next bytes arrive, so that memory holds one piece only
            stop = min(self._position + max(self._next_bytes, len(buffer)), self._num_bytes)
            self._data, self._start = read_range(self._path, self._position, stop), self._position
        place = self._position - self._start
        found = self._data[place : place + len(buffer)]
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)

    def readall(self) -> bytes:
        begin, end = self._position - self._start, self._start + len(self._data)
        data = self._data[begin:] if 0 <= begin <= len(self._data) else b""
        rest = read_range(self._path, end if data else self._position, self._num_bytes)
        self._position += len(data) + len(rest)
        return data + rest


def upload(path: str, file: IO[bytes]) -> None:
    """Writes the rest of an open file to an object, which readers see only when it is complete.

    Raises:
        UserError, OSError: The object cannot be written.
    """
    bucket, key = split_path(path)

    def send(client: Any) -> None:
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, use_threads=False)
        client.upload_fileobj(file, bucket, key, Config=config)

    call(path, send)


def create_once(path: str, data: bytes) -> None:
    """Creates an object, or raises FileExistsError if there is one. Of several calls at once, exactly one succeeds.

    Raises:
        FileExistsError: There is an object at `path`.
        UserError, OSError: The object cannot be written.
    """
    key = split_path(path)[1]
    # A request whose answer was lost is sent again, and then finds its own object: the object says who wrote it.
    writer = uuid.uuid4().hex

    for left in reversed(range(_MAX_CONFLICTS)):
        try:
            request(path, "put_object", Key=key, Body=data, IfNoneMatch="*", Metadata={"writer": writer})
            return
        except FileExistsError:
            if _head(path).get("Metadata", {}).get("writer") != writer:
                raise
            return
        except OSError as error:
            if error.errno != errno.EBUSY or not left:
                raise


def supports_create_once(path: str) -> bool:
    """Returns whether the store of a path refuses to create an object that exists. Some ignore the condition."""
    return _supports_create_once(path, split_path(path)[0], json.dumps(client_arguments(), sort_keys=True))


@functools.lru_cache(maxsize=64)
def _supports_create_once(path: str, bucket: str, client: str) -> bool:
    probe = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        create_once(probe, b"")
        create_once(probe, b"")
    except FileExistsError:
        return True
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return False
        raise
    finally:
        remove([probe])
    return False


def exists(path: str) -> bool:
    """Returns whether there is an object at `path`. Raises a UserError or OSError if the store does not answer."""
    try:
        _head(path)
    except FileNotFoundError:
        return False
    return True


def size(path: str) -> int:
    """Returns the size of an object in bytes. Raises FileNotFoundError, UserError or OSError."""
    return int(_head(path)["ContentLength"])


def modified(path: str) -> float | None:
    """Returns the time of the last change of an object in seconds since 1970, or None if there is none."""
    try:
        return float(_head(path)["LastModified"].timestamp())
    except FileNotFoundError:
        return None


def list_objects(prefix: str) -> Iterator[ObjectDetails]:
    """Yields the objects whose path begins with `prefix`, sorted by path, without the markers of empty folders.

    Raises:
        UserError, OSError: The bucket does not exist, or cannot be listed.
    """
    bucket, key = split_path(prefix)
    token: dict[str, str] = {}
    while True:
        page = request(prefix, "list_objects_v2", Prefix=key, **token)
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):
                path = f"{SCHEME}{bucket}/{item['Key']}"
                yield ObjectDetails(path, int(item["Size"]), item["LastModified"].timestamp())
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def find(pattern: str) -> list[ObjectDetails]:
    """Returns the objects that a path or a glob matches, sorted by path. `*` and `?` do not match a slash, `**` does.

    A key may have the characters of a glob, so an object with this very path is found alone.

    Raises:
        UserError, OSError: The bucket does not exist, or cannot be listed.
    """
    bucket, key = split_path(pattern)
    if _GLOB.search(bucket):
        raise UserError(f"{pattern}: the name of a bucket cannot be a glob, expected s3://BUCKET/PATH.")
    if not key:
        return []
    prefix = _GLOB.split(pattern, maxsplit=1)[0]
    matches = re.compile(translate_glob(pattern)).fullmatch
    found = list(list_objects(prefix))
    return [item for item in found if item.path == pattern] or [item for item in found if matches(item.path)]


def translate_glob(pattern: str) -> str:
    """Returns the regular expression of a glob.

    >>> translate_glob("a/*.b")
    'a/[^/]*\\\\.b'
    """
    parts = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        parts.get(part) or (f"[{_negate(part)}]" if part.startswith("[") and len(part) > 2 else re.escape(part))
        for part in _PARTS.findall(pattern)
    )


def _negate(part: str) -> str:
    inside = part[1:-1].replace("\\", "\\\\")
    return f"^{inside[1:]}" if inside.startswith("!") else inside.replace("^", "\\^", 1)


def remove(paths: Iterable[str]) -> None:
    """Removes objects. A missing one is no error.

    Raises:
        UserError, OSError: An object could not be removed.
    """
    by_bucket: dict[str, list[str]] = {}
    for path in paths:
        bucket, key = split_path(path)
        by_bucket.setdefault(bucket, []).append(key)
    for bucket, keys in by_bucket.items():
        for start in range(0, len(keys), _MAX_DELETED):
            some = [{"Key": key} for key in keys[start : start + _MAX_DELETED]]
            first = f"{SCHEME}{bucket}/{some[0]['Key']}"
            answer = request(first, "delete_objects", Delete={"Objects": some, "Quiet": True})
            for error in answer.get("Errors", ()):
                path = f"{SCHEME}{bucket}/{error.get('Key')}"
                raise explain(path, error.get("Code", ""), error.get("Message", ""), "DeleteObjects")


def move(source: str, target: str) -> None:
    """Copies an object and removes the first one. Replaces an object at `target`."""
    (bucket, key), (target_bucket, target_key) = split_path(source), split_path(target)
    place = {"Bucket": bucket, "Key": key}

    def copy(client: Any) -> None:
        from boto3.s3.transfer import TransferConfig

        client.copy(place, target_bucket, target_key, Config=TransferConfig(use_threads=False))

    call(source, copy)
    remove([source])


def _head(path: str) -> dict[str, Any]:
    key = split_path(path)[1]
    if not key:
        raise FileNotFoundError(errno.ENOENT, "is a bucket, expected an object in it", path)
    return dict(request(path, "head_object", Key=key))
