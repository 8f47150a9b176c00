"""Collects ManiSkill 3 rollouts in the tiers of MTVLP, with every reward, and positions of hand and object.

- expert: the motion planner, until shortly after success; noise would spoil what is exact to half a millimetre.
- medium: the motion planner + N(0, 0.02) until the middle of its way, then the joints wander.
- random: the joints wander.
- apart (ours, optional): no rollout, but arm and objects of different moments, see `apart`.

Noise is in radians of the joints' targets. Stored actions are these targets scaled from the limits of the action space
to [-1, 1], as Gymnasium's `RescaleAction` takes them. Equal seeds give equal episodes and plans, but what touches moves
the same to a millimetre or so only: PhysX remembers contacts of the episode before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from pydantic import ConfigDict

from vlp_gym.data import recorder
from vlp_gym.data.collection import collect_shards, write_missing
from vlp_gym.data.trajectory import ALL_TIERS, APART, TIERS, Trajectory
from vlp_gym.maniskill import apart
from vlp_gym.maniskill.env import CAMERA, frame_of, make_maniskill, positions_of, succeeded
from vlp_gym.maniskill.experts import solve
from vlp_gym.maniskill.instructions import HELD_OUT, TRAINING
from vlp_gym.maniskill.tasks import TASKS

RENDER_SIZE = 224  # least size of rendering; smaller frames are downscaled
MAX_STEPS = 400
ATTEMPTS = 12  # of an expert
BEYOND_SUCCESS = (5, 15)  # steps of an expert after success
MIDDLE = (0.35, 0.65)  # share of an expert's steps at which a medium rollout is cut
NOISE_AFTER_MIDDLE = 40  # final steps of a medium rollout
WANDER_STEPS = (60, 120)  # length of random rollouts
NOISE = 0.02  # radians, of a medium rollout
WANDER = 0.08  # radians a step, at most
HOME = 0.05  # share of the way back to where they began that wandering joints go in a step: the hand stays in view
CLOSE = 0.1  # probability of a step in which wandering fingers open or close


@dataclass(frozen=True)
class ManiSkillConfig:
    """Settings of a collection, stored beside the shards; a resumed run must have the same."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # what is not known here may change the rollouts

    per_tier: int = 32
    tiers: tuple[str, ...] = TIERS
    apart: int = 0
    stride: int = 5
    size: int = 112
    seed: int = 0


