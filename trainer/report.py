"""Prints what a plan, a run and an evaluation say, for people."""

import sys
from collections.abc import Sequence
from typing import Any

from pipeline.tables import page, print_table
from trainer.plan import Plan


def print_plans(plans: Sequence[Plan], dataset: str, split: str) -> None:
    columns = ("batching", "budget", "batches", "padded steps", "useful", "largest batch", "shapes")
    with page() as console:
        console.print(f"{dataset}: an epoch of {split}, {plans[0].records:,} records, {plans[0].steps:,} steps")
        print_table(console, "Ways of batching", columns, map(_plan_row, plans))
        console.print("\nbudget and padded steps: time steps, padding included; useful: the share that is no padding")


def _plan_row(plan: Plan) -> tuple[str, ...]:
    rows, steps = plan.largest_batch
    return (
        plan.batching,
        "-" if plan.batch_steps is None else f"{plan.batch_steps:,}",
        f"{plan.num_batches:,}",
        f"{plan.padded_steps:,}",
        f"{plan.useful_share:.1%}",
        f"{rows:,} x {steps:,}",
        f"{len(plan.shapes):,}",
    )


def print_result(result: dict[str, Any], output: str) -> None:
    print(
        f"{output}: {_count(result['epochs'], 'epoch')}, {_count(result['updates'], 'update')}, "
        f"{_count(result['parameters'], 'parameter')}, "
        f"{result['useful_share']:.1%} of the computed steps were useful"
    )
    if result["validation"] is not None:
        values = {"loss": result["validation"]["loss"], **result["validation"]["metrics"]}
        print(f"validation after the last epoch: {', '.join(f'{n} {v:.4f}' for n, v in values.items())}")
    if result["best_epoch"] is not None:
        print(f"best by validation loss: epoch {result['best_epoch']}")
    print(f"weights sha256 {result['weights_sha256']}")


def print_evaluation(evaluation: dict[str, Any], run: str) -> None:
    if evaluation["dataset_changed"]:
        print("Note: this is not the dataset that the run was trained on (another fingerprint).", file=sys.stderr)
    columns = ("steps", "records", "loss", *evaluation["metrics"])
    rows = [(f"{b['min_steps']:,} to {b['max_steps']:,}", *_measures(b)) for b in evaluation["by_length"]]
    with page() as console:
        console.print(f"{run}: {evaluation['checkpoint']} checkpoint")
        print_table(console, f"Split {evaluation['split']}", columns, [*rows, ("all", *_measures(evaluation))])


def _measures(measured: dict[str, Any]) -> tuple[str, ...]:
    values = [measured["loss"], *measured["metrics"].values()]
    return (f"{measured['records']:,}", *("-" if value is None else f"{value:.4f}" for value in values))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
