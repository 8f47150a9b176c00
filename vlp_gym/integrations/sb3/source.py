"""Where the late rewards of a Stable-Baselines3 run come from: the wrappers, found in the `VecEnv` of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper
from torch import Tensor

from vlp_gym.engine.engine import QueryEngine
from vlp_gym.engine.tickets import Answer
from vlp_gym.integrations.sb3.vec import VLPVecReward
from vlp_gym.rewards.stream import Delivery
from vlp_gym.wrappers.single import VLPRewardWrapper


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
        self.by_poll = self.late and (self.vector is not None or self._local)
        """Rewards come by `poll` alone; other processes, where a poll is a round trip, put them into the infos too."""
        if not self.by_poll:
            return
        if self.vector is not None:
            self.vector.deliver_by_poll()
        else:
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


class Listener(Protocol):
    """What keeps the answers: a `SegmentStore`, or something like it."""

    def see(self, answer: Answer, frames: NDArray[np.uint8], tokens: Tensor) -> None:
        """One answer, whose ticket has the environment's place in the `VecEnv`, with what was looked at."""
        ...


class SegmentSource(RewardWrappers):
    """Gives a `SegmentStore` the scores, frames and frame tokens of the environments of a `VecEnv`.

    Args:
        venv: some of whose environments may have a wrapper that pays; it has been reset.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.in_process = self.vector is not None or isinstance(venv.unwrapped, DummyVecEnv)
        self.ticketed = all("ticket" in info.get("vlp", {}) for info in self.reset_infos)
        """Whether every step has a ticket: the mode is "async" everywhere."""
        self.engines: dict[QueryEngine, dict[int, int]] = {}
        """Of each engine, the environments' numbers in its tickets, and their places in the `VecEnv`."""

    def find_engines(self) -> None:
        """Look up the engines.

        Raises:
            ValueError: if they live in other processes, or steps have no tickets.
        """
        if not self.in_process:
            raise ValueError(
                "the environments look at their frames in other processes, where their scores cannot be kept; use "
                "capture_frames and VLPVecReward around the SubprocVecEnv"
            )
        if not self.ticketed:
            raise ValueError('expected the wrapper in mode="async", whose steps have tickets')
        count = self.venv.num_envs
        engines = [self.vector.engine] * count if self.vector is not None else self.venv.get_attr("engine")
        for place, (engine, info) in enumerate(zip(engines, self.reset_infos, strict=True)):
            self.engines.setdefault(engine, {})[info["vlp"]["ticket"].env] = place

    def connect(self, listener: Listener) -> None:
        """From now on, what the engines answer goes there."""
        for engine, places in self.engines.items():
            engine.on_answer = _Ear(listener, places)

    def wait(self) -> None:
        """Wait for all that is on its way."""
        for engine in self.engines:
            engine.wait()

    def disconnect(self) -> None:
        """Wait for what is on its way, and listen no longer."""
        for engine in self.engines:
            engine.wait()
            engine.on_answer = None


@dataclass(frozen=True)
class _Ear:
    """Passes on what one engine answers, under the number that the environment has in the `VecEnv`."""

    listener: Listener
    places: dict[int, int]

    def __call__(self, answer: Answer, frames: NDArray[np.uint8], tokens: Tensor) -> None:
        place = self.places.get(answer.ticket.env)
        if place is not None:
            self.listener.see(answer._replace(ticket=answer.ticket._replace(env=place)), frames, tokens)


def _find_vector(venv: VecEnv) -> VLPVecReward | None:
    while isinstance(venv, VecEnvWrapper):
        if isinstance(venv, VLPVecReward):
            return venv
        venv = venv.venv
    return None
