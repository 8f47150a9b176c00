"""Wrappers around the reward wrapper in a `VecEnv`: which of them a late reward passes by, see `vlp_gym.wrappers`."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common import vec_env
from stable_baselines3.common.monitor import Monitor

from vlp_gym.wrappers.outside import inside, may_meddle
from vlp_gym.wrappers.single import VLPRewardWrapper

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
_WAITS = {kind.step_wait for kind in _HARMLESS_VEC}


class _Outside(type):
    def __instancecheck__(cls, wrapper: Any) -> bool:
        meddles = may_meddle(wrapper) and type(wrapper).step is not Monitor.step
        return meddles and any(isinstance(env, VLPRewardWrapper) for env in inside(wrapper))


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
    each = (wrapper for env in getattr(venv, "envs", ()) for wrapper in (env, *inside(env)))
    return next((type(wrapper).__name__ for wrapper in each if isinstance(wrapper, Outside)), "a wrapper")
