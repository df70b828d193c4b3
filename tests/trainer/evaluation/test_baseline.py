"""The baseline has the metrics of a model that always gives the same output, which it takes from the train split."""

import collections

import datasets
import numpy as np
import pytest
from metrics_by_hand import metrics_by_hand
from random_outputs import TARGETS, random_label

from trainer.data.dataset import open_dataset
from trainer.data.target import Target, make_target
from trainer.evaluation.baseline import (
    ConstantClass,
    ConstantClasses,
    ConstantNumber,
    make_baseline,
    measure_baseline,
)


def add_in_parts(baseline, label):
    for part in np.split(label, [0, 7, 31]):
        baseline.add(part)
    return baseline.metrics()


def metrics_of_a_constant(target, label, output):
    """Returns the metrics of a model with this output for each label."""
    return metrics_by_hand(target, np.tile(np.asarray(output, np.float64), (len(label), 1)), label)


@pytest.mark.parametrize("name", ["class", "class of many", "distribution", "step_class", "next value"])
@pytest.mark.parametrize("has_counts", [True, False])
def test_one_class_is_measured_like_a_model_with_constant_outputs(name, has_counts):
    """The last class is never a label of the split. In the second half of the cases it is the answer."""
    random, target = np.random.default_rng(1), TARGETS[name]
    label = random_label(random, target, (60,))
    for counts in (random.integers(0, 9, target.size), np.arange(target.size)):
        baseline = ConstantClass(target, counts if has_counts else None)
        found = add_in_parts(baseline, label)
        if not has_counts and target.kind == "distribution":
            # The answer is the class that is the most probable one most often; the shares are the mean probabilities.
            shares, counts = (label.sum(0, dtype=float) + 0.5) / (60 + 1.5), np.bincount(label.argmax(-1), minlength=3)
        elif not has_counts:
            counts = np.bincount(label, minlength=target.size)
        if has_counts or target.kind != "distribution":
            shares = (counts + 0.5) / (counts.sum() + 0.5 * target.size)
        expected = metrics_of_a_constant(target, label, counts)
        assert baseline.answer() == target.names[counts.argmax()]
        for metric in ("cross_entropy", "nll"):
            expected |= {metric: metrics_of_a_constant(target, label, np.log(shares))["cross_entropy"]}
        assert found == pytest.approx({metric: expected[metric] for metric in found})
        assert set(found) >= {"accuracy", "macro_f1", "micro_f1", "cross_entropy"}
        assert ("nll" in found, "top_3_accuracy" in found) == (target.per_step, target.size > 3)


def test_the_entropy_of_one_class_is_a_zero_without_a_sign():
    for counts in (np.array([5]), None):
        found = add_in_parts(ConstantClass(Target("class", 1, ("a",)), counts), np.zeros(40, np.int64))
        assert str(found["cross_entropy"]) == "0.0" and found["accuracy"] == 1


@pytest.mark.parametrize("counts", [[0, 3, 7, 30], [16, 31, 40, 60], [60, 60, 60, 60]])
def test_several_classes_are_measured_like_a_model_with_constant_outputs(counts):
    """A class that exactly half of the labels have is not predicted."""
    target, label = TARGETS["multilabel"], random_label(np.random.default_rng(2), TARGETS["multilabel"], (60,))
    label[3:5] = 1
    shares = (np.array(counts) + 0.5) / 61
    baseline = ConstantClasses(target, np.array(counts), 60)
    found = add_in_parts(baseline, label)
    expected = metrics_of_a_constant(target, label, np.log(shares / (1 - shares)))
    assert set(found) == {"nll", "micro_f1", "macro_f1", "accuracy", "exact_match"}
    assert found == pytest.approx({metric: expected[metric] for metric in found})
    assert baseline.answer() == [name for name, count in zip("abcd", counts, strict=True) if count > 30]


def test_the_f1_of_classes_that_nobody_has_is_undefined():
    baseline = ConstantClasses(TARGETS["multilabel"], np.zeros(4), 60)
    found = add_in_parts(baseline, np.zeros((60, 4), np.float32))
    assert [name for name, value in found.items() if value is None] == ["micro_f1", "macro_f1"]
    assert (found["accuracy"], found["exact_match"]) == (1.0, 1.0)


