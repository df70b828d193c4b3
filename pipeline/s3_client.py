"""The client of boto3 for S3: one per process, with the options of Beam's file systems, and errors in one line."""

import errno
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pipeline.errors import UserError

SCHEME = "s3://"
# Environment variable with the options of Beam, from this process to the processes that it starts on this machine: our
# own workers have no Beam, and the runner of Beam that starts processes does not give them its options. An engine does.
_VARIABLE = "LENGTHWISE_S3_OPTIONS"
# The options of Beam that a client of boto3 takes, by the name of its argument.
_ARGUMENTS = {
    "aws_access_key_id": "s3_access_key_id",
    "aws_secret_access_key": "s3_secret_access_key",
    "aws_session_token": "s3_session_token",
    "endpoint_url": "s3_endpoint_url",
    "region_name": "s3_region_name",
    "api_version": "s3_api_version",
    "verify": "s3_verify",
}
_DENIED = {"403", "AccessDenied", "AllAccessDisabled", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken"}
_DENIED |= {"SignatureDoesNotMatch", "AccountProblem", "Forbidden"}

Result = TypeVar("Result")


def split_path(path: str) -> tuple[str, str]:
    """Returns the bucket and the key of a path. Raises a UserError if the bucket is missing.

    >>> split_path("s3://bucket/folder/name")
    ('bucket', 'folder/name')
    """
    bucket, _, key = path.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise UserError(f"{path}: has no bucket, expected s3://BUCKET/PATH.")
    return bucket, key


def request(path: str, operation: str, **arguments: Any) -> Any:
    """Returns the answer of an operation of the client, for example `head_object`, on the bucket of a path.

    Raises:
        UserError, OSError: As for `call`.
    """
    return call(path, lambda client: getattr(client, operation)(Bucket=split_path(path)[0], **arguments))


_lock = threading.Lock()
# The client of this process: after a fork, the child must not use the connections of its parent.
_clients: dict[tuple[int, str], Any] = {}
# Buckets that had an object or an answer: a missing object is then no sign of a missing bucket.
_found_buckets: set[str] = set()
# The options of Beam that were read last, and what they say of S3: to read them takes a millisecond.
_read_options: tuple[Any, dict[str, Any]] = None, {}


def call(path: str, function: Callable[[Any], Result]) -> Result:
    """Returns the result of a function of the client.

    Raises:
        UserError: What a user can fix: the bucket, the credentials, the permissions, the endpoint.
        OSError: The store refused or did not answer. Of these, FileNotFoundError and FileExistsError.
    """
    client = _client(path)
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        result = function(client)
        _found_buckets.add(split_path(path)[0])
        return result
    except ClientError as error:
        found = error.response.get("Error", {})
        code, message = str(found.get("Code", "")), str(found.get("Message", ""))
        if code in ("404", "NoSuchKey", "NotFound") and not _has_bucket(client, path):
            code = "NoSuchBucket"
        raise explain(path, code, message, error.operation_name) from None
    except BotoCoreError as error:
        raise _explain_no_answer(path, error, client.meta.endpoint_url) from None
    except Exception as error:
        cause = error.__cause__ or error.__context__
        if type(error).__module__.startswith("boto3") and isinstance(cause, ClientError):  # S3UploadFailedError
            found = cause.response.get("Error", {})
            raise explain(path, str(found.get("Code")), str(found.get("Message")), cause.operation_name) from None
        if type(error).__module__.startswith(("boto3", "s3transfer")):
            raise OSError(errno.EIO, f"S3: {error}", path) from None
        raise


def _client(path: str) -> Any:
    arguments = client_arguments()
    key = os.getpid(), json.dumps(arguments, sort_keys=True)
    with _lock:
        if key not in _clients:
            _clients.clear()
            _clients[key] = _make_client(path, arguments)
        return _clients[key]


def _make_client(path: str, arguments: Mapping[str, Any]) -> Any:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise UserError(f"{path}: needs boto3, which is not installed: pip install 'lengthwise[aws]'.") from None
    try:
        # By default, each of five attempts to connect takes a minute.
        return boto3.session.Session().client("s3", config=Config(connect_timeout=10), **arguments)
    except (BotoCoreError, ValueError) as error:  # for example an unknown profile, or an endpoint that is no URL
        raise UserError(
            f"{path}: {str(error).removesuffix('.')}. Check the AWS_ variables and the s3_ flags."
        ) from None


def client_arguments() -> dict[str, Any]:
    """Returns the arguments of the client: the options that Beam's file systems have, or else none.

    Without options, boto3 reads its environment variables and files, and the roles of the machine.
    """
    options = _beam_options()
    found = {name: options[option] for name, option in _ARGUMENTS.items() if options.get(option) is not None}
    return found | ({"use_ssl": False} if options.get("s3_disable_ssl") else {})


def _beam_options() -> Mapping[str, Any]:
    global _read_options
    beam = sys.modules.get("apache_beam.io.filesystems")
    options = None if beam is None else beam.FileSystems._pipeline_options
    if options is not None and _read_options[0] is not options:
        from apache_beam.options.pipeline_options import S3Options

        view = options.view_as(S3Options)
        found = {name: getattr(view, name) for name in (*_ARGUMENTS.values(), "s3_disable_ssl")}
        _read_options = options, {name: value for name, value in found.items() if value}
    if options is not None and _read_options[1]:
        return _read_options[1]
    return dict(json.loads(os.environ.get(_VARIABLE, "{}")))


def give_to_children(options: Mapping[str, Any]) -> None:
    """Gives the options of S3 among Beam's options to the processes that this process starts from now on."""
    given = {name: value for name, value in options.items() if name.startswith("s3_")}
    os.environ.pop(_VARIABLE, None)
    if given:
        os.environ[_VARIABLE] = json.dumps(given)


def _has_bucket(client: Any, path: str) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    bucket = split_path(path)[0]
    if bucket not in _found_buckets:
        try:
            client.head_bucket(Bucket=bucket)
        except ClientError as error:
            if str(error.response.get("Error", {}).get("Code")) in ("404", "NoSuchBucket", "NotFound"):
                return False
        except BotoCoreError:
            return True
        _found_buckets.add(bucket)
    return True


def explain(path: str, code: str, message: str, operation: str) -> Exception:
    """Returns the error for an answer of the store: its code and message, and the operation that was refused."""
    bucket = split_path(path)[0]
    if code == "NoSuchBucket":
        return UserError(f"{path}: there is no bucket {bucket!r}. Create it first, or check its name and the endpoint.")
    if code in _DENIED:
        return UserError(
            f"{path}: access denied ({operation}: {code}). Check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID) and "
            f"the permissions of the bucket {bucket!r}."
        )
    if code == "InvalidBucketName":
        return UserError(f"{path}: {bucket!r} is not a valid name of a bucket.")
    if code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"):
        return UserError(f"{path}: the bucket {bucket!r} is in another region. Set AWS_DEFAULT_REGION to it.")
    known = {
        "404": (errno.ENOENT, "no such object"),
        "NoSuchKey": (errno.ENOENT, "no such object"),
        "NotFound": (errno.ENOENT, "no such object"),
        "412": (errno.EEXIST, "exists already"),
        "PreconditionFailed": (errno.EEXIST, "exists already"),
        "409": (errno.EBUSY, "is changed by another request"),
        "ConditionalRequestConflict": (errno.EBUSY, "is changed by another request"),
        "416": (errno.ESPIPE, "ends earlier"),
        "InvalidRange": (errno.ESPIPE, "ends earlier"),
        "NotImplemented": (errno.ENOTSUP, "the store does not support this request"),
    }
    number, text = known.get(code, (errno.EIO, f"S3 answered {code or 'with an error'} to {operation}: {message}"))
    return OSError(number, text, path)


def _explain_no_answer(path: str, error: Exception, endpoint: str) -> Exception:
    """Returns the error for a request that had no answer."""
    name, text = type(error).__name__, " ".join(str(error).split()).removesuffix(".")
    if name in ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "CredentialRetrievalError"):
        return UserError(
            f"{path}: no credentials for S3 ({text}). Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or run where a role gives them."
        )
    if name in ("ParamValidationError", "InvalidRegionError", "NoRegionError", "UnknownEndpointError"):
        return UserError(f"{path}: {text}.")
    # Not a UserError: the network may be back when an engine repeats the task.
    return OSError(errno.EIO, f"the endpoint {endpoint} cannot be reached: {text}", path)
