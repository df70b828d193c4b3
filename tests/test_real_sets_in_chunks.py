"""Published data sets that are read in chunks, with the state carried, reach what whole records reach."""

import json
import statistics

import pytest
import real_sets
from gpu_programs import run_lengthwise

SEEDS = (0, 1, 2)


@pytest.mark.proof
@real_sets.needs("tiny_shakespeare")
def test_tiny_shakespeare_needs_the_state_between_chunks(tmp_path):
    """In nats per character, on a record of 111,539 steps: with the state carried, and reset at each chunk of 25."""
    real_sets.tiny_shakespeare(tmp_path)
    dataset, run = tmp_path / "dataset", tmp_path / "run"
    stateful = ["--batching", "stateful", "--chunk_steps", 25, "--lanes", 64, "--units", 256]
    adam = ["--optimizer", "adam", "--learning_rate", 0.004, "--clip_norm", 1]
    run_lengthwise("prepare", tmp_path / "raw.jsonl", "--schema", tmp_path / "schema.yaml", "--output", dataset)
    run_lengthwise("train", dataset, "--output", run, "--epochs", 3, *stateful, *adam)
    # The result does not depend on the chunk, unless the state is reset.
    measured = {}
    for name, flags in {"carried": ["--chunk_steps", 2000], "reset": ["--reset_state", "chunk"]}.items():
        run_lengthwise("evaluate", run, dataset, "--split", "validation", *flags)
        measured[name] = json.loads((run / "evaluation-validation.json").read_text())
    trained, carried = json.loads((run / "result.json").read_text()), measured["carried"]
    print(
        f"\nTiny Shakespeare, {trained['updates']:,} updates: {carried['loss']:.4f} nats per character, "
        f"{measured['reset']['loss']:.4f} with the state reset at each chunk of 25"
    )
    assert trained["useful_share"] > 0.999
    assert (carried["records"], carried["labelled_steps"]) == (1, 111_538)
    assert carried["loss"] <= 1.65
    assert measured["reset"]["loss"] >= carried["loss"] + 0.1


def compare(folder, metric, flags, lanes):
    """Trains on whole records and on chunks of 25 steps, in as many epochs, and compares a metric on the test split.

    The means over three seeds differ by no more than the seeds of whole records do, or chunks are better.
    """
    ways = {"window": [], "stateful": ["--batching", "stateful", "--chunk_steps", "25", "--lanes", str(lanes)]}
    found = {
        way: [real_sets.measure(folder, [*flags, *more], seed=seed, name=way)[0]["metrics"][metric] for seed in SEEDS]
        for way, more in ways.items()
    }
    for way, values in found.items():
        print(f"\n{way}: {metric} {', '.join(f'{value:.4f}' for value in values)}, mean {statistics.mean(values):.4f}")
    noise = max(found["window"]) - min(found["window"])
    assert statistics.mean(found["stateful"]) <= statistics.mean(found["window"]) + noise


@pytest.mark.proof
@real_sets.needs("cmapss_fd001")
def test_cmapss_in_chunks_equals_whole_records_within_noise(tmp_path):
    real_sets.cmapss(tmp_path)
    schema = tmp_path / "schema.yaml"
    # The epoch with the lowest validation loss is measured: the last updates of an epoch read only the ends of engines.
    schema.write_text(schema.read_text().replace("{from: split}", "{from: split, validation: 0.2}"))
    compare(tmp_path, "rmse", ["--epochs", "12", "--units", "50"], lanes=5)


@pytest.mark.proof
@real_sets.needs("jsb_chorales")
def test_jsb_chorales_in_chunks_equals_whole_records_within_noise(tmp_path):
    flags = ["--epochs", "15", "--units", "60", "--learning_rate", "0.01"]
    compare(real_sets.jsb_chorales(tmp_path), "nll", flags, lanes=28)
