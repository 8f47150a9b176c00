"""Each figure against a second computation that shares no code with it."""

from __future__ import annotations

import doctest
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp_gym.evaluation import metrics


def ranks(values):
    """Average ranks from their definition: one plus those below, plus half of the other equal ones."""
    return np.array([1 + sum(w < v for w in values) + (sum(w == v for w in values) - 1) / 2 for v in values])


def pearson(a, b):
    a, b = np.asarray(a) - np.mean(a), np.asarray(b) - np.mean(b)
    return float((a * b).sum() / math.sqrt((a**2).sum() * (b**2).sum()))


def tau_b(a, b):
    pairs = list(itertools.combinations(range(len(a)), 2))
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in pairs]
    return sum(x * y for x, y in signs) / math.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs))


def test_doctests():
    assert doctest.testmod(metrics).failed == 0


class TestPreferenceAccuracy:
    def test_counts_wins_and_half_of_the_ties(self):
        assert metrics.preference_accuracy([1, 2, 3, 4], [0, 2, 9, 1]) == (1 + 0.5 + 0 + 1) / 4

    def test_wrong_shapes(self):
        with pytest.raises(ValueError, match=r"^expected two vectors of one length, got 2 and 1$"):
            metrics.preference_accuracy([1, 2], [1])
        with pytest.raises(
            ValueError, match=r"^first argument: expected a vector with at least one value, got shape \(0,\)$"
        ):
            metrics.preference_accuracy([], [])
        with pytest.raises(ValueError, match=r"^second argument: expected finite values, got NaN or inf$"):
            metrics.preference_accuracy([1.0], [math.nan])


class TestIlpLoss:
    def test_equals_cross_entropy_of_the_softmax(self):
        a, b = np.array([0.3, -2.0, 1.5]), np.array([1.1, 0.4, 1.5])
        first = np.exp(a) / (np.exp(a) + np.exp(b))
        expected = np.mean(-0.5 * np.log(first) - 0.5 * np.log(1 - first))
        assert metrics.ilp_loss(a, b) == pytest.approx(expected)

    def test_is_log_two_at_best_and_finite_for_large_scores(self):
        assert metrics.ilp_loss([5.0], [5.0]) == pytest.approx(math.log(2))
        assert metrics.ilp_loss([2000.0], [0.0]) == pytest.approx(1000.0)


class TestVoc:
    @given(st.lists(st.integers(-5, 5), min_size=2, max_size=12).filter(lambda v: len(set(v)) > 1))
    def test_three_coefficients_from_their_definitions(self, values):
        time = np.arange(len(values))
        result = metrics.voc(values)
        assert result["spearman"] == pytest.approx(pearson(ranks(values), ranks(time)), abs=1e-9)
        assert result["pearson"] == pytest.approx(pearson(values, time), abs=1e-9)
        assert result["kendall"] == pytest.approx(tau_b(values, time), abs=1e-9)

    def test_reversed_changes_the_sign(self):
        assert list(metrics.voc([3.0, 2.0, 1.0]).values()) == pytest.approx([-1.0, -1.0, -1.0])

    def test_float_noise_counts_as_constant(self):
        nearly = 0.5 + 1e-8 * np.arange(10)  # would be a perfect rank correlation
        assert metrics.voc(nearly) == {"spearman": 0.0, "pearson": 0.0, "kendall": 0.0}

    def test_needs_two_steps(self):
        with pytest.raises(ValueError, match=r"^values: expected at least 2 time steps, got 1$"):
            metrics.voc([1.0])


class TestRewardConsistency:
    def test_all_pairs_by_hand(self):
        rng = np.random.default_rng(1)
        pred, true = rng.integers(0, 4, 15), rng.integers(0, 4, 15)
        agreed = [
            0.5 if pred[i] == pred[j] else float((pred[i] > pred[j]) == (true[i] > true[j]))
            for i, j in itertools.combinations(range(15), 2)
            if true[i] != true[j]
        ]
        assert metrics.reward_consistency(pred, true) == pytest.approx(np.mean(agreed))

    def test_drawn_pairs_estimate_all_pairs(self):
        rng = np.random.default_rng(2)
        true = rng.normal(size=300)
        pred = true + rng.normal(size=300)
        exact = metrics.reward_consistency(pred, true)
        drawn = metrics.reward_consistency(pred, true, pairs=10_000, seed=3)
        assert drawn == pytest.approx(exact, abs=4 * math.sqrt(0.25 / 10_000))  # four standard errors
        assert drawn == metrics.reward_consistency(pred, true, pairs=10_000, seed=3)

    def test_nothing_to_order(self):
        assert math.isnan(metrics.reward_consistency([1.0, 2.0], [0.0, 0.0]))


