"""What a reward model says and sees of each step of a Stable-Baselines3 run, kept in the segments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor

from vlp_gym.answers import Answer
from vlp_gym.engine import QueryEngine
from vlp_gym.integrations.sb3_source import RewardWrappers


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
