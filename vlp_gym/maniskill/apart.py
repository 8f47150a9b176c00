"""Rollouts in which arm and object are shown apart: where the arm is says nothing about where the object is.

As in `vlp_gym.metaworld.apart`: each frame shows the arm of one moment and the objects of another. Otherwise an object
moves only where a hand has been, and an agent is soon paid for a hand that hides the object. And here the moved object
is also shown beside its way: experts never push it past the goal, and an agent is soon paid for that.
"""

from __future__ import annotations

import contextlib
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from vlp_gym.maniskill.experts import solve

FRAMES = 24
STILL = 0.4  # share of frames in which the objects are where they were at first
ASTRAY = 0.3, 0.12  # share of frames in which the moved object is beside its way, and by how much: deviation, metres
TOUCHED = 0.01  # metres
ROAM_STEPS = 100  # of an arm that goes wherever its joints take it
ROAM = 0.06  # radians a step by which the pace of a joint changes, at most
PACE_KEPT = 0.8  # share of its pace that a joint keeps
HOME = 0.05  # share of the way back to where it began that a joint goes in a step: the arm stays in view
State = dict[str, Any]
"""Actors and articulations of a scene, as ManiSkill's `get_state_dict` has them."""


class Watcher(gym.Wrapper):
    """Remembers the state after the reset and after each step, in `states`, and stops some steps after success.

    Args:
        env: from `make_maniskill`.
        beyond: steps that are played after the first success.
    """

    def __init__(self, env: gym.Env, beyond: int) -> None:
        super().__init__(env)
        self.beyond = beyond
        self.states: list[State] = []

    def reset(self, **options: Any) -> Any:
        """Begin anew."""
        answer = super().reset(**options)
        self.states = [_state(self.env)]
        return answer

    def step(self, action: np.ndarray) -> Any:
        """Act; raises `StopIteration` once the success is long ago."""
        answer = self.env.step(action)
        self.states.append(_state(self.env))
        if bool(answer[4]["success"]):
            self.beyond -= 1
            if self.beyond < 0:
                raise StopIteration
        return answer


def moments(env: gym.Env, task: str, seed: int, rng: np.random.Generator) -> tuple[list[State], list[State]]:
    """The states of an expert's episode, the first one first, and states whose arms are shown with its objects.

    Args:
        env: from `make_maniskill`.
        task: the name of its task.
        seed: the seed of the episode.
        rng: source of all random draws.
    """
    done = _expert(env, task, seed)
    elsewhere = _expert(env, task, int(rng.integers(2**31)))  # its hand is at another object's place
    return done, [*done, *elsewhere, *_roaming(env, seed, rng)]


def place(env: gym.Env, arm: State, there: State) -> dict[str, Any]:
    """Put the arm where it is in one state and the objects where they are in another.

    Args:
        env: from `make_maniskill`.
        arm: the state whose articulations are taken.
        there: the state whose actors are taken.

    Returns:
        What ManiSkill says of the scene, such as "success".
    """
    base: Any = env.unwrapped
    base.set_state_dict({"actors": there["actors"], "articulations": arm["articulations"]})
    told: dict[str, Any] = base.evaluate()
    return told


def draw(
    done: list[State], arms: list[State], moved: list[int], mover: str, rng: np.random.Generator
) -> tuple[State, State]:
    """An arm and the state of the objects beside it, at random.

    Args:
        done: states of an expert's episode.
        arms: states of arms.
        moved: the places in `done` where an object has moved.
        mover: name of the actor that is to be moved.
        rng: source of all random draws.
    """
    arm, chance = arms[int(rng.integers(len(arms)))], rng.random()
    if not moved or chance < STILL:
        return arm, done[0]
    there = done[moved[int(rng.integers(len(moved)))]]
    if chance >= STILL + ASTRAY[0]:
        return arm, there
    pose = there["actors"][mover].clone()
    pose[0, :2] += torch.from_numpy(rng.normal(0, ASTRAY[1], 2)).to(pose)
    return arm, {**there, "actors": {**there["actors"], mover: pose}}


def has_moved(state: State, first: State) -> bool:
    """Whether an object is elsewhere than in the first state."""
    ways = (state["actors"][name][0, :3] - first["actors"][name][0, :3] for name in first["actors"])
    return any(float(torch.linalg.vector_norm(way)) > TOUCHED for way in ways)


def _state(env: gym.Env) -> State:
    base: Any = env.unwrapped
    return {
        kind: {name: rows.clone().cpu() for name, rows in parts.items()}
        for kind, parts in base.get_state_dict().items()
    }


def _expert(env: gym.Env, task: str, seed: int) -> list[State]:
    watcher = Watcher(env, beyond=3)
    with contextlib.suppress(StopIteration):
        solve(task, watcher, seed)
    return watcher.states


def _roaming(env: gym.Env, seed: int, rng: np.random.Generator) -> list[State]:
    watcher, space = Watcher(env, beyond=ROAM_STEPS), env.action_space
    watcher.reset(seed=seed)
    base: Any = env.unwrapped
    low, high = space.low, space.high  # type: ignore[attr-defined]
    start = base.agent.robot.get_qpos()[0, : len(low) - 1].cpu().numpy()
    joints, pace = start, np.zeros_like(start)
    for _ in range(ROAM_STEPS):
        pace = PACE_KEPT * pace + rng.uniform(-ROAM, ROAM, len(pace)) + HOME * (start - joints)
        joints = np.clip(joints + pace, low[:-1], high[:-1])
        watcher.step(np.append(joints, 1.0).astype(np.float32))
    return watcher.states
