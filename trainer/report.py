"""Prints plans, training results and evaluations as text and tables."""

import math
import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

from rich.console import Console

from pipeline.errors import counted
from pipeline.schema.labels import class_name
from pipeline.tables import buffered_console, print_table, table_fits
from trainer.batching.plan import Plan
from trainer.batching.stateful import StatefulPlan

# The metrics that fit into a table row, by the first metric of a label kind. All metrics are in the JSON file.
_SHOWN_METRICS = {
    "accuracy": ("accuracy", "top_3_accuracy", "top_5_accuracy", "macro_f1", "expected_calibration_error"),
    "nll": ("micro_f1", "macro_f1", "exact_match", "auc", "average_precision", "expected_calibration_error"),
    "mae": ("mae", "rmse"),
}
_COLUMN_TITLES = {
    "top_3_accuracy": "top 3",
    "top_5_accuracy": "top 5",
    "exact_match": "EM",
    "average_precision": "AP",
    "expected_calibration_error": "ECE",
}
# Number of values in the line about the validation split.
_MAX_VALUES = 4
# Largest numbers of groups or raw files, and of classes, in a table.
_MAX_PARTS = 20
_MAX_CLASSES = 12
# Number of classes in the table of the worst ones, if there are too many to list all, and of confused pairs.
_WORST_CLASSES = 10
_WORST_PAIRS = 10


def print_plans(plans: Sequence[Plan], dataset: str, split: str, *, parts: int | None = None) -> None:
    """Prints a table with one row for each plan.

    Args:
        parts: Number of parts in which the records are stored; None if the dataset stores no parts.
    """
    columns = ("batching", "budget", "batches", "padded steps", "useful", "largest batch", "shapes")
    with buffered_console() as console:
        records, steps = counted(plans[0].records, "record"), counted(plans[0].steps, "step")
        stored = "" if parts is None else f", stored as {counted(parts, 'part')}"
        console.print(f"{dataset}: an epoch of {split}, {records}, {steps}{stored}", soft_wrap=True)
        print_table(console, "Batching methods", columns, map(_plan_row, plans))
        console.print(
            "\nbudget and padded steps: time steps, including padding; useful: the share of steps that are not padding"
        )
        for plan in plans:
            if isinstance(plan, StatefulPlan):
                console.print(_describe_lanes(plan))
        if len(plans) == 1:
            console.print(
                "The other batching methods cannot read records that are stored in parts. --parts independent plans "
                "them with each part as a record of its own."
            )
        largest = [(plan, math.prod(plan.largest_batch)) for plan in plans]
        beyond = [steps for plan, steps in largest if plan.batch_steps is not None and steps > plan.batch_steps]
        if beyond:
            longest = counted(max(beyond), "step")
            console.print(f"A record longer than the budget is a batch of its own: here up to {longest}.")


def _describe_lanes(plan: StatefulPlan) -> str:
    """Returns what limits the lanes of a plan, and the number of lanes that would be better."""
    text = f"stateful: {counted(plan.lanes, 'lane')} with chunks of at most {counted(plan.chunk_steps, 'step')}"
    if plan.bound == 1:
        return text
    longest = counted(int(plan.lengths.max()), "step")
    return (
        f"{text}. Lanes that all read until the last update have at most {plan.bound:.1%} useful steps, because a "
        f"record has {longest}; {counted(plan.better_lanes, 'lane')} could end together."
    )


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
    """Prints the contents of result.json; `output` is the run's folder."""
    print(
        f"{output}: {counted(result['epochs'], 'epoch')}, {counted(result['updates'], 'update')}, "
        f"{counted(result['parameters'], 'parameter')}, "
        f"{result['useful_share']:.1%} of the computed steps were useful"
    )
    if result["validation"] is not None:
        values = {"loss": result["validation"]["loss"], **result["validation"]["metrics"]}
        shown = [f"{name} {_number(value)}" for name, value in values.items()][:_MAX_VALUES]
        print(f"validation after the last epoch: {', '.join(shown)}")
    if result["best_epoch"] is not None:
        print(f"best by validation loss: epoch {result['best_epoch']}")
    print(f"weights sha256 {result['weights_sha256']}")


