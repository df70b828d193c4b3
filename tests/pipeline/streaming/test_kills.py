"""After `kill -9` at any moment, the next stream goes on: no record is lost, and none is read twice."""

import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from file_faults import Kill, KillAt, watch_file_system
from paths import ROOT
from prepare_jobs import age_marks, load, read_whole
from streams import Place, lines

from pipeline.errors import NothingNew
from pipeline.writing.clean import clean


class _Calls(Kill):
    """Writes down all calls, and stops at none."""

    def __init__(self):
        super().__init__(first=0)
        self.names = []

    def before_call(self, name, path):
        self.names.append((name, path))


@pytest.fixture
def place(tmp_path, monkeypatch):
    place = Place(tmp_path)
    place.append("a.jsonl", lines(range(10)))
    place.append("b.jsonl", lines(range(10, 20)) + "{}\n")
    place.once()
    os.rename(place.dataset, place.folder / "before")
    place.append("a.jsonl", lines(range(20, 30)) + lines([30])[:5])
    place.append("b.jsonl", "{}\n")
    place.append("c.jsonl", lines(range(40, 50)))
    return place


def run_with(place, fault):
    """Runs a round on a copy of the dataset, with a fault."""
    shutil.rmtree(place.dataset, ignore_errors=True)
    shutil.copytree(place.folder / "before", place.dataset)
    with watch_file_system(fault.before_call), contextlib.suppress(Exception):
        place.once()


def check(place, read_records):
    """Lets another stream go on, and checks that it has every record once."""
    commit = load(place.dataset).commit
    assert commit in (1, 2)
    age_marks(place.dataset)
    place.append("a.jsonl", lines([30])[5:])
    place.follow(lambda: None, retain=0.0)
    numbers = [int(bytes(example["id"][0]).decode().removeprefix("id-")) for example in read_records(place.dataset)]
    assert sorted(numbers) == [*range(31), *range(40, 50)]
    assert read_whole(place.dataset).rejected.by_reason == {"bad_id": 2}
    clean(str(place.dataset), retain=0, lock_timeout=0)
    read_whole(place.dataset)
    with open(place.logs / "a.jsonl", "r+b") as file:
        file.truncate(len(lines(range(10)) + lines(range(20, 30))) + 5)


@pytest.mark.parametrize(
    ("name", "part"), [("open xb", ".tfrecord"), ("link", "00000002.json"), ("replace", "manifest.json")]
)
def test_three_kills_of_a_round_lose_and_repeat_nothing(place, read_records, name, part):
    kill = KillAt(name, part)
    run_with(place, kill)
    assert kill.failed[0] == name
    assert load(place.dataset).commit == 1
    check(place, read_records)


@pytest.mark.proof
def test_a_kill_at_every_call_of_a_round_loses_and_repeats_nothing(place, read_records):
    calls = _Calls()
    run_with(place, calls)
    for number in range(1, len(calls.names) + 1):
        run_with(place, Kill(first=number))
        check(place, read_records)
    print(f"\n{len(calls.names)} calls")


def count_commits(place):
    return len(list(place.dataset.glob("commits/*.json")))


@pytest.mark.proof
def test_thirty_kills_of_a_process_lose_and_repeat_nothing(tmp_path, read_records):
    """Records arrive in pieces, in two files of which one is rotated, while the process is killed and started again."""
    place, chance, number = Place(tmp_path), random.Random(0), 0
    command = [sys.executable, "-m", "lengthwise", "prepare", "logs", "--schema", "schema.yaml", "--output", "dataset"]
    command += ["--streaming", "--commit_interval", "0.1s", "--max_bytes", "200000", "--retain", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    commits = []
    for kill in range(30):
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            # Every second run is killed at any moment, also before it has begun, and the others after a commit.
            before, begin = count_commits(place), time.monotonic()
            seconds = chance.uniform(0, 1) if kill % 2 else chance.uniform(0.5, 4)
            end = None
            while end is None or time.monotonic() < end:
                if end is None and (not kill % 2 or count_commits(place) > before or time.monotonic() > begin + 60):
                    end = time.monotonic() + seconds
                text = lines(range(number, number + 20)).encode()
                number += 20
                cut = chance.randrange(len(text))
                place.append("a.jsonl", text[:cut])
                time.sleep(0.2)
                place.append("a.jsonl", text[cut:])
                if chance.random() < 0.05:
                    os.replace(place.logs / "a.jsonl", place.logs / f"a.{kill}.{number}.jsonl")
            assert process.poll() is None, process.stderr.read()
            process.send_signal(signal.SIGKILL)
            process.wait()
        with contextlib.suppress(Exception):
            commits.append(load(place.dataset).commit)
    with contextlib.suppress(NothingNew):
        place.follow(lambda: None)
    numbers = [int(bytes(example["id"][0]).decode().removeprefix("id-")) for example in read_records(place.dataset)]
    assert sorted(numbers) == [*range(number)]
    manifest = read_whole(place.dataset)
    assert manifest.rejected.total == 0
    assert manifest.inputs.bytes == sum(path.stat().st_size for path in pathlib.Path(place.logs).iterdir())
    print(f"\n{number:,} records, {manifest.commit} commits; after a kill, the newest was {sorted({*commits})}")
    assert len({*commits}) >= 10
