"""The metrics of reward models: pure functions of numpy arrays.

Pairs of vectors must have one length, at least one entry and finite values, else ValueError is raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.cluster import vq

Floats = NDArray[np.float64]

# Values that differ by less than this (relative to their size, or to 1) count as constant: batching alone changes a
# float32 score by about 1e-7, and a rank correlation would see a trend in that noise.
CONSTANT = 1e-6


def preference_accuracy(scores_better: ArrayLike, scores_worse: ArrayLike) -> float:
    """Share of pairs whose better video has the higher score; a tie counts one half.

    It is the accuracy of ITP and IVP labels in VLP (section 5, "Acc.").

    Args:
        scores_better: scores of the better videos, float ``[P]``.
        scores_worse: scores of the worse videos, float ``[P]``.

    >>> preference_accuracy([2.0, 1.0, 0.0], [1.0, 1.0, 5.0])
    0.5
    """
    better, worse = _pair(scores_better, scores_worse)
    return float(np.mean((better > worse) + 0.5 * (better == worse)))


def preference_loss(scores_better: ArrayLike, scores_worse: ArrayLike) -> float:
    """Cross-entropy of the Bradley-Terry preference against the label that is known (VLP eq. 4, terms a and c).

    Args:
        scores_better: scores of the better videos, float ``[P]``.
        scores_worse: scores of the worse videos, float ``[P]``.

    >>> round(preference_loss([1.0, -3.0], [1.0, -3.0]), 3), round(preference_loss([9.0], [0.0]), 3)
    (0.693, 0.0)
    """
    return float(np.mean(np.logaddexp(0.0, -np.subtract(*_pair(scores_better, scores_worse)))))


def ilp_loss(score_a: ArrayLike, score_b: ArrayLike) -> float:
    """Cross-entropy of the Bradley-Terry preference against the label 0.5 (VLP eq. 4, term b).

    The minimum, log 2 = 0.693, means no preference between videos under another task's sentence.

    Args:
        score_a: scores of the first videos under another task's sentence, float ``[P]``.
        score_b: scores of the second videos under the same sentence, float ``[P]``.

    >>> round(ilp_loss([1.0, -3.0], [1.0, -3.0]), 3)
    0.693
    """
    difference = np.subtract(*_pair(score_a, score_b))
    return float(np.mean(0.5 * (np.logaddexp(0.0, difference) + np.logaddexp(0.0, -difference))))


def voc(values: ArrayLike) -> dict[str, float]:
    """Value-order correlation: how well the predictions of one video follow time (GVL).

    Papers use three coefficients under this name, so all are returned. A constant prediction has correlation 0.0.

    Args:
        values: predictions in the order of time, float ``[T]``, T >= 2.

    Returns:
        The keys "spearman", "pearson" and "kendall" (tau-b), each in [-1, 1].

    Raises:
        ValueError: if there are fewer than two values or one is not finite.

    >>> voc([0.1, 0.2, 0.4])["kendall"], voc([0.5, 0.5, 0.5])["spearman"]
    (1.0, 0.0)
    """
    array = _vector(values, "values")
    if len(array) < 2:
        raise ValueError(f"values: expected at least 2 time steps, got {len(array)}")
    if _is_constant(array):
        return {"spearman": 0.0, "pearson": 0.0, "kendall": 0.0}
    time = np.arange(len(array), dtype=np.float64)
    return {
        "spearman": float(stats.spearmanr(array, time).statistic),
        "pearson": float(stats.pearsonr(array, time).statistic),
        "kendall": float(stats.kendalltau(array, time).statistic),
    }


def voc_by_position(values: ArrayLike) -> float:
    """GVL's eq. 5 to the letter: the correlation of ``argsort(values)`` with time, which orders ties by their place.

    A constant prediction has 1.0, where `voc` has 0.0, so coarse answers look better than they are. Without ties it is
    Spearman's correlation.

    Args:
        values: predictions in the order of time, float ``[T]``, T >= 2.

    Raises:
        ValueError: if there are fewer than two values or one is not finite.

    >>> round(voc_by_position([0.0, 0.0, 0.0, 0.5, 1.0]), 3), round(voc_by_position([0.5, 0.1]), 3)
    (1.0, -1.0)
    """
    return voc(np.argsort(_vector(values, "values"), kind="stable"))["spearman"]


def reward_consistency(pred: ArrayLike, true: ArrayLike, *, pairs: int | None = None, seed: int = 0) -> float:
    """Share of pairs of time steps that the prediction orders like the true reward.

    "Consistency with ground-truth reward" of *Learning objectives under one roof* (section 3.2), which draws 10,000
    random pairs per task from random and sub-optimal rollouts. Pairs of equal true reward are left out; a tie of the
    prediction counts one half.

    Args:
        pred: predicted rewards, float ``[T]``.
        true: true rewards of the same time steps, float ``[T]``.
        pairs: number of random pairs; None takes all pairs (memory T x T).
        seed: seeds the random pairs.

    Returns:
        A share in [0, 1]; NaN if no two true rewards differ.

    >>> reward_consistency([1.0, 2.0, 3.0], [0.0, 5.0, 4.0])  # 2 of 3 pairs agree
    0.6666666666666666
    """
    predicted, truth = _pair(pred, true)
    if pairs is None:
        first, second = np.triu_indices(len(truth), k=1)
    else:
        rng = np.random.default_rng(seed)
        first, second = rng.integers(len(truth), size=(2, 2 * pairs))
    distinct = np.flatnonzero(truth[first] != truth[second])[:pairs]
    if len(distinct) == 0:
        return float("nan")
    first, second = first[distinct], second[distinct]
    agreement = np.sign(predicted[first] - predicted[second]) * np.sign(truth[first] - truth[second])
    return float(np.mean((agreement + 1.0) / 2.0))


def reward_correlation(pred: ArrayLike, true: ArrayLike) -> dict[str, float]:
    """Correlation of predicted with true rewards, all time steps together (VLP, table 6).

    The paper does not name the coefficient.

    Args:
        pred: predicted rewards, float ``[T]``.
        true: true rewards of the same time steps, float ``[T]``.

    Returns:
        The keys "spearman" and "pearson"; NaN if one of the two does not vary.

    >>> round(reward_correlation([1.0, 2.0, 3.0], [0.0, 5.0, 10.0])["pearson"], 6)
    1.0
    """
    predicted, truth = _pair(pred, true)
    if len(truth) < 2 or _is_constant(predicted) or _is_constant(truth):
        return {"spearman": float("nan"), "pearson": float("nan")}
    return {
        "spearman": float(stats.spearmanr(predicted, truth).statistic),
        "pearson": float(stats.pearsonr(predicted, truth).statistic),
    }


def label_correlation(pred: ArrayLike, true: ArrayLike) -> float:
    """Pearson's correlation of two vectors of labels (VLP, table 6).

    Equal vectors have 1.0 even if all labels are of one class, as where the paper has an accuracy of 100 %.

    Args:
        pred: predicted labels, 0, 0.5 or 1, float ``[P]``.
        true: true labels, float ``[P]``.

    Returns:
        A number in [-1, 1]; NaN if the two differ and one of them does not vary.

    >>> label_correlation([0, 1, 1], [0, 1, 1]), label_correlation([1, 1], [1, 1]), label_correlation([1, 0], [0, 1])
    (1.0, 1.0, -1.0)
    """
    predicted, truth = _pair(pred, true)
    return 1.0 if np.array_equal(predicted, truth) else reward_correlation(predicted, truth)["pearson"]


def fixed_time_correlation(pred: ArrayLike, true: ArrayLike, *, least: int = 3) -> float:
    """Spearman correlation over trajectories at each time index, averaged over the indices.

    A prediction of time alone gains nothing, because compared values have the same time.

    Args:
        pred: predictions, float ``[N, T]``; NaN where trajectory n has no frame t.
        true: true rewards, float ``[N, T]``; NaN where trajectory n has no frame t.
        least: least number of trajectories with this index, for the index to count.

    Returns:
        The mean over indices where both vary; NaN if there is none.

    Raises:
        ValueError: if the two are not matrices of one shape.

    >>> fixed_time_correlation([[0, 1], [0, 2], [0, 3]], [[5, 1], [6, 2], [7, 3]])  # index 0 does not vary
    1.0
    """
    predicted, truth = np.asarray(pred, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if predicted.ndim != 2 or predicted.shape != truth.shape:
        raise ValueError(f"expected two [N, T] matrices of one shape, got {predicted.shape} and {truth.shape}")
    correlations = []
    for p, t in zip(predicted.T, truth.T, strict=True):
        both = np.isfinite(p) & np.isfinite(t)
        if both.sum() >= least and not _is_constant(p[both]) and not _is_constant(t[both]):
            correlations.append(float(stats.spearmanr(p[both], t[both]).statistic))
    return float(np.mean(correlations)) if correlations else float("nan")


def kmeans_two_sets(features: ArrayLike, *, seed: int = 0) -> NDArray[np.int64]:
    """Split trajectories into two sets by k-means, as VLP does before it draws segment pairs (appendix A).

    Columns are first scaled to unit variance. The centroids start at a random row and the row farthest from it, so both
    sets have a member; equal rows alternate between the sets.

    Args:
        features: one row per trajectory, float ``[N, D]``, N >= 2.
        seed: seeds the choice of the first centroid.

    Returns:
        The set of each trajectory, int64 ``[N]`` of 0 and 1.

    Raises:
        ValueError: if ``features`` is not a finite ``[N, D]`` matrix with at least two rows.

    >>> sets = kmeans_two_sets([[0.0], [0.1], [9.0], [9.1]])
    >>> bool(sets[0] == sets[1] != sets[2] == sets[3])
    True
    """
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or len(rows) < 2 or not np.isfinite(rows).all():
        raise ValueError(f"features: expected a finite [N, D] matrix with N >= 2, got shape {rows.shape}")
    spread = rows.std(axis=0)
    rows = (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    first = rows[np.random.default_rng(seed).integers(len(rows))]
    distance = np.linalg.norm(rows - first, axis=1)
    if distance.max() == 0:
        return np.arange(len(rows), dtype=np.int64) % 2
    _, labels = vq.kmeans2(rows, np.stack([first, rows[distance.argmax()]]), iter=50, minit="matrix")
    return labels.astype(np.int64)


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative; ties count one half.

    Args:
        scores: scores, float ``[N]``.
        labels: True for positives, bool ``[N]``.

    Returns:
        A share in [0, 1]; NaN if there is only one class.

    >>> auc([0.1, 0.9, 0.8], [False, True, True])
    1.0
    """
    values, classes = _pair(scores, np.asarray(labels, dtype=np.float64))
    positive = classes > 0
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if n_positive == 0 or n_negative == 0:
        return float("nan")
    ranks = stats.rankdata(values)
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def mean_and_spread(values: Sequence[float | None]) -> tuple[float, float, int]:
    """Mean, sample standard deviation and count of the finite values; None and NaN are ignored.

    Returns:
        ``(mean, spread, n)``; one value has spread 0.0, no value gives NaN for both.

    >>> mean_and_spread([1.0, 3.0, None])
    (2.0, 1.4142135623730951, 2)
    """
    finite = np.asarray([v for v in values if v is not None and np.isfinite(v)], dtype=np.float64)
    if len(finite) == 0:
        return float("nan"), float("nan"), 0
    return float(finite.mean()), float(finite.std(ddof=1)) if len(finite) > 1 else 0.0, len(finite)


def _is_constant(values: Floats) -> bool:
    return bool(np.ptp(values) <= CONSTANT * max(1.0, float(np.abs(values).max())))


def _vector(values: ArrayLike, name: str) -> Floats:
    array: Floats = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{name}: expected a vector with at least one value, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite values, got NaN or inf")
    return array


def _pair(a: Any, b: Any) -> tuple[Floats, Floats]:
    left, right = _vector(a, "first argument"), _vector(b, "second argument")
    if left.shape != right.shape:
        raise ValueError(f"expected two vectors of one length, got {len(left)} and {len(right)}")
    return left, right
