"""Wrappers around the reward wrapper: which of them may make steps, or change rewards, that a late reward passes by.

A wrapper that skips frames or clips rewards sees what a step returns, and no reward that comes later. Around such a one
rewards must not come late. Wrappers are known by their `step`: one that is not in the list may do anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
from gymnasium import wrappers
from stable_baselines3.common import vec_env
from stable_baselines3.common.monitor import Monitor

from vlp_gym.wrappers.single import VLPRewardWrapper

_HARMLESS = (
    gym.Wrapper,
    gym.ObservationWrapper,
    gym.ActionWrapper,
    Monitor,
    wrappers.AddRenderObservation,
    wrappers.FrameStackObservation,
    wrappers.HumanRendering,
    wrappers.NormalizeObservation,
    wrappers.OrderEnforcing,
    wrappers.PassiveEnvChecker,
    wrappers.RecordEpisodeStatistics,
    wrappers.RecordVideo,
    wrappers.RenderCollection,
    wrappers.TimeAwareObservation,
    wrappers.TimeLimit,
)
_HARMLESS_VEC = (
    vec_env.VecEnvWrapper,
    vec_env.VecCheckNan,
    vec_env.VecExtractDictObs,
    vec_env.VecFrameStack,
    vec_env.VecMonitor,
    vec_env.VecNormalize,  # what it does to rewards is checked by itself
    vec_env.VecTransposeImage,
    vec_env.VecVideoRecorder,
)
_STEPS = {kind.step for kind in _HARMLESS}
_WAITS = {kind.step_wait for kind in _HARMLESS_VEC}


class _Outside(type):
    def __instancecheck__(cls, wrapper: Any) -> bool:
        return type(wrapper).step not in _STEPS and any(isinstance(env, VLPRewardWrapper) for env in _inside(wrapper))


class Outside(metaclass=_Outside):
    """Of this "class" is a wrapper around `VLPRewardWrapper` that may make steps or change rewards.

    `VecEnv.env_is_wrapped` asks for a class, and does so in worker processes too.
    """


def meddling(venv: vec_env.VecEnv, inner: vec_env.VecEnv | None) -> str:
    """The name of a wrapper outside the reward wrappers that may make steps or change rewards, "" if there is none.

    Args:
        venv: the environment as the agent has it.
        inner: the `VLPVecReward` in it, or None where each environment has a reward wrapper of its own.
    """
    while isinstance(venv, vec_env.VecEnvWrapper) and venv is not inner:
        if type(venv).step_wait not in _WAITS:
            return type(venv).__name__
        venv = venv.venv
    if inner is not None or not any(venv.env_is_wrapped(Outside)):  # type: ignore[arg-type]
        return ""
    each = (wrapper for env in getattr(venv, "envs", ()) for wrapper in (env, *_inside(env)))
    return next((type(wrapper).__name__ for wrapper in each if isinstance(wrapper, Outside)), "a wrapper")


def _inside(wrapper: Any) -> Iterator[Any]:
    while isinstance(wrapper, gym.Wrapper):
        wrapper = wrapper.env
        yield wrapper
