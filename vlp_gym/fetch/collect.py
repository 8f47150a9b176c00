"""Collects Fetch rollouts in the tiers of MTVLP, with every reward.

- expert: the expert at a random pace + N(0, 0.1), until shortly after success (FetchSlide: at its pace, until success).
- medium: the expert + N(0, 0.5) until half of the way to the goal is done, then noise alone.
- random: uniform actions.
- near_miss (optional): the expert aiming beside the goal.

Positions of hand and object are not recorded: goals differ between episodes, so progress comes from the reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from pydantic import ConfigDict

from vlp_gym.data.collection import collect_shards, write_missing
from vlp_gym.data.recorder import Recorder
from vlp_gym.data.trajectory import ALL_TIERS, NEAR_MISS, TIERS, Trajectory
from vlp_gym.fetch.env import CAMERA, EPISODE_STEPS, TASKS, make_fetch
from vlp_gym.fetch.experts import EXPERTS, Observation
from vlp_gym.fetch.instructions import HELD_OUT, TRAINING

RENDER_SIZE = 224  # least size of rendering; smaller frames are downscaled
ATTEMPTS = 8
BEYOND_SUCCESS = (4, 12)  # steps of an expert after success
WANDER_STEPS = (25, 51)  # length of random rollouts
NOISE_AFTER_HALF = 15  # final steps of a medium rollout, noise alone
LEAST_WAY = 0.1  # metres to the goal at the start: nearer, and an episode shows nothing
PACE = (0.4, 1.0)  # factor on an expert's motion
BESIDE = (0.1, 0.2)  # metres from the goal to where a near miss aims
NOISE = {"expert": 0.1, "medium": 0.5, NEAR_MISS: 0.2}


@dataclass(frozen=True)
class FetchConfig:
    """Settings of a collection, stored beside the shards; a resumed run must have the same."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # what is not known here may change the rollouts

    per_tier: int = 32
    tiers: tuple[str, ...] = TIERS
    near_miss: int = 0
    stride: int = 2
    size: int = 112
    seed: int = 0


def collect_fetch(
    folder: str | Path,
    config: FetchConfig,
    *,
    tasks: Sequence[str] | None = None,
    workers: int | None = None,
    ray: bool = False,
    progress_bar: bool = True,
) -> None:
    """Collect every missing shard; see `collect_shards`.

    Args:
        folder: output folder for the shards.
        config: settings of the collection.
        tasks: names such as FetchPush; default: all four.
        workers: worker processes; default: one per core.
        ray: see `collect_shards`.
        progress_bar: show a progress bar.

    Raises:
        DatasetError: if the folder holds a collection with other settings, another process collects into it, or a
            worker process is killed.
    """
    tiers = [tier for tier in ALL_TIERS if _count(config, tier)]
    collect_shards(
        folder, config, TASKS if tasks is None else tasks, tiers, _collect_task,
        workers=workers, ray=ray, progress_bar=progress_bar,
    )  # fmt: skip


def _collect_task(job: tuple[Path, FetchConfig, str, Sequence[str]]) -> str:
    folder, config, task, tiers = job
    env = make_fetch(task, size=max(RENDER_SIZE, config.size))
    try:
        write_missing(
            folder, task, tiers,
            lambda tier: [rollout(env, task, tier, config, index) for index in range(_count(config, tier))],
        )  # fmt: skip
    finally:
        env.close()
    return task


def _count(config: FetchConfig, tier: str) -> int:
    return config.near_miss if tier == NEAR_MISS else config.per_tier * (tier in config.tiers)


def rollout(env: gym.Env, task: str, tier: str, config: FetchConfig, index: int) -> Trajectory:
    """Rollout `index` of a task and tier; experts that fail and near misses that hit try again, up to `ATTEMPTS` times.

    Args:
        env: from `make_fetch`.
        task: one of `TASKS`.
        tier: one of `TIERS`, or "near_miss".
        config: its stride, size and seed.
        index: number of the rollout.
    """
    for attempt in range(ATTEMPTS if tier in ("expert", NEAR_MISS) else 1):
        rng = np.random.default_rng([config.seed, TASKS.index(task), ALL_TIERS.index(tier), index, attempt])
        made = _attempt(env, task, tier, config, rng)
        if made.success.any() == (tier == "expert"):
            break
    return made


