"""Measures `lengthwise predict` against the textbook way: everything padded to the longest record, then model.predict.

    python tests/benchmarks/predict.py [--quick] [--num_records 1000000]

Raw records of log-normal lengths around 24 with a tail to 400, 8 numbers a step; a model of 2 x 100 units. Both read
the same JSON Lines and write every probability, each in a process of its own; their answers are compared.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
import orjson
from chart import draw_bars

NUM_FEATURES, MAX_LENGTH = 8, 400
SCHEMA = """\
id: id
steps: {x: {dtype: float32, shape: [8]}}
label: {name: y, kind: class, classes: [a, b, c]}
splits: {train: 1}
"""
# Records that the model's statistics are taken of.
NUM_TRAINING_RECORDS = 2000
OURS, TWIN = "lengthwise predict", "padded model.predict"
SOFTWARE = ("lengthwise", "tensorflow-cpu", "keras", "apache-beam", "numpy")
# The faster one counts: 32 is Keras's default.
TWIN_BATCH_SIZES = (32, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_records", type=int, default=100_000)
    parser.add_argument("--twin_records", type=int, default=4000, help="the twin reads so many of them, and is scaled")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="20,000 records, 1,000 for the twin, once")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/benchmarks"))
    parser.add_argument("--twin", nargs=3, metavar=("RUN", "RAW", "PREDICTIONS"), help=argparse.SUPPRESS)
    parser.add_argument("--batch_size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.twin:
        told = run_twin(*options.twin, num_records=options.twin_records, batch_size=options.batch_size)
        print(json.dumps(told))
        return
    if options.quick:
        options.num_records, options.twin_records, options.repeats = 20_000, 1000, 1
    options.twin_records = min(options.twin_records, options.num_records)
    folder = options.output / "predict"
    folder.mkdir(parents=True, exist_ok=True)
    raw, run = make_inputs(folder, options.num_records)
    measured = [measure(options, folder, raw, run) for _ in range(options.repeats)]
    result = summarize(options, measured)
    (options.output / "predict.json").write_text(json.dumps(result, indent=1) + "\n")
    draw_bars(
        options.output / "predict.png",
        f"Predicting {options.num_records:,} records on {os.cpu_count()} cores, start included",
        {name: result[name]["records_per_second"] for name in (OURS, TWIN)},
        unit="records/s",
    )
    tell(result)


def make_inputs(folder: pathlib.Path, num_records: int) -> tuple[pathlib.Path, pathlib.Path]:
    """The raw records to predict, and the run to do it with."""
    raw, training, schema = folder / "raw.jsonl", folder / "training.jsonl", folder / "schema.yaml"
    write_records(raw, num_records, seed=0)
    write_records(training, NUM_TRAINING_RECORDS, seed=1)
    schema.write_text(SCHEMA)
    dataset, run = folder / "dataset", folder / "run"
    call("prepare", training, "--schema", schema, "--output", dataset, "--overwrite")
    # What the weights are makes no difference to the time.
    call("train", dataset, "--output", run, "--epochs", 0, "--overwrite")
    return raw, run


def write_records(path: pathlib.Path, num_records: int, *, seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = np.exp(random.normal(np.log(24), 0.8, num_records)).round().clip(1, MAX_LENGTH).astype(int)
    with open(path, "wb") as file:
        for number, length in enumerate(lengths.tolist()):
            x = random.normal(size=(length, NUM_FEATURES)).round(4).astype(np.float32)
            record = {"id": f"record-{number}", "x": x, "y": "abc"[number % 3]}
            file.write(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))


def measure(options: argparse.Namespace, folder: pathlib.Path, raw: pathlib.Path, run: pathlib.Path) -> dict[str, Any]:
    """Both ways, one after the other, and how far their answers lie apart."""
    ours = call("predict", run, raw, "--output", folder / "predictions", "--overwrite")
    del ours["stdout"]
    twin_file = folder / "twin.jsonl"
    flags = ["--twin", run, raw, twin_file, "--twin_records", options.twin_records, "--batch_size"]
    twins = [run_scaled([sys.executable, __file__, *flags, size], options) for size in TWIN_BATCH_SIZES]
    return {
        OURS: ours,
        TWIN: min(twins, key=lambda twin: twin["seconds"]),
        "largest_difference": compare(folder / "predictions", twin_file, options),
    }


def run_scaled(command: list[Any], options: argparse.Namespace) -> dict[str, Any]:
    """What the twin would take for all records: its work grows with them, its start does not."""
    twin = execute(command)
    told = json.loads(twin["stdout"])
    work = sum(told["seconds_of"].values())
    start = twin["seconds"] - work
    seconds = start + work * options.num_records / options.twin_records
    return told | {"seconds": seconds, "start_seconds": start, "peak_mebibytes": twin["peak_mebibytes"]}


def summarize(options: argparse.Namespace, measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the repeats."""
    result: dict[str, Any] = {
        "num_records": options.num_records,
        "twin_records": options.twin_records,
        "repeats": options.repeats,
        "largest_difference": max(one["largest_difference"] for one in measured),
        "machine": {"cores": os.cpu_count(), "processor": platform.processor(), "python": platform.python_version()},
        "software": {name: importlib.metadata.version(name) for name in SOFTWARE},
        "measured": measured,
    }
    for name in (OURS, TWIN):
        seconds = statistics.median(one[name]["seconds"] for one in measured)
        result[name] = {
            "seconds": seconds,
            "records_per_second": options.num_records / seconds,
            "peak_mebibytes": statistics.median(one[name]["peak_mebibytes"] for one in measured),
        }
    result["ratio"] = statistics.median(one[TWIN]["seconds"] / one[OURS]["seconds"] for one in measured)
    return result


