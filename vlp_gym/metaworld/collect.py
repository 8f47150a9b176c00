"""Collects MTVLP: rendered Meta-World rollouts of three tiers of skill, with every reward (VLP, appendix C).

- expert: the scripted policy + N(0, 0.1), until shortly after success.
- medium: the scripted policy + N(0, 0.5) until half of the stages are done, then noise alone.
- random: uniform actions.
- near_miss (ours, optional): the scripted policy aiming beside the object, so that purpose alone earns nothing.
- explore (ours, optional): the hand follows the scripted policy for a while, moves to points near the object, near
  itself or anywhere, and rests in between, as agents do.
- retreat (ours, optional): an expert that then takes its hand back to where it was. Played backwards, it shows the
  opposite task as an expert does it: the hand comes, and the object goes back.
- apart (ours, optional): no rollout, but arm and object of different moments, see `apart`.
- agent (ours, optional): an agent trained on an earlier reward model, see `agents`.

One parquet shard per task and tier; existing shards are skipped, so an interrupted run resumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlp_gym.data.collection import collect_shards, write_missing
from vlp_gym.data.trajectory import AGENT, ALL_TIERS, APART, EITHER_WAY, EXPLORE, NEAR_MISS, RETREAT, TIERS, Trajectory
from vlp_gym.metaworld.apart import apart_rollout
from vlp_gym.metaworld.config import CollectConfig
from vlp_gym.metaworld.env import make_metaworld, metaworld_tasks, scripted_policy
from vlp_gym.metaworld.recorder import HAND, OBJECT, Recorder
from vlp_gym.metaworld.variety import vary_scene

RENDER_SIZE = 224  # least size of rendering; smaller frames are downscaled
MAX_STEPS = 300
BEYOND_SUCCESS = (5, 25)  # steps of an expert after success
WANDER_STEPS = (60, 120)  # length of random and near-miss rollouts
EXPLORE_STEPS = (120, 180)
RETREAT_STEPS = (50, 90)  # after success
RISE = 0.12  # metres
PHASE_STEPS = (10, 50)  # duration of one aim of an exploring rollout
AIMS = (0.2, 0.25, 0.15, 0.4)  # probabilities: anywhere, near the object, near the hand, scripted policy
ROAMING = (1.0, 0.0, 0.0, 0.0), (30, 80)  # aims and phases of an arm that is shown apart: everywhere it can be
ABOUT = 0.05  # metres, standard deviation
NOISE_AFTER_STAGE = 30  # final steps of a medium rollout, noise alone
WORKSPACE = np.array([[-0.6, 0.3, 0.04], [0.6, 1.0, 0.5]])  # metres; corners of the region of exploring aims
EXPERT_ATTEMPTS = 4


@dataclass(frozen=True)
class Stage:
    """When a medium rollout has done half of its stages: at ``near_object``, or after `steps` steps."""

    by_near_object: bool
    steps: int


def collect_metaworld(
    folder: str | Path,
    config: CollectConfig,
    *,
    tasks: Sequence[str] | None = None,
    workers: int | None = None,
    ray: bool = False,
    progress_bar: bool = True,
) -> None:
    """Collect every missing shard, in parallel processes (two OpenGL contexts in one process draw garbage).

    Args:
        folder: output folder for the shards.
        config: settings of the collection.
        tasks: full task names; default: all 50.
        workers: worker processes; default: one per core.
        ray: see `collect_shards`.
        progress_bar: show a progress bar.

    Raises:
        DatasetError: if the folder holds a collection with other settings, another process collects into it, or a
            worker process is killed.
    """
    tiers = [tier for tier in ALL_TIERS if _count(config, tier)]
    names = tuple(tasks) if tasks is not None else metaworld_tasks()
    collect_shards(folder, config, names, tiers, _collect_task, workers=workers, ray=ray, progress_bar=progress_bar)


def _collect_task(job: tuple[Path, CollectConfig, str, Sequence[str]]) -> str:
    folder, config, task, tiers = job
    size = max(RENDER_SIZE, config.size)
    env = make_metaworld(task, seed=config.seed, size=size, camera=config.camera, random_start=config.random_start)
    try:
        stage = _measure_stage(env, task, config.seed)

        def make(tier: str) -> Sequence[Trajectory]:
            if tier != AGENT:
                return [_rollout(env, config, task, tier, stage, index) for index in range(_count(config, tier))]
            from vlp_gym.metaworld.agents import agent_rollouts  # imports torch

            rng = np.random.default_rng([config.seed, metaworld_tasks().index(task), ALL_TIERS.index(tier)])
            return agent_rollouts(env, task, config, rng)

        write_missing(folder, task, tiers, make)
    finally:
        env.close()
    return task


def _count(config: CollectConfig, tier: str) -> int:
    return config.per_tier * (tier in config.tiers) if tier in TIERS else getattr(config, tier)


def _measure_stage(env: Any, task: str, seed: int, episodes: int = 5) -> Stage:
    """Half of the stages: `near_object` if it fires midway, else half of the expert's time."""
    policy, lengths, near = scripted_policy(task), [], []
    for episode in range(episodes):
        observation, _ = env.reset(seed=10_000 + seed * 100 + episode)
        near_at = MAX_STEPS
        for step in range(1, MAX_STEPS + 1):
            observation, _, _, _, info = env.step(np.clip(policy.get_action(observation), -1, 1))
            if info["near_object"] > 0:
                near_at = min(near_at, step)
            if info["success"]:
                break
        lengths.append(step)
        near.append(near_at)
    length, near_step = float(np.median(lengths)), float(np.median(near))
    return Stage(by_near_object=0.2 * length < near_step < 0.9 * length, steps=max(round(length / 2), 5))


