"""Further uses of frame values (GVL, section 4.3): success detection, filtering demonstrations, weighting steps.

Pure functions of the values, which may come from any model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlp_gym.evaluation.metrics import mean_and_spread, voc

THRESHOLD = 0.5  # value-order correlation of a success (GVL, section 4.3)


def detect_success(values: ArrayLike, *, threshold: float = THRESHOLD) -> bool:
    """Whether a video shows a success, that is Spearman's VOC of its values >= `threshold` (GVL-SD).

    GVL reports an accuracy of 0.71 without and 0.75 with one example, on simulated ALOHA tasks with Gemini-1.5-Pro.

    >>> detect_success([0.0, 0.3, 0.6, 1.0]), detect_success([0.0, 0.6, 0.1, 0.2])
    (True, False)

    Args:
        values: values of the frames in order of time, float ``[T]``, T >= 2.
        threshold: least VOC of a success, in [-1, 1].

    Raises:
        ValueError: if there are fewer than two values, one is not finite, or the threshold is out of range.
    """
    if not -1.0 <= threshold <= 1.0:
        raise ValueError(f"threshold must be in [-1, 1], got {threshold}")
    return voc(values)["spearman"] >= threshold - 1e-9  # a perfect order's correlation may round to less than 1


def filter_demonstrations(videos: Sequence[ArrayLike], *, threshold: float = THRESHOLD) -> NDArray[np.int64]:
    """Indices of the videos to keep for imitation, those with `detect_success`.

    >>> filter_demonstrations([[0.0, 0.5, 1.0], [0.9, 0.1, 0.5], [0.2, 0.4]]).tolist()
    [0, 2]

    Args:
        videos: values of each video, float ``[T]`` each, any T >= 2.
        threshold: least VOC to keep a video, in [-1, 1]; -1 keeps all.

    Raises:
        ValueError: see `detect_success`.
    """
    return np.flatnonzero([detect_success(values, threshold=threshold) for values in videos])


def dataset_quality(videos: Sequence[ArrayLike]) -> tuple[float, float, int]:
    """Mean, sample standard deviation and count of the videos' VOC, GVL's measure of a dataset's quality.

    >>> dataset_quality([[0.0, 1.0], [1.0, 0.0]])[0]
    0.0

    Args:
        videos: values of each video, float ``[T]`` each, any T >= 2.

    Raises:
        ValueError: if a video has fewer than two values or one that is not finite.
    """
    return mean_and_spread([voc(values)["spearman"] for values in videos])


def dataset_ranking(sets: Mapping[str, Sequence[float]]) -> str:
    """Data sets by the mean VOC of their videos, the best first, as a Markdown table (GVL, tables 1, 5 and 6).

    Args:
        sets: name -> the VOC of each video; -1 for a refused one.
    """
    found = {name: mean_and_spread(values) for name, values in sets.items()}
    lines = ["| data set | VOC, mean | deviation | videos |", "|---|---:|---:|---:|"]
    for name in sorted(found, key=lambda name: -found[name][0]):
        mean, spread, count = found[name]
        lines.append(f"| {name} | {mean:.2f} | {spread:.2f} | {count} |")
    return "\n".join(lines)


def advantage_weights(values: ArrayLike, *, temperature: float, max_weight: float | None = None) -> NDArray[np.float64]:
    """Weight of each step in advantage-weighted regression: ``exp(tau (v[k+1] - v[k]))`` (GVL, eq. 6).

    >>> advantage_weights([0.0, 0.5, 0.5], temperature=2.0).round(4).tolist()
    [2.7183, 1.0]

    Args:
        values: values of the frames in order of time, float ``[T]``, T >= 2.
        temperature: tau >= 0; 0 is plain imitation. The paper does not state its value.
        max_weight: upper limit of the weights; None for no limit.

    Returns:
        Weights of the steps from frame k to frame k + 1, float64 ``[T - 1]``, all >= 0.

    Raises:
        ValueError: if there are fewer than two values, one is not finite, an argument is out of range, or a weight
            overflows.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or len(array) < 2 or not np.isfinite(array).all():
        raise ValueError(f"values: expected at least 2 finite numbers [T], got shape {array.shape}")
    if temperature < 0 or (max_weight is not None and max_weight <= 0):
        raise ValueError(f"expected temperature >= 0 and max_weight > 0, got {temperature} and {max_weight}")
    exponents = temperature * np.diff(array)
    if max_weight is not None:
        exponents = np.minimum(exponents, np.log(max_weight))
    if exponents.max() > np.log(np.finfo(np.float64).max):
        raise ValueError(f"a weight is exp({exponents.max():.4g}), which is no number; give max_weight")
    return np.exp(exponents)
