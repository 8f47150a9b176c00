"""The wrapper of Stable-Baselines3's vector environments."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.error import ClosedEnvironmentError
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, unwrap_vec_normalize
from typing_extensions import Unpack

from vlp_gym.engine.engine import QueryEngine
from vlp_gym.models.protocol import RewardModel
from vlp_gym.rewards.info import put
from vlp_gym.rewards.options import Shorthand
from vlp_gym.rewards.shaping import Reward, Shaping
from vlp_gym.wrappers.captured import CapturedRewards
from vlp_gym.wrappers.streaming import NO_RELABELLING


class VLPVecReward(CapturedRewards, VecEnvWrapper):
    """Replaces the rewards of an SB3 vector environment by what a reward model gives its frames.

    The twin of `VLPVectorRewardWrapper`, with its arguments and errors, for a `DummyVecEnv` or `SubprocVecEnv` made
    from `capture_frames`. The rewards are float32 ``[num_envs]``. ``infos[i]["vlp"]`` is what `VLPRewardWrapper` has in
    its info. Where SB3 has reset an environment in the same
    step, it describes the transition that ended the episode, and ``reset_infos[i]["vlp"]`` describes the reset.
    """

    def __init__(
        self,
        venv: VecEnv,
        instruction: str | Sequence[str],
        model: str | os.PathLike[str] | RewardModel | QueryEngine = "vlp-compact",
        *,
        reward: Reward | Shaping = "progress",
        **options: Unpack[Shorthand],
    ) -> None:
        VecEnvWrapper.__init__(self, venv)
        if not venv.has_attr("attach_frames"):
            raise ValueError("the sub-environments do not render themselves; make venv from capture_frames(env_fns)")
        self._normalized = unwrap_vec_normalize(venv)
        if self._normalized is not None and self._normalized.norm_reward:
            raise ValueError(
                "VecNormalize(norm_reward=True) inside VLPVecReward would scale the sentence's rewards by the "
                "environment's own returns; set norm_reward=False, or put it around VLPVecReward"
            )
        self._listen(venv.unwrapped, venv.env_method, instruction, model, reward, options)

    def reset(self) -> Any:
        """Reset all environments, and score their first frames."""
        if self._closed:
            raise ClosedEnvironmentError("reset was called after close")
        with self._calling_envs() as running:
            with self._workers.watch():
                observations = self.venv.reset()
            self.reset_infos = list(self._inner_reset_infos())
            self._put(self._begin(running))
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Send the actions."""
        self._check_ready()
        with self._calling_envs():
            self.venv.step_async(actions)

    def step_wait(self) -> tuple[Any, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Wait for the step; the rewards are the sentence's, or the placeholders of late ones."""
        with self._calling_envs(on=True):
            self._workers.wait()
            observations, own, dones, infos = self.venv.step_wait()
        truncated = [bool(info.get("TimeLimit.truncated", False)) for info in infos]
        terminated = [bool(done) and not cut for done, cut in zip(dones, truncated, strict=True)]
        settled = self._settle(own, terminated, truncated)
        self._put(settled.first)
        self._running[:] = True
        each = zip(settled.successes, infos, settled.infos, strict=True)
        infos = [put({**success, **info}, vlp, flat=self._stream.flat) for success, info, vlp in each]
        rewards = settled.rewards.astype(np.float32)
        if self._normalized is not None:
            self._normalized.old_reward = rewards  # off-policy algorithms store this, and not what `step` returns
        return observations, rewards, dones, infos

    def env_method(self, method_name: str, *args: Any, **kwargs: Any) -> list[Any]:
        """As every `VecEnv` has it, but ``compute_reward``: it knows nothing of the sentence."""
        if method_name == "compute_reward":
            raise ValueError(NO_RELABELLING)
        return super().env_method(method_name, *args, **kwargs)

    def close(self) -> None:
        """Close the environments; a second call does nothing. A live model stays usable."""
        self._end(self.venv.close)

    def _put(self, begun: dict[int, dict[str, Any]]) -> None:
        for index, info in begun.items():
            self.reset_infos[index] = put(self._inner_reset_infos()[index], info, flat=self._stream.flat)

    def _inner_reset_infos(self) -> list[dict[str, Any]]:
        """An older `VecEnv` has none."""
        return getattr(self.venv, "reset_infos", [{}] * self.num_envs)
