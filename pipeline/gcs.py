"""Creates an object on Google Cloud Storage only if there is none, which Beam's file system cannot do."""

import errno
import uuid
from typing import Any

from pipeline.errors import UserError

SCHEME = "gs://"


def is_gcs(path: str) -> bool:
    """Returns whether a path begins with gs://."""
    return path.startswith(SCHEME)


def create_once(path: str, data: bytes) -> None:
    """Creates an object, or raises FileExistsError if there is one. Of several calls at once, exactly one succeeds.

    This follows the documentation of google-cloud-storage. No test has run it against GCS.

    Raises:
        FileExistsError: There is an object at `path`.
        UserError: google-cloud-storage is not installed, or has no credentials or permission.
        OSError: The store did not answer.
    """
    try:
        from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound, PreconditionFailed
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import storage
    except ImportError:
        raise UserError(
            f"{path}: needs google-cloud-storage, which is not installed: pip install 'lengthwise[gcp]'."
        ) from None
    bucket, _, key = path.removeprefix(SCHEME).partition("/")
    # A request whose answer was lost is sent again, and then finds its own object: the object says who wrote it.
    writer = uuid.uuid4().hex
    try:
        blob: Any = storage.Client().bucket(bucket).blob(key)
        blob.metadata = {"writer": writer}
        try:
            blob.upload_from_string(data, content_type="application/octet-stream", if_generation_match=0)
        except PreconditionFailed:
            blob.reload()
            if (blob.metadata or {}).get("writer") != writer:
                raise FileExistsError(errno.EEXIST, "exists already", path) from None
    except NotFound:
        raise UserError(f"{path}: there is no bucket {bucket!r}. Create it first, or check its name.") from None
    except (Forbidden, GoogleAuthError) as error:
        text = " ".join(str(error).split()).removesuffix(".")
        raise UserError(f"{path}: access denied: {text}. Check the credentials and the permissions.") from None
    except GoogleAPIError as error:
        raise OSError(errno.EIO, " ".join(str(error).split()).removesuffix("."), path) from None
