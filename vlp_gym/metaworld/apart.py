"""Rollouts in which arm and object are shown apart: where the arm is says nothing about where the object is.

In all other rollouts an object moves only where a hand has been, and a model takes the hand for the object: an agent
soon finds places in which its hand alone is paid for. Here each frame shows the arm of one moment, of an expert or of a
hand that wanders, and the object of another: where it was at first, or somewhere on its way to success.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from vlp_gym.data.trajectory import APART, Trajectory
from vlp_gym.metaworld.config import CollectConfig
from vlp_gym.metaworld.recorder import Recorder
from vlp_gym.metaworld.variety import vary_scene

ROBOT = (*(f"right_j{number}" for number in range(7)), "r_close", "l_close")  # joints of arm and fingers
TOUCHED = 1e-2  # metres or radians
FRAMES = 24
STILL = 0.5  # share of frames in which the object is where it was at first
Play = Callable[[], np.ndarray]
"""Plays an episode from the same start; joint positions after each step, float ``[S, Q]``."""


def apart_rollout(
    env: Any,
    config: CollectConfig,
    task: str,
    seed: int,
    expert: Play,
    wander: Play,
    varied: bool,
    rng: np.random.Generator,
) -> Trajectory:
    """One such rollout.

    Args:
        env: a Meta-World environment.
        config: settings of the collection.
        task: name of its task.
        seed: of the episode's start.
        expert: plays the scripted policy.
        wander: plays a hand that wanders.
        varied: whether camera, light and colours are changed at random.
        rng: source of all random draws.
    """
    import mujoco

    done, wandered = expert(), wander()
    observation, _ = env.reset(seed=seed)
    base = env.unwrapped
    first = base.data.qpos.copy()
    robot = np.isin(np.arange(len(first)), [base.model.joint(name).qposadr[0] for name in ROBOT])
    moved = done[np.abs(done - first)[:, ~robot].max(1) > TOUCHED]
    restore = vary_scene(env, rng) if varied else None
    recorder = Recorder(env, config.size, observation)
    recorder.add(env.render(), False)
    for _ in range(FRAMES - 1):
        arms = done if rng.random() < 0.5 else wandered
        there = moved[rng.integers(len(moved))] if len(moved) and rng.random() >= STILL else first
        base.data.qpos[:] = np.where(robot, arms[rng.integers(len(arms))], there)
        base.data.qvel[:] = 0
        mujoco.mj_forward(base.model, base.data)
        observation, action = base._get_obs(), np.zeros(4, np.float32)
        reward, info = base.evaluate_state(observation, action)
        recorder.step(action, observation, float(reward))
        recorder.add(env.render(), bool(info["success"]))
    if restore is not None:
        restore()
    made = recorder.trajectory(task=task, tier=APART, seed=seed, camera=config.camera, stride=1, varied=varied)
    return replace(made, observation=None, action=None)  # nobody acts
