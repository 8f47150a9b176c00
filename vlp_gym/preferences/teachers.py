"""Scripted teachers: programs that label pairs of segments, with the errors that people make."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vlp_gym.preferences.buffer import EQUAL, SKIP
from vlp_gym.preferences.segments import Segments

Floats = NDArray[np.float64]
TeacherName = Literal["oracle", "mistake", "noisy", "skip", "equal", "myopic"]


@dataclass(frozen=True)
class ScriptedTeacher:
    """A teacher that compares the environment's own rewards (B-Pref, Lee et al., 2021, section 3).

    The steps come in B-Pref's order: `myopic`, `beta`, `mistake`, `equal_threshold`, `skip_threshold`. B-Pref's code
    multiplies the two thresholds by their fraction twice from the second session on; here it is done once. Its oracle
    labels two exactly equal returns "first"; here they are equal, 0.5.

    Args:
        beta: rationality, at least 0: P(first) = sigmoid(beta * (return of the first - return of the second)); inf is
            always right.
        mistake: probability of the opposite label, in [0, 1].
        skip_threshold: pairs are skipped if no undiscounted return is over this fraction of the mean return.
        equal_threshold: pairs are equal if their undiscounted returns differ by less than this fraction of it.
        myopic: discount per step before the last one, in [0, 1].

    Raises:
        ValueError: for values out of range.

    Example:
        >>> ScriptedTeacher(mistake=0.1) == scripted_teacher("mistake")
        True
    """

    beta: float = math.inf
    mistake: float = 0.0
    skip_threshold: float = 0.0
    equal_threshold: float = 0.0
    myopic: float = 1.0

    def __post_init__(self) -> None:
        for name in ("beta", "skip_threshold", "equal_threshold"):
            if not getattr(self, name) >= 0:  # written so that NaN fails too
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("mistake", "myopic"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")

    def __call__(self, first: Segments, second: Segments, rng: np.random.Generator, *, mean_return: float) -> Floats:
        """Label N pairs.

        Args:
            first: N segments, with the environment's own rewards.
            second: the same.
            rng: random generator; every teacher draws 2 N numbers.
            mean_return: undiscounted mean return of recent segments. At 0 or below, as in B-Pref, no threshold applies.

        Returns:
            Labels, float64 ``[N]``, see `Labeler`.

        Raises:
            ValueError: if the numbers of segments differ, a reward is not finite, or mean_return is needed and is not.
        """
        if len(first) != len(second):
            raise ValueError(f"expected as many first as second segments, got {len(first)} and {len(second)}")
        if (self.skip_threshold or self.equal_threshold) and not math.isfinite(mean_return):
            raise ValueError(f"mean_return must be finite for a teacher with a threshold, got {mean_return}")
        plain = [discounted_returns(side.rewards, side.mask) for side in (first, second)]
        if not np.isfinite(plain).all():
            raise ValueError("a scripted teacher needs the environment's own rewards, but some are NaN or inf")
        felt = [discounted_returns(side.rewards, side.mask, self.myopic) for side in (first, second)]
        chance, slip = rng.random((2, len(first)))
        labels = _answers(felt[0] - felt[1], self.beta, chance)
        labels = np.where(slip < self.mistake, 1 - labels, labels)
        labels[np.abs(plain[0] - plain[1]) < self.equal_threshold * mean_return] = EQUAL
        skip = self.skip_threshold * mean_return
        if skip > 0:
            labels[np.maximum(*plain) <= skip] = SKIP
        return labels


TEACHERS: dict[TeacherName, ScriptedTeacher] = {
    "oracle": ScriptedTeacher(),
    "mistake": ScriptedTeacher(mistake=0.1),
    "noisy": ScriptedTeacher(beta=1.0),
    "skip": ScriptedTeacher(skip_threshold=0.1),
    "equal": ScriptedTeacher(equal_threshold=0.1),
    "myopic": ScriptedTeacher(myopic=0.9),
}
"""The six teachers of B-Pref, with its constants."""


def scripted_teacher(name: TeacherName) -> ScriptedTeacher:
    """A teacher of B-Pref by its name, or raise ValueError."""
    if name not in TEACHERS:
        raise ValueError(f"teacher must be one of {tuple(TEACHERS)}, got {name!r}")
    return TEACHERS[name]


def discounted_returns(rewards: NDArray[np.floating], mask: NDArray[np.bool_], myopic: float = 1.0) -> Floats:
    """Sums of rewards, earlier steps discounted: ``sum_t myopic^(n - 1 - t) * r_t`` over the n real steps.

    Args:
        rewards: float ``[N, L]``.
        mask: bool ``[N, L]``, True for the first n steps of each row.
        myopic: discount in [0, 1]; 1 is the plain sum.

    Returns:
        float64 ``[N]``.

    >>> discounted_returns(np.array([[4.0, 2.0, 9.0]]), np.array([[True, True, False]]), 0.5)
    array([4.])
    """
    to_come = mask.sum(1, keepdims=True) - 1 - np.arange(mask.shape[1])
    weights = np.power(float(myopic), np.maximum(to_come, 0))
    return np.asarray(np.where(mask, rewards, 0.0) * weights, np.float64).sum(1)


def _answers(difference: Floats, beta: float, chance: Floats) -> Floats:
    """Labels 1.0, 0.0 or 0.5 for differences of returns ``[N]``, with random numbers ``[N]`` from [0, 1)."""
    if math.isinf(beta):
        return np.heaviside(difference, EQUAL)
    first = 0.5 * (1 + np.tanh(0.5 * beta * difference))  # the logistic function; its exp would overflow
    return (chance < first).astype(np.float64)
