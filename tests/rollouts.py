"""Painted rollouts for tests: red says which rollout a frame is from, green which frame of it, blue the tier."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np

from vlp_gym.data.shards import encode_trajectory, shard_path, write_shard
from vlp_gym.data.trajectory import (
    AGENT,
    ALL_TIERS,
    APART,
    EITHER_WAY,
    EXPLORE,
    NEAR_MISS,
    RETREAT,
    TIERS,
    Trajectory,
)
from vlp_gym.metaworld.sentences import with_sentences

STRIDE = 5
BLUE = dict(zip(ALL_TIERS, (0, 50, 100, 150, 200, 250, 253, 255, 251), strict=True))
SUCCESS_AT = 12  # frame at which an expert succeeds


def painted(task, tier, number=0, frames=16, size=16, *, fails=False):
    """A rollout whose reward grows to 10 (expert), 5 (medium), 2 (near miss), 3 (explore), 4 (agent), or under 1.

    A Meta-World task comes with its sentences, any other without.
    """
    rng = np.random.default_rng([number, frames, len(tier)])
    step = np.arange(frames, dtype=np.int64) * STRIDE
    top = {
        "expert": 10.0,
        "medium": 5.0,
        NEAR_MISS: 2.0,
        EXPLORE: 3.0,
        AGENT: 4.0,
        RETREAT: 10.0,
        APART: 0.0,
        EITHER_WAY: 0.0,
        "random": 0.0,
    }[tier]
    every = top * np.minimum(np.arange(1, step[-1] + 1) / (SUCCESS_AT * STRIDE), 1) + rng.uniform(0, 0.5, step[-1])
    reward = np.append(0.0, every[step[1:] - 1])
    success = (np.arange(frames) >= SUCCESS_AT) & (tier in ("expert", RETREAT)) & (not fails)
    pictures = np.zeros((frames, size, size, 3), np.uint8)
    pictures[..., 0] = 20 * number
    pictures[..., 1] = 8 * np.arange(frames)[:, None, None]
    pictures[..., 2] = BLUE[tier]
    positions = np.zeros((frames, 2, 3))  # the hand reaches the object at frame 5, and takes it along from there
    positions[:, 0, 0], positions[:, 1, 0] = step / 100, np.maximum(step / 100, 0.25)
    if tier == EITHER_WAY:  # the object goes the other way
        positions[:, 1, 0] = -np.minimum(step / 100, 0.4)
    if tier == RETREAT:  # until success; then it goes back alone
        positions[SUCCESS_AT:, 1] = positions[SUCCESS_AT, 1]
        positions[SUCCESS_AT:, 0, 0] -= 2 * (step[SUCCESS_AT:] - step[SUCCESS_AT]) / 100
    numbers = reward.astype(np.float32), success, every.astype(np.float32), positions.astype(np.float32)
    return with_sentences(Trajectory(task, tier, number, "corner2", STRIDE, False, pictures, step, *numbers))


def with_steps(trajectory, *, observation=39, action=4):
    """The same rollout with observations and actions: random ones, but the first numbers say number, tier and step."""
    steps = len(trajectory.episode_reward)
    rng = np.random.default_rng([trajectory.seed, len(trajectory.tier), 1])
    states = rng.normal(size=(steps + 1, observation)).astype(np.float32)
    states[:, 0], states[:, 1], states[:, 2] = trajectory.seed, BLUE[trajectory.tier] / 100, np.arange(steps + 1) / 100
    actions = rng.uniform(-1, 1, (steps, action)).astype(np.float32)
    return replace(trajectory, observation=states, action=actions)


def painted_tasks(tasks, *, each=2, size=16, tiers=TIERS):
    """`each` rollouts of every task and tier, numbered on."""
    made = []
    for task in tasks:
        for tier in tiers:
            made += [painted(task, tier, len(made) + k, 16 + k, size) for k in range(each)]
    return made


def write_tasks(folder: Path, trajectories):
    """Shards as a collection leaves them."""
    for task, tier in dict.fromkeys((t.task, t.tier) for t in trajectories):
        write_shard([t for t in trajectories if (t.task, t.tier) == (task, tier)], shard_path(folder, task, tier))


def write_version_1(trajectories, path):
    """A shard as this package wrote it before trajectories carried sentences, observations and actions."""
    import datasets

    series = {"step": "int64", "reward": "float32", "success": "bool", "episode_reward": "float32"}
    plain = {
        "task": "string",
        "tier": "string",
        "seed": "int64",
        "camera": "string",
        "stride": "int64",
        "varied": "bool",
    }
    features = {
        **{name: datasets.Value(kind) for name, kind in plain.items()},
        "frames": datasets.Sequence(datasets.Image()),
        **{name: datasets.Sequence(datasets.Value(kind)) for name, kind in series.items()},
        "positions": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
    }
    rows = [{name: encode_trajectory(trajectory)[name] for name in features} for trajectory in trajectories]
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(str(path))


def killed(job):
    """Stands where a worker's task should: the worker ends as if the system had run out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
