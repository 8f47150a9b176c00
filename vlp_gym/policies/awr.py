"""Advantage-weighted regression on the values that a model gives to frames (GVL, eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlp_gym.evaluation.curation import advantage_weights
from vlp_gym.policies.bc import BC
from vlp_gym.policies.learner import LearnerOptions, check_above_0
from vlp_gym.training.options import check_at_least


@dataclass(frozen=True, kw_only=True)
class AWROptions(LearnerOptions):
    """Imitation that counts a step by what it gains: exp(temperature * gain), of values in [0, 1].

    Attributes:
        temperature: tau; 0 is plain imitation. GVL does not state its value.
        most_weight: upper limit of the weights.
    """

    temperature: float = 10.0
    most_weight: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, temperature=self.temperature)
        check_above_0(most_weight=self.most_weight)


class AWR(BC):
    """`BC` on transitions whose weights are `step_weights`."""

    name = "awr"


def step_weights(
    values: ArrayLike, frame_steps: ArrayLike, steps: int, *, temperature: float, most_weight: float | None = None
) -> NDArray[np.float64]:
    """The weight of each environment step: values are interpolated between frames, which may be several steps apart.

    >>> step_weights([0.0, 1.0], [0, 2], 2, temperature=2.0).round(4).tolist()  # each step gains one half
    [2.7183, 2.7183]

    Args:
        values: of the frames, float ``[F]``.
        frame_steps: the environment step that each frame shows, rising ``[F]``; 0 is the reset. Before the first and
            after the last frame the value stays.
        steps: S, number of environment steps.
        temperature: tau, at least 0.
        most_weight: upper limit of the weights; None for no limit.

    Returns:
        float64 ``[S]``, above 0.

    Raises:
        ValueError: the numbers of values and frames differ, or see `advantage_weights`.
    """
    known, places = np.asarray(values, np.float64), np.asarray(frame_steps)
    if known.ndim != 1 or known.shape != places.shape or not len(known):
        raise ValueError(f"expected one value a frame, got the shapes {known.shape} and {places.shape}")
    every = np.interp(np.arange(steps + 1), places, known)
    return advantage_weights(every, temperature=temperature, max_weight=most_weight)
