"""Published data sets reach their known accuracy, from raw files, through the command line."""

import pytest
import real_sets
from real_sets import measure

SEEDS = (0, 1, 2)
SLOTS = ["--bidirectional", "--batch_steps", "800", "--dropout", "0.3", "--optimizer", "adam"]


def mean_of(metric, folder, flags=()):
    """Returns the mean of a metric on the test split over three seeds, and prints it with the useful share."""
    found = [measure(folder, flags, seed=seed) for seed in SEEDS]
    values = [evaluation["metrics"][metric] for evaluation, _ in found]
    mean = sum(values) / len(values)
    print(
        f"\n{folder.name} `train {' '.join(flags)}`: {metric} {', '.join(f'{value:.4f}' for value in values)}, "
        f"mean {mean:.4f}; useful share {found[0][1]['useful_share']:.3f}"
    )
    return mean


# What takes some seconds, on one seed and few epochs: far from what is reached, and farther from what a mistake gives.


@real_sets.needs("japanese_vowels")
def test_japanese_vowels_with_the_defaults_and_few_epochs(tmp_path):
    evaluation, _ = measure(real_sets.japanese_vowels(tmp_path), ["--epochs", "8"])
    assert evaluation["metrics"]["accuracy"] >= 0.92


@pytest.mark.proof
@real_sets.needs("snips_slots")
def test_snips_intents_after_two_epochs(tmp_path):
    evaluation, _ = measure(real_sets.snips(tmp_path, per_step=False), ["--epochs", "2", "--units", "50"])
    assert evaluation["metrics"]["accuracy"] >= 0.9


@real_sets.needs("helpdesk")
def test_helpdesk_after_five_epochs(tmp_path):
    evaluation, _ = measure(real_sets.helpdesk(tmp_path), ["--epochs", "5", "--units", "50"])
    # An accuracy above 0.75 would mean that the end of a case is among the labels.
    assert 0.66 <= evaluation["metrics"]["accuracy"] <= 0.75


@pytest.mark.proof
@real_sets.needs("cmapss_fd001")
def test_cmapss_after_few_epochs(tmp_path):
    evaluation, _ = measure(real_sets.cmapss(tmp_path), ["--epochs", "6", "--units", "50", "--learning_rate", "0.01"])
    assert evaluation["metrics"]["rmse"] <= 26  # predicting the mean of all labels gives 41


@pytest.mark.proof
@real_sets.needs("jsb_chorales")
def test_jsb_chorales_after_few_epochs(tmp_path):
    flags = ["--epochs", "10", "--units", "60", "--learning_rate", "0.01"]
    evaluation, _ = measure(real_sets.jsb_chorales(tmp_path), flags)
    assert evaluation["metrics"]["nll"] <= 9.7  # predicting the frequency of each note gives 11


@pytest.mark.proof
@real_sets.needs("japanese_vowels")
def test_japanese_vowels_with_the_defaults(tmp_path):
    assert mean_of("accuracy", real_sets.japanese_vowels(tmp_path)) >= 0.96


@pytest.mark.proof
@real_sets.needs("snips_slots")
def test_snips_intents(tmp_path):
    assert mean_of("accuracy", real_sets.snips(tmp_path, per_step=False), ["--epochs", "10"]) >= 0.95


@pytest.mark.proof
@real_sets.needs("snips_slots")
def test_snips_slots_bidirectional(tmp_path):
    assert mean_of("accuracy", real_sets.snips(tmp_path, per_step=True), ["--epochs", "15", *SLOTS]) >= 0.94


@pytest.mark.proof
@real_sets.needs("helpdesk")
def test_helpdesk_next_activity(tmp_path):
    assert 0.70 <= mean_of("accuracy", real_sets.helpdesk(tmp_path), ["--epochs", "15"]) <= 0.75


@pytest.mark.proof
@real_sets.needs("cmapss_fd001")
def test_cmapss_remaining_life(tmp_path):
    assert mean_of("rmse", real_sets.cmapss(tmp_path), ["--epochs", "30"]) <= 18


@pytest.mark.proof
@real_sets.needs("jsb_chorales")
def test_jsb_chorales_next_frame(tmp_path):
    assert mean_of("nll", real_sets.jsb_chorales(tmp_path), ["--epochs", "50", "--units", "200"]) <= 8.7
