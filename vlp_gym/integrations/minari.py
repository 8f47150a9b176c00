"""Minari with rewards that come late: what `minari.DataCollector` records is each step's own reward.

```python
env = VLPRewardWrapper(env, "press the button", mode="async")
collector = DataCollector(
    env, step_data_callback=VLPStepDataCallback, episode_metadata_callback=VLPEpisodeMetadataCallback
)
```
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from vlp_gym.errors import missing_extra
from vlp_gym.rewards.info import FLAT, KEY
from vlp_gym.wrappers.late import LateRewards

try:
    from minari import EpisodeMetadataCallback, StepDataCallback
except ImportError as error:
    raise missing_extra(error, 'Minari is not installed: pip install "vlp_gym[minari-collect]"') from error

OF_ANOTHER_STEP = ("score", "progress", "relevance", "success")
"""With late rewards these are those of the newest score, whichever step it belongs to."""


class _Reward:
    """A reward that is known when the episode is written; NaN if the model has failed."""

    def __init__(self, rewards: _Rewards) -> None:
        self._rewards = rewards
        self.value: float | None = None

    def __float__(self) -> float:
        if self.value is None:
            self._rewards.take(wait=True)
        return float("nan") if self.value is None else self.value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(float(self), dtype)


class _Rewards:
    """The late rewards of an environment, by the number of its step since the recording began."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self._late = LateRewards(env)
        self.late = self._late.late
        self._steps = 0
        self._missing: dict[int, _Reward] = {}

    def step(self, reward: float, info: dict[str, Any]) -> float | _Reward:
        """What stands for the reward of the newest step."""
        row, self._steps = self._steps, self._steps + 1
        if not self._late.step(row, info):
            return reward
        self._missing[row] = late = _Reward(self)
        self.take(wait=False)
        return late

    def take(self, *, wait: bool) -> None:
        """Give the rewards that have come, or all, to whom they belong."""
        rows, rewards = self._late.ready(wait=wait)
        for row, reward in zip(np.asarray(rows).tolist(), rewards.tolist(), strict=True):
            self._missing.pop(row).value = reward
        if wait:
            self._missing.clear()


class VLPStepDataCallback(StepDataCallback):
    """Records each step's own reward where rewards come late (``mode="async"``).

    An episode is written when it ends, or when the collector is reset: that waits for its rewards. A reward that will
    never come, because the model has failed, is NaN. With ``record_infos=True`` the infos hold what belongs to the
    step: with late rewards its ticket and the environment's own reward, else the score and its parts, too.

    Raises:
        ValueError: if the environment in the collector has no reward wrapper.
        QueryTimeout: when an episode is written, if no reward comes for too long.
    """

    def __init__(self) -> None:
        self._rewards: _Rewards | None = None

    def __call__(self, env: gym.Env[Any, Any], obs: Any, info: dict[str, Any], **step: Any) -> Any:
        """The data of a reset, or of a step."""
        if self._rewards is None:
            self._rewards = _Rewards(env)
        if step.get("action") is not None:
            step["rew"] = self._rewards.step(step["rew"], info)
        return super().__call__(env, obs, _of_this_step(info, late=self._rewards.late), **step)


class VLPEpisodeMetadataCallback(EpisodeMetadataCallback):
    """Minari's statistics of an episode's known rewards, and ``rewards_missing``, how many are not."""

    def __call__(self, episode: dict[str, Any]) -> dict[str, Any]:
        """The metadata of an episode."""
        rewards = episode["rewards"]
        missing = np.isnan(rewards)
        known = rewards[~missing] if not missing.all() else rewards
        return {**super().__call__({**episode, "rewards": known}), "rewards_missing": int(missing.sum())}


def _of_this_step(info: dict[str, Any], *, late: bool) -> dict[str, Any]:
    """The info, with a plain dictionary of our numbers: those that belong to this step."""
    dropped = OF_ANOTHER_STEP if late else ()
    flat = {FLAT + name for name in dropped} | ({"is_success"} if late else set())
    kept = {name: value for name, value in info.items() if name not in flat}
    if KEY in kept:
        kept[KEY] = {name: value for name, value in kept[KEY].items() if name not in dropped}
    return kept
