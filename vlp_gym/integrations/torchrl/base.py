"""Where our transforms are: in a `TransformedEnv` around a `GymWrapper`."""

from __future__ import annotations

from typing import Any

from torchrl.envs import GymWrapper, Transform, TransformedEnv

REWARD = "reward"
PLACE = (
    "cannot be in an environment of SerialEnv or ParallelEnv: use a vector environment of Gymnasium with "
    "VLPVectorRewardWrapper in one GymWrapper"
)


def base_of(env: Any) -> tuple[GymWrapper, list[Transform]]:
    """The `GymWrapper` in an environment, and the transforms around it.

    Raises:
        TypeError: there is another one.
    """
    transforms: list[Transform] = []
    while isinstance(env, TransformedEnv):
        transforms += list(env.transform) if hasattr(env.transform, "transforms") else [env.transform]
        env = env.base_env
    if not isinstance(env, GymWrapper):
        raise TypeError(f"expected a GymWrapper in the TransformedEnv, got {type(env).__name__}")
    return env, transforms
