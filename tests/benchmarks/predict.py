"""Measures `lengthwise predict` against the textbook way: pad all records to the longest one, then call model.predict.

    python tests/benchmarks/predict.py [--quick] [--num_records 1000000]

The raw records have log-normal lengths with a median of 24 and at most 400 steps of 8 numbers. The model has two layers
of 100 units. Each side runs in its own process, reads the same JSON Lines and writes all probabilities. The predictions
of both sides are compared.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from typing import Any

import numpy as np
import orjson
from data import CLASSES, MAX_LENGTH, make_dataset, write_raw
from measure import compare, print_rows, run_command, run_program

NUM_FEATURES = 8
# Number of records in the dataset that the model's statistics come from.
NUM_TRAINING_RECORDS = 2000
# The faster of these counts. 32 is Keras's default.
TWIN_BATCH_SIZES = (32, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_records", type=int, default=50_000)
    parser.add_argument(
        "--twin_records", type=int, default=2000, help="records that the textbook way reads; its time is scaled up"
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="3,000 records, 150 for the textbook way, one repeat")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/benchmarks"))
    parser.add_argument("--twin", nargs=3, metavar=("RUN", "RAW", "PREDICTIONS"), help=argparse.SUPPRESS)
    parser.add_argument("--batch_size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.twin:
        result = run_twin(*options.twin, num_records=options.twin_records, batch_size=options.batch_size)
        print(json.dumps(result))
        return
    if options.quick:
        options.num_records, options.twin_records, options.repeats = 3000, 150, 1
    options.twin_records = min(options.twin_records, options.num_records)
    folder = options.output / "predict"
    folder.mkdir(parents=True, exist_ok=True)
    raw, run = make_inputs(folder, options.num_records)
    measured = [measure(options, folder, raw, run) for _ in range(options.repeats)]
    speeds = [[options.num_records / seconds for seconds in side] for side in zip(*measured, strict=True)]
    name = f"predict, {options.num_records:,} records, start included"
    print_rows([compare(name, "records/s", "padded to the longest, model.predict", speeds, floor=3.0, aim=3.0)])


def make_inputs(folder: pathlib.Path, num_records: int) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the file of the raw records, and the folder of the run."""
    raw, run = folder / "raw.jsonl", folder / "run"
    write_raw(raw, NUM_FEATURES, num_records)
    dataset = make_dataset(folder.parent / "data", NUM_FEATURES, NUM_TRAINING_RECORDS)
    # The time does not depend on the weights, so the run is not trained.
    run_command("train", dataset, "--output", run, "--epochs", 0, "--overwrite")
    return raw, run


def measure(
    options: argparse.Namespace, folder: pathlib.Path, raw: pathlib.Path, run: pathlib.Path
) -> tuple[float, float]:
    """Returns the seconds of both ways; exits if their predictions differ."""
    ours = run_command("predict", run, raw, "--output", folder / "predictions", "--overwrite")
    twin_file = folder / "twin.jsonl"
    flags = ["--twin", run, raw, twin_file, "--twin_records", options.twin_records, "--batch_size"]
    twins = [run_scaled([sys.executable, __file__, *flags, size], options) for size in TWIN_BATCH_SIZES]
    difference = check_equal(folder / "predictions", twin_file, options)
    if difference > 1e-4:
        raise SystemExit(f"A probability differs by {difference:.1e}, expected at most 1e-4.")
    return ours["seconds"], min(twins)


def run_scaled(command: list[Any], options: argparse.Namespace) -> float:
    """Returns the seconds of the textbook way for all records: the work is scaled up, the start is not."""
    twin = run_program(command)
    work = json.loads(twin["stdout"])["seconds"]
    return twin["seconds"] - work + work * options.num_records / options.twin_records


def check_equal(predictions: pathlib.Path, twin_file: pathlib.Path, options: argparse.Namespace) -> float:
    """Returns the largest difference between two probabilities; exits if a record is missing on one side."""
    found, total = {}, 0
    twin = {line["id"]: line["probabilities"] for line in map(orjson.loads, twin_file.read_bytes().splitlines())}
    for path in predictions.glob("part-*.jsonl"):
        with open(path, "rb") as file:
            for line in map(orjson.loads, file):
                total += len(line["probabilities"]) == 3
                if line["id"] in twin:
                    found[line["id"]] = line["probabilities"]
    if total != options.num_records or found.keys() != twin.keys() or len(twin) != options.twin_records:
        raise SystemExit(
            f"{total:,} predictions, expected {options.num_records:,}; {len(found):,} of them are among the "
            f"{len(twin):,} of the textbook way."
        )
    return max(float(np.abs(np.subtract(found[key], twin[key])).max()) for key in twin)


def run_twin(run_path: str, raw: str, predictions: str, *, num_records: int, batch_size: int) -> dict[str, Any]:
    """Predicts the textbook way with the same model, and returns the seconds without the start of the process."""
    from trainer.devices.tensorflow_setup import start_tensorflow

    start_tensorflow()
    import keras

    from trainer.model.build import build_model
    from trainer.runs.checkpoints import restore_weights
    from trainer.runs.run import Run

    run = Run(os.path.abspath(run_path))
    manifest = run.manifest()
    model = build_model(manifest.record_schema, run.statistics(), run.config(), vocabularies=run.vocabularies())
    restore_weights(run, model, None)
    # The model is compiled before the work that is timed and scaled.
    warm = {"x": np.zeros((batch_size, MAX_LENGTH, NUM_FEATURES), np.float32), "length": np.ones(batch_size, np.int32)}
    model.predict(warm, batch_size=batch_size, verbose=0)
    begin = time.perf_counter()
    with open(raw, "rb") as file:
        found = [orjson.loads(line) for line, _ in zip(file, range(num_records), strict=False)]
    x = keras.utils.pad_sequences([r["x"] for r in found], maxlen=MAX_LENGTH, dtype="float32", padding="post")
    features = {"x": x, "length": np.array([len(r["x"]) for r in found], np.int32)}
    outputs = model.predict(features, batch_size=batch_size, verbose=0)
    with open(predictions, "w") as lines:
        for record, row in zip(found, outputs.tolist(), strict=True):
            label = CLASSES[int(np.argmax(row))]
            lines.write(json.dumps({"id": record["id"], "label": label, "probabilities": row}) + "\n")
    return {"seconds": time.perf_counter() - begin}


if __name__ == "__main__":
    main()