@pytest.mark.parametrize("name", ["regression", "step_regression", "next vector"])
def test_numbers_are_measured_like_a_model_with_constant_outputs(name):
    target = TARGETS[name]
    label, mean = random_label(np.random.default_rng(3), target, (60,)), np.array([0.3, -0.2, 5.0])[: target.size]
    baseline = ConstantNumber(mean)
    expected = metrics_of_a_constant(target, label, mean)
    assert add_in_parts(baseline, label) == pytest.approx(expected)
    assert baseline.answer() == (mean.tolist() if target.is_vector else 0.3)


def test_without_labels_every_metric_is_none():
    for baseline in (
        ConstantClass(TARGETS["step_class"], None),
        ConstantClasses(TARGETS["multilabel"], np.ones(4), 2),
        ConstantNumber(np.ones(1)),
    ):
        metrics = baseline.metrics()
        assert metrics and not any(value is not None for value in metrics.values())
        assert measure_baseline(baseline, "test", {baseline.metric: None})["is_beaten"] is None


def test_a_model_must_avoid_one_percent_of_the_error():
    """The baseline has an accuracy of 0.5, an error of 0.5."""
    baseline = ConstantClass(Target("class", 2, ("a", "b")), np.array([3, 1]))
    baseline.add(np.array([0, 1]))
    for accuracy, is_beaten in ((0.4, False), (0.5, False), (0.504, False), (0.506, True), (1.0, True)):
        assert measure_baseline(baseline, "test", {"accuracy": accuracy})["is_beaten"] is is_beaten
    baseline = ConstantNumber(np.zeros(1))
    baseline.add(np.array([2.0, -2.0]))
    for rmse, is_beaten in ((2.1, False), (2.0, False), (1.99, False), (1.97, True), (np.nan, False)):
        assert measure_baseline(baseline, "test", {"rmse": rmse})["is_beaten"] is is_beaten


def labels_by_hand(made, kind):
    """Returns the labels of the train records, one for each labelled record or step."""
    records = made.of("train")
    if kind.startswith("next_"):
        return [value for record in records for value in record[kind.removeprefix("next_")][1:] if value is not None]
    if kind.startswith("step_"):
        return [value for record in records for value in record["y"] if value is not None]
    return [record["y"] for record in records]


@pytest.mark.parametrize("kind", [*datasets.LABELS, *datasets.NEXT_LABELS])
def test_the_answer_comes_from_the_train_split(kind):
    made = datasets.of_every_feature(kind) if kind in datasets.NEXT_LABELS else datasets.of_kind(kind)
    dataset = open_dataset(made.path)
    baseline = make_baseline(make_target(dataset.schema, dataset.vocabularies()), dataset.manifest)
    labels = labels_by_hand(made, kind)
    if kind in ("distribution", "next_word", "next_page"):
        assert baseline.source is None
        return
    assert measure_baseline(baseline, "test", {baseline.metric: None})["source"] == "train"
    if kind in ("class", "step_class"):
        assert baseline.answer() == max(datasets.CLASSES, key=labels.count)
    elif "regression" in kind:
        assert baseline.answer() == pytest.approx(np.mean(labels))
    elif "multilabel" in kind:
        counts = collections.Counter(name for names in labels for name in names)
        label = np.array([[1, 0, 1]], np.float32)
        baseline.add(label)
        shares = np.array([(counts[name] + 0.5) / (len(labels) + 1) for name in datasets.CLASSES])
        assert baseline.metrics()["nll"] == pytest.approx(-np.log(np.where(label > 0, shares, 1 - shares)).sum())
    elif kind == "next_x":
        # The mean of the feature, of which the first step of a record is a part too.
        rows = [row for record in made.of("train") for row in record["x"] if row is not None]
        means = [np.mean([row[column] for row in rows if row[column] is not None]) for column in (0, 1)]
        assert baseline.answer() == pytest.approx(means)
    else:
        rows = np.array([row for record in made.of("train") for row in record["bits"]])
        baseline.add(np.ones((1, 3), np.float32))
        shares = (rows.sum(0) + 0.5) / (len(rows) + 1)
        assert baseline.metrics()["nll"] == pytest.approx(-np.log(shares).sum())
