"""Normalisation of late rewards by the running standard deviation of the returns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class RewardNormalizer:
    """Stable-Baselines3's `VecNormalize(norm_reward=True)` for late rewards.

    Each reward, in step order, updates its environment's discounted return; rewards are divided by the standard
    deviation of all these returns. The mean is not subtracted, because that would change the task.

    Args:
        num_envs: number of environments.
        gamma: discount of the returns, in [0, 1].
        clip: largest absolute value of a scaled reward.
        epsilon: added to the variance.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> normalizer = RewardNormalizer(1, gamma=0.5)
        >>> for reward in (1.0, 3.0):
        ...     normalizer.update(0, 0, reward)
        >>> round(float(normalizer.variance), 3)  # of the returns 1.0 and 3.5
        1.563
    """

    def __init__(self, num_envs: int, gamma: float = 0.99, clip: float = 10.0, epsilon: float = 1e-8) -> None:
        if not (num_envs >= 1 and 0.0 <= gamma <= 1.0 and clip > 0.0 and epsilon > 0.0):
            raise ValueError(
                "expected num_envs >= 1, gamma in [0, 1], and clip and epsilon over 0, got "
                f"num_envs={num_envs}, gamma={gamma}, clip={clip}, epsilon={epsilon}"
            )
        self.gamma, self.clip, self.epsilon = gamma, clip, epsilon
        self.mean, self.variance, self.count = 0.0, 1.0, 1e-4  # Stable-Baselines3's start
        self._returns = [0.0] * num_envs
        self._episodes: list[int | None] = [None] * num_envs

    def update(self, index: int, episode: int, reward: float) -> None:
        """Update the statistics with the next reward of an environment; a new episode starts with return 0."""
        before = self._returns[index] if self._episodes[index] == episode else 0.0
        value = before * self.gamma + reward
        self._returns[index], self._episodes[index] = value, episode
        delta, total = value - self.mean, self.count + 1.0
        self.variance = (self.variance * self.count + delta * delta * self.count / total) / total
        self.mean += delta / total
        self.count = total

    def restart(self) -> None:
        """Start new returns, for other environments."""
        self._episodes = [None] * len(self._episodes)

    def scale(self, rewards: NDArray[Any]) -> NDArray[np.float32]:
        """Divide rewards, any shape, by the standard deviation and clip them; float32 of the same shape."""
        scaled = np.clip(rewards / np.sqrt(self.variance + self.epsilon), -self.clip, self.clip)
        return scaled.astype(np.float32)
