"""Measures `lengthwise prepare` as a whole process against a textbook Beam pipeline that writes SequenceExamples.

    python tests/benchmarks/prepare.py [--quick] [--scale 1.0]

Both read the same JSON Lines on Beam's in-process runner and write TFRecords. The textbook pipeline does not check,
split, shuffle or index the records. Scale 1 means 200,000 records of 8 features, and 20,000 records of 100 features.

The rows named "the limit" compare with an upper bound: the speed of a process on each core that parses, encodes and
checksums lines in memory one by one, all at the same time, since cores that share a cache or a memory slow each other
down. These processes do not read, sort or write, compute no statistics, and their start is not timed.
"""

import argparse
import functools
import json
import multiprocessing
import pathlib
import shutil
import sys
import time
from typing import Any

from data import CLASSES, schema_text, write_raw
from measure import Row, alternate, command_line, compare, peak_of_all_processes, print_rows, run_command, run_program

from pipeline.beam.memory_budget import count_cores
from pipeline.format.examples import encode_record
from pipeline.format.tfrecord import frame
from pipeline.raw.records import parse_line
from pipeline.schema.schema import Schema

_LIMIT_BYTES = 64 * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the records, one repeat")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the records; default: 1")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/benchmarks"))
    parser.add_argument("--twin", nargs=2, metavar=("RAW", "OUTPUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.twin:
        run_twin(*options.twin)
        return
    scale, repeats = (0.02, 1) if options.quick else (options.scale, 2)
    folder = options.output / "prepare"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for num_features, num_records in ((8, int(200_000 * scale)), (100, int(20_000 * scale))):
        rows += measure(folder, num_features, num_records, repeats)
    rows.append(measure_growth(folder, int(100_000 * scale)))
    print_rows(rows)


def measure(folder: pathlib.Path, num_features: int, num_records: int, repeats: int) -> list[Row]:
    raw, schema = make_raw(folder, num_features, num_records)

    def ours() -> dict[str, Any]:
        return run_command("prepare", raw, "--schema", schema, "--output", folder / "dataset", "--overwrite")

    def twin() -> dict[str, Any]:
        shutil.rmtree(folder / "twin", ignore_errors=True)
        return run_program([sys.executable, __file__, "--twin", raw, folder / "twin/part"])

    measured = alternate(repeats, ours, twin, functools.partial(speed_in_memory, raw, schema))
    name = f"prepare, {num_features} features, {num_records:,} records"
    textbook = "ReadFromText, json.loads, SequenceExample"
    speeds = [[num_records / result["seconds"] for result in side] for side in measured[:2]]
    memory = [[peak(raw, schema, folder) for _ in range(repeats)], [result["peak_mebibytes"] for result in measured[1]]]
    return [
        compare(name, "records/s", textbook, speeds, floor=4.0, aim=6.0),
        compare(
            f"{name}, the limit",
            "records/s",
            f"parse + encode + CRC on {count_cores()} cores",
            [speeds[0], measured[2]],
            floor=0.45 if num_features < 100 else 0.3,
            aim=0.6,
        ),
        compare(f"{name}, memory", "MiB", textbook, memory, floor=1.0, aim=0.5, at_most=True),
    ]


def measure_growth(folder: pathlib.Path, num_records: int) -> Row:
    """Returns the peak memory for ten times the records, against the peak memory for the records."""
    one, ten = (peak(*make_raw(folder, 8, number), folder) for number in (num_records, 10 * num_records))
    name = f"prepare, memory of all processes, {10 * num_records:,} records"
    return compare(name, "MiB", f"{num_records:,} records", [[ten], [one]], floor=1.2, aim=1.05, at_most=True)


def peak(raw: pathlib.Path, schema: pathlib.Path, folder: pathlib.Path) -> float:
    """Returns the peak memory in MiB of all processes of `lengthwise prepare`."""
    output = folder / "dataset"
    return peak_of_all_processes(command_line("prepare", raw, "--schema", schema, "--output", output, "--overwrite"))


def speed_in_memory(raw: pathlib.Path, schema_path: pathlib.Path) -> float:
    """Returns the records per second that all cores parse and encode together, with the functions of `prepare`."""
    context = multiprocessing.get_context("spawn")
    start, speeds = context.Barrier(count_cores()), context.Queue()
    processes = [
        context.Process(target=_encode_in_memory, args=(raw, schema_path, start, speeds)) for _ in range(count_cores())
    ]
    for process in processes:
        process.start()
    total = sum(speeds.get(timeout=600) for _ in processes)
    for process in processes:
        process.join()
    return total


def _encode_in_memory(raw: pathlib.Path, schema_path: pathlib.Path, start: Any, speeds: Any) -> None:
    schema = Schema.read(str(schema_path))
    with open(raw, "rb") as file:
        lines = file.readlines(_LIMIT_BYTES)
    start.wait()
    begin = time.perf_counter()
    for line in lines:
        frame(encode_record(parse_line(line, schema), schema))
    speeds.put(len(lines) / (time.perf_counter() - begin))


def make_raw(folder: pathlib.Path, num_features: int, num_records: int) -> tuple[pathlib.Path, pathlib.Path]:
    """Makes a file of JSON Lines and its schema if they do not exist, and returns their paths."""
    raw, schema = folder / f"raw-{num_features}-{num_records}.jsonl", folder / f"schema-{num_features}.yaml"
    if not raw.exists():
        print(f"making {raw}", file=sys.stderr, flush=True)
        schema.write_text(schema_text(num_features))
        unfinished = raw.with_suffix(".unfinished")
        write_raw(unfinished, num_features, num_records)
        unfinished.rename(raw)
    return raw, schema


def run_twin(raw: str, output: str) -> None:
    """Runs the textbook pipeline."""
    import apache_beam as beam
    import tensorflow as tf
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    def to_example(record: dict[str, Any]) -> bytes:
        steps = [tf.train.Feature(float_list=tf.train.FloatList(value=row)) for row in record["x"]]
        numbers = {"label": CLASSES.index(record["y"]), "length": len(steps)}
        context = {
            name: tf.train.Feature(int64_list=tf.train.Int64List(value=[number])) for name, number in numbers.items()
        }
        example = tf.train.SequenceExample(
            context=tf.train.Features(feature=context),
            feature_lists=tf.train.FeatureLists(feature_list={"x": tf.train.FeatureList(feature=steps)}),
        )
        return bytes(example.SerializeToString())

    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = (
            pipeline
            | beam.io.ReadFromText(raw)
            | "Parse" >> beam.Map(json.loads)
            | "Encode" >> beam.Map(to_example)
            | beam.io.WriteToTFRecord(output, file_name_suffix=".tfrecord")
        )


if __name__ == "__main__":
    main()