def print_evaluation(evaluation: dict[str, Any], run: str) -> None:
    """Prints the contents of evaluation-<split>.json; `run` is the run's folder. Notes go to stderr."""
    if evaluation["dataset_changed"]:
        print("Note: this is not the dataset that the run was trained on (the fingerprints differ).", file=sys.stderr)
    for name in evaluation["vocabularies_changed"]:
        print(
            f"Note: the dataset has a different vocabulary for {name}; the vocabulary of the run was used.",
            file=sys.stderr,
        )
    metrics = evaluation["metrics"]
    shown = [name for name in _SHOWN_METRICS[next(iter(metrics))] if name in metrics]
    with buffered_console() as console:
        console.print(f"{run}: {evaluation['checkpoint']} checkpoint")
        parts = [*_length_bands(evaluation), ("all", evaluation), *_baseline_row(evaluation["baseline"])]
        _print_parts(console, f"Split {evaluation['split']}", "steps", parts, shown)
        for name in ("group", "source"):
            _print_largest(console, evaluation, name, shown)
        _print_classes(console, evaluation.get("by_class"))
        if not _print_confusion(console, evaluation.get("confusion")):
            _print_confused_pairs(console, evaluation)
        abbreviated = [name for name in shown if _COLUMN_TITLES.get(name, "").isupper()]
        notes = [f"{_COLUMN_TITLES[name]}: {name.replace('_', ' ')}" for name in abbreviated]
        console.print("\n" + "; ".join([*notes, f"all metrics: evaluation-{evaluation['split']}.json"]))
        if evaluation["baseline"] is not None:
            console.print(_describe_baseline(evaluation["baseline"]))
        if evaluation.get("labelled_steps") == 0:
            console.print(f"Note: no step of the split {evaluation['split']} has a label.")
        for note in (_compare_with_baseline(evaluation), _describe_worst_length(evaluation)):
            if note is not None:
                console.print(note, soft_wrap=True)


# (title, loss and metrics) of each part of a split.
_Parts: TypeAlias = list[tuple[str, dict[str, Any]]]


def _length_bands(evaluation: dict[str, Any]) -> _Parts:
    return [(_length_title(band), band) for band in evaluation["by_length"]]


def _length_title(band: dict[str, Any]) -> str:
    first, last = band["min_steps"], band["max_steps"]
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def _baseline_row(baseline: dict[str, Any] | None) -> _Parts:
    if baseline is None:
        return []
    metrics = baseline["metrics"]
    # For classes, this is the loss. That of a number may have another scale.
    loss = metrics.get("cross_entropy", metrics.get("nll"))
    return [("baseline", {"records": None, "labelled_steps": None, "loss": loss, "metrics": metrics})]


def _baseline_answer(baseline: dict[str, Any]) -> str:
    if baseline["metric"] == "accuracy":
        return _class_title(baseline["answer"])
    return "the share of each class" if baseline["metric"] == "nll" else "the mean"


def _describe_baseline(baseline: dict[str, Any]) -> str:
    """Returns what the baseline predicts."""
    description = ", the most frequent class" if baseline["metric"] == "accuracy" else ""
    return f"baseline: always {_baseline_answer(baseline)}{description} in {baseline['source']}"


def _compare_with_baseline(evaluation: dict[str, Any]) -> str | None:
    """Returns a line if the model is not better than the baseline."""
    baseline = evaluation["baseline"]
    if baseline is None or baseline["is_beaten"] is not False:
        return None
    metric = baseline["metric"]
    ours, theirs = evaluation["metrics"][metric], baseline["metrics"][metric]
    answer = f"that of always answering {_baseline_answer(baseline)}"
    if _number(ours) == _number(theirs):
        return f"Note: {metric} {_number(ours)} is {answer}."
    is_better = ours > theirs if metric == "accuracy" else ours < theirs
    relation = "hardly better" if is_better else "worse"
    return f"Note: {metric} {_number(ours)} is {relation} than {answer}, {_number(theirs)}."


