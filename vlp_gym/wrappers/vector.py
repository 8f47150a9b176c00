"""The wrapper of Gymnasium's vector environments: their frames are scored in one batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from numpy.typing import NDArray
from typing_extensions import Unpack

from vlp_gym.engine.engine import QueryEngine
from vlp_gym.models.protocol import RewardModel
from vlp_gym.rewards.info import join_infos
from vlp_gym.rewards.options import Shorthand
from vlp_gym.rewards.shaping import Reward, Shaping
from vlp_gym.wrappers.capture import CAPTURED
from vlp_gym.wrappers.captured import CapturedRewards
from vlp_gym.wrappers.single import record


class VLPVectorRewardWrapper(CapturedRewards, gym.vector.VectorWrapper, gym.utils.RecordConstructorArgs):
    """Replaces the rewards of a vector environment by what a reward model gives its frames under an instruction.

    The twin of `VLPRewardWrapper`, for a `SyncVectorEnv` or `AsyncVectorEnv` made from `capture_frames`, in every mode
    of autoreset: the terminal frame belongs to the episode that it ends, and a reset is no transition. The rewards are
    float64 ``[num_envs]``; where there was a reset in place of a step (``NEXT_STEP``), the reward is 0.0.

    ``infos["vlp"]`` has Gymnasium's form: arrays of length num_envs, each with a mask of valid entries, named with a
    `_` in front. ``env_reward``, ``score``, and ``progress`` and ``relevance`` if the model has them, are float64, 0
    where there is none yet, and ``success`` is bool; they describe the transition, also where a reset came in the same
    step. With ``mode="async"`` ``env``, ``episode`` and ``step``, int64, are the parts of its ticket; 0 is a reset.
    Any error in a step ends all episodes; `reset` goes on. If a worker process dies, all are stopped; the wrapper is
    closed.

    Args:
        env: made from `capture_frames`.
        instruction: what is to be done, in one sentence; one for all environments, or a list of one for each.
        model: as `VLPRewardWrapper` has it.
        reward: the same.
        options: other arguments of `VLPRewardWrapper`, which lists them and what they raise.

    Raises:
        ValueError: also for an environment that was not made from `capture_frames`.

    Example:
        >>> from vlp_gym.testing import PaintedEnv, PaintedModel
        >>> from vlp_gym.wrappers import capture_frames
        >>> venv = gym.vector.SyncVectorEnv(capture_frames([PaintedEnv, PaintedEnv]))
        >>> venv = VLPVectorRewardWrapper(venv, "press the button", PaintedModel())
        >>> observations, infos = venv.reset(seed=0)
        >>> venv.step(venv.action_space.sample())[1].shape
        (2,)
        >>> venv.close()
    """

    def __init__(
        self,
        env: gym.vector.VectorEnv[Any, Any, Any],
        instruction: str | Sequence[str],
        model: str | os.PathLike[str] | RewardModel | QueryEngine = "vlp-compact",
        *,
        reward: Reward | Shaping = "progress",
        **options: Unpack[Shorthand],
    ) -> None:
        given = {"instruction": instruction, "model": model, "reward": reward, **options}
        gym.utils.RecordConstructorArgs.__init__(self, **{name: record(value) for name, value in given.items()})
        if not isinstance(env, gym.vector.VectorEnv):
            raise TypeError(f"expected a gymnasium.vector.VectorEnv from capture_frames, got {type(env).__name__}")
        gym.vector.VectorWrapper.__init__(self, env)
        if not env.metadata.get(CAPTURED):
            raise ValueError(
                "the sub-environments do not render themselves; make env from capture_frames(env_fns), or take "
                "VLPBatchRewardWrapper where env.render() shows all of them"
            )
        venv: Any = env.unwrapped
        self._listen(venv, venv.call, instruction, model, reward, options)

    @property
    def autoreset_mode(self) -> AutoresetMode:
        """The mode of autoreset of the environment: TorchRL asks for it."""
        mode: AutoresetMode = self.metadata["autoreset_mode"]
        return mode

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environments, or those of ``options["reset_mask"]``, and score their first frames."""
        if self._closed:
            raise ClosedEnvironmentError("reset was called after close")
        with self._calling_envs() as running:
            if isinstance(self.env, AsyncVectorEnv):  # its `reset` in two parts, to see a death between them
                self.env.reset_async(seed=seed, options=options)
                self._workers.wait()
                observations, infos = self.env.reset_wait()
            else:
                observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
            begun = self._begin(running)
        return observations, self._join(infos, [begun.get(index) for index in range(self.num_envs)])

    def step(
        self, actions: Any
    ) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step the environments; the rewards are the sentence's, or the placeholders of late ones."""
        self._check_ready()
        with self._calling_envs():
            if isinstance(self.env, AsyncVectorEnv):
                self.env.step_async(actions)
                self._workers.wait()
                observations, own, terminated, truncated, infos = self.env.step_wait()
            else:
                observations, own, terminated, truncated, infos = self.env.step(actions)
        settled = self._settle(own, terminated, truncated)
        truncated = truncated & ~terminated
        self._running[:] = True
        if self.metadata["autoreset_mode"] == AutoresetMode.DISABLED:
            self._running &= ~(terminated | truncated)
        return observations, settled.rewards, terminated, truncated, self._join(infos, settled.infos)

    def close(self, **kwargs: Any) -> None:
        """Close the environments; a second call does nothing. A live model stays usable."""
        self._end(lambda: self.env.close(**kwargs))

    def _join(self, infos: dict[str, Any], each: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
        return join_infos(infos, each, self._stream.info_keys, flat=self._stream.flat)
