"""Measures `lengthwise prepare --streaming`: records per second, seconds from arrival to commit, and empty rounds.

    python tests/benchmarks/streaming.py [--quick] [--scale 1.0]

Records have 750 bytes. Their rate is measured from the first commit to the last one, over a folder and over a topic of
the mock broker inside librdkafka, against a plain Python loop over the same lines: `json.loads`, a SequenceExample of
TensorFlow, and one TFRecord file for each batch. The loop does not check, split, shuffle or index the records, finds no
duplicates, and does not know where to go on after a crash. Scale 1 means 300,000 records.
"""

import argparse
import importlib
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import orjson
from measure import Row, alternate, command_line, compare, print_rows, run_program

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
kafka: Any = importlib.import_module("kafka")  # the mock broker of the tests

BATCH_RECORDS = 20_000
_SCHEMA = "id: id\nsteps: {x: {dtype: float32, shape: [4]}}\nlabel: {name: y, kind: class, classes: [a, b, c]}\n"
_COMMIT = re.compile(rb"prepare: commit \d+: ([\d,]+) records?,")


class Committed(NamedTuple):
    """When the line of a commit came, in monotonic seconds, and the number of records of all commits so far."""

    time: float
    records: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the records, one repeat")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the records; default: 1")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/benchmarks"))
    parser.add_argument("--twin", nargs=2, metavar=("RAW", "OUTPUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.twin:
        run_twin(*options.twin)
        return
    scale, repeats = (0.1, 1) if options.quick else (options.scale, 3)
    folder = options.output / "streaming"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "schema.yaml").write_text(_SCHEMA)
    rows = measure_rates(folder, int(300_000 * scale), repeats)
    rows += measure_delay(folder, 8 if options.quick else 40)
    rows += measure_empty_rounds(folder, 20 if options.quick else 100)
    print_rows(rows)


def make_lines(numbers: range) -> Iterator[bytes]:
    """Yields records as lines of 750 bytes on average."""
    random = np.random.default_rng(numbers.start)
    for number in numbers:
        x = random.normal(size=(23 + number % 9, 4)).round(3)
        record = {"id": f"record-{number}", "x": x, "y": "abc"[number % 3]}
        yield orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


class Stream:
    """A stream as a process, and when its commits came.

    Args:
        source: The flags that name the source.
    """

    def __init__(self, folder: pathlib.Path, source: list[Any], *flags: Any) -> None:
        self._dataset, self.metrics_file = folder / "dataset", folder / "stream.prom"
        shutil.rmtree(self._dataset, ignore_errors=True)
        self.metrics_file.unlink(missing_ok=True)
        arguments = [*source, "--schema", folder / "schema.yaml", "--output", self._dataset, "--streaming"]
        arguments += ["--metrics_file", self.metrics_file, *flags]
        self.process = subprocess.Popen(
            list(map(str, command_line("prepare", *arguments))), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self.commits: list[Committed] = []
        self._errors: list[bytes] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._errors.append(line)
            if found := _COMMIT.match(line):
                before = self.commits[-1].records if self.commits else 0
                self.commits.append(Committed(time.monotonic(), before + int(found[1].replace(b",", b""))))

    def wait_for(self, records: int) -> None:
        """Waits until the commits have a number of records."""
        while not self.commits or self.commits[-1].records < records:
            if self.process.poll() is not None:
                raise SystemExit(b"".join(self._errors).decode())
            time.sleep(0.01)

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self._thread.join()

    def rate(self) -> float:
        """Returns the records per second from the first commit to the last one."""
        first, last = self.commits[0], self.commits[-1]
        return (last.records - first.records) / (last.time - first.time)


def measure_rates(folder: pathlib.Path, num_records: int, repeats: int) -> list[Row]:
    logs = folder / "logs"
    logs.mkdir()
    lines = list(make_lines(range(num_records)))
    (logs / "a.jsonl").write_bytes(b"".join(lines))
    flags = ["--commit_interval", "0", "--max_bytes", BATCH_RECORDS * 750]

    def follow(source: list[Any]) -> float:
        stream = Stream(folder, source, *flags)
        stream.wait_for(num_records)
        stream.end()
        return stream.rate()

    def twin() -> float:
        shutil.rmtree(folder / "twin", ignore_errors=True)
        (folder / "twin").mkdir()
        return float(run_program([sys.executable, __file__, "--twin", logs / "a.jsonl", folder / "twin"])["stdout"])

    with kafka.MockBroker() as broker:
        kafka.fill_topic(broker, "records", lines)
        topic = ["--kafka", broker.servers, "--topic", "records"]
        by_folder, by_topic, theirs = alternate(repeats, lambda: follow([logs]), lambda: follow(topic), twin)
    textbook = "json.loads, SequenceExample, TFRecordWriter"
    name = f"a stream of {num_records:,} records of 750 bytes"
    return [
        compare(f"{name}, by folder", "records/s", textbook, [by_folder, theirs], floor=1.5, aim=3.0),
        compare(f"{name}, by topic", "records/s", textbook, [by_topic, theirs], floor=1.2, aim=2.5),
    ]


def measure_delay(folder: pathlib.Path, seconds: int, *, records_per_second: int = 2000) -> list[Row]:
    """Returns the seconds from a record's arrival to its commit, at an interval of one second."""
    logs, arrivals = folder / "arriving", list[float]()
    logs.mkdir()
    stream = Stream(folder, [logs], "--commit_interval", "1s")
    lines = make_lines(range(seconds * records_per_second))
    begin = time.monotonic()
    with open(logs / "a.jsonl", "ab", buffering=0) as file:
        while (now := time.monotonic()) < begin + seconds:
            wanted = int((now - begin) * records_per_second) - len(arrivals)
            text = b"".join(next(lines) for _ in range(wanted))
            file.write(text)
            arrivals += [time.monotonic()] * wanted
            time.sleep(0.005)
    stream.wait_for(len(arrivals))
    stream.end()
    # The commits of the first seconds contain the start of the process.
    start, delays = 0, []
    for commit in stream.commits:
        delays += [commit.time - arrival for arrival in arrivals[start : commit.records] if arrival > begin + 3]
        start = commit.records
    rows = []
    for name, value, floor, aim in (
        ("median", statistics.median(delays), 2.0, 1.0),
        ("99 of 100 records", float(np.quantile(delays, 0.99)), 4.0, 2.0),
    ):
        measure = f"from arrival to commit, {records_per_second:,} records/s, interval 1 s, {name}"
        rows.append(Row(measure, "s", value, "", None, value, floor=floor, aim=aim, at_most=True))
    return rows


def measure_empty_rounds(folder: pathlib.Path, num_rounds: int) -> list[Row]:
    """Returns the processor time of a round that finds nothing new."""
    rows = []
    for num_files in (1, 1000, 10_000):
        logs = folder / f"files-{num_files}"
        logs.mkdir()
        for number, line in enumerate(make_lines(range(num_files))):
            (logs / f"{number}.jsonl").write_bytes(line)
        value = empty_round(Stream(folder, [logs], "--commit_interval", "0.1s"), num_files, num_rounds)
        rows.append((f"an empty round over {num_files:,} file{'s' if num_files > 1 else ''}", value))
    with kafka.MockBroker() as broker:
        broker.make_topic("records", 4)
        for partition in range(4):
            broker.send("records", list(make_lines(range(100 * partition, 100 * partition + 100))), partition=partition)
        stream = Stream(folder, ["--kafka", broker.servers, "--topic", "records"], "--commit_interval", "0.1s")
        rows.append(("an empty round over a topic of 4 partitions", empty_round(stream, 400, num_rounds)))
    return [
        Row(f"{name}, processor time", "ms", value, "", None, value, floor=100.0, aim=20.0, at_most=True)
        for name, value in rows
    ]


def empty_round(stream: Stream, num_records: int, num_rounds: int) -> float:
    """Returns the milliseconds of processor time of a round, after a number of records was read."""
    stream.wait_for(num_records)
    time.sleep(0.5)
    begin = read_rounds(stream), processor_seconds(stream)
    while read_rounds(stream) < begin[0] + num_rounds:
        time.sleep(0.05)
    end = read_rounds(stream), processor_seconds(stream)
    stream.end()
    return 1e3 * (end[1] - begin[1]) / (end[0] - begin[0])


def read_rounds(stream: Stream) -> int:
    (line,) = re.findall(r"^lengthwise_stream_rounds_total (\d+)$", stream.metrics_file.read_text(), re.MULTILINE)
    return int(line)


def processor_seconds(stream: Stream) -> float:
    fields = pathlib.Path(f"/proc/{stream.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_twin(raw: str, output: str) -> None:
    """Runs the plain loop, and prints its records per second."""
    import tensorflow as tf

    def to_example(record: dict[str, Any]) -> bytes:
        steps = [tf.train.Feature(float_list=tf.train.FloatList(value=row)) for row in record["x"]]
        context = {
            "id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[record["id"].encode()])),
            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=["abc".index(record["y"])])),
        }
        example = tf.train.SequenceExample(
            context=tf.train.Features(feature=context),
            feature_lists=tf.train.FeatureLists(feature_list={"x": tf.train.FeatureList(feature=steps)}),
        )
        return bytes(example.SerializeToString())

    begin, count = time.perf_counter(), 0
    with open(raw, "rb") as file:
        while True:
            batch = [line for line, _ in zip(file, range(BATCH_RECORDS), strict=False)]
            if not batch:
                break
            with tf.io.TFRecordWriter(f"{output}/{count}.tfrecord") as writer:
                for line in batch:
                    writer.write(to_example(json.loads(line)))
            count += len(batch)
    print(count / (time.perf_counter() - begin))


if __name__ == "__main__":
    main()
