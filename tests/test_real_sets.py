"""Published data sets reach what is known of them, from their raw files, through the command line."""

import json

import pytest
import real_sets

from lengthwise import main

SEEDS = (0, 1, 2)


def _accuracy(folder, flags, seed):
    """Test accuracy of `lengthwise train` with these flags, on raw.jsonl and schema.yaml in `folder`."""
    dataset, run = str(folder / "dataset"), str(folder / f"run-{seed}")
    if not (folder / "dataset").exists():
        raw, schema = str(folder / "raw.jsonl"), str(folder / "schema.yaml")
        assert main(["prepare", raw, "--schema", schema, "--output", dataset]) == 0
    assert main(["train", dataset, "--output", run, "--seed", str(seed), *flags]) == 0
    assert main(["evaluate", run, dataset]) == 0
    return json.loads((folder / f"run-{seed}" / "evaluation-test.json").read_text())["metrics"]["accuracy"]


def _mean_accuracy(folder, flags=()):
    accuracies = [_accuracy(folder, flags, seed) for seed in SEEDS]
    print(f"{folder.name} {' '.join(flags)}: accuracy {accuracies}, mean {sum(accuracies) / len(accuracies):.4f}")
    return sum(accuracies) / len(accuracies)


@real_sets.needs("japanese_vowels")
def test_japanese_vowels_with_the_defaults_and_few_epochs(tmp_path):
    assert _accuracy(real_sets.japanese_vowels(tmp_path), ["--epochs", "8"], 0) >= 0.92


@pytest.mark.proof
@real_sets.needs("japanese_vowels")
def test_japanese_vowels_with_the_defaults(tmp_path):
    assert _mean_accuracy(real_sets.japanese_vowels(tmp_path)) >= 0.96


@pytest.mark.proof
@real_sets.needs("snips_slots")
def test_snips_intents(tmp_path):
    assert _mean_accuracy(real_sets.snips(tmp_path, per_step=False), ["--epochs", "10"]) >= 0.95


@pytest.mark.proof
@real_sets.needs("snips_slots")
def test_snips_slots_bidirectional(tmp_path):
    flags = ["--epochs", "15", "--bidirectional", "--batch_steps", "800", "--dropout", "0.3", "--optimizer", "adam"]
    assert _mean_accuracy(real_sets.snips(tmp_path, per_step=True), flags) >= 0.94
