"""`verify` names what is wrong in the log of commits, and notes a manifest that is behind it."""

import json
import pathlib
import shutil

import pytest
from datasets import call
from prepare_jobs import load

from pipeline.format.commit import commit_path
from pipeline.format.summary import summary_path
from pipeline.inspection.verify import verify
from pipeline.writing.commit_log import recover


def faults(dataset):
    return [(fault.file, fault.message) for fault in verify(str(dataset)).faults]


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=1) + "\n")


def test_a_manifest_that_is_behind_is_noted_and_rebuilt(three_commits, log_copy, capsys):
    (log_copy / "manifest.json").write_bytes(three_commits[1][1])
    status, out, err = call(capsys, "verify", str(log_copy))
    assert (status, "no fault in 40 records" in out) == (0, True)
    assert "note: manifest.json is at commit 2, but the newest commit is 3." in "".join(err)
    assert load(log_copy).commit == 2  # verify changes nothing
    assert recover(str(log_copy)).number == 3
    assert (log_copy / "manifest.json").read_bytes() == three_commits[1][2]
    report = verify(str(log_copy))
    assert (report.faults, report.notes, report.records) == ([], [], 60)
    assert verify(str(log_copy), commit=1).records == 20


def test_a_missing_commit_is_named(log_copy):
    (log_copy / commit_path(2)).unlink()
    assert (commit_path(2), "cannot be read: No such file or directory.") in faults(log_copy)


def test_an_edited_commit_is_named(log_copy):
    edit(log_copy / commit_path(2), time="2020-01-01T00:00:00Z")
    ((file, message),) = faults(log_copy)
    assert file == commit_path(2) and "has the SHA-256" in message and "commit 3 names" in message


def test_an_edited_newest_commit_is_named(log_copy):
    edit(log_copy / commit_path(3), operation="stream")
    ((file, message),) = faults(log_copy)
    assert file == commit_path(3) and "but manifest.json names" in message


def test_swapped_commits_are_named(log_copy):
    one, two = log_copy / commit_path(1), log_copy / commit_path(2)
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    found = faults(log_copy)
    assert (commit_path(1), "is commit 2, expected 1") in found
    assert (commit_path(2), "is commit 1, expected 2") in found


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b"\xff" * 100, b'{"format_version": 2}', b" " * 17_000_000]
)
def test_what_is_no_commit_is_refused(log_copy, content):
    (log_copy / commit_path(2)).write_bytes(content)
    assert [file for file, _ in faults(log_copy)] == [commit_path(2)]


@pytest.mark.parametrize("kind", ["summary.json", "sources.parquet", "strings/word.parquet", ".jsonl"])
def test_a_damaged_file_of_a_generation_is_named(log_copy, kind):
    generation = load(log_copy).generations[1]
    path = f"rejected/{generation}.jsonl" if kind == ".jsonl" else f"data/{generation}/{kind}"
    data = bytearray((log_copy / path).read_bytes())
    data[len(data) // 2] ^= 1
    (log_copy / path).write_bytes(data)
    found = faults(log_copy)
    assert found[0][0] == path and "the SHA-256 of the file is" in found[0][1]
    (log_copy / path).unlink()
    assert (path, "is missing, but the manifest lists it") in faults(log_copy)


def test_a_manifest_that_is_not_the_sum_of_its_generations_is_named(log_copy):
    edit(log_copy / "manifest.json", software={"python": "0"})
    assert [file for file, _ in faults(log_copy)] == ["manifest.json"] * 5
    assert "software.python is 0, but its commits and summaries give" in faults(log_copy)[0][1]


def test_a_summary_of_another_generation_is_named(log_copy):
    first, second = load(log_copy).generations[:2]
    shutil.copy(log_copy / summary_path(first), log_copy / summary_path(second))
    assert summary_path(second) in [file for file, _ in faults(log_copy)]
    assert pathlib.Path(log_copy, summary_path(second)).exists()
