"""`verify` names what is wrong in the log of commits, and notes a manifest that is behind it."""

import json
import pathlib
import shutil

import pytest
from datasets import call
from prepare_jobs import load

from pipeline.beam.prepare import PrepareOptions, prepare
from pipeline.format.commit import commit_path
from pipeline.format.summary import summary_path
from pipeline.inspection.verify import verify
from pipeline.writing.commit_log import recover

SCHEMA = """\
id: id
steps: {x: {dtype: float32}, word: {dtype: string, vocabulary: 3}}
label: {name: y, kind: class, classes: [a, b]}
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A dataset of three commits, each with one reject."""
    place = tmp_path_factory.mktemp("log")
    (place / "schema.yaml").write_text(SCHEMA)
    manifests = []
    for part in range(3):
        rows = [{"id": n, "x": [n], "word": [f"w{n % 5}"], "y": "a"} for n in range(20 * part, 20 * part + 20)]
        (place / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
        options = PrepareOptions((f"{place}/{part}.jsonl",), f"{place}/schema.yaml", f"{place}/dataset")
        prepare(PrepareOptions(**(vars(options) | {"append": True, "max_rejected": 0.1})))
        manifests.append((place / "dataset" / "manifest.json").read_bytes())
    return place / "dataset", manifests


@pytest.fixture
def dataset(original, tmp_path):
    shutil.copytree(original[0], tmp_path / "dataset")
    return tmp_path / "dataset"


def faults(dataset):
    return [(fault.file, fault.message) for fault in verify(str(dataset)).faults]


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=1) + "\n")


def test_a_manifest_that_is_behind_is_noted_and_rebuilt(original, dataset, capsys):
    (dataset / "manifest.json").write_bytes(original[1][1])
    status, out, err = call(capsys, "verify", str(dataset))
    assert (status, "no fault in 40 records" in out) == (0, True)
    assert "note: manifest.json is at commit 2, but the newest commit is 3." in "".join(err)
    assert load(dataset).commit == 2  # verify changes nothing
    assert recover(str(dataset)).number == 3
    assert (dataset / "manifest.json").read_bytes() == original[1][2]
    report = verify(str(dataset))
    assert (report.faults, report.notes, report.records) == ([], [], 60)
    assert verify(str(dataset), commit=1).records == 20


def test_a_missing_commit_is_named(dataset):
    (dataset / commit_path(2)).unlink()
    assert (commit_path(2), "cannot be read: No such file or directory.") in faults(dataset)


def test_an_edited_commit_is_named(dataset):
    edit(dataset / commit_path(2), time="2020-01-01T00:00:00Z")
    ((file, message),) = faults(dataset)
    assert file == commit_path(2) and "has the SHA-256" in message and "commit 3 names" in message


def test_an_edited_newest_commit_is_named(dataset):
    edit(dataset / commit_path(3), operation="stream")
    ((file, message),) = faults(dataset)
    assert file == commit_path(3) and "but manifest.json names" in message


def test_swapped_commits_are_named(dataset):
    one, two = dataset / commit_path(1), dataset / commit_path(2)
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    found = faults(dataset)
    assert (commit_path(1), "is commit 2, expected 1") in found
    assert (commit_path(2), "is commit 1, expected 2") in found


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b"\xff" * 100, b'{"format_version": 2}', b" " * 17_000_000]
)
def test_what_is_no_commit_is_refused(dataset, content):
    (dataset / commit_path(2)).write_bytes(content)
    assert [file for file, _ in faults(dataset)] == [commit_path(2)]


@pytest.mark.parametrize("kind", ["summary.json", "sources.parquet", "strings/word.parquet", ".jsonl"])
def test_a_damaged_file_of_a_generation_is_named(dataset, kind):
    generation = load(dataset).generations[1]
    path = f"rejected/{generation}.jsonl" if kind == ".jsonl" else f"data/{generation}/{kind}"
    data = bytearray((dataset / path).read_bytes())
    data[len(data) // 2] ^= 1
    (dataset / path).write_bytes(data)
    found = faults(dataset)
    assert found[0][0] == path and "the SHA-256 of the file is" in found[0][1]
    (dataset / path).unlink()
    assert (path, "is missing, but the manifest lists it") in faults(dataset)


def test_a_manifest_that_is_not_the_sum_of_its_generations_is_named(dataset):
    edit(dataset / "manifest.json", software={"python": "0"})
    assert [file for file, _ in faults(dataset)] == ["manifest.json"] * 5
    assert "software.python is 0, but its commits and summaries give" in faults(dataset)[0][1]


def test_a_summary_of_another_generation_is_named(dataset):
    first, second = load(dataset).generations[:2]
    shutil.copy(dataset / summary_path(first), dataset / summary_path(second))
    assert summary_path(second) in [file for file, _ in faults(dataset)]
    assert pathlib.Path(dataset, summary_path(second)).exists()
