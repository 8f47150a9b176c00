"""The wrapper of environments that step and draw as one batch of tensors, as ManiSkill's and Isaac Lab's do."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Unpack

from vlp_gym.engine.engine import QueryEngine
from vlp_gym.errors import FrameError
from vlp_gym.models.protocol import RewardModel
from vlp_gym.rewards.info import join_infos
from vlp_gym.rewards.options import Shorthand
from vlp_gym.rewards.shaping import Reward, Shaping, own_number
from vlp_gym.rewards.stream import Transition
from vlp_gym.wrappers.many import ManyRewards
from vlp_gym.wrappers.single import record

BatchRenderFn = Callable[[Any], Any]
"""Takes the vector environment and returns the frames of all its environments."""


class VLPBatchRewardWrapper(ManyRewards, gym.vector.VectorWrapper, gym.utils.RecordConstructorArgs):
    """Replaces the rewards of a vector environment whose frames come as one batch, ``[num_envs, H, W, 3]``.

    The twin of `VLPVectorRewardWrapper` without `capture_frames`: ``env.render()`` is called after each step and shows
    all environments. So an environment must not be reset within the step that ends its episode, or its last frame is
    lost: in the mode ``DISABLED`` (ManiSkill's ``ManiSkillVectorEnv(auto_reset=False)``) the caller resets those whose
    episodes are over, by ``options={"env_idx": ...}`` or ``{"reset_mask": ...}``; ``NEXT_STEP`` works, too.

    Observations, ``terminated`` and other infos stay as they are. Rewards are of the kind that the environment's own
    are: a tensor of their dtype and on their device, or float64 ``[num_envs]``; 0.0 where there was a reset in place of
    a step. ``infos["vlp"]`` is that of `VLPVectorRewardWrapper`, on the CPU.

    Args:
        env: its ``render()`` gives uint8 ``[num_envs, H, W, 3]``, a tensor on any device, an array, or a sequence.
        instruction: what is to be done, in one sentence; one for all environments, or a list of one for each.
        model: as `VLPRewardWrapper` has it.
        reward: the same.
        render_fn: called with `env` in place of its ``render()``: a camera of your own.
        options: other arguments of `VLPRewardWrapper`, which lists them and what they raise.

    Raises:
        ValueError: also for an environment that resets within a step (``SAME_STEP``).

    Example:
        >>> from vlp_gym.testing import PaintedEnv, PaintedModel
        >>> venv = gym.vector.SyncVectorEnv([PaintedEnv, PaintedEnv])
        >>> venv = VLPBatchRewardWrapper(venv, "press the button", PaintedModel())
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
        render_fn: BatchRenderFn | None = None,
        **options: Unpack[Shorthand],
    ) -> None:
        given = {"instruction": instruction, "model": model, "reward": reward, "render_fn": render_fn, **options}
        gym.utils.RecordConstructorArgs.__init__(self, **{name: record(value) for name, value in given.items()})
        if not isinstance(env, gym.vector.VectorEnv):
            raise TypeError(f"expected a gymnasium.vector.VectorEnv, got {type(env).__name__}")
        gym.vector.VectorWrapper.__init__(self, env)
        self._mode = _autoreset_mode(env)
        self._make_stream(env.num_envs, instruction, model, reward, options)
        self._render_fn: BatchRenderFn = render_fn or (lambda venv: venv.render())
        self._over = np.zeros(env.num_envs, np.bool_)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environments, or those that the options name, and score their first frames."""
        if self._closed:
            raise ClosedEnvironmentError("reset was called after close")
        begun = self._named(options or {})
        running, self._running = self._running, np.zeros_like(self._running)  # after an error no episode can go on
        self._stream.receipt.restart()
        self._stream.env_is_stepping(True)
        try:
            observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
            frames = self._frames()
        finally:
            self._stream.env_is_stepping(False)
        self._stream.observe([self._first(index, frames) for index in begun])
        running[begun] = True
        self._running = running
        self._over[begun] = False
        each = [self._stream.info(index, 0.0) if index in begun else None for index in range(self.num_envs)]
        return observations, join_infos(infos, each, self._stream.info_keys, flat=self._stream.flat)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environments; the rewards are the sentence's, or the placeholders of late ones."""
        self._check_ready()
        self._running = np.zeros_like(self._running)  # after an error no episode can go on
        self._stream.env_is_stepping(True)
        try:
            observations, own, terminated, truncated, infos = self.env.step(actions)
            ended, cut = (_array(flags).astype(np.bool_) for flags in (terminated, truncated))
            again, own_rewards = self._over, [own_number(reward) for reward in _array(own)]  # reset in this step
            due = [self._due(index, again, ended | cut) for index in range(self.num_envs)]
            frames = self._frames() if any(due) else None
        finally:
            self._stream.env_is_stepping(False)
        asked = [
            self._first(index, frames) if again[index]
            else Transition(index, [frames[index]] if due[index] and frames is not None else None, bool(ended[index]),
                            bool(cut[index]), own_rewards[index])
            for index in range(self.num_envs)
        ]  # fmt: skip
        self._stream.observe(asked)
        each = [self._stream.info(i, 0.0 if again[i] else own_rewards[i]) for i in range(self.num_envs)]
        rewards = np.array([0.0 if again[i] else self._stream.placeholder(i) for i in range(self.num_envs)])
        if not self._stream.late:
            self._stream.collect()
        self._over = (ended | cut) & (self._mode == AutoresetMode.NEXT_STEP)
        self._running = ~(ended | cut) | self._over
        infos = join_infos(infos, each, self._stream.info_keys, flat=self._stream.flat)
        return observations, _like(own, rewards), terminated, truncated & ~terminated, infos

    def close(self, **kwargs: Any) -> None:
        """Close the environments; a second call does nothing. A live model stays usable."""
        if not self._closed:
            self._closed = True
            self._stream.close()
            self.env.close(**kwargs)

    def _due(self, index: int, again: NDArray[np.bool_], over: NDArray[np.bool_]) -> bool:
        """Whether the frame of an environment is needed; counts its step."""
        if again[index]:
            return True
        self._stream.advance(index)
        return self._stream.due(index, over=bool(over[index]))

    def _first(self, index: int, frames: NDArray[np.uint8] | None) -> Transition:
        """Begin an episode with its first frame."""
        assert frames is not None
        self._stream.begin(index)
        return Transition(index, [frames[index]])

    def _frames(self) -> NDArray[np.uint8]:
        """What all environments show now, ``[num_envs, H, W, 3]``."""
        frames = _array(self._render_fn(self.env))
        if frames.ndim != 4 or len(frames) != self.num_envs:
            raise FrameError(
                f"expected frames [{self.num_envs}, H, W, 3], one of each environment, got {list(frames.shape)}; where "
                "one picture shows all of them, give render_fn a camera of each"
            )
        return frames

    def _named(self, options: dict[str, Any]) -> list[int]:
        """The environments that a reset with these options resets."""
        if "reset_mask" in options:
            return np.flatnonzero(_array(options["reset_mask"])).tolist()
        if "env_idx" in options:
            return [int(index) for index in np.atleast_1d(_array(options["env_idx"]))]
        return list(range(self.num_envs))


def _autoreset_mode(env: gym.vector.VectorEnv[Any, Any, Any]) -> AutoresetMode:
    mode: AutoresetMode | None = (env.metadata or {}).get("autoreset_mode")
    if getattr(env, "auto_reset", None) is False:  # ManiSkill's says SAME_STEP even then
        return AutoresetMode.DISABLED
    if mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED):
        raise ValueError(
            f"expected the autoreset mode NEXT_STEP or DISABLED, got {mode}: an environment that is reset within the "
            "step that ends its episode does not show its last frame; for ManiSkill say auto_reset=False, for others "
            "take VLPVectorRewardWrapper"
        )
    return mode


def _array(values: Any) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _like(own: Any, rewards: NDArray[np.float64]) -> Any:
    """The rewards as the environment's own ones are."""
    if not isinstance(own, Tensor):
        return rewards
    kind = own.dtype if own.is_floating_point() else torch.float32
    return torch.as_tensor(rewards, dtype=kind, device=own.device)
