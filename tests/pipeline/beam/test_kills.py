"""After `kill -9` at any moment, the dataset is at the old or the new commit, and the next run completes the work."""

import collections
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from paths import ROOT
from prepare_jobs import (
    SCHEMA,
    age_marks,
    contents,
    load,
    openable_vocabularies,
    read_whole,
    session_of,
    unlisted,
    write_parts,
)

import lengthwise as lw
from pipeline.beam.prepare import PrepareOptions, prepare
from pipeline.errors import NothingNew
from pipeline.format.commit import commit_path
from pipeline.format.manifest import FILE_NAME
from pipeline.writing.clean import clean
from pipeline.writing.commit_log import read_head
from pipeline.writing.compact import compact

MERGING, PUBLISHING, ANY = "merging", "publishing", "any"
# Arguments of each command.
PREPARE = ["prepare", "raw", "--schema", "schema.yaml", "--output", "dataset", "--max_rejected", "0.1"]
OPERATIONS = {
    "replace": [*PREPARE, "--processes", "2", "--overwrite", "--seed", "1"],
    "append": [*PREPARE, "--processes", "0", "--append"],
    "compact": ["compact", "dataset"],
}


def start(folder, operation, **popen):
    """Starts a command in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "lengthwise", *OPERATIONS[operation], "--num_shards", "8", "--retain", "0"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        **popen,
    )


def run_here(folder, operation):
    """Runs a command in this process, which starts no other. The result does not depend on the number of processes."""
    dataset = str(folder / "dataset")
    if operation == "compact":
        compact(dataset, num_shards=8, retain=0)
        return
    options = {"overwrite": True, "seed": 1} if operation == "replace" else {"append": True}
    # An append that was published before the kill finds nothing new.
    with contextlib.suppress(NothingNew):
        prepare_here(folder, "raw", retain=0, **options)


def prepare_here(folder, *raw, **options):
    paths = tuple(str(folder / name) for name in raw)
    options |= {"processes": 0, "num_shards": 8, "max_rejected": 0.1}
    prepare(PrepareOptions(paths, str(folder / "schema.yaml"), str(folder / "dataset"), **options))


def make_old(folder, operation):
    """Makes the dataset that a command begins with, in this process, which starts no other."""
    parts = {"replace": ["0123"], "append": ["01"], "compact": ["0", "1", "23"]}[operation]
    for names in parts:
        prepare_here(folder, *(f"raw/{name}.jsonl" for name in names), append=True)
    os.rename(folder / "dataset", folder / "old")


@pytest.fixture(scope="session")
def make_place(tmp_path_factory):
    """Returns a function that makes a folder with raw files and an old dataset for a command.

    The function returns the folder, the manifest of the old dataset, the contents of the new one, and the seconds of a
    run.
    """

    def make(operation, num_bytes):
        folder = tmp_path_factory.mktemp("kills")
        write_parts(folder / "raw", num_bytes)
        (folder / "schema.yaml").write_text(SCHEMA)
        make_old(folder, operation)
        shutil.copytree(folder / "old", folder / "dataset")
        begin = time.monotonic()
        with start(folder, operation, stderr=subprocess.PIPE) as process:
            _, stderr = process.communicate(timeout=600)
        assert process.returncode == 0, stderr.decode()
        seconds = time.monotonic() - begin
        return folder, load(folder / "old"), contents(folder / "dataset"), seconds

    return make


def wait_for(phase, dataset, process, seconds, chance):
    """Waits until a run is in a phase, or has ended."""
    found = load(dataset)
    generations, manifest = found.generations, os.stat(dataset / FILE_NAME).st_ino
    moment = time.monotonic() + chance.uniform(0, seconds)
    committed = dataset / commit_path(found.commit + 1)
    # Each takes some milliseconds: the commit is being written, the manifest is behind, it is being written, it is new.
    step = chance.randrange(4)

    def is_reached():
        if phase == MERGING:
            return any(path.parent.name not in generations for path in dataset.glob("data/*/*.tfrecord.*.tmp"))
        if phase == PUBLISHING:
            return (
                (step < 1 and any(name.startswith(f"{committed.name}.") for name in os.listdir(committed.parent)))
                or (step < 2 and committed.exists())
                or (step < 3 and any(name.startswith(f"{FILE_NAME}.") for name in os.listdir(dataset)))
                or os.stat(dataset / FILE_NAME).st_ino != manifest
            )
        return time.monotonic() > moment

    while not is_reached() and process.poll() is None:
        time.sleep(0 if phase == PUBLISHING else 0.002)
    if phase == MERGING:
        time.sleep(chance.uniform(0, 0.1 * seconds))


def kill_and_check(make_place, operation, phases, *, num_bytes):
    folder, old, expected, seconds = make_place(operation, num_bytes)
    chance = random.Random(0)
    dataset = folder / "dataset"
    found, killed, longest = collections.Counter(), 0, 0.0
    waiting = collections.deque(phases)
    # On a busy machine a run may end before its signal: then its phase is tried again.
    while waiting and sum(found.values()) < 3 * len(phases):
        phase = waiting.popleft()
        shutil.rmtree(dataset, ignore_errors=True)
        shutil.copytree(folder / "old", dataset)
        with start(folder, operation, stderr=subprocess.DEVNULL) as process:
            wait_for(phase, dataset, process, seconds, chance)
            process.send_signal(signal.SIGKILL)
            if process.wait() == -signal.SIGKILL:
                killed += 1
            else:
                waiting.append(phase)
            begin = time.monotonic()
            state = load(dataset).commit - old.commit
            assert state in (0, 1)
            # The workers notice the end of their parent by themselves.
            while session_of(process.pid) and time.monotonic() < begin + 60:
                time.sleep(0.01)
            longest = max(longest, time.monotonic() - begin)
            assert session_of(process.pid) == []
        # The workers may write until they end, but they do not commit.
        manifest = read_whole(dataset)
        assert lw.open_dataset(str(dataset)).manifest == manifest
        assert manifest == old if state == 0 else contents(dataset) == expected
        is_behind = read_head(str(dataset)).number > manifest.commit
        left = {
            path.parts[len(dataset.parts)].split(".")[0] for path in dataset.rglob("*") if path.name.endswith(".tmp")
        }
        found[phase, "behind" if is_behind else ("old", "new")[state], *sorted(left)] += 1
        age_marks(dataset)
        run_here(folder, operation)
        read_whole(dataset)
        assert contents(dataset) == expected
        clean(str(dataset), retain=0, lock_timeout=0)
        more = {str(path.relative_to(dataset)) for path in unlisted(dataset) if not path.is_dir()}
        assert more <= openable_vocabularies(dataset)
    tried = sum(found.values())
    print(
        f"\n{operation}: {killed} of {tried} runs of {seconds:.1f} s were killed; workers ended within {longest:.2f} s"
    )
    for key, count in sorted(found.items()):
        print(f"{count:3}", *key)
    assert killed == len(phases)
    assert {phase for phase, *_ in found} == set(phases)


def test_the_next_run_removes_the_folder_of_a_killed_run(tmp_path):
    write_parts(tmp_path / "raw", 4e5)
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    killed = tmp_path / "dataset/data/20260101T000000-00000000"
    killed.mkdir(parents=True)
    for name in (".rows", ".examples", ".rejects"):
        (killed / f"{'0' * 32}{name}").touch()
    (killed / f"train-00000-of-00001.tfrecord.{'0' * 32}.tmp").touch()
    prepare_here(tmp_path, "raw", retain=0)
    assert unlisted(tmp_path / "dataset") == []


@pytest.mark.proof
def test_a_kill_while_it_publishes_leaves_the_old_dataset_or_the_new_one(make_place):
    kill_and_check(make_place, "replace", [PUBLISHING], num_bytes=1e6)


@pytest.mark.proof
@pytest.mark.parametrize("operation", OPERATIONS)
def test_thirty_kills_leave_the_old_dataset_or_the_new_one(make_place, operation):
    kill_and_check(make_place, operation, [ANY, MERGING, PUBLISHING] * 10, num_bytes=2e6)
