"""From scores to rewards: pure functions of floats, the same in every wrapper and mode.

Between two scored steps the *score* is held. "progress" and "preference" therefore repeat the held score, while "delta"
pays 0 there, so that its sum over an episode is the last score minus the first for any value of `every`. "final" pays 0
until the last step of the episode, and there the preference of the whole episode (RoboCLIP).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

import numpy as np

Reward = Literal["progress", "delta", "potential", "preference", "final"]
REWARDS: tuple[Reward, ...] = get_args(Reward)


def gated_progress(progress: float, relevance: float | None) -> float:
    """Progress times sigmoid(relevance), the probability that the video shows the instructed task.

    Args:
        progress: progress at the newest frame, in [0, 1].
        relevance: logit; None, for a model without this head, leaves the progress unchanged.

    Example:
        >>> gated_progress(0.8, 0.0), gated_progress(0.8, None)
        (0.4, 0.8)
    """
    return progress if relevance is None else progress * _sigmoid(relevance)


def score_of(kind: Reward, preference: float, progress: float | None, relevance: float | None) -> float:
    """The score behind a reward kind: the preference for "preference" and "final", else the gated progress.

    Raises:
        ValueError: the reward needs progress and the model has none.
    """
    if kind in ("preference", "final"):
        return preference
    if progress is None:
        raise ValueError(f'the model has no progress, which reward={kind!r} needs; use reward="preference"')
    return gated_progress(progress, relevance)


def own_number(reward: object) -> float | None:
    """The environment's own reward as a float; None where there is none, or it is not one number.

    >>> own_number([1.0]), own_number([1.0, 2.0]), own_number(None)
    (1.0, None, None)
    """
    if type(reward) is float:
        return reward
    values = np.asarray(reward)
    return float(values.reshape(-1)[0]) if values.size == 1 and values.dtype.kind in "biuf" else None


def delta(previous: float, current: float) -> float:
    """Change of the score in this step: current - previous."""
    return current - previous


def potential(previous: float, current: float, *, gamma: float, terminated: bool) -> float:
    """Potential-based shaping, ``gamma * phi(s') - phi(s)`` (Ng et al., 1999).

    A terminal state has potential 0, else the optimal policy could change; a truncated state keeps its potential.

    Args:
        previous: phi(s).
        current: phi(s'), ignored if `terminated`.
        gamma: the agent's discount, in [0, 1].
        terminated: whether s' is terminal.
    """
    return (0.0 if terminated else gamma * current) - previous


@dataclass(frozen=True)
class Shaping:
    """How a wrapper turns scores into rewards; the fields are `VLPRewardWrapper`'s arguments of the same names.

    Raises:
        TypeError: a value is no number.
        ValueError: a value is invalid, alone or in combination.

    Example:
        >>> Shaping("delta", scale=2.0).reward(0.25, 0.75, terminated=False)
        1.0
    """

    kind: Reward = "progress"
    scale: float = 1.0
    gamma: float = 0.99
    env_reward_weight: float = 0.0
    success_threshold: float | None = None
    success_bonus: float = 0.0
    terminate_on_success: bool = False

    def __post_init__(self) -> None:
        if self.kind not in REWARDS:
            raise ValueError(f"reward must be one of {REWARDS}, got {self.kind!r}")
        for name in ("scale", "gamma", "env_reward_weight", "success_threshold", "success_bonus"):
            value = getattr(self, name)
            if name == "success_threshold" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{name} must be a number, got {value!r}")
            object.__setattr__(self, name, float(value))  # such as a NumPy number
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"gamma must be in [0, 1], got {self.gamma}")
        for name in ("scale", "env_reward_weight", "success_bonus"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
        if self.success_threshold is None and (self.success_bonus != 0.0 or self.terminate_on_success):
            raise ValueError("success_bonus and terminate_on_success need a success_threshold")

    def success(self, score: float) -> bool:
        """Whether the score reaches the threshold."""
        return self.success_threshold is not None and score >= self.success_threshold

    def reward(
        self,
        previous: float,
        current: float,
        *,
        terminated: bool,
        truncated: bool = False,
        env_reward: float | None = None,
    ) -> float:
        """The reward of one step.

        Args:
            previous: score before the step.
            current: score after the step.
            terminated: whether the step ended in a terminal state.
            truncated: whether the step ended a truncated episode.
            env_reward: the environment's reward.

        Raises:
            ValueError: `env_reward_weight` is not 0 and `env_reward` is None, NaN or inf.
        """
        if self.kind == "delta":
            value = delta(previous, current)
        elif self.kind == "potential":
            value = potential(previous, current, gamma=self.gamma, terminated=terminated)
        elif self.kind == "final" and not (terminated or truncated):
            value = 0.0
        else:
            value = current
        value *= self.scale
        if self.success(current):
            value += self.success_bonus
        if self.env_reward_weight == 0.0:
            return value
        return value + self.env_reward_weight * self.check_env_reward(env_reward)

    def check_env_reward(self, env_reward: float | None, *, where: object = None) -> float:
        """The environment's reward, 0.0 if it has no weight; ValueError, which names `where`, for None, NaN or inf."""
        if self.env_reward_weight == 0.0:
            return 0.0
        if env_reward is None or not math.isfinite(env_reward):
            place = "" if where is None else f" ({where})"
            raise ValueError(
                f"the environment's own reward is {env_reward} and cannot be mixed in; "
                f"repair it or set env_reward_weight=0{place}"
            )
        return env_reward


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    return math.exp(logit) / (1 + math.exp(logit))  # exp(-logit) would overflow