class TestFixedTimeCorrelation:
    def test_mean_over_indices_that_vary(self):
        rng = np.random.default_rng(4)
        pred, true = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
        true[:, 2] = 7.0
        expected = np.mean([pearson(ranks(pred[:, t]), ranks(true[:, t])) for t in (0, 1, 3)])
        assert metrics.fixed_time_correlation(pred, true) == pytest.approx(expected)

    def test_reading_the_clock_gives_nothing(self):
        clock = np.tile(np.arange(5.0), (8, 1))
        assert math.isnan(metrics.fixed_time_correlation(clock, np.random.default_rng(0).normal(size=(8, 5))))

    def test_missing_frames_are_left_out(self):
        pred = [[1, 1], [2, 2], [3, 3], [9, math.nan]]
        true = [[1, 3], [2, 2], [3, 1], [4, 0]]
        assert metrics.fixed_time_correlation(pred, true) == pytest.approx((1.0 - 1.0) / 2)

    def test_shapes(self):
        with pytest.raises(ValueError, match=r"^expected two \[N, T\] matrices of one shape, got \(3,\) and \(3,\)$"):
            metrics.fixed_time_correlation([1, 2, 3], [1, 2, 3])


class TestKmeansTwoSets:
    @pytest.mark.parametrize("seed", range(5))
    def test_two_clouds(self, seed):
        rng = np.random.default_rng(seed)
        cloud = np.concatenate([rng.normal(0, 1, (20, 3)), rng.normal(12, 1, (7, 3))]) * [1, 100, 0.01]
        labels = metrics.kmeans_two_sets(cloud, seed=seed)
        assert len(set(labels[:20])) == len(set(labels[20:])) == 1
        assert labels[0] != labels[-1]

    @given(st.lists(st.integers(-3, 3), min_size=2, max_size=9), st.integers(0, 99))
    def test_no_set_is_ever_empty(self, values, seed):
        labels = metrics.kmeans_two_sets(np.array(values, dtype=float)[:, None], seed=seed)
        assert set(labels.tolist()) == {0, 1}

    def test_same_seed_same_sets(self):
        rows = np.random.default_rng(0).normal(size=(30, 2))
        assert (metrics.kmeans_two_sets(rows, seed=5) == metrics.kmeans_two_sets(rows, seed=5)).all()

    def test_one_row(self):
        message = r"^features: expected a finite \[N, D\] matrix with N >= 2, got shape \(1, 2\)$"
        with pytest.raises(ValueError, match=message):
            metrics.kmeans_two_sets([[1.0, 2.0]])


class TestAuc:
    @given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=15))
    def test_share_of_positive_negative_pairs(self, rows):
        positive, negative = [s for s, y in rows if y], [s for s, y in rows if not y]
        result = metrics.auc([s for s, _ in rows], [y for _, y in rows])
        if not positive or not negative:
            assert math.isnan(result)
        else:
            wins = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
            assert result == pytest.approx(np.mean(wins))


def test_mean_and_spread():
    mean, spread, n = metrics.mean_and_spread([0.2, 0.5, None, 0.8, math.nan])
    assert (mean, spread, n) == (pytest.approx(0.5), pytest.approx(math.sqrt(0.18 / 2)), 3)
    assert metrics.mean_and_spread([4.0]) == (4.0, 0.0, 1)
    mean, spread, n = metrics.mean_and_spread([None])
    assert math.isnan(mean)
    assert math.isnan(spread)
    assert n == 0


def test_label_correlation_is_phi():
    """Of a table of labels: (11 - 6) / sqrt(row and column sums), by hand."""
    pred, true = [1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1, 0]
    a, b, c, d = 2, 1, 1, 3  # both 1, only pred, only true, none
    phi = (a * d - b * c) / ((a + b) * (c + d) * (a + c) * (b + d)) ** 0.5
    assert metrics.label_correlation(pred, true) == pytest.approx(phi)
    assert math.isnan(metrics.label_correlation([1, 1, 1], [1, 1, 0]))
    assert metrics.label_correlation([1, 1, 1], [1, 1, 1]) == 1.0


def test_rewards_that_do_not_vary_have_no_correlation():
    for pair in (([1.0, 1.0], [0.0, 1.0]), ([0.0, 1.0], [1.0, 1.0]), ([1.0], [1.0])):
        assert all(math.isnan(value) for value in metrics.reward_correlation(*pair).values())
    found = metrics.reward_correlation([1.0, 2.0, 9.0], [3.0, 4.0, 5.0])
    assert found["spearman"] == pytest.approx(1.0)
    assert found["pearson"] == pytest.approx(8 / math.sqrt(2 * 38), abs=1e-12)  # means 4 and 4


def test_preference_loss_of_known_pairs():
    assert metrics.preference_loss([2.0, 0.0], [0.0, 1.0]) == pytest.approx(
        (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    )