def _rollout(env: Any, config: CollectConfig, task: str, tier: str, stage: Stage, index: int) -> Trajectory:
    if tier in (APART, EITHER_WAY):
        return _apart(env, config, task, tier, stage, index)
    for attempt in range(EXPERT_ATTEMPTS if tier in ("expert", RETREAT) else 1):
        trajectory = _attempt(env, config, task, tier, stage, index, attempt)
        if trajectory.success.any():
            break
    return trajectory


def _apart(env: Any, config: CollectConfig, task: str, tier: str, stage: Stage, index: int) -> Trajectory:
    rng = np.random.default_rng([config.seed, metaworld_tasks().index(task), ALL_TIERS.index(tier), index])
    seed = int(rng.integers(2**31))

    def play(tier: str) -> np.ndarray:
        observation, _ = env.reset(seed=seed)
        act, states = _Actor(task, tier, stage, rng), []
        if tier == EXPLORE:
            act.aims, act.phases = ROAMING
        for step in range(1, MAX_STEPS + 1):
            observation, _, _, _, info = env.step(act(observation))
            states.append(env.unwrapped.data.qpos.copy())
            if act.observe(step, info, bool(info["success"])):
                break
        return np.stack(states)

    return apart_rollout(
        env, config, task, seed, lambda: play("expert"), lambda: play(EXPLORE), _is_varied(config, index), rng,
        either_way=tier == EITHER_WAY,
    )  # fmt: skip


def _is_varied(config: CollectConfig, index: int) -> bool:
    return (index + 1) * config.varied_share % 1 < config.varied_share


def _attempt(
    env: Any, config: CollectConfig, task: str, tier: str, stage: Stage, index: int, attempt: int
) -> Trajectory:
    tier_index = ALL_TIERS.index(tier)
    rng = np.random.default_rng([config.seed, metaworld_tasks().index(task), tier_index, index, attempt])
    episode_seed = int(rng.integers(2**31))
    varied = _is_varied(config, index)
    observation, _ = env.reset(seed=episode_seed)
    restore = vary_scene(env, rng) if varied else None
    recorder = Recorder(env, config.size, observation)
    recorder.add(env.render(), False)
    act = _Actor(task, tier, stage, rng)
    lengths = {"random": WANDER_STEPS, NEAR_MISS: WANDER_STEPS, EXPLORE: EXPLORE_STEPS}
    limit = int(rng.integers(*lengths[tier])) if tier in lengths else MAX_STEPS
    for step in range(1, limit + 1):
        action = act(observation)
        observation, reward, _, _, info = env.step(action)
        recorder.step(action, observation, float(reward))
        succeeded = bool(info["success"])
        last = act.observe(step, info, succeeded) or step == limit
        if last or step % config.stride == 0:
            recorder.add(env.render(), succeeded)
        if last:
            break
    if restore is not None:
        restore()
    return recorder.trajectory(
        task=task, tier=tier, seed=episode_seed, camera=config.camera, stride=config.stride, varied=varied
    )


