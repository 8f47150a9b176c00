"""The reward wrappers of a Stable-Baselines3 model, found in its `VecEnv`: late rewards, scores, frames and tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper
from torch import Tensor

from vlp_gym.engine.engine import QueryEngine
from vlp_gym.engine.tickets import Answer
from vlp_gym.integrations.sb3.outside import meddling
from vlp_gym.integrations.sb3.vec import VLPVecReward
from vlp_gym.rewards.delivery import Delivery
from vlp_gym.wrappers.outside import MEDDLING as MEDDLING
from vlp_gym.wrappers.single import VLPRewardWrapper

logger = logging.getLogger("vlp_gym")

OnAnswer = Callable[[Answer, NDArray[np.uint8], Tensor], None]
"""Called in any thread with one answer, the frames ``[C, H, W, 3]`` and their tokens ``[C, K, D]``."""


class RewardWrappers:
    """The reward wrappers of a `VecEnv`: one `VLPVecReward`, or a `VLPRewardWrapper` around each environment.

    Args:
        venv: an environment as the agent has it.

    Attributes:
        vector: the `VLPVecReward` among its wrappers, or None.
        wrapped: for each environment, whether it has one of them.
    """

    def __init__(self, venv: VecEnv) -> None:
        self.venv, self.vector = venv, _find_vector(venv)
        alone = self.vector is None
        self.wrapped = venv.env_is_wrapped(VLPRewardWrapper) if alone else [True] * venv.num_envs
        places = [place for place, wrapped in enumerate(self.wrapped) if wrapped]
        late: list[bool] = [self.vector.late] if self.vector is not None else venv.get_attr("late", indices=places)
        self.late = any(late)
        """Whether rewards come late: the mode is "async" somewhere."""
        self.ticketed = all(late) and all(self.wrapped)
        """Whether every step has a ticket: the mode is "async" everywhere."""
        self.local = self.vector is not None or not isinstance(venv.unwrapped, SubprocVecEnv)
        """Whether the wrappers live in this process; elsewhere each poll is a round trip."""

    def yield_to_learner(self, on: bool) -> None:
        """Whether the models run only while the environments step, and pause while the agent learns."""
        if self.local:
            self._each("yield_to_learner", on)

    def _each(self, name: str, *args: Any) -> list[Any]:
        """Call a method of the `VLPVecReward`, or else of every `VLPRewardWrapper`."""
        return self.venv.env_method(name, *args) if self.vector is None else [getattr(self.vector, name)(*args)]


class RewardSource(RewardWrappers):
    """Brings the rewards of all environments of a `VecEnv`.

    Args:
        venv: wrapped by `VLPVecReward`, or with a `VLPRewardWrapper` around every environment, also
            in other processes (`SubprocVecEnv`).
        listener: called with the number of the environment and each delivery.

    Raises:
        ValueError: if it has neither.
    """

    def __init__(self, venv: VecEnv, listener: Callable[[int, Delivery], None]) -> None:
        super().__init__(venv)
        if not all(self.wrapped):
            raise ValueError(
                "expected an environment with VLPVecReward around the VecEnv, or with VLPRewardWrapper around each "
                f"environment in it; found neither in {venv.unwrapped}"
            )
        self.listener = listener
        if self.late and (name := meddling(venv, self.vector)):
            logger.warning(MEDDLING, name)
            self._each("take_late_rewards", False)
            self.late = False
        thresholds = self.venv.get_attr("success_threshold") if self.vector is None else [self.vector.success_threshold]
        self.judges = any(threshold is not None for threshold in thresholds)
        """Whether some scores count as success."""

    def take_late_rewards(self, on: bool = True) -> None:
        """Let rewards come late from now on, or let every step wait for its own again."""
        if self.late:
            self._each("take_late_rewards", on)
            self.yield_to_learner(on)
        if self.late and self.local:
            self._each("raise_in_poll", on)

    def poll(self, indices: Sequence[int], timeout_s: float) -> Iterator[tuple[int, list[Delivery]]]:
        """Take the rewards that have come, one environment at a time: an error in one loses no reward of another.

        Args:
            indices: numbers of the environments.
            timeout_s: longest wait for each that has rewards pending.
        """
        if self.vector is not None:
            yield from enumerate(self.vector.poll(timeout_s))
            return
        for index in indices:
            yield index, self.venv.env_method("poll", timeout_s, indices=[index])[0]

    def idle(self) -> bool:
        """Whether nothing is pending: a reward that the next `poll` does not bring will not come."""
        return all(stats["pending"] == 0 for stats in self._each("stats"))

    def latencies(self) -> dict[str, float]:
        """Seconds from a step to its reward: ``latency_p50`` and ``latency_p99``; empty before the first.

        With several engines, the median of their p50 and the largest p99.
        """
        every = [latencies for latencies in self._each("latencies") if latencies]
        if not every:
            return {}
        median = float(np.median([latencies["latency_p50_s"] for latencies in every]))
        return {"latency_p50": median, "latency_p99": max(latencies["latency_p99_s"] for latencies in every)}


class SegmentSource(RewardWrappers):
    """Gives a `SegmentStore` the scores, frames and frame tokens of the environments of a `VecEnv`.

    Args:
        venv: some of its environments may have a reward wrapper.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.in_process = self.vector is not None or isinstance(venv.unwrapped, DummyVecEnv)
        self.engines: dict[QueryEngine, dict[int, int]] = {}
        """For each engine, the environments' numbers in its tickets, and their places in the `VecEnv`."""

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
        if self.vector is not None:
            self.engines[self.vector.engine] = {ticket.env: place for place, ticket in enumerate(self.vector.tickets)}
            return
        engines, tickets = self.venv.get_attr("engine"), self.venv.get_attr("ticket")
        for place, (engine, ticket) in enumerate(zip(engines, tickets, strict=True)):
            self.engines.setdefault(engine, {})[ticket.env] = place

    def connect(self, on_answer: OnAnswer) -> None:
        """Let the engines call this with each answer; its ticket then has the environment's place in the `VecEnv`."""

        def by_place(places: dict[int, int], answer: Answer, frames: NDArray[np.uint8], tokens: Tensor) -> None:
            place = places.get(answer.ticket.env)
            if place is not None:
                on_answer(answer._replace(ticket=answer.ticket._replace(env=place)), frames, tokens)

        for engine, places in self.engines.items():
            engine.on_answer = partial(by_place, places)
        self._each("take_late_rewards")

    def discard_rewards(self) -> None:
        """Drop the late rewards that have come: only the scores are wanted."""
        self._each("poll")

    def wait(self) -> None:
        """Wait for all pending answers."""
        for engine in self.engines:
            engine.wait()

    def disconnect(self) -> None:
        """Wait for all pending answers; later ones are not passed on."""
        for engine in self.engines:
            engine.wait()
            engine.on_answer = None
        self._each("take_late_rewards", False)


def _find_vector(venv: VecEnv) -> VLPVecReward | None:
    while isinstance(venv, VecEnvWrapper) and not isinstance(venv, VLPVecReward):
        venv = venv.venv
    return venv if isinstance(venv, VLPVecReward) else None
