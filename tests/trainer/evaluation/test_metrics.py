"""Metrics equal a computation by hand, for any values in the padding and any batches."""

import numpy as np
import pytest
from metrics_by_hand import metrics_by_hand, rounded, table_by_hand
from random_outputs import TARGETS, random_batch, with_arbitrary_padding

from trainer.data.target import Target
from trainer.evaluation import metrics as metrics_module
from trainer.evaluation.breakdown import Breakdown
from trainer.evaluation.metrics import MAX_CONFUSION_CLASSES, Metrics, metric_names

EVERY_TARGET = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
PERFECT = {"cross_entropy": 0.0, "nll": 0.0, "expected_calibration_error": 0.0, "mae": 0.0, "rmse": 0.0}


def gather(target, *batches, breakdowns=(), **options):
    metrics = Metrics(target, breakdowns, **options)
    for batch in batches:
        metrics.update(*batch)
    return metrics


def cut(batch, *places, order=None):
    rows = np.arange(len(batch[0])) if order is None else order
    return [[values[few] for values in batch] for few in np.split(rows, places)]


def random_parts(name="group", rows=60, seed=7):
    """Returns a breakdown in which some records are in no part."""
    part = np.random.default_rng(seed).integers(0, 5, rows)
    return Breakdown(name, tuple({name: letter} for letter in "abcd"), part)


@EVERY_TARGET
@pytest.mark.parametrize("seed", [1, 2])
def test_every_metric_equals_a_count_by_hand(target, seed):
    outputs, label, weight, loss, length, _ = batch = random_batch(np.random.default_rng(seed), target)
    real = weight > 0
    expected = metrics_by_hand(target, outputs[real], label[real])
    result = gather(target, with_arbitrary_padding(target, batch)).result()
    assert list(result["metrics"]) == list(metric_names(target)) and set(expected) == set(result["metrics"])
    assert result.pop("metrics") == pytest.approx(expected, rel=1e-9)
    labelled = {"labelled_steps": real.sum()} if target.per_step else {}
    assert result == {"records": 60, "steps": length.sum(), "loss": pytest.approx(loss[real].mean())} | labelled


@EVERY_TARGET
def test_each_part_is_measured_as_if_it_were_alone(target):
    batch, parts = random_batch(np.random.default_rng(3), target), random_parts()
    found = gather(target, *cut(batch, 11, 30), breakdowns=[parts, random_parts("source", seed=8)])
    (breakdown, groups), (_, sources) = found.by_part()
    assert breakdown is parts and [group.pop("group") for group in groups] == list("abcd")
    for number, group in enumerate(groups):
        alone = gather(target, [values[parts.part == number] for values in batch]).result()
        assert group.pop("metrics") == pytest.approx(alone.pop("metrics"), rel=1e-12)
        assert group == pytest.approx(alone, rel=1e-12)
    assert [source["source"] for source in sources] == list("abcd") and sources[0]["records"] != groups[0]["records"]


@EVERY_TARGET
@pytest.mark.parametrize("slice_size", [1, 50, 2**18])
def test_neither_order_nor_batches_matter(target, slice_size, monkeypatch):
    batch, parts = random_batch(np.random.default_rng(4), target), random_parts()
    whole = gather(target, batch, breakdowns=[parts])
    monkeypatch.setattr(metrics_module, "_SLICE", slice_size)
    order = np.random.default_rng(5).permutation(60)
    other = gather(target, *cut(batch, 1, 20, 33, 33, order=order), breakdowns=[parts])
    [(_, some)], [(_, others)] = whole.by_part(), other.by_part()
    for one, same in ((whole.result(), other.result()), *zip(some, others, strict=True)):
        assert one.pop("metrics") == pytest.approx(same.pop("metrics"), rel=1e-12, abs=1e-12)
        assert one.pop("loss") == pytest.approx(same.pop("loss"), rel=1e-12)
        assert one == same
    assert (whole.confusion(), whole.confused_pairs()) == (other.confusion(), other.confused_pairs())


@pytest.mark.parametrize(
    ("target", "name"), [(target, name) for target in TARGETS.values() for name in metric_names(target)]
)
def test_perfect_predictions_with_any_values_in_the_padding_have_perfect_scores(target, name):
    random = np.random.default_rng(6)
    outputs, label, weight, loss, length, row = random_batch(random, target)
    if not target.per_step:
        weight = (random.random(60) < 0.8).astype(np.float32)  # filler rows
    if target.kind == "distribution":
        label = np.eye(3, dtype=np.float32)[label.argmax(-1)]
    if label.dtype == np.int64:
        outputs = np.eye(target.size, dtype=np.float32)[label] * 1000
    else:
        outputs = label * 2000 - 1000 if name not in ("mae", "rmse") else label
    batch = with_arbitrary_padding(target, (outputs, label, weight, np.zeros_like(loss), length, row))
    found = gather(target, batch, breakdowns=[random_parts()])
    assert found.result()["metrics"][name] == PERFECT.get(name, 1.0)
    assert found.result()["loss"] == 0.0
    [(_, groups)] = found.by_part()
    assert [group["metrics"][name] for group in groups] == [PERFECT.get(name, 1.0)] * 4


