"""Where the late rewards of a Stable-Baselines3 run come from: the wrappers, found in the `VecEnv` of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecEnvWrapper

from vlp_gym.integrations.sb3_vec import VLPVecReward
from vlp_gym.wrappers.single import VLPRewardWrapper
from vlp_gym.wrappers.stream import Delivery


class RewardWrappers:
    """The wrappers that pay the environments of a `VecEnv` for a sentence, whichever they are.

    Args:
        venv: it has been reset.

    Attributes:
        vector: the `VLPVecReward` in its chain, or None.
        wrapped: of each environment, whether a `VLPVecReward`, or a `VLPRewardWrapper` of its own, pays it.
    """

    def __init__(self, venv: VecEnv) -> None:
        self.venv, self.vector = venv, _find_vector(venv)
        alone = self.vector is None
        self.wrapped = venv.env_is_wrapped(VLPRewardWrapper) if alone else [True] * venv.num_envs
        self.reset_infos: list[dict[str, Any]] = (self.vector or venv.unwrapped).reset_infos
        self.late = any("ticket" in info.get("vlp", {}) for info in self.reset_infos)
        """Whether rewards come late: the mode is "async"."""
        self._local = not isinstance(venv.unwrapped, SubprocVecEnv)

    def yield_to_learner(self, on: bool) -> None:
        """Let the models work while the environments do, and rest while the agent learns; or no longer."""
        if self.vector is not None:
            self.vector.yield_to_learner(on)
        elif self._local:
            self.venv.env_method("yield_to_learner", on)


class RewardSource(RewardWrappers):
    """Brings the rewards of all environments of a `VecEnv`.

    Args:
        venv: with a `VLPVecReward` in its chain, or whose every environment has a `VLPRewardWrapper`; they may live
            in other processes (`SubprocVecEnv`). It has been reset.
        listener: called with each delivery.

    Raises:
        ValueError: if neither is there.
    """

    def __init__(self, venv: VecEnv, listener: Callable[[Delivery], None]) -> None:
        super().__init__(venv)
        if not all(self.wrapped):
            raise ValueError(
                "expected an environment with VLPVecReward around the VecEnv, or with VLPRewardWrapper around each "
                f"environment in it; found neither in {venv.unwrapped}"
            )
        self.listener = listener
        if not self.late:
            return
        if self.vector is not None:
            self.vector.deliver_by_poll()
        elif self._local:  # otherwise, to ask is a round trip
            venv.env_method("deliver_by_poll")

    def poll(self, indices: Sequence[int], timeout_s: float) -> Iterator[tuple[int, list[Delivery]]]:
        """Take the rewards that are there, environment by environment: an error of one loses nothing of another.

        Args:
            indices: of the environments to ask.
            timeout_s: how long to wait for each that has something on its way.
        """
        if self.vector is not None:
            yield from enumerate(self.vector.poll(timeout_s))
            return
        for index in indices:
            yield index, self.venv.env_method("poll", timeout_s, indices=[index])[0]

    def idle(self) -> bool:
        """Whether nothing is on its way: a reward that is not there by the next `poll` will not come."""
        if self.vector is not None:
            return self.vector.stats()["pending"] == 0
        return all(stats["pending"] == 0 for stats in self.venv.env_method("stats"))

    def latencies(self) -> dict[str, float]:
        """Seconds from a step to its reward: ``latency_p50`` and ``latency_p99``; empty before the first.

        Of several engines, the median of their p50 and the largest p99.
        """
        every = [self.vector.latencies()] if self.vector is not None else self.venv.env_method("latencies")
        every = [latencies for latencies in every if latencies]
        if not every:
            return {}
        return {
            "latency_p50": float(np.median([latencies["latency_p50_s"] for latencies in every])),
            "latency_p99": max(latencies["latency_p99_s"] for latencies in every),
        }


def _find_vector(venv: VecEnv) -> VLPVecReward | None:
    while isinstance(venv, VecEnvWrapper):
        if isinstance(venv, VLPVecReward):
            return venv
        venv = venv.venv
    return None
