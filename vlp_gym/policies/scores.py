"""From the evaluations of several seeds to the figures of a table."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

NEIGHBOURS = 8  # evaluations in a mean, as in VLP


def largest_mean(curve: ArrayLike, neighbours: int = NEIGHBOURS) -> NDArray[np.float64]:
    """The largest mean of neighbouring evaluations of each run, as VLP reports it (appendix A.2).

    It looks at the evaluations to choose the moment, so it is above what a user gets, who has the last policy.

    >>> largest_mean([[0.0, 1.0, 0.0, 1.0, 1.0]], 2).tolist()
    [1.0]

    Args:
        curve: success of P evaluations, float ``[E, P]``.
        neighbours: evaluations in a mean; with fewer evaluations, all are.

    Returns:
        float64 ``[E]``.

    Raises:
        ValueError: the curve has another shape, or is empty, or NaN is in it.
    """
    values = np.asarray(curve, np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all() or neighbours < 1:
        raise ValueError(f"expected finite success [E, P] and at least 1 neighbour, got {values.shape}, {neighbours}")
    windows = np.lib.stride_tricks.sliding_window_view(values, min(neighbours, values.shape[1]), axis=1)
    return np.asarray(windows.mean(2).max(1))


def interquartile_mean(scores: ArrayLike) -> float:
    """The mean of the middle half of all scores, ``[...]`` (Agarwal et al., 2021).

    >>> interquartile_mean([0.0, 1.0, 3.0, 99.0])
    2.0
    """
    from scipy.stats import trim_mean

    return float(trim_mean(np.asarray(scores, np.float64), 0.25, axis=None))


def interquartile_interval(
    scores: ArrayLike, *, repeats: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the interquartile mean from a stratified bootstrap (Agarwal et al., 2021).

    Each task's runs are drawn again with replacement, apart from those of the other tasks.

    Args:
        scores: float ``[runs, tasks]``.
        repeats: bootstrap samples.
        confidence: share of them within the interval.
        seed: seeds the draws.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: for another shape, no score, or NaN.
    """
    from scipy.stats import trim_mean

    values = np.asarray(scores, np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"expected finite scores [runs, tasks], got the shape {values.shape}")
    runs, tasks = values.shape
    chosen = np.random.default_rng(seed).integers(runs, size=(repeats, runs, tasks))
    drawn = np.take_along_axis(values[None], chosen, axis=1).reshape(repeats, -1)
    means = trim_mean(drawn, 0.25, axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