@pytest.mark.parametrize(
    "target", [t for t in TARGETS.values() if t.names], ids=[n for n, t in TARGETS.items() if t.names]
)
def test_the_measures_of_every_class_equal_a_count_by_hand(target):
    outputs, label, weight, *_ = batch = random_batch(np.random.default_rng(11), target)
    real = weight > 0
    found = gather(target, *cut(with_arbitrary_padding(target, batch), 5, 40), breakdowns=[random_parts()])
    assert rounded(found.by_class()) == rounded(table_by_hand(target, outputs[real], label[real]))
    defined = [row["f1"] for row in found.by_class() if row["f1"] is not None]
    assert np.mean(defined) == pytest.approx(found.result()["metrics"]["macro_f1"])


def test_the_measures_of_thousands_of_classes_equal_a_count_by_hand():
    """Of 5,000 classes, 39 occur; 38 only as a label or only as a prediction."""
    random, target = np.random.default_rng(12), Target("class", 5000, tuple(range(5000)))
    outputs, (label, predicted) = np.zeros((20, 5000), np.float32), random.permutation(5000)[:40].reshape(2, 20)
    predicted[0] = label[0]
    outputs[np.arange(20), predicted] = 1
    found = gather(target, (outputs, label, np.ones(20), np.zeros(20), np.ones(20, int))).by_class()
    only_label = {"precision": None, "recall": 0.0, "f1": 0.0, "support": 1}
    only_predicted = {"precision": 0.0, "recall": None, "f1": 0.0, "support": 0}
    both = {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1}
    neither = {"precision": None, "recall": None, "f1": None, "support": 0}
    for row in found:
        c = row.pop("class")
        there = [both, only_label, only_predicted, neither][2 * (c not in label) + (c not in predicted)]
        assert row == there


@EVERY_TARGET
def test_without_labels_every_measure_is_none(target):
    nothing = {"records": 0, "steps": 0, "loss": None, "metrics": dict.fromkeys(metric_names(target))}
    nothing |= {"labelled_steps": 0} if target.per_step else {}
    assert gather(target).result() == nothing
    parts = random_parts()
    [(_, groups)] = gather(target, breakdowns=[parts]).by_part()
    assert groups == [{"group": letter} | nothing for letter in "abcd"]


def test_classes_that_never_occur_do_not_count():
    outputs, label = np.eye(4, dtype=np.float32)[[0, 1, 1, 0]], np.array([0, 1, 0, 0])
    found = gather(TARGETS["class"], (outputs, label, np.ones(4), np.zeros(4), np.ones(4, int))).result()
    assert found["metrics"]["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)


def test_an_undefined_metric_is_none():
    """No class is a label or predicted, and no class has both positives and negatives."""
    outputs, label = np.full((3, 4), -9, np.float32), np.zeros((3, 4), np.float32)
    found = gather(TARGETS["multilabel"], (outputs, label, np.ones(3), np.zeros(3), np.ones(3, int))).result()
    undefined = [name for name, value in found["metrics"].items() if value is None]
    assert undefined == ["micro_f1", "auc", "average_precision", "macro_f1"]
    assert (found["metrics"]["accuracy"], found["metrics"]["exact_match"]) == (1.0, 1.0)


def test_auc_is_the_mean_over_the_classes_with_positives_and_negatives():
    outputs = np.array([[1, 1, 1, 1], [2, 0, 3, 1], [3, 2, 4, 5]], np.float32)
    label = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [1, 1, 0, 0]], np.float32)  # 1.0, all, 0.0, none
    found = gather(TARGETS["multilabel"], (outputs, label, np.ones(3), np.zeros(3), np.ones(3, int))).result()
    assert found["metrics"]["auc"] == 0.5


def test_without_rankings_the_other_metrics_are_the_same():
    target = TARGETS["step_multilabel"]
    batch = random_batch(np.random.default_rng(9), target)
    ranked, other = gather(target, batch).result()["metrics"], gather(target, batch, ranked=False).result()["metrics"]
    del ranked["auc"], ranked["average_precision"]
    assert other == ranked and list(other) == list(metric_names(target, ranked=False))


def test_a_filler_row_is_not_a_record():
    outputs, label, length = np.zeros((3, 4), np.float32), np.zeros(3, int), np.array([5, 1, 7])
    parts = Breakdown("group", ({"group": "a"},), np.array([0, 0, 1]))
    found = gather(TARGETS["class"], (outputs, label, np.array([1, 0, 1]), np.ones(3), length, np.arange(3)))
    assert (found.result()["records"], found.result()["steps"]) == (2, 12)
    batch = (outputs, label, np.array([1, 0, 1]), np.ones(3), length, np.arange(3))
    [(_, [group])] = gather(TARGETS["class"], batch, breakdowns=[parts]).by_part()
    assert (group["records"], group["steps"]) == (1, 5)


