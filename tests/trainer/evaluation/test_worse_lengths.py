"""A length is listed if the model is clearly worse on it than on all records, and only by rare chance otherwise."""

import numpy as np
import pytest

from trainer.evaluation.breakdown import by_length
from trainer.evaluation.worse_lengths import WorseLengths


def find(metric, lengths, values):
    """Returns the worse lengths for records of these lengths and the values of each record's labels, in batches."""
    found, order = (
        WorseLengths(metric, by_length(np.array(lengths))),
        np.random.default_rng(0).permutation(len(lengths)),
    )
    for rows in np.array_split(order, 3):
        record = np.repeat(np.arange(len(rows)), [len(values[row]) for row in rows])
        labels = [value for row in rows for value in values[row]]
        found.add(np.array(labels, np.float64), record, rows)
    return found.result()


def one_label(correct, total):
    """Returns the values of records with one label each, of which this number is correct."""
    return [[1.0]] * correct + [[0.0]] * (total - correct)


def test_a_length_with_a_lower_accuracy_is_listed_with_both():
    (row,) = find("accuracy", [10] * 2000 + [300] * 412, one_label(1990, 2000) + one_label(334, 412))
    whole = (1990 + 334) / 2412
    expected = {"min_steps": 300, "max_steps": 300, "records": 412, "metric": "accuracy"}
    assert {name: row.pop(name) for name in expected} == expected
    assert row == pytest.approx({"value": 334 / 412, "all": whole, "standard_error": 0.02072}, rel=1e-3)


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (one_label(1990, 2000), one_label(15, 29)),  # too few records
        (one_label(1990, 2000), one_label(29, 30)),  # one error
        (one_label(0, 30), one_label(2000, 2000)),  # the short records are worse
        (one_label(19600, 20000), one_label(19400, 20000)),  # significant, but small
        (one_label(1960, 2000), one_label(0, 0)),
        ([[]] * 40, [[]] * 40),  # no label at all
        ([[np.nan]] * 40, [[np.inf]] * 40),
    ],
)
def test_a_length_is_not_listed_for_few_records_or_a_small_difference(short, long):
    found = find("accuracy", [10] * len(short) + [300] * len(long), short + long)
    assert [row for row in found if row["min_steps"] == 300] == []


def plain_ratio(metric, values, inside):
    """Returns (value, value on all records, standard error), computed record by record."""
    errors = [[1 - value for value in labels] if metric == "accuracy" else labels for labels in values]
    overall = sum(map(sum, errors)) / sum(map(len, errors))
    few = [errors[number] for number in inside]
    total = sum(map(len, few))
    error = sum(map(sum, few)) / total
    variance = sum((sum(record) - overall * len(record)) ** 2 for record in few) / total**2
    if metric == "accuracy":
        return 1 - error, 1 - overall, variance**0.5
    return error, overall, variance**0.5


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_the_standard_error_equals_a_plain_computation_over_records(metric):
    random = np.random.default_rng(1)
    lengths = [*random.integers(1, 20, 300), *random.integers(50, 60, 100)]
    values = []
    for length in lengths:
        labels = random.random(random.integers(0, length + 1))  # a step may lack a label
        worse = 0.6 if length >= 50 else 0.1
        values.append((np.floor(labels - worse) + 1 if metric == "accuracy" else labels + 5 * worse).tolist())
    found = find(metric, lengths, values)
    assert found and all(row["max_steps"] >= 50 for row in found)
    for row in found:
        inside = [n for n, length in enumerate(lengths) if row["min_steps"] <= length <= row["max_steps"]]
        measured = (row["value"], row["all"], row["standard_error"])
        assert measured == pytest.approx(plain_ratio(metric, values, inside))
        assert row["records"] == sum(bool(values[number]) for number in inside)
    sign = 1 if metric == "accuracy" else -1
    assert [sign * row["value"] for row in found] == sorted(sign * row["value"] for row in found)


@pytest.mark.parametrize("is_correlated", [False, True])
def test_chance_alone_seldom_lists_a_length(is_correlated):
    """Also if the labels of a record are all right or all wrong: a record counts, not its labels."""
    random, listed = np.random.default_rng(2), 0
    for _ in range(200):
        lengths = random.integers(1, 40, 400)
        right = random.random(400) < 0.9
        values = [
            [float(right[n])] * length if is_correlated else (random.random(length) < 0.9).astype(float).tolist()
            for n, length in enumerate(lengths.tolist())
        ]
        listed += bool(find("accuracy", lengths, values))
    assert listed <= 6
