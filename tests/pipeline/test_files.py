"""A file that is created once has its whole content or does not exist, whoever else tries at the same time."""

import errno
import multiprocessing
import os
import pathlib

import pytest

from pipeline import files
from pipeline.errors import UserError
from pipeline.files import create_once, list_temporary, supports_create_once

_CONTEXT = multiprocessing.get_context("fork")


def test_a_file_is_created_once_with_its_content(tmp_path):
    path = tmp_path / "commits" / "00000001.json"
    create_once(str(path), b"first")
    with pytest.raises(FileExistsError):
        create_once(str(path), b"second")
    assert path.read_bytes() == b"first"
    assert os.listdir(path.parent) == [path.name]


def compete(folder, barrier, name):
    """Tries to create every file of 20 rounds, and writes down the rounds that it won."""
    won = []
    for number in range(20):
        barrier.wait()
        try:
            create_once(f"{folder}/{number}", f"{name} {number}".encode() * 1000)
        except FileExistsError:
            continue
        won.append(str(number))
    pathlib.Path(folder, f"won-{name}").write_text(" ".join(won))


def test_of_several_processes_exactly_one_creates_a_file(tmp_path):
    barrier = _CONTEXT.Barrier(4)
    processes = [_CONTEXT.Process(target=compete, args=(str(tmp_path), barrier, name)) for name in "abcd"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    winners = {}
    for name in "abcd":
        for number in (tmp_path / f"won-{name}").read_text().split():
            assert winners.setdefault(number, name) == name, f"two processes created {number}"
    contents = {str(number): (tmp_path / str(number)).read_text() for number in range(20)}
    assert contents == {number: f"{name} {number}" * 1000 for number, name in winners.items()}
    assert list(tmp_path.glob("*.tmp")) == []


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_an_error_leaves_no_file(tmp_path, monkeypatch, call):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        create_once(str(tmp_path / "file"), b"content")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("call", "complete"), [("fsync", False), ("link", False), ("unlink", True)])
def test_a_kill_leaves_no_incomplete_file(tmp_path, monkeypatch, call, complete):
    monkeypatch.setattr(files.os, call, lambda *arguments: os._exit(9))
    process = _CONTEXT.Process(target=create_once, args=(str(tmp_path / "file"), b"content"))
    process.start()
    process.join()
    assert process.exitcode == 9
    found = sorted(str(file) for file in tmp_path.iterdir())
    assert found == [str(tmp_path / "file")] * complete + list_temporary(str(tmp_path / "file"))
    assert len(found) == 1 + complete
    assert not complete or (tmp_path / "file").read_bytes() == b"content"


def test_a_temporary_file_that_cannot_be_removed_does_no_harm(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.os, "unlink", fail)
    create_once(str(tmp_path / "file"), b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_link_whose_answer_was_lost_counts_as_created(tmp_path, monkeypatch):
    link = os.link

    def link_twice(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(files.os, "link", link_twice)
    create_once(str(tmp_path / "file"), b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_a_file_system_without_hard_links_is_named(tmp_path, monkeypatch, number):
    assert supports_create_once(str(tmp_path / "file"))

    def no_link(source, target):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "link", no_link)
    with pytest.raises(UserError, match="file: cannot be created, since the file system has no hard links"):
        create_once(str(tmp_path / "file"), b"content")
    assert not supports_create_once(str(tmp_path / "file"))
    assert os.listdir(tmp_path) == []


def test_an_object_store_cannot_create_once():
    assert not supports_create_once("store://bucket/file")
    with pytest.raises(UserError, match="store://bucket/file: this store has no writes that only create a file"):
        create_once("store://bucket/file", b"")
