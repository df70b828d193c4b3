"""A writer's mark is fresh as long as the writer lives, and is old some minutes after it was killed."""

import os
import time

import holders
import object_store
import pytest

from pipeline.writing import marker, refreshed_file
from pipeline.writing.marker import is_at_work, mark_writer, writers_at_work
from pipeline.writing.paths import is_written_by_prepare, marker_path

FIRST, SECOND = "20260102T030405-0123abcd", "20260102T030406-0123abcd"


def set_age(path, seconds):
    modified = time.time() - seconds
    os.utime(path, (modified, modified))


def test_a_writer_is_at_work_inside_the_block(tmp_path):
    output = str(tmp_path / "dataset")
    assert (is_at_work(output, FIRST), writers_at_work(output)) == (False, [])
    with mark_writer(output, FIRST, command="prepare"), mark_writer(output, SECOND, command="compact"):
        assert is_at_work(output, FIRST) and is_at_work(output, SECOND)
        first, second = writers_at_work(output)
        assert first.startswith(f"{FIRST}: prepare, process {os.getpid()} on ")
        assert second.startswith(f"{SECOND}: compact, process {os.getpid()} on ")
    assert (is_at_work(output, FIRST), writers_at_work(output)) == (False, [])
    assert os.listdir(output) == []


def test_the_files_of_a_writer_stay_when_its_mark_goes(tmp_path):
    shard = tmp_path / "data" / FIRST / "train-00000-of-00001.tfrecord"
    with pytest.raises(KeyError), mark_writer(str(tmp_path), FIRST, command="prepare"):
        shard.write_bytes(b"")
        raise KeyError
    assert os.listdir(shard.parent) == [shard.name]


def test_the_mark_of_a_killed_writer_becomes_old(tmp_path):
    with holders.Holder(holders.MARK_WRITER, tmp_path, FIRST) as holder:
        holder.kill()
    assert is_at_work(str(tmp_path), FIRST)
    for seconds, fresh in [(540, True), (-3600, True), (660, False)]:
        set_age(tmp_path / marker_path(FIRST), seconds)
        assert is_at_work(str(tmp_path), FIRST) == fresh
        assert len(writers_at_work(str(tmp_path))) == fresh
    assert is_written_by_prepare(marker_path(FIRST))


def test_a_mark_is_refreshed_while_the_writer_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(refreshed_file, "_REFRESH_SECONDS", 0.01)
    path = tmp_path / marker_path(FIRST)
    with mark_writer(str(tmp_path), FIRST, command="prepare"):
        for _ in range(2):
            set_age(path, 3600)
            while not is_at_work(str(tmp_path), FIRST):
                time.sleep(0.005)


def test_a_mark_that_is_removed_or_cannot_be_refreshed_is_no_error(tmp_path, monkeypatch):
    """Warnings are errors in the tests, also that of an exception in a thread."""
    monkeypatch.setattr(refreshed_file, "_REFRESH_SECONDS", 0.01)
    calls = []

    def refuse(path):
        calls.append(path)
        raise PermissionError(path)

    with mark_writer(str(tmp_path), FIRST, command="prepare"):
        monkeypatch.setattr(marker.os, "utime", refuse)
        while len(calls) < 2:
            time.sleep(0.005)
        (tmp_path / marker_path(FIRST)).unlink()
        assert not is_at_work(str(tmp_path), FIRST)


def test_a_forked_child_that_leaves_the_block_keeps_the_mark(tmp_path):
    fork = f"{holders.MARK_WRITER}import os\nchild = os.fork()\nif not child: sys.exit(0)\nos.waitpid(child, 0)\n"
    with holders.Holder(fork, tmp_path, FIRST) as holder:
        assert is_at_work(str(tmp_path), FIRST)
        holder.release()
        assert not is_at_work(str(tmp_path), FIRST)


def test_other_files_are_not_writers(tmp_path):
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / "data" / "raw" / "writer.json").write_bytes(b"{}")
    (tmp_path / "data" / FIRST).write_bytes(b"a file")
    (tmp_path / "data" / SECOND).mkdir()
    assert writers_at_work(str(tmp_path)) == []
    (tmp_path / marker_path(SECOND)).write_bytes(b"not ours")
    assert writers_at_work(str(tmp_path)) == [f"{SECOND}: unknown"]


def test_a_mark_on_an_object_store_is_written_again_while_the_writer_lives(monkeypatch):
    output, written = "store://bucket/marked", []
    path = f"{output}/{marker_path(FIRST)}"
    monkeypatch.setattr(object_store, "OBJECTS", {})
    monkeypatch.setattr(object_store.ObjectStore, "last_updated", lambda self, path: written[-1])
    monkeypatch.setattr(refreshed_file, "_REWRITE_SECONDS", 0.001)
    store = object_store.ObjectStore.create

    def create(self, *arguments):
        written.append(time.time() - (1000 if len(written) < 3 else 0))
        return store(self, *arguments)

    monkeypatch.setattr(object_store.ObjectStore, "create", create)
    assert not is_at_work(output, FIRST)
    with mark_writer(output, FIRST, command="prepare"):
        while len(written) < 4:
            time.sleep(0.001)
        assert is_at_work(output, FIRST) and not is_at_work(output, SECOND)
        (description,) = writers_at_work(output)
        assert description.startswith(f"{FIRST}: prepare, process {os.getpid()} on ")
    assert path not in object_store.OBJECTS and writers_at_work(output) == []
