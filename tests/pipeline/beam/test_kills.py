"""After `kill -9` at any moment, the dataset is the old or the new one, and the next run removes what is left."""

import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from paths import ROOT
from prepare_jobs import SCHEMA, age_marks, load, read_whole, session_of, unlisted, write_parts

from pipeline.beam.prepare import PrepareOptions, prepare
from pipeline.format.manifest import FILE_NAME

MERGING, PUBLISHING, ANY = "merging", "publishing", "any"


def start(folder, *, output="dataset", seed=1, **popen):
    """Starts `lengthwise prepare` on folder/raw with two workers, in a session of its own."""
    arguments = ["raw", "--schema", "schema.yaml", "--output", output, "--overwrite", "--processes", "2"]
    arguments += ["--retain", "0s"]
    arguments += ["--num_shards", "8", "--seed", str(seed), "--max_rejected", "0.1"]
    return subprocess.Popen(
        [sys.executable, "-m", "lengthwise", "prepare", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        **popen,
    )


def run(folder, **options):
    with start(folder, stderr=subprocess.PIPE, **options) as process:
        _, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr.decode()


def run_here(folder, *, output="dataset", seed=1):
    """Prepares the same dataset in this process, which starts no other."""
    raw, schema = (str(folder / "raw"),), str(folder / "schema.yaml")
    options = {"overwrite": True, "retain": 0.0, "processes": 0, "num_shards": 8, "seed": seed, "max_rejected": 0.1}
    prepare(PrepareOptions(raw, schema, str(folder / output), **options))


@pytest.fixture(scope="session")
def make_place(tmp_path_factory):
    """Returns a function that makes a folder with raw files and an old dataset.

    The function returns the folder, the fingerprints of the old and the new dataset, and the seconds of a run.
    """

    def make(num_bytes):
        folder = tmp_path_factory.mktemp("kills")
        write_parts(folder / "raw", num_bytes)
        (folder / "schema.yaml").write_text(SCHEMA)
        run_here(folder, output="old", seed=0)
        begin = time.monotonic()
        run(folder, output="new")
        seconds = time.monotonic() - begin
        old, new = load(folder / "old").fingerprint, read_whole(folder / "new").fingerprint
        assert old != new
        return folder, old, new, seconds

    return make


def wait_for(phase, dataset, process, seconds, chance):
    """Waits until a run is in a phase, or has ended."""
    generations, manifest = load(dataset).generations, os.stat(dataset / FILE_NAME).st_ino
    moment = time.monotonic() + chance.uniform(0, seconds)
    early = chance.random() < 0.5

    def is_reached():
        if phase == MERGING:
            return any(path.parent.name not in generations for path in dataset.glob("data/*/*.tfrecord.*.tmp"))
        if phase == PUBLISHING:
            # For some milliseconds, the new manifest exists beside the old one.
            written = early and any(name.startswith(f"{FILE_NAME}.") for name in os.listdir(dataset))
            return written or os.stat(dataset / FILE_NAME).st_ino != manifest
        return time.monotonic() > moment

    while not is_reached() and process.poll() is None:
        time.sleep(0 if phase == PUBLISHING else 0.002)
    if phase == MERGING:
        time.sleep(chance.uniform(0, 0.1 * seconds))


def kill_and_check(place, phases):
    folder, old, new, seconds = place
    chance = random.Random(0)
    dataset = folder / "dataset"
    found, killed, longest = collections.Counter(), 0, 0.0
    waiting = collections.deque(phases)
    # On a busy machine a run may end before its signal: then its phase is tried again.
    while waiting and sum(found.values()) < 3 * len(phases):
        phase = waiting.popleft()
        shutil.rmtree(dataset, ignore_errors=True)
        shutil.copytree(folder / "old", dataset)
        with start(folder, stderr=subprocess.DEVNULL) as process:
            wait_for(phase, dataset, process, seconds, chance)
            process.send_signal(signal.SIGKILL)
            if process.wait() == -signal.SIGKILL:
                killed += 1
            else:
                waiting.append(phase)
            begin = time.monotonic()
            fingerprint = load(dataset).fingerprint
            assert fingerprint in (old, new)
            # The workers notice the end of their parent by themselves.
            while session_of(process.pid) and time.monotonic() < begin + 60:
                time.sleep(0.01)
            longest = max(longest, time.monotonic() - begin)
            assert session_of(process.pid) == []
        assert read_whole(dataset).fingerprint == fingerprint
        left = {path.parts[len(dataset.parts)] for path in dataset.rglob("*") if path.name.endswith(".tmp")}
        found[phase, "new" if fingerprint == new else "old", *sorted(left)] += 1
        age_marks(dataset)
        run(folder)
        assert read_whole(dataset).fingerprint == new
        assert [path for path in unlisted(dataset) if not path.is_dir()] == []
    tried = sum(found.values())
    print(f"\n{killed} of {tried} runs of {seconds:.1f} s were killed; workers ended within {longest:.2f} s")
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
    run_here(tmp_path)
    assert unlisted(tmp_path / "dataset") == []


def test_a_kill_in_each_phase_leaves_the_old_dataset_or_the_new_one(make_place):
    kill_and_check(make_place(1e6), [MERGING, PUBLISHING])


@pytest.mark.proof
def test_thirty_kills_leave_the_old_dataset_or_the_new_one(make_place):
    kill_and_check(make_place(40e6), [ANY, MERGING, PUBLISHING] * 10)
