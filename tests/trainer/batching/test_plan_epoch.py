"""The command `plan` prints the plan of an epoch for every batching method."""

import json

import lengthwise
from trainer.batching.plan_epoch import plan_epoch
from trainer.batching.stateful import make_stateful_plan
from trainer.config import BATCHING_METHODS
from trainer.data.dataset import open_dataset


def test_the_command_prints_the_plans_of_plan_epoch(dataset, capsys):
    opened = open_dataset(dataset)
    flags = ["--batch_steps", "80", "--batch_size", "5", "--pad_to_multiple", "4"]
    assert lengthwise.main(["plan", dataset, *flags, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    limits = {"batch_steps": 80, "batch_size": 5}
    multiple = {"window": 4, "bucket": 4}
    plans = {
        method: plan_epoch(opened, "train", batching=method, pad_to_multiple=multiple.get(method, 1), **limits)
        for method in BATCHING_METHODS
    }
    plans["stateful"] = make_stateful_plan(opened.lengths("train"))
    assert printed == {method: plan.to_dict() for method, plan in plans.items()}
    assert printed["exact"]["useful_share"] == 1.0
    assert printed["window"]["largest_batch"]["steps"] % 4 == printed["bucket"]["largest_batch"]["steps"] % 4 == 0
    assert lengthwise.main(["plan", dataset]) == 0
    shown = capsys.readouterr().out
    assert all(f"{plan_epoch(opened, 'train', batching=method).num_batches:,}" in shown for method in BATCHING_METHODS)
    assert "A record longer than the budget" not in shown
    assert lengthwise.main(["plan", dataset, "--batch_steps", "30"]) == 0
    said = "\nA record longer than the budget is a batch of its own: here up to 40 steps.\n"
    assert capsys.readouterr().out.endswith(said)
    assert lengthwise.main(["plan", dataset, "--chunk_steps", "5", "--lanes", "140"]) == 0
    plan = make_stateful_plan(opened.lengths("train"), chunk_steps=5, lanes=140)
    assert 0 < plan.bound < 1
    said = (
        f"stateful: {plan.lanes} lanes with chunks of at most 5 steps. Lanes that all read until the last update have"
    )
    shown = " ".join(capsys.readouterr().out.split())
    assert said in shown and f"at most {plan.bound:.1%} useful steps" in shown


def test_a_missing_dataset_or_split_is_an_error_of_one_line(dataset, tmp_path, capsys):
    assert lengthwise.main(["plan", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"lengthwise plan: {tmp_path}: not a dataset: it has no manifest.json")
    assert lengthwise.main(["plan", dataset, "--split", "trian"]) == 1
    assert "has no split 'trian'; it has train, validation, test." in capsys.readouterr().err


def test_the_command_plans_padding_to_a_given_length(dataset, capsys):
    assert lengthwise.main(["plan", dataset, "--pad_length", "2", "--truncate", "tail", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["pad"]["largest_batch"]["steps"] == 2
    assert printed["exact"]["useful_share"] == 1.0
    assert lengthwise.main(["plan", dataset, "--pad_length", "2"]) == 1
    assert "choose truncate head or tail." in capsys.readouterr().err