def collect_maniskill(
    folder: str | Path,
    config: ManiSkillConfig,
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
        tasks: names such as PickCube; default: all eleven.
        workers: worker processes; default: one per core.
        ray: see `collect_shards`.
        progress_bar: show a progress bar.

    Raises:
        DatasetError: if the folder holds a collection with other settings, another process collects into it, or a
            worker process is killed.
    """
    tiers = [tier for tier in (*TIERS, APART) if _count(config, tier)]
    collect_shards(
        folder, config, tuple(TASKS) if tasks is None else tasks, tiers, _collect_task,
        workers=workers, ray=ray, progress_bar=progress_bar,
    )  # fmt: skip


def _collect_task(job: tuple[Path, ManiSkillConfig, str, Sequence[str]]) -> str:
    folder, config, task, tiers = job
    env = make_maniskill(task, size=max(RENDER_SIZE, config.size))
    try:
        write_missing(
            folder, task, tiers,
            lambda tier: [rollout(env, task, tier, config, index) for index in range(_count(config, tier))],
        )  # fmt: skip
    finally:
        env.close()
    return task


def _count(config: ManiSkillConfig, tier: str) -> int:
    return config.apart if tier == APART else config.per_tier * (tier in config.tiers)


def rollout(env: gym.Env, task: str, tier: str, config: ManiSkillConfig, index: int) -> Trajectory:
    """Rollout `index` of a task and tier; experts that fail try again, up to `ATTEMPTS` times.

    Args:
        env: from `make_maniskill`.
        task: a name of `TASKS`.
        tier: one of `TIERS`, or "apart".
        config: its stride, size and seed.
        index: number of the rollout.
    """
    for attempt in range(ATTEMPTS if tier == "expert" else 1):
        rng = np.random.default_rng([config.seed, list(TASKS).index(task), ALL_TIERS.index(tier), index, attempt])
        made = _attempt(env, task, tier, config, rng)
        if made.success.any():
            break
    return made


def _attempt(env: gym.Env, task: str, tier: str, config: ManiSkillConfig, rng: np.random.Generator) -> Trajectory:
    done = True
    while done:  # some episodes begin with their goal
        seed = int(rng.integers(2**31))
        env.reset(seed=seed)
        done = succeeded(env)
    if tier == APART:
        return _apart(env, task, config, seed, rng)
    player = Player(env, task, tier, config, rng)
    try:
        if tier == "random":
            player.reset(seed=seed)
        else:
            solve(task, player, seed)
        player.go_on()
    except _OverError:
        pass
    return player.trajectory(seed)


def _apart(env: gym.Env, task: str, config: ManiSkillConfig, seed: int, rng: np.random.Generator) -> Trajectory:
    states, arms = apart.moments(env, task, seed, rng)
    moved = [number for number, state in enumerate(states) if apart.has_moved(state, states[0])]
    base: Any = env.unwrapped
    told, observation = apart.place(env, states[0], states[0]), base.get_obs()
    recorder = Recorder(env, task, config.size, observation[0].cpu().numpy())
    recorder.add(frame_of(env), bool(told["success"]))
    mover, still = getattr(base, TASKS[task].moved).name, torch.zeros(1, *(env.action_space.shape or ()))
    for left in reversed(range(apart.FRAMES - 1)):
        # The last frame is the expert's last: what success is in this episode, and so how far the others are from it.
        arm, there = apart.draw(states, arms, moved, mover, rng) if left else (states[-1], states[-1])
        told, observation = apart.place(env, arm, there), base.get_obs()
        reward = base.get_reward(obs=observation, action=still, info=told)
        recorder.step(still[0].numpy(), observation[0].cpu().numpy(), float(reward))
        recorder.add(frame_of(env), bool(told["success"]))
    made = recorder.trajectory(**_about(task, APART, seed), stride=1)
    return replace(made, observation=None, action=None)  # nobody acts


def _about(task: str, tier: str, seed: int) -> dict[str, Any]:
    return {
        "task": task, "tier": tier, "seed": seed, "camera": CAMERA, "varied": False, "sentences": TRAINING[task],
        "held_out": HELD_OUT[task],
    }  # fmt: skip


class _OverError(Exception):
    """The rollout is over, whatever the planner is at."""


class Player(gym.Wrapper):
    """An environment that a planner acts in; it adds the tier's noise, records, and ends the rollout.

    Args:
        env: from `make_maniskill`.
        task: a name of `TASKS`.
        tier: one of `TIERS`.
        config: its stride and size.
        rng: draws everything.
    """

    def __init__(self, env: gym.Env, task: str, tier: str, config: ManiSkillConfig, rng: np.random.Generator) -> None:
        super().__init__(env)
        self.task, self.tier, self.config, self.rng = task, tier, config, rng
        space: Any = env.action_space
        self.low, self.high = space.low, space.high
        self.steps, self.succeeded = 0, False
        self.middle = int(TASKS[task].steps * rng.uniform(*MIDDLE)) if tier == "medium" else MAX_STEPS
        self.left = int(rng.integers(*WANDER_STEPS)) if tier == "random" else MAX_STEPS  # until it is over

    def reset(self, **options: Any) -> Any:
        """Begin to record."""
        observation, info = super().reset(**options)
        base: Any = self.env.unwrapped
        joints = base.agent.robot.get_qpos()[0, : len(self.low) - 1].cpu().numpy()
        self.last = np.append(joints, 1.0)  # its last action: here, to stay as it is, with open fingers
        self.recorder = Recorder(self.env, self.task, self.config.size, observation[0].cpu().numpy())
        self.recorder.add(frame_of(self.env), False)
        return observation, info

    def step(self, action: np.ndarray) -> Any:
        """Act, with noise in a medium rollout; raises `_OverError` at its end, and from its middle on."""
        if self.steps == self.middle:
            self.wander(NOISE_AFTER_MIDDLE)
        if self.tier == "medium":
            action = action + np.append(self.rng.normal(0, NOISE, len(action) - 1), 0.0)
        return self._step(action)

    def go_on(self) -> None:
        """What the tier does once its planner is done: an expert waits, so that it may come to rest; others wander."""
        if self.tier == "expert":
            self.left = min(self.left, BEYOND_SUCCESS[1])
            while True:
                self._step(self.last)
        self.wander(self.left if self.tier == "random" else NOISE_AFTER_MIDDLE)

    def wander(self, steps: int) -> None:
        """So many steps in which the joints drift, and the fingers open and close; then it is over."""
        self.left, start, target = steps, self.last[:-1], self.last
        while True:
            drift = HOME * (start - target[:-1]) + self.rng.uniform(-WANDER, WANDER, len(start))
            target = target + np.append(drift, 0.0)
            if self.rng.random() < CLOSE:
                target[-1] = -target[-1]
            target = np.clip(target, self.low, self.high)
            self._step(target)

    def _step(self, action: np.ndarray) -> Any:
        self.last = action = np.clip(action, self.low, self.high).astype(np.float32)
        answer = self.env.step(action)
        observation, reward, _, truncated, info = answer
        self.steps += 1
        self.left -= 1
        self.recorder.step(
            2 * (action - self.low) / (self.high - self.low) - 1, observation[0].cpu().numpy(), float(reward)
        )
        success = bool(info["success"])
        if success and not self.succeeded:
            self.succeeded = True
            self.left = int(self.rng.integers(*BEYOND_SUCCESS)) if self.tier == "expert" else 0
        over = self.left <= 0 or bool(truncated) or self.steps == MAX_STEPS
        if over or self.steps % self.config.stride == 0:
            self.recorder.add(frame_of(self.env), success)
        if over:
            raise _OverError
        return answer

    def trajectory(self, seed: int) -> Trajectory:
        """What was recorded."""
        return self.recorder.trajectory(**_about(self.task, self.tier, seed), stride=self.config.stride)


class Recorder(recorder.Recorder):
    """Knows where hand and object are."""

    def __init__(self, env: gym.Env, task: str, size: int, observation: np.ndarray) -> None:
        super().__init__(size, observation)
        self.env, self.task = env, task

    def positions_now(self) -> np.ndarray:
        """See `data.recorder.Recorder`."""
        return positions_of(self.env, self.task)
