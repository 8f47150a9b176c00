"""How often a policy succeeds: episodes of all its seeds, in parallel processes that render nothing."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from vlp_gym.errors import VLPError
from vlp_gym.frames.process import end_with_parent, end_workers, submit_all
from vlp_gym.policies.policy import Layers, Policy, mean_action

Floats = NDArray[np.float64]
CHUNK = 5  # episodes a worker plays at once
_environment: gym.Env[Any, Any] | None = None
"""A worker's own."""


class Evaluator:
    """Plays episodes with the mean action; a context manager.

    An episode succeeds if ``info["success"]`` is true at any of its steps, and ends there.

    Args:
        make: makes an environment in each worker, such as ``functools.partial(make_metaworld, "push-v3")``; it must be
            picklable.
        episodes: episodes of each seed in an evaluation; every evaluation and every seed has starts of its own.
        seed: seeds the starts.
        workers: processes; default: one per core.

    Raises:
        ValueError: for a number below 1.
    """

    def __init__(
        self, make: Callable[[], gym.Env[Any, Any]], *, episodes: int = 25, seed: int = 0, workers: int | None = None
    ) -> None:
        if episodes < 1 or (workers is not None and workers < 1):
            raise ValueError(f"episodes and workers must be at least 1, got {episodes} and {workers}")
        self.make, self.episodes, self.seed = make, episodes, seed
        self.workers = workers or os.cpu_count() or 1
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; twice is fine."""
        pool, self._pool = self._pool, None
        if pool is not None:
            end_workers(pool)

    def __call__(self, policy: Policy) -> dict[str, list[float]]:
        """Play the episodes of every seed of a policy.

        Returns:
            "success": the share of successful episodes of each seed.

        Raises:
            VLPError: a worker was killed.
        """
        jobs = []
        for seed in policy.seeds:
            rng = np.random.default_rng([self.seed, policy.document["step"], seed])
            starts = rng.integers(2**31, size=self.episodes).tolist()
            layers = policy.layers(seed)
            jobs += [(layers, starts[first : first + CHUNK]) for first in range(0, self.episodes, CHUNK)]
        try:
            won = [future.result() for future in submit_all(self._workers(), _play, jobs)]
        except BrokenProcessPool as error:
            raise VLPError(
                "an evaluating process was killed (out of memory?); the last saved state is kept, and fewer workers "
                "need less memory"
            ) from error
        each = -(-self.episodes // CHUNK)
        parts = [won[first : first + each] for first in range(0, len(won), each)]
        return {"success": [float(np.mean(np.concatenate(part))) for part in parts]}

    def _workers(self) -> ProcessPoolExecutor:
        """The pool, made when it is first needed."""
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, spawn, _prepare_worker, (self.make,))
        return self._pool


def film(make: Callable[[], gym.Env[Any, Any]], policy: Policy, seed: int = 0) -> tuple[NDArray[np.uint8], Floats]:
    """Film one episode of the seed that acts, in a process of its own, until it ends or succeeds.

    Args:
        make: makes an environment that renders pictures; it must be picklable.
        policy: acts with its mean.
        seed: of the environment's reset.

    Returns:
        Frames, uint8 ``[F, H, W, 3]``, the first after the reset; and the environment's reward at each, float64
        ``[F]``, 0 for the first.

    Raises:
        VLPError: the process was killed.
    """
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent)
    try:
        return submit_all(pool, _film, [(make, policy.layers(), seed)])[0].result()
    except BrokenProcessPool as error:
        raise VLPError("the process that films an episode was killed (out of memory?)") from error
    finally:
        end_workers(pool)


def play_episode(env: gym.Env[Any, Any], layers: Layers, seed: int) -> bool:
    """Play one episode with the mean action; whether it succeeded."""
    observation, _ = env.reset(seed=seed)
    while True:
        action = mean_action(layers, np.asarray(observation, np.float32))
        observation, _, terminated, truncated, info = env.step(action)
        if info.get("success", 0.0):
            return True
        if terminated or truncated:
            return False


def _film(make: Callable[[], gym.Env[Any, Any]], layers: Layers, seed: int) -> tuple[NDArray[np.uint8], Floats]:
    env = make()
    try:
        observation, _ = env.reset(seed=seed)
        frames, rewards, ended = [np.asarray(env.render())], [0.0], False
        while not ended:
            action = mean_action(layers, np.asarray(observation, np.float32))
            observation, reward, terminated, truncated, info = env.step(action)
            frames.append(np.asarray(env.render()))
            rewards.append(float(reward))
            ended = terminated or truncated or bool(info.get("success", 0.0))
    finally:
        env.close()
    return np.stack(frames), np.array(rewards)


def _prepare_worker(make: Callable[[], gym.Env[Any, Any]]) -> None:
    global _environment
    end_with_parent()
    import torch

    torch.set_num_threads(1)
    _environment = make()


def _play(layers: Layers, seeds: list[int]) -> list[bool]:
    assert _environment is not None
    return [play_episode(_environment, layers, seed) for seed in seeds]
