"""AUC and average precision equal a count by hand, pair by pair and threshold by threshold."""

import datasets
import numpy as np
import pytest
from metrics_by_hand import auc_by_hand, precision_by_hand

from trainer.evaluation.ranking import Ranking


def by_hand(score, positive):
    return auc_by_hand(score, positive), precision_by_hand(score, positive)


def rank(ranking, score, positive, *, num_rankings, cuts=(), **options):
    """Returns a Ranking to which the scores were added in the parts between the cuts."""
    made = Ranking(num_rankings, **options)
    for rows in np.split(np.arange(len(score)), cuts):
        made.add(ranking[rows], score[rows], positive[rows])
    return made


def one(score, positive, **options):
    """Returns (auc, average precision) of a single ranking."""
    made = rank(np.zeros(len(score), int), np.array(score, np.float32), np.array(positive), num_rankings=1, **options)
    return made.auc()[0], made.average_precision()[0]


def random_rankings(*, count=600, num_rankings=4, scores=9, seed=0):
    """Returns rankings with many ties: few distinct scores, some negative, and both zeros."""
    random = np.random.default_rng(seed)
    values = np.concatenate([[0.0, -0.0], random.normal(size=scores - 2) * 10.0 ** random.integers(-9, 9, scores - 2)])
    score = random.choice(values, count).astype(np.float32)
    return random.integers(0, num_rankings, count), score, random.random(count) < 0.3


@pytest.mark.parametrize("scores", [2, 9, 10_000])
@pytest.mark.parametrize("seed", [0, 1])
def test_both_equal_a_count_by_hand(scores, seed):
    ranking, score, positive = random_rankings(scores=scores, seed=seed)
    made = rank(ranking, score, positive, num_rankings=4, cuts=[1, 100, 350])
    expected = [by_hand(score[ranking == number], positive[ranking == number]) for number in range(4)]
    assert made.auc() == pytest.approx([auc for auc, _ in expected], rel=1e-12)
    assert made.average_precision() == pytest.approx([precision for _, precision in expected], rel=1e-12)


def test_a_perfect_ranking_has_1_and_a_reversed_one_an_auc_of_0():
    score = [-3e38, -1.0, -1e-30, 0.0, 1e-30, 2.0, np.inf]
    assert one(score, [False] * 4 + [True] * 3) == (1.0, 1.0)
    assert one(score, [True] * 4 + [False] * 3)[0] == 0.0


def test_ties_count_half():
    assert one([2.0] * 4, [True, False, False, False]) == (0.5, 0.25)
    assert one([0.0, -0.0], [True, False]) == (0.5, 0.5)


def test_a_ranking_without_positives_or_negatives_has_no_measure():
    made = rank(np.array([0, 0, 2, 2]), np.ones(4, np.float32), np.array([True, True, False, False]), num_rankings=4)
    assert np.isnan(made.auc()).all() and np.isnan(made.average_precision()).all()
    nothing = Ranking(2)
    assert np.isnan(nothing.auc()).all() and np.isnan(nothing.average_precision()).all()


@pytest.mark.parametrize("max_keys", [1, 7, 40, 2**20])
def test_neither_order_nor_batches_matter(max_keys):
    ranking, score, positive = random_rankings(scores=10_000)
    whole = rank(ranking, score, positive, num_rankings=4, max_keys=max_keys)
    order = np.random.default_rng(1).permutation(len(score))
    shuffled = (values[order] for values in (ranking, score, positive))
    cut = rank(*shuffled, num_rankings=4, max_keys=max_keys, cuts=range(0, 600, 7))
    np.testing.assert_array_equal(whole.auc(), cut.auc())
    np.testing.assert_array_equal(whole.average_precision(), cut.average_precision())
    assert whole.dropped_bits == cut.dropped_bits


def test_measures_can_be_computed_at_any_time():
    ranking, score, positive = random_rankings()
    made = Ranking(4)
    for rows in (slice(0, 200), slice(200, 600)):
        made.add(ranking[rows], score[rows], positive[rows])
        found = made.auc()
    np.testing.assert_array_equal(found, rank(ranking, score, positive, num_rankings=4).auc())


@pytest.mark.parametrize("max_keys", datasets.some([1500, 400, 250], [400]))
def test_with_little_memory_close_scores_become_ties_and_the_error_is_bounded(max_keys):
    random = np.random.default_rng(2)
    positive = random.random(4000) < 0.2
    score = (random.normal(size=4000) + positive).astype(np.float32)
    made = rank(np.zeros(4000, int), score, positive, num_rankings=1, max_keys=max_keys, cuts=[1000])
    assert 0 < made.dropped_bits < 21
    # The twin: scores without their lowest bits.
    bits = np.abs(score).view(np.uint32) >> made.dropped_bits << made.dropped_bits
    coarse = np.copysign(bits.view(np.float32), score)
    assert (np.abs(coarse - score) <= 2.0 ** (made.dropped_bits - 23) * np.abs(score)).all()
    assert max_keys / 2 - 1 <= len(np.unique(coarse)) <= max_keys
    exact, found = by_hand(score, positive), (made.auc()[0], made.average_precision()[0])
    assert found == pytest.approx(by_hand(coarse, positive), abs=1e-12)
    tied = np.mean(coarse[positive][:, np.newaxis] == coarse[~positive])
    assert abs(found[0] - exact[0]) <= tied / 2 < 0.02
    assert abs(found[1] - exact[1]) < 0.02


def test_without_enough_memory_there_is_no_measure():
    ranking, score = np.arange(100), np.ones(100, np.float32)
    made = rank(ranking.repeat(2), score.repeat(2), np.tile([True, False], 100), num_rankings=100, max_keys=99)
    assert np.isnan(made.auc()).all() and np.isnan(made.average_precision()).all()
    made.add(ranking, score, score > 0)
    assert np.isnan(made.auc()).all()
    enough = rank(ranking.repeat(2), score.repeat(2), np.tile([True, False], 100), num_rankings=100, max_keys=100)
    assert enough.auc().tolist() == [0.5] * 100
