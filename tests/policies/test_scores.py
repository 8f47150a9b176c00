from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from vlp_gym.policies.scores import interquartile_interval, interquartile_mean, largest_mean


def test_the_largest_mean_of_neighbours():
    curve = np.random.default_rng(0).random((3, 20))
    expected = [max(sum(row[k : k + 8]) / 8 for k in range(13)) for row in curve.tolist()]
    assert largest_mean(curve).tolist() == pytest.approx(expected)
    assert largest_mean(curve[:, :5]).tolist() == pytest.approx(curve[:, :5].mean(1).tolist())
    assert largest_mean(curve, 1).tolist() == curve.max(1).tolist()


def test_the_middle_half():
    scores = np.random.default_rng(1).random((5, 4))
    middle = sorted(scores.ravel().tolist())[5:15]
    assert interquartile_mean(scores) == pytest.approx(sum(middle) / 10)


def test_the_interval_is_that_of_all_bootstrap_samples():
    """Three runs of two tasks have 27 x 27 samples; each is as likely."""
    scores = np.array([[0.1, 0.9], [0.4, 0.2], [0.8, 0.7]])
    means = []
    for one in itertools.product(range(3), repeat=3):
        for other in itertools.product(range(3), repeat=3):
            drawn = sorted([*scores[list(one), 0], *scores[list(other), 1]])
            means.append(np.mean(drawn[1:-1]))  # a quarter of six, rounded down, at each end
    exact = np.quantile(means, [0.05, 0.95])
    found = interquartile_interval(scores, repeats=40_000, confidence=0.9)
    assert found == pytest.approx(exact, abs=0.01)
    narrow = interquartile_interval(scores, repeats=40_000, confidence=0.5)
    assert found[0] < narrow[0] < interquartile_mean(scores) < narrow[1] < found[1]


RLIABLE = json.loads(Path(__file__).with_name("rliable.json").read_text())  # made by rliable_answers.py


@pytest.mark.parametrize("case", RLIABLE["cases"], ids=lambda case: "{}x{}".format(*np.shape(case["scores"])))
def test_rliable_finds_the_same(case):
    """The mean to the last digits; the ends of the interval as closely as two draws of 20,000 samples agree."""
    assert interquartile_mean(case["scores"]) == pytest.approx(case["iqm"], abs=1e-12)
    found = interquartile_interval(case["scores"], repeats=RLIABLE["repeats"])
    assert found == pytest.approx(case["interval"], abs=0.01)
    whole = np.ptp(case["scores"])
    assert found[1] - found[0] < whole  # the figures are no trivial ones


def test_the_strata_are_kept():
    """Two tasks whose runs do not differ: no draw changes anything, however different the tasks are."""
    assert interquartile_interval([[0.0, 1.0]] * 4) == (0.5, 0.5)


def test_wrong_shapes():
    message = "expected finite success [E, P] and at least 1 neighbour, got (0,), 8"
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        largest_mean([])
    with pytest.raises(
        ValueError, match="^" + re.escape("expected finite scores [runs, tasks], got the shape (2,)") + "$"
    ):
        interquartile_interval([0.0, 1.0])
