from __future__ import annotations

import numpy as np
import pytest

from vlp_gym.evaluation.curation import advantage_weights, dataset_quality, detect_success, filter_demonstrations


def rank_correlation(values: list[float]) -> float:
    """Spearman without ties by its textbook formula, 1 - 6 sum d^2 / (n (n^2 - 1)), as GVL eq. 5 puts it."""
    order = np.argsort(values)
    n = len(values)
    return float(1 - 6 * np.sum((order - np.arange(n)) ** 2) / (n * (n * n - 1)))


def test_a_video_succeeds_at_a_correlation_of_one_half_or_more() -> None:
    rng = np.random.default_rng(0)
    verdicts = set()
    for _ in range(200):
        values = rng.permutation(6).astype(float).tolist()
        expected = rank_correlation(values)
        if abs(expected - 0.5) > 1e-6:
            assert detect_success(values) == (expected > 0.5)
            verdicts.add(expected > 0.5)
    assert verdicts == {True, False}
    # d = (0, 1, 2, 1), sum of squares 6, so exactly 1 - 36 / 60 = 0.4.
    assert rank_correlation([0.0, 0.2, 0.3, 0.1]) == pytest.approx(0.4)
    assert detect_success([0.0, 0.2, 0.3, 0.1], threshold=0.4)
    assert not detect_success([0.0, 0.2, 0.3, 0.1], threshold=0.41)


def test_a_constant_value_is_no_success() -> None:
    assert not detect_success([0.7, 0.7, 0.7])


def test_a_filter_keeps_successes_and_at_the_least_threshold_everything() -> None:
    videos = [[0.0, 0.1, 0.9], [0.9, 0.5, 0.0], [0.0, 1.0]]
    assert filter_demonstrations(videos).tolist() == [0, 2]
    assert filter_demonstrations(videos, threshold=-1.0).tolist() == [0, 1, 2]
    kept = filter_demonstrations([])
    assert kept.dtype == np.int64
    assert kept.shape == (0,)


def test_quality_is_the_mean_correlation() -> None:
    mean, spread, count = dataset_quality([[0.0, 0.2, 0.3, 0.1], [0.0, 1.0]])
    assert (mean, count) == (pytest.approx(0.7), 2)
    assert spread == pytest.approx(np.std([0.4, 1.0], ddof=1))


def test_weights_are_exponentials_of_the_gains() -> None:
    values = np.random.default_rng(1).random(9)
    weights = advantage_weights(values, temperature=3.0)
    expected = np.array([np.exp(3.0 * (values[k + 1] - values[k])) for k in range(8)])
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    limited = advantage_weights(values, temperature=3.0, max_weight=1.5)
    np.testing.assert_allclose(limited, np.minimum(expected, 1.5), rtol=1e-12)
    assert limited.max() == pytest.approx(1.5)
    assert advantage_weights(values, temperature=0.0).tolist() == [1.0] * 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: detect_success([0.1, 0.2], threshold=1.5), "threshold must be in [-1, 1], got 1.5"),
        (lambda: detect_success([0.1]), "values: expected at least 2 time steps, got 1"),
        (
            lambda: advantage_weights([0.1], temperature=1.0),
            "values: expected at least 2 finite numbers [T], got shape (1,)",
        ),
        (
            lambda: advantage_weights([0.1, np.nan], temperature=1.0),
            "values: expected at least 2 finite numbers [T], got shape (2,)",
        ),
        (
            lambda: advantage_weights([0.1, 0.2], temperature=-1.0),
            "expected temperature >= 0 and max_weight > 0, got -1.0 and None",
        ),
        (
            lambda: advantage_weights([0.0, 1.0], temperature=1000.0),
            "a weight is exp(1000), which is no number; give max_weight",
        ),
    ],
)
def test_values_that_say_nothing_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message