class _Actor:
    """The behaviour of one tier: its actions, and when its rollout ends."""

    def __init__(self, task: str, tier: str, stage: Stage, rng: np.random.Generator) -> None:
        self.tier, self.stage, self.rng = tier, stage, rng
        self.policy = scripted_policy(task)
        self.noise = {"expert": 0.1, "medium": 0.5, "random": 0.0, NEAR_MISS: 0.3, EXPLORE: 0.2, RETREAT: 0.1}[tier]
        self.remaining: int | None = None  # steps left once the tier's aim is reached
        self.back = 0  # of these, steps in which the hand goes back
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.08, 0.2)
        self.offset = distance * np.array([np.cos(angle), np.sin(angle), rng.uniform(0, 1)])
        self.aims, self.phases = AIMS, PHASE_STEPS
        self.phase = 0  # steps left of an exploring rollout's current aim
        self.aim: np.ndarray | None = None  # target of the hand; None follows the scripted policy
        self.grip = 0.0
        self.start: np.ndarray | None = None  # where the hand was at first

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        if self.tier == RETREAT:
            self._go_back_after_success(observation)
        if self.tier == "random":
            return self.rng.uniform(-1, 1, 4).astype(np.float32)
        if self.tier == EXPLORE:
            self._choose_aim(observation)
        if self.tier == NEAR_MISS:
            observation = observation.copy()
            observation[OBJECT] += self.offset
        if self.aim is not None:
            action = np.append(10 * (self.aim - observation[HAND]), self.grip)
        elif self.tier == "medium" and self.remaining is not None:
            action = np.zeros(4)
        else:
            action = np.asarray(self.policy.get_action(observation), np.float64)
        return np.clip(action + self.rng.normal(0, self.noise, 4), -1, 1).astype(np.float32)

    def _go_back_after_success(self, observation: np.ndarray) -> None:
        """Aim above the object first, so that the hand does not drag it along, then at the hand's first place."""
        if self.start is None:
            self.start = observation[HAND] + self.rng.normal(0, ABOUT, 3)
        if self.remaining is None or self.remaining > self.back:
            return
        if self.aim is None:
            self.aim, self.grip = observation[HAND] + [0.0, 0.0, RISE], -1.0
        elif self.remaining <= self.back * 2 // 3:
            self.aim = self.start

    def _choose_aim(self, observation: np.ndarray) -> None:
        """Draw a new aim of an exploring hand when the current one is over."""
        if self.phase == 0:
            self.phase = int(self.rng.integers(*self.phases))
            # Mostly near the borders, where an untrained policy's hand ends up.
            anywhere = WORKSPACE[0] + (WORKSPACE[1] - WORKSPACE[0]) * self.rng.beta(0.5, 0.5, 3)
            about_object = observation[OBJECT] + self.rng.normal(0, ABOUT, 3)
            about_hand = observation[HAND] + self.rng.normal(0, ABOUT, 3)
            # A trained policy's hand stays near the object; almost doing the task must not look like success.
            self.aim = (anywhere, about_object, about_hand, None)[self.rng.choice(4, p=self.aims)]
            self.grip = float(self.rng.choice([-1.0, 1.0]))
        self.phase -= 1

    def observe(self, step: int, info: dict[str, Any], succeeded: bool) -> bool:
        """Whether the rollout ends with this step."""
        if self.remaining is not None:
            self.remaining -= 1
            return self.remaining <= 0 or (self.tier == "medium" and succeeded)
        if self.tier in ("expert", RETREAT) and succeeded:
            self.remaining = int(self.rng.integers(*BEYOND_SUCCESS))
            if self.tier == RETREAT:
                self.back = int(self.rng.integers(*RETREAT_STEPS))
                self.remaining += self.back
        elif self.tier == "medium":
            near = info["near_object"] > 0 and step > 5 if self.stage.by_near_object else step >= self.stage.steps
            if near or succeeded:
                self.remaining = NOISE_AFTER_STAGE
        elif succeeded and self.tier != EXPLORE:
            return True
        return False
