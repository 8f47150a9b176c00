"""A small environment of Meta-World's sizes, in the place of one of its tasks."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class SmallPush(gym.Env):
    """Succeeds at the last step, if the first number of each action was above 0; three of four starts can."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (39,))
    action_space = gym.spaces.Box(-1, 1, (4,))

    def __init__(self, steps: int) -> None:
        self.steps, self.number = steps, 0

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.number, self.holds = 0, self.np_random.random() < 0.75
        return self._observe(), {}

    def step(self, action):
        self.number += 1
        self.holds = self.holds and bool(action[0] > 0)
        ends = self.number == self.steps
        return self._observe(), 0.0, False, ends, {"success": float(self.holds and ends)}

    def render(self):
        return np.full((32, 32, 3), 10 * self.number, np.uint8)

    def _observe(self):
        return self.np_random.normal(size=39)


def make_small(task: str, *, size: int, max_episode_steps: int) -> gym.Env:
    """Stands for `make_metaworld`."""
    return SmallPush(max_episode_steps)
