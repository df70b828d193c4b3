"""Each command works on a dataset whose manifest is behind its newest commit, as after a kill between the two."""

import shutil

import pytest
from datasets import call, some
from prepare_jobs import SCHEMA, contents, load, read_whole, snapshot, write_parts

import lengthwise as lw
from pipeline.beam.prepare import PrepareOptions, prepare
from pipeline.format.manifest import FILE_NAME

PREPARE = ("prepare", "--schema", "schema.yaml", "--output", "dataset", "--max_rejected", "0.6", "--num_shards", "1")
PREPARE += ("--processes", "0", "--retain", "0")
# For each command: its arguments, its exit status, and the number of the newest commit after it.
WRITERS = {
    "create": ((*PREPARE, "2.jsonl"), 1, 2),
    "append": ((*PREPARE, "2.jsonl", "--append"), 0, 3),
    "append_nothing": ((*PREPARE, "1.jsonl", "--append"), 3, 2),
    "overwrite": ((*PREPARE, "2.jsonl", "--overwrite"), 0, 3),
    "compact": (("compact", "dataset"), 0, 3),
    "clean": (("clean", "dataset", "--retain", "0"), 0, 2),
}
# What a kill leaves: the manifest of the commit before, or none if it was the first commit.
LEFT = ("older", "none")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder with raw files, a schema, and a dataset of two commits, besides the manifest of the first one."""
    folder = tmp_path_factory.mktemp("behind")
    write_parts(folder / "raw", 2e4)
    for path in (folder / "raw").iterdir():
        shutil.move(path, folder)
    (folder / "schema.yaml").write_text(SCHEMA)
    for part in range(2):
        raw, schema, output = (str(folder / name) for name in (f"{part}.jsonl", "schema.yaml", "dataset"))
        prepare(PrepareOptions((raw,), schema, output, append=True, max_rejected=0.6, num_shards=1, processes=0))
        if part == 0:
            shutil.copy(folder / "dataset" / FILE_NAME, folder / "older")
    return folder


@pytest.fixture
def place(template, tmp_path, monkeypatch):
    """A copy of the folder, which is the working folder. Its manifest is not behind."""
    shutil.copytree(template, tmp_path / "place")
    # The raw files are known by their absolute paths and their digests.
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def put_behind(place, left):
    if left == "older":
        shutil.copy(place / "older", place / "dataset" / FILE_NAME)
    else:
        (place / "dataset" / FILE_NAME).unlink()


CHEAP = [(left, command) for left in LEFT for command in ("append_nothing", "compact", "clean")]
CHEAP += [("none", "create")]


@pytest.mark.parametrize(
    ("left", "command"), some([(left, command) for left in LEFT for command in WRITERS], CHEAP, unpack=True)
)
def test_a_command_that_writes_gives_what_it_gives_without_the_kill(place, capsys, left, command):
    dataset = place / "dataset"
    arguments, expected_status, number = WRITERS[command]
    found = []
    for is_behind in (True, False):
        if is_behind:
            shutil.copytree(dataset, place / "copy")
            put_behind(place, left)
        else:
            shutil.rmtree(dataset)
            shutil.move(place / "copy", dataset)
        status, _, err = call(capsys, *arguments)
        assert status == expected_status, err
        assert read_whole(dataset).commit == number
        found.append(contents(dataset))
    assert found[0] == found[1]


def test_a_command_that_reads_finds_the_commit_before_and_changes_nothing(place, capsys):
    put_behind(place, "older")
    before = snapshot(place)
    status, out, err = call(capsys, "verify", "dataset")
    older = load(place / "dataset")
    records = sum(split.records for split in older.splits.values())
    assert (status, f"no fault in {records} records" in out) == (0, True)
    assert "note: manifest.json is at commit 1, but the newest commit is 2." in "".join(err)
    assert call(capsys, "inspect", "dataset")[0] == 0
    status, out, _ = call(capsys, "inspect", "dataset", "--commits")
    assert (status, "create" in out, "append" in out) == (0, True, False)
    dataset = lw.open_dataset("dataset")
    assert (dataset.manifest, dataset.manifest.commit) == (older, 1)
    assert call(capsys, "clean", "dataset", "--retain", "0", "--dry_run")[:2] == (0, "dataset: nothing to remove\n")
    assert snapshot(place) == before


def test_without_a_first_manifest_there_is_nothing_to_read(place, capsys):
    put_behind(place, "none")
    for command in ("verify", "inspect"):
        status, _, err = call(capsys, command, "dataset")
        assert (status, f"not a dataset: has no {FILE_NAME}" in err[-1]) == (1, True)
    with pytest.raises(lw.UserError, match="not a dataset"):
        lw.open_dataset("dataset")
