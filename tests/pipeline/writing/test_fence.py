"""The fence of a job: its driver can end the job until the job is being published, and an error is stored once."""

import os
import time

import object_store
import pytest

from pipeline.beam.fenced import while_wanted
from pipeline.errors import TryAgain, UserError
from pipeline.files import exists, join, list_files, replace
from pipeline.writing import refreshed_file
from pipeline.writing.fence import (
    Fence,
    decide,
    fence,
    is_wanted,
    may_publish,
    read_refusal,
    refuse,
    remove_if_unwanted,
)
from pipeline.writing.job import JobFiles, name_files
from pipeline.writing.paths import DECISION, FENCE, REFUSAL, is_written_by_prepare


@pytest.fixture(params=["local", "store"])
def files(request, tmp_path):
    if request.param == "local":
        return name_files(str(tmp_path / "dataset"), is_fenced=True)
    object_store.OBJECTS.clear()
    return name_files("store://bucket/dataset", is_fenced=True)


def test_a_job_is_wanted_while_its_fence_is_there(files):
    assert not is_wanted(files)
    with fence(files, "prepare") as kept:
        assert is_wanted(files) and may_publish(files)
        assert kept is not None
    assert not is_wanted(files) and not may_publish(files)
    assert list_files(files.output) == [] and not os.path.exists(f"{files.output}/data")


def test_a_job_without_a_fence_is_always_wanted(tmp_path):
    files = name_files(str(tmp_path / "dataset"))
    with fence(files, "prepare") as kept:
        assert kept is None and is_wanted(files) and may_publish(files) and not (tmp_path / "dataset").exists()


def test_a_job_whose_driver_was_killed_is_not_wanted(tmp_path, monkeypatch):
    files = name_files(str(tmp_path / "dataset"), is_fenced=True)
    Fence(files, "prepare").put_up()
    os.utime(join(files.folder, FENCE), (0, 0))
    assert not is_wanted(files) and not may_publish(files)


def test_the_driver_refreshes_the_fence_but_does_not_put_it_up_again(tmp_path, monkeypatch):
    monkeypatch.setattr(refreshed_file, "_REFRESH_SECONDS", 0.01)
    files = name_files(str(tmp_path / "dataset"), is_fenced=True)
    with fence(files, "prepare"):
        os.utime(join(files.folder, FENCE), (0, 0))
        while not is_wanted(files):
            pass
        refuse(files, UserError("wrong."))
        time.sleep(0.1)  # several refreshes
        assert not is_wanted(files)
    assert list_files(files.output) == []


@pytest.mark.parametrize("first", ["publish", "discard"])
def test_only_one_decision_is_taken(tmp_path, first):
    files = name_files(str(tmp_path / "dataset"), is_fenced=True)
    with fence(files, "prepare") as kept:
        if first == "publish":
            # The step that publishes may run twice.
            assert may_publish(files) and may_publish(files)
            assert not kept.take_down() and is_wanted(files)
        else:
            assert kept.take_down() and not is_wanted(files)
            assert not may_publish(files) and not decide(files, "publish")


def test_the_first_refusal_is_kept_and_ends_the_job(files):
    with fence(files, "prepare"):
        assert read_refusal(files) is None
        refuse(files, TryAgain("dataset: changed."))
        refuse(files, UserError("another."))
        found = read_refusal(files)
        assert (type(found), str(found)) == (TryAgain, "dataset: changed.")
        assert not is_wanted(files) and not may_publish(files)
    with fence(files, "prepare") as kept:
        refuse(files, UserError("wrong."))
        kept._file._write()  # as the driver may do at the same moment
        assert not may_publish(files)


def test_a_late_task_cannot_refuse_a_job_that_is_being_published(tmp_path):
    files = name_files(str(tmp_path / "dataset"), is_fenced=True)
    with fence(files, "prepare"):
        assert may_publish(files)
        refuse(files, UserError("of a task that ran twice."))
        assert read_refusal(files) is None and is_wanted(files)
        refuse(files, UserError("too many rejects."), decision="publish")
        assert str(read_refusal(files)) == "too many rejects."


def test_a_task_removes_what_it_wrote_after_the_driver_but_nothing_that_is_published(files):
    written = join(files.folder, "train-00000-of-00001.tfrecord")
    with fence(files, "prepare") as kept:
        for step, remains in (("wanted", True), ("published", True), ("unwanted", False)):
            with replace(written) as file:
                file.write(b"x")
            if step != "wanted":
                kept.take_down()
            remove_if_unwanted(files, lambda _, step=step: step == "published")
            assert exists(written) == remains


def test_the_names_of_the_files_show_who_wrote_them():
    for name in (FENCE, DECISION, REFUSAL):
        path = f"data/20260101T000000-00000000/{name}"
        assert is_written_by_prepare(path) and is_written_by_prepare(f"{path}.{'0' * 32}.tmp")
    assert JobFiles("a", "b", "c").is_fenced is False


def test_an_error_of_a_task_is_quiet_after_the_job_was_ended(tmp_path):
    def fail():
        yield 1
        kept.take_down()
        raise FileNotFoundError("removed by the driver")

    files = name_files(str(tmp_path / "dataset"), is_fenced=True)
    with fence(files, "prepare") as kept:
        assert list(while_wanted(files, fail())) == [1]
        assert list(while_wanted(files, fail())) == []
    files = name_files(str(tmp_path / "other"), is_fenced=True)
    with fence(files, "prepare"), pytest.raises(ZeroDivisionError):
        list(while_wanted(files, (1 // 0 for _ in "a")))
