"""Of several jobs that start at once in one folder, each publishes a whole dataset or changes nothing."""

import collections
import json
import os
import random
import shutil
import subprocess
import sys

import forked_jobs
import pytest
from paths import ROOT
from prepare_jobs import read_whole, without_progress

from pipeline.format.history import read_commits
from pipeline.writing.commit_log import newest_commit

SCHEMA = """\
id: id
steps: {x: {dtype: float32}, word: {dtype: string, vocabulary: 5}}
label: {name: y, kind: class, classes: [a, b]}
"""
MOST = 8


def record_ids(job):
    return [f"{job}-{number}" for number in range(10)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a raw file for each job; no id is in two of them."""
    folder = tmp_path_factory.mktemp("concurrent")
    (folder / "schema.yaml").write_text(SCHEMA)
    for job in range(MOST):
        records = [{"id": name, "x": [job, 1], "word": [str(job), "a"], "y": "a"} for name in record_ids(job)]
        (folder / f"{job}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return folder


def run_at_once(place, jobs, *flags, chance):
    """Runs jobs that start within half a second. Returns the status of each, and its lines of stderr."""
    flags = [*flags, "--schema", "schema.yaml", "--output", "dataset", "--processes", "0", "--num_shards", "1"]
    commands = [(chance.uniform(0, 0.5 / len(jobs)), ["prepare", f"{job}.jsonl", *flags]) for job in jobs]
    done = subprocess.run(
        [sys.executable, forked_jobs.__file__],
        input=json.dumps(commands),
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    )
    results = json.loads(done.stdout)
    return [status for status, _ in results], [without_progress(text.splitlines()) for _, text in results]


def read_ids(dataset, read_records):
    return sorted(example["id"][0].decode() for example in read_records(dataset))


def check_log(dataset):
    """Checks that a dataset is whole, and that nothing is there but the files of its commits. Returns the commits."""
    manifest = read_whole(dataset)
    number = newest_commit(str(dataset))
    assert manifest.commit == number
    logged = read_commits(lambda path, _: (dataset / path).read_bytes(), number, origin="dataset")
    commits = [commit for commit, _ in logged]
    names = {added.generation for commit in commits for added in commit.added}
    assert set(os.listdir(dataset / "data")) == names
    assert not [path for path in dataset.rglob("*") if path.name.endswith((".tmp", "writer.json"))]
    return commits


# Number of jobs, and how often they are started.
PROOFS = [pytest.param(number, 20, marks=pytest.mark.proof) for number in (2, 4, 8)]
AT_ONCE = ("number", "rounds")


def check_refused(statuses, lines):
    """Checks that the jobs that did not succeed say why in one line."""
    for status, job_lines in zip(statuses, lines, strict=True):
        if status:
            (line,) = job_lines
            assert (status, line.startswith("lengthwise prepare: ")) in ((1, True), (69, True))
            reasons = ("is there already", "was published meanwhile", "another process held the lock")
            assert any(reason in line for reason in reasons), line


def check_winners(place, statuses, lines, read_records):
    """Checks that the dataset is that of one of the jobs that succeeded. Returns their number."""
    check_refused(statuses, lines)
    winners = [job for job, status in enumerate(statuses) if status == 0]
    commits = check_log(place / "dataset")
    assert [commit.operation for commit in commits] == ["create"] + ["replace"] * (len(winners) - 1)
    assert read_ids(place / "dataset", read_records) in [record_ids(job) for job in winners]
    return len(winners)


@pytest.mark.parametrize(AT_ONCE, [(2, 1), *PROOFS])
@pytest.mark.proof
def test_of_jobs_that_create_a_dataset_exactly_one_publishes(place, read_records, number, rounds):
    chance = random.Random(number)
    for _ in range(rounds):
        shutil.rmtree(place / "dataset", ignore_errors=True)
        statuses, lines = run_at_once(place, range(number), chance=chance)
        assert check_winners(place, statuses, lines, read_records) == 1


@pytest.mark.parametrize(AT_ONCE, PROOFS)
def test_of_jobs_that_replace_a_dataset_at_least_one_publishes(place, read_records, number, rounds):
    chance, found = random.Random(number), collections.Counter()
    for _ in range(rounds):
        shutil.rmtree(place / "dataset", ignore_errors=True)
        statuses, lines = run_at_once(place, range(number), "--overwrite", chance=chance)
        found[check_winners(place, statuses, lines, read_records)] += 1
    print(f"\n{number} jobs at once, {rounds} times; number that published, and how often: {sorted(found.items())}")


@pytest.mark.parametrize(AT_ONCE, [(2, 1), *PROOFS])
def test_jobs_that_append_all_publish_their_records(place, read_records, number, rounds):
    chance = random.Random(number)
    for _ in range(rounds):
        shutil.rmtree(place / "dataset", ignore_errors=True)
        statuses, lines = run_at_once(place, range(number), "--append", chance=chance)
        assert statuses == [0] * number, lines
        assert len(check_log(place / "dataset")) == number
        expected = sorted(name for job in range(number) for name in record_ids(job))
        assert read_ids(place / "dataset", read_records) == expected


@pytest.mark.proof
def test_of_jobs_that_append_the_same_file_one_publishes_and_the_others_find_nothing_new(place, read_records):
    chance, number = random.Random(0), 4
    for _ in range(10):
        shutil.rmtree(place / "dataset", ignore_errors=True)
        statuses, lines = run_at_once(place, [0] * number, "--append", chance=chance)
        assert sorted(statuses) == [0] + [3] * (number - 1), lines
        assert len(check_log(place / "dataset")) == 1
        assert read_ids(place / "dataset", read_records) == record_ids(0)
