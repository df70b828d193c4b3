"""A stream that runs for long: memory and open files stay flat, and every id is in the dataset once.

The number of minutes is in the environment variable LENGTHWISE_SOAK_MINUTES; `make soak MINUTES=60` sets it.
"""

import collections
import hashlib
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from paths import ROOT
from prepare_jobs import load
from streams import Place

from pipeline.format.history import read_commit, reader
from pipeline.writing.sorted_entries import ENTRY_BYTES

RECORDS_PER_SECOND = 2000
# The share of records that are sent again, now or later.
AGAIN = 0.01
SCHEMA = """\
id: id
steps:
  x: {dtype: float32}
  word: {dtype: string, vocabulary: 1000}
label: {name: y, kind: class, classes: [a, b]}
splits: {train: 0.9, test: 0.1}
"""
# Sixteen shards in each commit, so that the stream compacts after 60 commits.
FLAGS = ["--commit_interval", "0.25s", "--num_shards", "8", "--processes", "1", "--retain", "60s", "--refresh", "30s"]
FLAGS += ["--max_rejected", "0.05", "--metrics_file", "stream.prom"]
# A log is renamed after this number of seconds, and removed later, when it was read.
ROTATE_SECONDS = 30


class Producer(threading.Thread):
    """Appends records to a log at a steady rate until it is told to stop.

    Attributes:
        sent, repeated: Number of records with a new id, and of those whose id was sent before.
    """

    def __init__(self, folder: pathlib.Path, metrics: pathlib.Path) -> None:
        super().__init__(daemon=True)
        self._metrics, self._folder, self._chance, self._ended = metrics, folder, random.Random(0), threading.Event()
        self.sent = self.repeated = 0

    def run(self) -> None:
        begin, logs, written = time.monotonic(), collections.deque[tuple[pathlib.Path, int]](), 0
        rotated = begin
        while not self._ended.wait(0.05):
            now = time.monotonic()
            wanted = int((now - begin) * RECORDS_PER_SECOND) - written
            with open(self._folder / "today.jsonl", "ab") as file:
                file.write(b"".join(self._line() for _ in range(wanted)))
            written += wanted
            if now - rotated >= ROTATE_SECONDS:
                rotated = now
                logs.append((self._folder / f"{written:012d}.jsonl", written))
                os.replace(self._folder / "today.jsonl", logs[-1][0])
                while len(logs) > 2 and read_metrics(self._metrics).get("records_total", 0) >= logs[0][1]:
                    logs.popleft()[0].unlink()

    def _line(self) -> bytes:
        if self.sent and self._chance.random() < AGAIN:
            number = self._chance.randrange(self.sent)
            self.repeated += 1
        else:
            number = self.sent
            self.sent += 1
        words = ", ".join(f'"w{(number * n) % 5003}"' for n in (3, 5, 7, 11))
        return b'{"id": "id-%d", "x": [%d, 0.5, -1.25, 3], "word": [%s], "y": "%s"}\n' % (
            number,
            number % 977,
            words.encode(),
            b"ab"[number % 2 : number % 2 + 1],
        )

    def stop(self) -> None:
        self._ended.set()
        self.join()


class Sample:
    """Memory and open files of a process and its children, in MiB and as numbers."""

    def __init__(self, process: int, records: int) -> None:
        with open(f"/proc/{process}/task/{process}/children") as file:
            workers = [int(child) for child in file.read().split()]
        self.time, self.records, self.num_processes = time.monotonic(), records, 1 + len(workers)
        self.memory = _resident(process)
        # Beside the worker, there is another process while the dataset is compacted.
        self.workers_memory = sum(map(_resident, workers[:1]))
        self.files = sum(len(os.listdir(f"/proc/{each}/fd")) for each in (process, *workers))
        self.threads = len(os.listdir(f"/proc/{process}/task"))


def _resident(process: int) -> float:
    fields = pathlib.Path(f"/proc/{process}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def read_metrics(path: pathlib.Path) -> dict[str, float]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {
        name.removeprefix("lengthwise_stream_"): float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    }


