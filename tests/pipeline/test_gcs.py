"""The requests that create an object once on GCS, without GCS: the package is replaced by a small store in memory."""

import sys
import types

import pytest

from pipeline.create_once import create_once, supports_create_once
from pipeline.errors import UserError

PATH = "gs://bucket/folder/commit"


class Failed(Exception):
    pass


@pytest.fixture
def store(monkeypatch):
    """The objects of the store: (content, metadata) by key; `lost` are errors that follow a request that worked."""
    objects, lost = {}, []

    class Blob:
        metadata = None

        def __init__(self, key):
            self.key = key

        def upload_from_string(self, data, *, content_type, if_generation_match):
            assert (content_type, if_generation_match) == ("application/octet-stream", 0)
            if self.key in objects:
                raise errors.PreconditionFailed
            objects[self.key] = data, self.metadata
            if lost:
                raise lost.pop()

        def reload(self):
            self.metadata = objects[self.key][1]

    names = ("Forbidden", "GoogleAPIError", "NotFound", "PreconditionFailed")
    errors = types.SimpleNamespace(**{name: type(name, (Failed,), {}) for name in names})
    bucket = types.SimpleNamespace(blob=Blob)
    storage = types.SimpleNamespace(Client=lambda: types.SimpleNamespace(bucket=lambda name: bucket))
    for name, module in {
        "google.api_core.exceptions": errors,
        "google.auth.exceptions": types.SimpleNamespace(GoogleAuthError=type("GoogleAuthError", (Failed,), {})),
        "google.cloud": types.SimpleNamespace(storage=storage),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    return types.SimpleNamespace(objects=objects, lost=lost, errors=errors)


def test_an_object_is_created_once(store):
    assert supports_create_once(PATH)
    create_once(PATH, b"first")
    with pytest.raises(FileExistsError, match=f"exists already: '{PATH}'"):
        create_once(PATH, b"second")
    assert store.objects["folder/commit"][0] == b"first"


def test_a_request_whose_answer_was_lost_counts_as_created(store):
    store.lost.append(store.errors.PreconditionFailed())  # what the second attempt of the client finds
    create_once(PATH, b"first")
    assert store.objects["folder/commit"][0] == b"first"


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("NotFound", UserError, "there is no bucket 'bucket'"),
        ("Forbidden", UserError, "access denied: no. Check the credentials"),
        ("GoogleAPIError", OSError, "no"),
    ],
)
def test_an_error_is_one_line(store, name, kind, message):
    store.lost.append(getattr(store.errors, name)("no."))
    with pytest.raises(kind, match=message):
        create_once(PATH, b"first")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud", None)
    with pytest.raises(UserError, match=r"needs google-cloud-storage, which is not installed: pip install 'lengthwise"):
        create_once(PATH, b"first")
