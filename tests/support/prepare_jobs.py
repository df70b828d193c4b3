"""Runs `lengthwise prepare` in a process of its own, and reads the dataset that it left."""

import contextlib
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import orjson
from paths import ROOT

from pipeline.errors import UserError
from pipeline.format.commit import commit_path
from pipeline.format.history import read_manifest_at
from pipeline.format.manifest import FILE_NAME, read_manifest
from pipeline.format.summary import GenerationSummary, summary_path
from pipeline.inspection.verify import verify
from pipeline.writing.paths import LOCK, generation_of

SCHEMA = """\
id: id
steps:
  x: {dtype: float32, shape: [4]}
  word: {dtype: string, vocabulary: 50}
label: {name: y, kind: class, classes: [a, b, c]}
"""
MOST_BYTES = 600e6
PLAIN = """\
id: id
steps: {x: {dtype: float32, shape: [8]}}
label: {name: y, kind: class, classes: [a, b, c]}
"""


def write_parts(folder, num_bytes):
    """Writes four files of records; some of them are duplicates or have an unknown class."""
    numbers = np.random.default_rng(0)
    pool = numbers.normal(size=100_000).astype(np.float32).round(4)
    words = [f"word-{n}" for n in range(60)]
    folder.mkdir()
    for part in range(4):
        with open(folder / f"{part}.jsonl", "wb") as file:
            row = 0
            while file.tell() < num_bytes / 4:
                length = int(numbers.integers(1, 60))
                begin = int(numbers.integers(0, len(pool) - 4 * length))
                record = {
                    "id": f"{part}-{row - (row % 100 == 99)}",
                    "x": pool[begin : begin + 4 * length].reshape(-1, 4),
                    "word": [words[(row * n) % 60] for n in range(length)],
                    "y": "abc"[row % 3] if row % 50 else "no class",
                }
                file.write(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))
                row += 1


def load(folder):
    return read_manifest(str(folder))


def read_whole(folder):
    """Returns the manifest of a dataset after checking every byte of it."""
    assert verify(str(folder)).faults == []
    return load(folder)


def snapshot(folder):
    """Returns the bytes of every file in a folder, by path."""
    folder = pathlib.Path(folder)
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def listed_files(folder):
    """Returns the paths of all files that belong to the newest commit of a dataset, the lock and older commits."""
    manifest = load(folder)
    found = {FILE_NAME, LOCK, *(commit_path(number + 1) for number in range(manifest.commit))}
    for name in manifest.generations:
        path = summary_path(name)
        found |= GenerationSummary.parse(pathlib.Path(folder, path).read_bytes(), origin=path).paths()
    for vocabulary in manifest.vocabularies.values():
        found |= {vocabulary.path, f"vocabulary/{vocabulary.path.split('/')[-1]}"}
    return sorted(found)


def contents(folder):
    """Returns the bytes of the files of the newest commit that do not depend on the time, as a list for each path.

    In the paths, each generation has its number in place of its name.
    """
    folder, found = pathlib.Path(folder), {}
    numbers = {name: str(number) for number, name in enumerate(load(folder).generations)}
    for path in listed_files(folder):
        if path not in (FILE_NAME, LOCK) and not path.endswith(".json"):
            generation = generation_of(path)
            # The rejects of a compacted generation keep its name.
            name = path if generation is None else path.replace(generation, numbers.get(generation, "compacted"))
            found.setdefault(name, []).append((folder / path).read_bytes())
    return found


def openable_vocabularies(folder):
    """Returns the paths of the vocabularies of all commits that can be opened."""
    found = set()
    for number in range(1, load(folder).commit + 1):
        with contextlib.suppress(UserError):
            found |= {each.path for each in read_manifest_at(str(folder), number).vocabularies.values()}
    return found


def age_marks(folder):
    """Makes the marks of killed writers old, as they are ten minutes later."""
    for path in pathlib.Path(folder).glob("data/*/writer.json"):
        os.utime(path, (0, 0))


def unlisted(folder):
    """Returns the files and folders in a dataset that do not belong to its newest commit."""
    listed = listed_files(folder)
    folders = {str(parent) for name in listed for parent in pathlib.Path(name).parents}
    return [path for path in folder.rglob("*") if str(path.relative_to(folder)) not in {*listed, *folders}]


def without_progress(lines, command="prepare"):
    """Returns the lines of stderr without the note on the runner and without progress lines.

    A progress line is printed every two seconds, so their number depends on how busy the machine is.
    """
    return [line for line in lines if not line.startswith((f"{command}: ", "Running in "))]


def session_of(leader):
    """Returns the ids of the processes of a session that have not ended."""
    alive = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # the process ended meanwhile
            continue
        if int(session) == leader and state != "Z":  # a zombie holds nothing
            alive.append(int(path.parent.name))
    return alive


def resident(processes):
    """Returns the resident memory of processes in bytes, as a sum."""
    total = 0
    for process in processes:
        try:
            text = pathlib.Path(f"/proc/{process}/status").read_text()
        except OSError:  # the process ended meanwhile
            continue
        # A process that is ending has no line of its memory.
        total += sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmRSS:"))
    return total


def prepare_measured(folder, *arguments, seconds=1200):
    """Runs `lengthwise prepare` on folder/raw.

    Returns (exit status, lines of stderr without progress, peak memory of all processes in bytes, seconds).
    """
    command = [sys.executable, "-m", "lengthwise", "prepare", "raw", "--schema", "schema.yaml", "--output", "dataset"]
    begin, peak = time.monotonic(), 0
    with (
        open(folder / "stderr", "w+") as stderr,
        subprocess.Popen(
            [*command, *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        ) as process,
    ):
        while process.poll() is None:
            if time.monotonic() > begin + seconds:
                process.kill()
            peak = max(peak, resident(session_of(process.pid)))
            time.sleep(0.05)
        stderr.seek(0)
        return process.returncode, without_progress(stderr.read().splitlines()), peak, time.monotonic() - begin


def make_many_runs(monkeypatch):
    """Lets jobs in this process write runs of few records, and merge few of them at once."""
    from pipeline.shuffle import merge_runs, record_runs, reduce_runs

    monkeypatch.setattr(record_runs, "BUFFER_RECORDS", 11)
    for module in (merge_runs, reduce_runs):
        monkeypatch.setattr(module, "MAX_RUNS", 3)