def _attempt(env: gym.Env, task: str, tier: str, config: FetchConfig, rng: np.random.Generator) -> Trajectory:
    way = 0.0
    while way < LEAST_WAY:
        seed = int(rng.integers(2**31))
        observation, _ = env.reset(seed=seed)
        way = _left(observation)
    recorder = Recorder(config.size, _flat(env, observation))
    recorder.add(env.render(), False)  # type: ignore[arg-type]
    actor = Actor(task, tier, observation, rng)
    for step in range(1, EPISODE_STEPS + 1):
        action = actor.act(observation)
        observation, reward, _, truncated, info = env.step(action)
        recorder.step(action, _flat(env, observation), float(reward))
        succeeded = bool(info["is_success"])
        last = actor.is_over(observation, succeeded) or truncated
        if last or step % config.stride == 0:
            recorder.add(env.render(), succeeded)  # type: ignore[arg-type]
        if last:
            break
    return recorder.trajectory(
        task=task, tier=tier, seed=seed, camera=CAMERA, stride=config.stride, varied=False, sentences=TRAINING[task],
        held_out=HELD_OUT[task],
    )  # fmt: skip


class Actor:
    """The behaviour of one tier: its actions, and when its rollout is over.

    Args:
        task: one of `TASKS`.
        tier: one of `TIERS`, or "near_miss".
        observation: the first of the episode.
        rng: draws everything.
    """

    def __init__(self, task: str, tier: str, observation: Observation, rng: np.random.Generator) -> None:
        self.tier, self.rng, self.expert = tier, rng, EXPERTS[task]
        self.stays = tier == "expert" and task != "FetchSlide"  # a puck slides on, and needs a fast hand
        self.pace = float(rng.uniform(*PACE)) if self.stays else 1.0
        angle, beside = rng.uniform(0, 2 * np.pi), rng.uniform(*BESIDE)
        self.beside = beside * np.array([np.cos(angle), np.sin(angle), 0.0])
        self.way = _left(observation)
        self.remaining = int(rng.integers(*WANDER_STEPS)) if tier == "random" else None

    def act(self, observation: Observation) -> np.ndarray:
        """Action float32 ``[4]`` in [-1, 1]."""
        if self.tier == "random":
            return self.rng.uniform(-1, 1, 4).astype(np.float32)
        if self.tier == NEAR_MISS:
            observation = {**observation, "desired_goal": observation["desired_goal"] + self.beside}
        action = self.expert(observation)
        if self.tier == "medium" and self.remaining is not None:
            action = np.zeros(4)
        action[:3] *= self.pace
        return np.clip(action + self.rng.normal(0, NOISE[self.tier], 4), -1, 1).astype(np.float32)

    def is_over(self, observation: Observation, succeeded: bool) -> bool:
        """Whether the rollout ends with the step that led to this observation."""
        if self.remaining is not None:
            self.remaining -= 1
            return self.remaining <= 0 or (succeeded and not self.stays)
        if self.stays and succeeded:
            self.remaining = int(self.rng.integers(*BEYOND_SUCCESS))
        elif self.tier == "medium" and _left(observation) < self.way / 2:
            self.remaining = NOISE_AFTER_HALF
        return succeeded and not self.stays


def _left(observation: Observation) -> float:
    """Metres to the goal."""
    return float(np.linalg.norm(observation["desired_goal"] - observation["achieved_goal"]))


def _flat(env: gym.Env, observation: Any) -> np.ndarray:
    """As Gymnasium's FlattenObservation has it: achieved goal, desired goal, observation."""
    flat: np.ndarray = gym.spaces.flatten(env.observation_space, observation)  # type: ignore[assignment]
    return flat