def test_a_record_without_labels_is_counted_and_has_no_weight():
    outputs, label, length = np.zeros((2, 3, 6), np.float32), np.zeros((2, 3), int), np.array([3, 2])
    weight = np.array([[0, 0, 0], [1, 1, 0]])
    parts = Breakdown("group", ({"group": "a"}, {"group": "b"}), np.array([0, 1]))
    batch = (outputs, label, weight, np.ones((2, 3)), length, np.arange(2))
    found = gather(TARGETS["step_class"], batch, breakdowns=[parts])
    assert (found.result()["records"], found.result()["steps"], found.result()["loss"]) == (2, 5, 1.0)
    [(_, groups)] = found.by_part()
    assert [(group["records"], group["steps"], group["loss"]) for group in groups] == [(1, 3, None), (1, 2, 1.0)]


def test_the_first_of_equal_outputs_ranks_first():
    outputs, label = np.zeros((7, 7), np.float32), np.arange(7)
    found = gather(TARGETS["class of many"], (outputs, label, np.ones(7), np.zeros(7), np.ones(7, int))).result()
    assert found["metrics"]["accuracy"] == pytest.approx(1 / 7)
    assert found["metrics"]["top_3_accuracy"] == pytest.approx(3 / 7)
    assert found["metrics"]["top_5_accuracy"] == pytest.approx(5 / 7)


def test_a_calibration_bin_includes_its_upper_edge():
    """1/3 is the upper edge of the 5th of 15 bins, so a higher probability is in another bin."""
    outputs, label = np.array([[0, 0, 0], [0.1, 0, 0]], np.float32), np.array([0, 1])
    p = np.exp(0.1) / (np.exp(0.1) + 2)
    found = gather(
        Target("class", 3, tuple("abc")), (outputs, label, np.ones(2), np.zeros(2), np.ones(2, int))
    ).result()
    assert found["metrics"]["expected_calibration_error"] == pytest.approx((2 / 3 + p) / 2)


def test_nan_outputs_are_never_right():
    for target in (TARGETS["class of many"], TARGETS["multilabel"]):
        outputs, loss = np.full((2, target.size), np.nan, np.float32), np.full(2, np.nan)
        label = np.zeros(2, int) if target.kind == "class" else np.ones((2, 4), np.float32)
        found = gather(target, (outputs, label, np.ones(2), loss, np.ones(2, int))).result()
        assert np.isnan(found["loss"])
        assert found["metrics"]["accuracy"] == found["metrics"]["micro_f1"] == 0
        assert np.isnan(found["metrics"]["expected_calibration_error"])


def test_large_outputs_are_exact():
    label = np.array([[1, 0, 0, 1]], np.float32)
    outputs = np.array([[-1e4, 1e4, -3e4, 2e4]], np.float32)
    found = gather(TARGETS["multilabel"], (outputs, label, np.ones(1), np.zeros(1), np.ones(1, int))).result()
    assert found["metrics"]["nll"] == 2e4
    batch = (outputs, np.array([0]), np.ones(1), np.zeros(1), np.ones(1, int))
    assert gather(TARGETS["class"], batch).result()["metrics"]["cross_entropy"] == 3e4


def test_the_confusion_table_counts_actual_and_predicted_classes():
    target = TARGETS["next value"]
    outputs, label, weight, *_ = batch = random_batch(np.random.default_rng(10), target)
    counts = [[0] * 4 for _ in range(4)]
    for logits, y in zip(outputs[weight > 0], label[weight > 0], strict=True):
        counts[y][int(logits.argmax())] += 1
    found = gather(target, *cut(with_arbitrary_padding(target, batch), 7))
    assert found.confusion() == {"classes": ["a", "b", "c", None], "counts": counts}
    pairs = [(counts[a][p], target.names[a], target.names[p], a) for a in range(4) for p in range(4) if a != p]
    expected = sorted((pair for pair in pairs if pair[0]), key=lambda pair: -pair[0])
    assert [tuple(pair.values()) for pair in found.confused_pairs()["confused_pairs"]] == [
        (label, other, count, count / sum(counts[a])) for count, label, other, a in expected
    ]


def test_there_is_no_confusion_table_for_very_many_classes_or_several_classes_per_label():
    for size, there_is in ((MAX_CONFUSION_CLASSES, True), (MAX_CONFUSION_CLASSES + 1, False)):
        target = Target("class", size, tuple(range(size)))
        batch = np.eye(size, dtype=np.float32)[:2], np.array([0, 0]), np.ones(2), np.zeros(2), np.ones(2, int)
        found = gather(target, batch)
        assert (found.confusion() is not None) == there_is
        pair = {"label": 0, "predicted": 1, "count": 1, "share": 0.5}
        assert found.confused_pairs()["confused_pairs"] == [pair]
        assert found.result()["metrics"]["accuracy"] == 0.5
    for name in ("multilabel", "step_multilabel", "regression", "next vector"):
        assert gather(TARGETS[name]).confusion() is None
