"""Confused pairs equal a count by hand, and stay within their documented error if there are too many of them."""

import collections

import numpy as np
import pytest

from trainer.evaluation import confused_pairs
from trainer.evaluation.confused_pairs import MAX_LISTED, ConfusedPairs


def random_labels(size, *, number=3000, seed=1):
    """Returns (actual, predicted); some classes are far more frequent than others."""
    weights = 1 / np.arange(1, size + 1)
    random = np.random.default_rng(seed)
    return random.choice(size, (2, number), p=weights / weights.sum())


def pairs_by_hand(actual, predicted):
    return collections.Counter((a, p) for a, p in zip(actual.tolist(), predicted.tolist(), strict=True) if a != p)


def gather(size, actual, predicted, *, cuts=(), **options):
    pairs = ConfusedPairs(size, **options)
    for few, guesses in zip(np.split(actual, cuts), np.split(predicted, cuts), strict=True):
        pairs.add(few, guesses)
    return pairs


@pytest.mark.parametrize("size", [2, 13, 6000])
def test_pairs_equal_a_count_by_hand_in_any_batches(size, monkeypatch):
    """Pairs of equal counts are in the order of the classes."""
    actual, predicted = random_labels(size)
    by_hand, names = pairs_by_hand(actual, predicted), [f"class {number}" for number in range(size)]
    found = gather(size, actual, predicted, cuts=(1, 1, 700)).result(names, np.bincount(actual, minlength=size))
    order = sorted(by_hand, key=lambda pair: (-by_hand[pair], pair))
    assert found == {
        "confused_pairs": [
            {
                "label": names[a],
                "predicted": names[p],
                "count": by_hand[a, p],
                "share": by_hand[a, p] / actual.tolist().count(a),
            }
            for a, p in order[:MAX_LISTED]
        ],
        "confused_pairs_left_out": max(len(order) - MAX_LISTED, 0),
        "confused_pairs_undercount": 0,
    }
    # Merged often, and with just enough memory.
    other = gather(size, actual, predicted, cuts=range(0, 3000, 60), max_pairs=len(order))
    assert other.result(names, np.bincount(actual, minlength=size)) == found


def test_with_too_many_pairs_each_count_is_too_low_by_at_most_the_undercount(monkeypatch):
    monkeypatch.setattr(confused_pairs, "MAX_LISTED", 10**6)
    actual, predicted = random_labels(500, number=20_000)
    by_hand, largest = pairs_by_hand(actual, predicted), 200
    counted = gather(500, actual, predicted, cuts=range(0, 20_000, 500), max_pairs=largest)
    found = counted.result(range(500), np.bincount(actual, minlength=500))
    counts = {(pair["label"], pair["predicted"]): pair["count"] for pair in found["confused_pairs"]}
    assert len(by_hand) > 20 * largest >= len(counts) > 0
    assert 0 < counted.undercount == found["confused_pairs_undercount"] <= 2 * sum(by_hand.values()) / largest
    for pair, count in by_hand.items():
        assert count - counted.undercount <= counts.get(pair, 0) <= count


def test_what_drops_the_rarest_pairs_is_subtracted_from_the_others():
    """Without that, the undercount would have no bound. Of three pairs, memory for two keeps one."""
    pairs = ConfusedPairs(4, max_pairs=2)
    for counts in ([5, 3, 1], [1, 4, 2]):
        pairs.add(np.repeat([0, 1, 2], counts), np.full(sum(counts), 3))
    found = pairs.result("abcd", np.array([6, 7, 3, 0]))
    # 5 3 1 is 2 0 0 after a subtraction of 3; then 3 4 2 is 0 1 0 after another one.
    assert found["confused_pairs"] == [{"label": "b", "predicted": "d", "count": 1, "share": 1 / 7}]
    assert found["confused_pairs_undercount"] == 6


def test_no_pair_is_confused_if_every_prediction_is_right():
    found = gather(3, np.arange(3), np.arange(3)).result("abc", np.ones(3, int))
    assert found == {"confused_pairs": [], "confused_pairs_left_out": 0, "confused_pairs_undercount": 0}
    assert ConfusedPairs(3).result("abc", np.zeros(3, int)) == found
