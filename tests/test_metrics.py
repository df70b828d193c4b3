"""Metrics equal what one computes by hand, whatever lies in the padding and however the batches fell."""

import numpy as np
import pytest

from trainer.metrics import MAX_BANDS, Metrics


def classes_by_hand(actual, predicted):
    """(accuracy, macro F1) from counts of true and false positives, class by class."""
    actual, predicted = list(actual), list(predicted)
    scores = []
    for c in set(actual) | set(predicted):
        true = sum(a == c and p == c for a, p in zip(actual, predicted, strict=True))
        precision = true / predicted.count(c) if c in predicted else 0
        recall = true / actual.count(c) if c in actual else 0
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0)
    right = sum(a == p for a, p in zip(actual, predicted, strict=True))
    return right / len(actual), sum(scores) / len(scores)


def random_batch(random, kind, *, num_classes=4, rows=60, time=9):
    """(outputs, label, weight, loss, length) as the evaluator gives them."""
    length = random.integers(1, time + 1, rows)
    shape = (rows, time) if kind == "step_class" else (rows,)
    loss = random.random(shape)
    weight = np.ones(shape)
    if kind == "step_class":
        weight = ((random.random(shape) < 0.7) & (np.arange(time) < length[:, None])).astype(np.float32)
    if kind == "regression":
        return random.normal(size=shape), random.normal(size=shape), weight, loss, length
    outputs = random.normal(size=(*shape, num_classes))
    label = random.dirichlet(np.ones(num_classes), rows) if kind == "distribution" else random.integers(0, 3, shape)
    return outputs, label, weight, loss, length


def gather(kind, *parts, num_classes=4):
    metrics = Metrics(kind, 0 if kind == "regression" else num_classes)
    for part in parts:
        metrics.update(*part)
    return metrics


@pytest.mark.parametrize("kind", ["class", "distribution", "step_class"])
def test_accuracy_and_macro_f1_equal_a_count_by_hand(kind):
    outputs, label, weight, loss, length = batch = random_batch(np.random.default_rng(1), kind)
    real = weight > 0
    actual = label.argmax(-1) if kind == "distribution" else label[real]
    accuracy, f1 = classes_by_hand(actual.tolist(), outputs.argmax(-1)[real].tolist())
    result = gather(kind, batch).result()
    assert result == {
        "records": 60,
        "steps": length.sum(),
        "loss": pytest.approx(loss[real].mean()),
        "metrics": {
            "accuracy": pytest.approx(accuracy),
            "macro_f1": pytest.approx(f1),
            "cross_entropy": pytest.approx(loss[real].mean()),
        },
    }


def test_a_class_that_is_neither_a_label_nor_predicted_does_not_count():
    outputs, label = np.eye(4)[[0, 1, 1, 0]], np.array([0, 1, 0, 0])
    metrics = gather("class", (outputs, label, np.ones(4), np.zeros(4), np.ones(4, int)))
    assert metrics.result()["metrics"]["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)


def test_a_regression_has_mean_absolute_and_root_of_mean_squared_error():
    outputs, label, _, loss, _ = batch = random_batch(np.random.default_rng(2), "regression")
    error = outputs - label
    assert gather("regression", batch).result()["metrics"] == {
        "mae": pytest.approx(np.abs(error).mean()),
        "rmse": pytest.approx(np.sqrt((error**2).mean())),
    }
    assert gather("regression", batch).result()["loss"] == pytest.approx(loss.mean())


@pytest.mark.parametrize("kind", ["class", "distribution", "regression", "step_class"])
def test_batches_add_up_however_they_were_cut(kind):
    batch = random_batch(np.random.default_rng(3), kind)
    order = np.random.default_rng(4).permutation(60)
    parts = [[value[rows] for value in batch] for rows in np.split(order, [1, 20, 33])]
    whole, cut = gather(kind, batch), gather(kind, *parts)
    for one, other in ((whole.result(), cut.result()), *zip(whole.by_length(), cut.by_length(), strict=True)):
        assert one.pop("metrics") == pytest.approx(other.pop("metrics"))
        assert one == pytest.approx(other)


def test_perfect_predictions_with_garbage_in_the_padding_score_perfectly():
    random = np.random.default_rng(5)
    _, label, weight, _, length = random_batch(random, "step_class")
    outputs = np.eye(4)[label] * 20
    outputs[weight == 0] = np.array([np.nan, 1e9, -1e9, 0])
    loss = np.where(weight > 0, 0.0, np.nan)
    label = np.where(weight > 0, label, 77)
    metrics = gather("step_class", (outputs, label, weight, loss, length))
    perfect = {"accuracy": 1.0, "macro_f1": 1.0, "cross_entropy": 0.0}
    assert metrics.result()["metrics"] == perfect
    assert [band["metrics"] for band in metrics.by_length()] == [perfect] * len(metrics.by_length())


@pytest.mark.parametrize("lengths", [[5] * 9, [1], range(1, 200), [1] * 100 + [2, 3, 400], [7, 8]])
def test_bands_hold_every_record_once_and_each_is_measured_alone(lengths):
    lengths = np.array(lengths)
    random = np.random.default_rng(6)
    outputs, label, loss = random.normal(size=(len(lengths), 4)), random.integers(0, 4, len(lengths)), lengths / 7
    bands = gather("class", (outputs, label, np.ones(len(lengths)), loss, lengths)).by_length()
    assert 1 <= len(bands) <= MAX_BANDS
    found = []
    for band in bands:
        inside = (band["min_steps"] <= lengths) & (lengths <= band["max_steps"])
        accuracy, f1 = classes_by_hand(label[inside].tolist(), outputs.argmax(-1)[inside].tolist())
        assert (band["records"], band["steps"]) == (inside.sum(), lengths[inside].sum())
        assert (band["loss"], band["metrics"]["accuracy"]) == pytest.approx((loss[inside].mean(), accuracy))
        assert band["metrics"]["macro_f1"] == pytest.approx(f1)
        found += lengths[inside].tolist()
    assert found == sorted(lengths.tolist())
    assert [b["min_steps"] for b in bands] == sorted({b["min_steps"] for b in bands})
    assert (bands[0]["min_steps"], bands[-1]["max_steps"]) == (lengths.min(), lengths.max())


def test_bands_are_about_as_large_as_each_other():
    lengths = np.arange(1, 201)
    zeros = np.zeros(200)
    bands = gather("regression", (zeros, zeros, np.ones(200), zeros, lengths)).by_length()
    assert [band["records"] for band in bands] == [25] * 8


@pytest.mark.parametrize("kind", ["step_class", "regression"])
def test_nothing_that_weighs_has_no_measure(kind):
    names = ["mae", "rmse"] if kind == "regression" else ["accuracy", "macro_f1", "cross_entropy"]
    nothing = gather(kind)
    assert nothing.result() == {"records": 0, "steps": 0, "loss": None, "metrics": dict.fromkeys(names)}
    assert nothing.by_length() == []


def test_a_record_without_a_label_is_counted_and_weighs_nothing():
    outputs, label, length = np.zeros((2, 3, 4)), np.zeros((2, 3), int), np.array([3, 2])
    weight = np.array([[0, 0, 0], [1, 1, 0]])
    metrics = gather("step_class", (outputs, label, weight, np.ones((2, 3)), length))
    assert (metrics.result()["records"], metrics.result()["steps"], metrics.result()["loss"]) == (2, 5, 1.0)
    assert [band["loss"] for band in metrics.by_length()] == [1.0, None]
