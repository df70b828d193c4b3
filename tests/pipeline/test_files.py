"""A file that is created once has its whole content or does not exist, whoever else tries at the same time."""

import contextlib
import errno
import os
import subprocess
import sys

import object_store
import pytest
from paths import ROOT

from pipeline import files
from pipeline.create_once import create_once, supports_create_once
from pipeline.errors import UserError
from pipeline.files import create, list_details, list_temporary, replace


def test_a_file_is_created_once_with_its_content(tmp_path):
    path = tmp_path / "commits" / "00000001.json"
    create_once(str(path), b"first")
    with pytest.raises(FileExistsError):
        create_once(str(path), b"second")
    assert path.read_bytes() == b"first"
    assert os.listdir(path.parent) == [path.name]


# Tries to create each file that a line of the input names, and answers whether it did.
COMPETE = """
import sys
from pipeline.create_once import create_once
for line in sys.stdin:
    try:
        create_once(line.strip(), sys.argv[1].encode() * 100_000)
        print("created", flush=True)
    except FileExistsError:
        print("exists", flush=True)
"""


def test_of_several_processes_exactly_one_creates_a_file(tmp_path):
    with contextlib.ExitStack() as stack:
        processes = {
            name: stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", COMPETE, name],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    bufsize=1,
                )
            )
            for name in "abcd"
        }
        for number in range(20):
            path = tmp_path / str(number)
            for process in processes.values():
                process.stdin.write(f"{path}\n")
            answers = {name: process.stdout.readline() for name, process in processes.items()}
            assert sorted(answers.values()) == ["created\n"] + ["exists\n"] * 3
            (winner,) = (name for name, answer in answers.items() if answer == "created\n")
            assert path.read_text() == winner * 100_000
    assert len(os.listdir(tmp_path)) == 20


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_an_error_leaves_no_file(tmp_path, monkeypatch, call):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        create_once(str(tmp_path / "file"), b"content")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("call", "complete"), [("fsync", False), ("link", False), ("unlink", True)])
def test_a_kill_leaves_no_incomplete_file(tmp_path, call, complete):
    program = (
        "import os, sys\nfrom pipeline.create_once import create_once\n"
        f"os.{call} = lambda *arguments: os._exit(9)\ncreate_once(sys.argv[1], b'content')"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "file")], cwd=ROOT)
    assert done.returncode == 9
    found = sorted(str(file) for file in tmp_path.iterdir())
    assert found == [str(tmp_path / "file")] * complete + list_temporary(str(tmp_path / "file"))
    assert len(found) == 1 + complete
    assert not complete or (tmp_path / "file").read_bytes() == b"content"


def test_files_are_listed_with_their_size_and_time(tmp_path):
    for name in ("b/c/file", "b/file", "skipped/file", "file", "skipped.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * len(name))
        os.utime(tmp_path / name, (0, 1000 + len(name)))
    folder = str(tmp_path)
    expected = [(f"{folder}/{name}", len(name), 1000.0 + len(name)) for name in ("b/c/file", "b/file", "file")]
    assert list_details(folder, skip=lambda path: "skipped" in path) == expected
    assert len(list_details(folder)) == 5
    assert list_details(f"{folder}/none") == []


@pytest.mark.parametrize("error", [None, FileExistsError])
def test_a_folder_that_another_process_removes_is_made_again(tmp_path, monkeypatch, error):
    makedirs, calls = os.makedirs, []

    def make_and_remove(path, **options):
        makedirs(path, **options)
        calls.append(path)
        if len(calls) % 3:
            os.rmdir(path)
            if error:
                raise error(errno.EEXIST, os.strerror(errno.EEXIST), path)

    monkeypatch.setattr(files.os, "makedirs", make_and_remove)
    create_once(str(tmp_path / "a/once"), b"")
    with replace(str(tmp_path / "b/replaced")), create(str(tmp_path / "c/created")):
        pass
    assert len(calls) == 9
    (tmp_path / "file").touch()
    with pytest.raises((FileExistsError, NotADirectoryError)), create(str(tmp_path / "file/none")):
        pass


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


def test_looking_for_links_leaves_no_file_if_its_folder_cannot_be_synced(tmp_path, monkeypatch):
    def fail(folder):
        raise OSError(errno.EIO, os.strerror(errno.EIO), folder)

    monkeypatch.setattr("pipeline.create_once._sync_folder", fail)
    with pytest.raises(OSError, match="Input/output error"):
        supports_create_once(str(tmp_path / "file"))
    assert list(tmp_path.iterdir()) == []


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


def test_a_file_system_that_shows_incomplete_files_gets_them_by_renaming(monkeypatch):
    monkeypatch.setattr(files, "_RENAMED", ("store://",))
    monkeypatch.setattr(object_store, "OBJECTS", {})
    created, create_object = [], object_store.ObjectStore.create
    monkeypatch.setattr(
        object_store.ObjectStore,
        "create",
        lambda self, path, *more: (created.append(path), create_object(self, path))[1],
    )
    for content in (b"first", b"second"):
        with replace("store://bucket/file") as file:
            file.write(content)
        assert object_store.OBJECTS == {"store://bucket/file": content}
    assert len({*created}) == 2 and all(path.startswith("store://bucket/file.") for path in created)
    assert list_temporary("store://bucket/file") == []
