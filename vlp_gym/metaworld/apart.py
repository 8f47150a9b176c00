"""Rollouts in which arm and object are shown apart: where the arm is says nothing about where the object is.

In all other rollouts an object moves only where a hand has been, and a model takes the hand for the object: an agent
soon finds places in which its hand alone is paid for. Here each frame shows the arm of one moment, of an expert or of a
hand that wanders, and the object of another: where it was at first, or somewhere on its way to success.

And in all other rollouts a door, a drawer or a faucet moves one way only, from where an episode begins, so that a model
pays for any motion of it. With `either_way` the object begins anywhere on its way, or as far on the other side of its
first place as its joint lets it, and goes on to success, or back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from vlp_gym.data.trajectory import APART, EITHER_WAY, Trajectory
from vlp_gym.metaworld.config import CollectConfig
from vlp_gym.metaworld.recorder import Recorder
from vlp_gym.metaworld.variety import vary_scene

ROBOT = (*(f"right_j{number}" for number in range(7)), "r_close", "l_close")  # joints of arm and fingers
TOUCHED = 1e-2  # metres or radians
FRAMES = 24
WAY = 12  # places of the object from its first place to success
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
    *,
    either_way: bool = False,
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
        either_way: whether the object begins anywhere, and may go back.
    """
    import mujoco

    done, wandered = expert(), wander()
    observation, _ = env.reset(seed=seed)
    base = env.unwrapped
    first = base.data.qpos.copy()
    robot = np.isin(np.arange(len(first)), [base.model.joint(name).qposadr[0] for name in ROBOT])

    def place(arm: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """Put the arm and the object there; the observation, the reward and whether it is a success."""
        base.data.qpos[:] = np.where(robot, arm, there)
        base.data.qvel[:] = 0
        mujoco.mj_forward(base.model, base.data)
        seen = base._get_obs()
        reward, info = base.evaluate_state(seen, np.zeros(4, np.float32))
        return seen, float(reward), bool(info["success"])

    moved = done[np.abs(done - first)[:, ~robot].max(1) > TOUCHED]
    start, others = first, moved
    if either_way and len(moved):
        start, others = _way(base.model, first, moved, robot, lambda there: place(first, there)[2], rng)
    restore = vary_scene(env, rng) if varied else None
    observation, _, success = place(first, start)
    recorder = Recorder(env, config.size, observation)
    recorder.add(env.render(), success)
    for number in range(1, FRAMES):
        arms = done if rng.random() < 0.5 else wandered
        ends = either_way and number == FRAMES - 1
        there = start
        if len(others) and (rng.random() >= STILL or ends):
            there = others[-1] if ends else others[rng.integers(len(others))]
        observation, reward, success = place(arms[rng.integers(len(arms))], there)
        recorder.step(np.zeros(4, np.float32), observation, reward)
        recorder.add(env.render(), success)
    if restore is not None:
        restore()
    tier = EITHER_WAY if either_way else APART
    made = recorder.trajectory(task=task, tier=tier, seed=seed, camera=config.camera, stride=1, varied=varied)
    return replace(made, observation=None, action=None)  # nobody acts


def _way(
    model: Any,
    first: np.ndarray,
    moved: np.ndarray,
    robot: np.ndarray,
    succeeds: Callable[[np.ndarray], bool],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Where the object begins, float ``[Q]``, and where it goes, float ``[N, Q]``, its end last.

    Args:
        model: the simulator's model.
        first: joint positions at the episode's start.
        moved: joint positions of an expert whose object has moved, float ``[S, Q]``, to success and beyond.
        robot: bool ``[Q]``, True for the joints of arm and fingers.
        succeeds: whether the task is done with the object there.
        rng: source of all random draws.
    """
    far = np.linalg.norm((moved - first)[:, ~robot], axis=1)
    steps = [int(np.abs(far - length).argmin()) for length in np.linspace(far.min(), far[-1], WAY)]
    onwards = [moved[step] for step in steps]
    other_side = [_mirrored(model, first, there, robot) for there in onwards]
    room = [there for there in other_side if np.abs(there - first)[~robot].max() > TOUCHED]
    places = np.stack([*room[::-1], first, *onwards])
    here = len(room)  # the place of `first`
    if rng.random() < 0.5:
        start = int(rng.integers(here + WAY // 2 + 1))
        return places[start], places[start + 1 :]
    start = int(rng.integers(max(here - len(room) // 3, WAY // 3), here + WAY))
    while start > 1 and succeeds(places[start]):  # a way back begins before that
        start -= 1
    return places[start], places[max(0, start - WAY) : start][::-1]


def _mirrored(model: Any, first: np.ndarray, there: np.ndarray, robot: np.ndarray) -> np.ndarray:
    """The object as far on the other side of its first place, within the ranges of its joints and not below a table."""
    import mujoco

    mirrored = 2 * first - there
    for joint in range(model.njnt):
        place = int(model.jnt_qposadr[joint])
        if robot[place]:
            continue
        if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE:
            mirrored[place + 2] = max(mirrored[place + 2], first[place + 2])
            mirrored[place + 3 : place + 7] = first[place + 3 : place + 7]
        elif model.jnt_limited[joint]:
            mirrored[place] = np.clip(mirrored[place], *model.jnt_range[joint])
    return mirrored
