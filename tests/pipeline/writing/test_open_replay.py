"""Only files of rejects that a dataset counts are replayed, and only if they are whole and have all raw records."""

import hashlib
import json
import os
import shutil
import types

import pytest

from pipeline.errors import UserError
from pipeline.format.summary import NO_REJECTS, Rejects, RejectsFile
from pipeline.raw.find_files import RawFile
from pipeline.writing import open_replay as module
from pipeline.writing.base import Base
from pipeline.writing.open_replay import Replay, open_replay

BASE = Base("append", 1, summaries={"any": "0" * 64})


def row(reason, **fields):
    place = {"file": "/raw/a.jsonl", "byte_offset": 0, "line": 1, "id": None}
    return place | {"reason": reason, "message": "m", "sha256": "ab" * 32} | fields


class Rejected:
    """The rejects of a dataset. The file `c` was replayed."""

    def __init__(self, folder):
        self.output, self.files = str(folder), {}
        (folder / "rejected").mkdir()
        self.write("a", [row("over_length", raw="{}"), row("not_json", raw_base64="/w==")])
        self.write("b", [row("over_length", raw="{}"), row("over_length")])
        self.write("c", [row("bad_id", raw="{}")])

    def path(self, name):
        return f"{self.output}/rejected/{name}.jsonl"

    def write(self, name, rows):
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        with open(self.path(name), "wb") as file:
            file.write(data)
        self.files[name] = RejectsFile(path=f"rejected/{name}.jsonl", sha256=hashlib.sha256(data).hexdigest())

    def read_summaries(self, output, summaries):
        assert (output, summaries) == (self.output, BASE.summaries)
        taken = self.files["c"]
        first = Rejects(total=5, by_reason={}, files=tuple(self.files.values()))
        return [
            types.SimpleNamespace(rejected=first, replayed=NO_REJECTS),
            types.SimpleNamespace(rejected=NO_REJECTS, replayed=Rejects(total=1, by_reason={}, files=(taken,))),
        ]

    def open(self, *paths):
        return open_replay(self.output, BASE, paths)


@pytest.fixture
def rejected(tmp_path, monkeypatch):
    found = Rejected(tmp_path)
    monkeypatch.setattr(module, "read_summaries", found.read_summaries)
    return found


def test_a_file_is_counted_by_reason_whatever_path_names_it(rejected, tmp_path, monkeypatch):
    expected = Replay(
        (RawFile(rejected.path("a"), os.path.getsize(rejected.path("a"))),),
        Rejects(total=2, by_reason={"not_json": 1, "over_length": 1}, files=(rejected.files["a"],)),
    )
    assert rejected.open(rejected.path("a"), rejected.path("a")) == expected
    monkeypatch.chdir(tmp_path / "rejected")
    os.symlink(tmp_path, tmp_path / "link")
    assert rejected.open("a.jsonl", "../link/rejected/./a.jsonl") == expected


def test_rejects_without_their_raw_records_are_refused(rejected):
    message = rf"{rejected.path('b')}: 1 of 2 rejects lack the raw record, .* with --overwrite and --keep_raw"
    for paths in ([rejected.path("b")], [f"{rejected.output}/rejected/"]):
        with pytest.raises(UserError, match=message):
            rejected.open(*paths)


def test_the_folder_stands_for_all_files_that_count(rejected):
    rejected.write("b", [row("over_length", raw="{}")])
    found = rejected.open(f"{rejected.output}/rejected")
    assert [file.path for file in found.files] == [rejected.path("a"), rejected.path("b")]
    assert found.rejects.total == 3


def test_any_other_file_is_refused(rejected, tmp_path):
    shutil.copy(rejected.path("a"), tmp_path / "copy.jsonl")
    some = f"{rejected.path('a')}, {rejected.path('b')}"
    for path in (tmp_path / "copy.jsonl", rejected.path("c"), rejected.path("nothing"), tmp_path):
        message = (
            rf"^{path}: is not a file of rejects that .* counts: .* Expected {tmp_path}/rejected or some of {some}\.$"
        )
        with pytest.raises(UserError, match=message):
            rejected.open(str(path))


def test_a_damaged_file_is_refused(rejected):
    good = rejected.files["a"]
    rejected.write("a", [{"reason": "not_json"}])
    with pytest.raises(UserError, match=r"a\.jsonl: line 1: not the object of a reject"):
        rejected.open(rejected.path("a"))
    rejected.files["a"] = good
    with pytest.raises(UserError, match=r"a\.jsonl: is not the file that was written. `lengthwise verify` lists"):
        rejected.open(rejected.path("a"))
    os.unlink(rejected.path("a"))
    with pytest.raises(UserError, match=r"a\.jsonl: cannot be read: No such file or directory"):
        rejected.open(rejected.path("a"))


def test_a_dataset_is_needed(tmp_path):
    with pytest.raises(UserError, match="there is no dataset whose rejects could be replayed"):
        open_replay(str(tmp_path), Base("append"), ["rejected"])