def _describe_worst_length(evaluation: dict[str, Any]) -> str | None:
    """Returns a line about the length on which the model is clearly worse than on all records, if there is one."""
    if not evaluation["worse_lengths"]:
        return None
    worst, *others = evaluation["worse_lengths"]
    more = f"; {counted(len(others), 'other length')} too" if others else ""
    return (
        f"Records of {_length_title(worst)} steps: {worst['metric']} {_number(worst['value'])} on "
        f"{counted(worst['records'], 'record')}, {_number(worst['all'])} on all{more}."
    )


def _print_largest(console: Console, evaluation: dict[str, Any], name: str, shown: Sequence[str]) -> None:
    parts = evaluation.get(f"by_{name}")
    if parts is None:
        return
    rows = [("unknown" if part[name] is None else part[name], part) for part in parts[:_MAX_PARTS]]
    total = len(parts) + evaluation[f"{name}s_left_out"]
    title = f"By {name}" + (f", the {len(rows)} of {total:,} with the most records" if total > len(rows) else "")
    _print_parts(console, title, name, rows, shown)


def _print_parts(console: Console, title: str, name: str, parts: _Parts, shown: Sequence[str]) -> None:
    per_step = "labelled_steps" in parts[0][1]
    keys = {"records": "records"} | ({"labels": "labelled_steps"} if per_step else {})
    columns = (name, *keys, "loss", *(_COLUMN_TITLES.get(metric, metric) for metric in shown))
    rows = (
        (
            part,
            *(_whole_number(found[key]) for key in keys.values()),
            _number(found["loss"]),
            *(_number(found["metrics"].get(m)) for m in shown),
        )
        for part, found in parts
    )
    print_table(console, title, columns, rows)


def _print_classes(console: Console, classes: list[dict[str, Any]] | None) -> None:
    if classes is None:
        return
    title = "By class"
    if len(classes) > _MAX_CLASSES:
        labelled = [found for found in classes if found["support"]]
        unlabelled = len(classes) - len(labelled)
        classes = sorted(labelled, key=lambda found: (found["f1"], -found["support"]))[:_WORST_CLASSES]
        title += f", the {len(classes)} of {len(labelled):,} with the lowest F1"
        title += f" ({unlabelled:,} more without a label)" if unlabelled else ""
    measures = ("precision", "recall", "f1")
    rows = (
        (_class_title(found["class"]), *(_number(found[name]) for name in measures), f"{found['support']:,}")
        for found in classes
    )
    print_table(console, title, ("class", "precision", "recall", "F1", "support"), rows)


def _class_title(name: Any) -> str:
    """Returns the name of a class in a table; None stands for all strings that are not in the vocabulary."""
    return "other" if name is None else class_name(name)


def _print_confusion(console: Console, confusion: dict[str, Any] | None) -> bool:
    """Prints the counts as a table if there are few classes and the table is not too wide. Returns whether it did."""
    if confusion is None or len(confusion["classes"]) > _MAX_CLASSES:
        return False
    classes = [_class_title(name) for name in confusion["classes"]]
    rows = [(name, *map(str, row)) for name, row in zip(classes, confusion["counts"], strict=True)]
    if not table_fits(console, ("", *classes), rows):
        return False
    print_table(console, "Confusion (rows: labels, columns: predictions)", ("", *classes), rows)
    return True


def _print_confused_pairs(console: Console, evaluation: dict[str, Any]) -> None:
    if "confused_pairs" not in evaluation:  # a label may be several classes
        return
    pairs, undercount = evaluation["confused_pairs"], evaluation["confused_pairs_undercount"]
    total, listed = len(pairs) + evaluation["confused_pairs_left_out"], pairs[:_WORST_PAIRS]
    title = f"Most confused classes, {len(listed)} of {counted(total, 'pair')}" if pairs else "No classes were confused"
    title += f", with counts that are too low by up to {undercount:,}" if undercount else ""
    rows = [
        (_class_title(p["label"]), _class_title(p["predicted"]), f"{p['count']:,}", f"{p['share']:.1%}") for p in listed
    ]
    print_table(console, title, ("label", "predicted", "labels", "share of label"), rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _whole_number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