def read_numbers(dataset: pathlib.Path) -> np.ndarray:
    """Returns the numbers in the ids of all records, sorted, after a check of the digest of each shard and index."""
    numbers = []
    for split in load(dataset).splits.values():
        for shard in split.shards:
            for path, sha256 in ((shard.path, shard.sha256), (shard.index_path, shard.index_sha256)):
                assert hashlib.sha256((dataset / path).read_bytes()).hexdigest() == sha256, path
            ids = pq.read_table(dataset / shard.index_path, columns=["id"])["id"]
            numbers.append(np.array([int(name[3:]) for name in ids.to_pylist()], np.int64))
    return np.sort(np.concatenate(numbers))


@pytest.mark.proof
def test_memory_and_open_files_of_a_stream_stay_flat(tmp_path):
    minutes = float(os.environ.get("LENGTHWISE_SOAK_MINUTES", "2"))
    place, samples = Place(tmp_path, SCHEMA), []
    command = [sys.executable, "-m", "lengthwise", "prepare", "logs", "--schema", "schema.yaml", "--output", "dataset"]
    producer = Producer(place.logs, tmp_path / "stream.prom")
    # The lines of the stream go to a file: a pipe that no one reads would stop it.
    with open(tmp_path / "stream.log", "wb") as log:
        process = subprocess.Popen(
            [*command, "--streaming", *FLAGS],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        producer.start()
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end or len(samples) < 9:  # a busy machine may take longer
            time.sleep(min(5.0, minutes))
            assert process.poll() is None, (tmp_path / "stream.log").read_text()[-2000:]
            metrics = read_metrics(tmp_path / "stream.prom")
            # After the first compaction.
            if metrics.get("commits_total", 0) >= 80:
                samples.append(Sample(process.pid, int(metrics["records_total"])))
        producer.stop()
        while read_metrics(tmp_path / "stream.prom").get("records_total", 0) < producer.sent + producer.repeated:
            assert process.poll() is None, (tmp_path / "stream.log").read_text()[-2000:]
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
    manifest = load(place.dataset)
    operations = collections.Counter(
        read_commit(reader(str(place.dataset)), number, origin="").commit.operation
        for number in range(1, manifest.commit + 1)
    )
    first, last = samples[: len(samples) // 3], samples[-(len(samples) // 3) :]
    print_table(
        first, last, samples, f"{minutes:g} minutes, {producer.sent:,} ids, {producer.repeated:,} records again"
    )
    print("commits:", ", ".join(f"{count:,} {name}" for name, count in operations.items()))
    numbers = read_numbers(place.dataset)
    assert np.array_equal(numbers, np.arange(producer.sent))
    assert manifest.rejected.by_reason == {"duplicate_id": producer.repeated}
    assert manifest.vocabularies_of is None
    assert operations["compact"] >= 1
    assert {sample.num_processes for sample in samples} <= {2, 3}
    grown = {name: middle(last, name) - middle(first, name) for name in ("memory", "workers_memory", "files")}
    # The keys of published ids take 8 bytes each, up to --dedup_memory.
    keys = ENTRY_BYTES * (middle(last, "records") - middle(first, "records")) / 2**20
    assert grown["memory"] <= 1.5 * keys + 0.1 * middle(first, "memory") + 10
    assert grown["workers_memory"] <= 0.1 * middle(first, "workers_memory") + 10
    assert grown["files"] <= 2


def middle(samples: list[Sample], name: str) -> float:
    return statistics.median(getattr(sample, name) for sample in samples)


def print_table(first: list[Sample], last: list[Sample], samples: list[Sample], title: str) -> None:
    print(f"\n{title:<48}{'first third':>13}{'last third':>13}{'largest':>13}")
    rows = {"memory": "stream, MiB (median)", "workers_memory": "worker, MiB", "files": "open files of both"}
    for name, text in (rows | {"threads": "threads of the stream", "records": "records read"}).items():
        largest = max(getattr(sample, name) for sample in samples)
        print(f"{text:<48}{middle(first, name):>13,.0f}{middle(last, name):>13,.0f}{largest:>13,.0f}")