def tell(result: dict[str, Any]) -> None:
    for name in (OURS, TWIN):
        found = result[name]
        print(
            f"{name:<22}{found['records_per_second']:>9,.0f} records/s {found['seconds']:>9,.1f} s "
            f"{found['peak_mebibytes']:>7,.0f} MiB at its peak"
        )
    print(f"{result['ratio']:.1f} times as fast; the goal is 3.")
    print(
        f"{result['num_records']:,} records, the twin's time scaled from {result['twin_records']:,}; "
        f"medians of {result['repeats']}, start included."
    )
    print(f"The largest difference between two probabilities is {result['largest_difference']:.1e}.")


def compare(predictions: pathlib.Path, twin_file: pathlib.Path, options: argparse.Namespace) -> float:
    """The largest difference between two probabilities of one record; all of ours are read for it."""
    found, total = {}, 0
    twin = {line["id"]: line["probabilities"] for line in map(orjson.loads, twin_file.read_bytes().splitlines())}
    for path in predictions.glob("part-*.jsonl"):
        with open(path, "rb") as file:
            for line in map(orjson.loads, file):
                total += len(line["probabilities"]) == 3
                if line["id"] in twin:
                    found[line["id"]] = line["probabilities"]
    if total != options.num_records or found.keys() != twin.keys() or len(twin) != options.twin_records:
        raise SystemExit(f"{total:,} predictions, {len(found):,} of them the twin's {len(twin):,}.")
    return max(float(np.abs(np.subtract(found[key], twin[key])).max()) for key in twin)


def run_twin(run_path: str, raw: str, predictions: str, *, num_records: int, batch_size: int) -> dict[str, Any]:
    """The textbook way with the same model; seconds for all but the start."""
    from trainer.start import start_tensorflow

    start_tensorflow()
    import keras

    from trainer.checkpoints import restore_weights
    from trainer.model import build_model
    from trainer.run import Run

    run = Run(os.path.abspath(run_path))
    manifest = run.manifest()
    model = build_model(manifest.record_schema, manifest.statistics, run.config(), vocabularies=run.vocabularies())
    restore_weights(run, model, None)
    # Compiled before its work is timed, and scaled.
    warm = {"x": np.zeros((batch_size, MAX_LENGTH, NUM_FEATURES), np.float32), "length": np.ones(batch_size, np.int32)}
    model.predict(warm, batch_size=batch_size, verbose=0)
    times = [time.perf_counter()]
    with open(raw, "rb") as file:
        records = [orjson.loads(line) for line, _ in zip(file, range(num_records), strict=False)]
    times.append(time.perf_counter())
    x = keras.utils.pad_sequences([r["x"] for r in records], maxlen=MAX_LENGTH, dtype="float32", padding="post")
    features = {"x": x, "length": np.array([len(r["x"]) for r in records], np.int32)}
    times.append(time.perf_counter())
    outputs = model.predict(features, batch_size=batch_size, verbose=0)
    times.append(time.perf_counter())
    with open(predictions, "w") as lines:
        for record, row in zip(records, outputs.tolist(), strict=True):
            label = "abc"[int(np.argmax(row))]
            lines.write(json.dumps({"id": record["id"], "label": label, "probabilities": row}) + "\n")
    times.append(time.perf_counter())
    spent = dict(zip(("read", "pad", "predict", "write"), np.diff(times).tolist(), strict=True))
    return {"seconds_of": spent, "batch_size": batch_size, "longest": MAX_LENGTH}


def call(command: str, *arguments: Any) -> dict[str, Any]:
    return execute([sys.executable, "-m", "lengthwise", command, *arguments])


def execute(command: list[Any]) -> dict[str, Any]:
    """Runs a program: what it said, how long it took from its start to its end, the most memory it held."""
    begin = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}.")
    return {"stdout": said, "seconds": time.perf_counter() - begin, "peak_mebibytes": usage.ru_maxrss / 1024}


if __name__ == "__main__":
    main()
