"""S3 for tests: moto in this process, or a server of it in a process of its own that counts the requests."""

import collections
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import urllib.request
from typing import NamedTuple

import pytest

BUCKET = "bucket"
# No test reads the credentials of this machine, or asks for a role.
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_MAX_ATTEMPTS": "2",
}
_REQUESTS, _HOLD, _HELD, _DROP = "/requests-so-far", "/hold", "/held", "/drop"


def forget_clients():
    """Drops what this process remembers about S3."""
    from pipeline import s3, s3_client

    s3_client._clients.clear()
    s3_client._found_buckets.clear()
    s3._supports_create_once.cache_clear()


@contextlib.contextmanager
def in_this_process():
    """Answers the requests to S3 of this process from memory, in which there is one empty bucket."""
    from moto import mock_aws

    with mock_aws():
        forget_clients()
        import boto3

        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        try:
            yield client
        finally:
            forget_clients()


class Server(NamedTuple):
    """A server of S3.

    Attributes:
        environment: Environment variables for the commands that use it.
        process: Its process.
    """

    endpoint: str
    environment: dict[str, str]
    process: subprocess.Popen

    def client(self):
        import boto3

        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        return boto3.session.Session().client("s3", endpoint_url=self.endpoint, **keys)

    def keys(self, prefix=""):
        """Returns the keys of the bucket."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def take_requests(self):
        """Returns the requests since the last call as (kind, key): PUT, GET, HEAD, LIST, DELETE, COPY or MULTIPART."""
        return [tuple(request) for request in self._ask(_REQUESTS)]

    def hold(self, ending):
        """Lets the server answer no PUT of a key with this ending, until `drop`."""
        self._ask(f"{_HOLD}?{ending}")

    def count_held(self):
        """Returns how many such requests wait."""
        return self._ask(_HELD)

    def drop(self):
        """Answers the requests that are held with an error, and all later ones as usual."""
        self._ask(_DROP)

    def _ask(self, path):
        with urllib.request.urlopen(self.endpoint + path) as answer:
            return json.load(answer)

    def count_requests(self):
        return collections.Counter(kind for kind, _ in self.take_requests())


@contextlib.contextmanager
def with_environment():
    """As `in_this_process`, with the environment variables of the store inside the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with in_this_process() as client:
            yield client


@contextlib.contextmanager
def start_server():
    """Starts a server on a free port, with an empty bucket, and ends it after the block."""
    here = pathlib.Path(__file__)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(here)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        endpoint = f"http://127.0.0.1:{int(process.stdout.readline())}"
        server = Server(endpoint, os.environ | ENVIRONMENT | {"AWS_ENDPOINT_URL": endpoint}, process)
        server.client().create_bucket(Bucket=BUCKET)
        server.take_requests()
        yield server
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _kind(environ):
    method, query = environ["REQUEST_METHOD"], environ.get("QUERY_STRING", "")
    if "uploads" in query or "uploadId" in query:
        return "MULTIPART"
    if method == "PUT" and environ.get("HTTP_X_AMZ_COPY_SOURCE"):
        return "COPY"
    return "LIST" if "list-type" in query else "DELETE" if method == "POST" else method


class _Application:
    """moto behind a lock, with a list of the requests, and with requests that wait."""

    def __init__(self):
        from moto.server import DomainDispatcherApplication, create_backend_app

        self.moto, self.lock = DomainDispatcherApplication(create_backend_app), threading.Lock()
        self.seen, self.ending, self.dropped, self.held = [], None, threading.Event(), 0

    def __call__(self, environ, start_response):
        path = environ["PATH_INFO"]
        if path in (_REQUESTS, _HOLD, _HELD, _DROP):
            answer = json.dumps(self._control(path, environ["QUERY_STRING"])).encode()
            start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
            return [answer]
        kind = _kind(environ)
        self.seen.append((kind, path.removeprefix(f"/{BUCKET}/")))
        if kind == "PUT" and self.ending and path.endswith(self.ending):
            self.held += 1
            self.dropped.wait()
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        # S3 checks the condition of a request and writes in one step, and moto does not.
        with self.lock if environ["REQUEST_METHOD"] == "PUT" else contextlib.nullcontext():
            return self.moto(environ, start_response)

    def _control(self, path, query):
        if path == _HOLD:
            self.ending, self.held, self.dropped = query, 0, threading.Event()
        elif path == _DROP:
            self.ending = None
            self.dropped.set()
        elif path == _REQUESTS:
            seen, self.seen = self.seen, []
            return seen
        return self.held


def _serve():
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, _Application(), threaded=True)
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _serve()
