"""Progress labels of frames: from time in successful experts, else from rewards and positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlp_gym.data.trajectory import Trajectory

BEFORE_SUCCESS = 0.75  # highest progress before success: experts spend the least time on a task's last step
HALF = 0.5  # share of the way that a failure has done at its end, where nothing tells; random actions have done none
BY_ITSELF = 2.0  # penalty on object distance not yet covered while the hand is elsewhere


def label_task(rollouts: Sequence[Trajectory]) -> list[np.ndarray]:
    """Progress of the F frames of each rollout of one task, float ``[F]``.

    It is `BEFORE_SUCCESS` times the share of the way to success, and 1 at success. The share is time in successful
    experts, else the smaller of `progress_by_reward` and `progress_by_way`. Where neither is known, as in videos, it
    rises to `HALF` in failures, and stays 0 in random rollouts.

    Args:
        rollouts: all rollouts of one task, with a successful expert among them.
    """
    experts = [rollout for rollout in rollouts if rollout.tier == "expert" and rollout.success.any()]
    ways, by_reward = expert_ways(experts), progress_by_reward(experts)
    labels = []
    for rollout in rollouts:
        first_success = rollout.first_success
        if first_success is not None and rollout.tier == "expert":
            on_the_way = np.clip(rollout.step / rollout.step[first_success], 0, 1)
            done = np.arange(len(rollout.step)) >= first_success
        else:
            on_the_way = np.fmin(np.interp(rollout.reward, *by_reward), progress_by_way(rollout.positions, ways))
            guess = 0.0 if rollout.tier == "random" else HALF * rollout.step / rollout.step[-1]
            on_the_way = np.where(np.isnan(on_the_way), guess, on_the_way)
            done = rollout.success
        labels.append(np.where(done, 1.0, BEFORE_SUCCESS * on_the_way))
    return labels


@dataclass(frozen=True)
class ExpertWays:
    """The N states that a task's experts pass through, with the distance left to success.

    Attributes:
        states: float ``[N, 2, 3]``, hand and object relative to the object's first position, metres.
        left: float ``[N]``, metres that hand and object still cover.
        length: metres of the whole way, the experts' median.
    """

    states: np.ndarray
    left: np.ndarray
    length: float


def expert_ways(experts: Sequence[Trajectory]) -> ExpertWays:
    """Collect the ways of at least one successful expert; experts with unknown positions are ignored."""
    experts = [expert for expert in experts if not np.isnan(expert.positions).any()] or experts
    states, left = [], []
    for expert in experts:
        assert expert.first_success is not None
        way = _from_object(expert.positions[: expert.first_success + 1])
        steps = np.linalg.norm(np.diff(way, axis=0), axis=-1).sum(-1)
        states.append(way)
        left.append(np.append(np.cumsum(steps[::-1])[::-1], 0.0))
    return ExpertWays(np.concatenate(states), np.concatenate(left), float(np.median([way[0] for way in left])))


def progress_by_way(positions: np.ndarray, ways: ExpertWays) -> np.ndarray:
    """Share of the way to success that is done: one minus the distance left over the length of the experts' way.

    The distance left leads straight to an expert's state and from there along that expert's way, whichever is shortest.
    Rewards alone mislead: Meta-World pays a gripper beside the button up to five times as much as the expert that has
    pressed it. Distances are off by some centimetres, because cameras and goals vary between episodes.

    Args:
        positions: positions of a whole rollout, float ``[F, 2, 3]``, see `Trajectory`.
        ways: the experts' ways in the same task.

    Returns:
        float ``[F]`` in [0, 1], 0 for frames no closer than the start; NaN where a position is unknown.
    """
    apart = np.linalg.norm(_from_object(positions)[:, None] - ways.states, axis=-1) @ [1.0, BY_ITSELF]  # [F, N]
    return np.clip(1 - (apart + ways.left).min(1) / ways.length, 0, 1)


def progress_by_reward(experts: Sequence[Trajectory]) -> tuple[np.ndarray, np.ndarray]:
    """Experts' share of time to success as a function of the reward, by isotonic regression.

    Args:
        experts: successful rollouts of one task, at least one.

    Returns:
        Rewards in rising order and the progress in [0, 1] at each, for `numpy.interp`; NaN where all rewards are equal,
        which say nothing.
    """
    from scipy.optimize import isotonic_regression

    rewards, clocks = [], []
    for expert in experts:
        assert expert.first_success is not None
        until = slice(0, expert.first_success + 1)
        rewards.append(expert.reward[until])
        clocks.append(expert.step[until] / expert.step[until][-1])
    reward, clock = np.concatenate(rewards), np.concatenate(clocks)
    order = np.argsort(reward, kind="stable")
    if reward[order[0]] == reward[order[-1]]:
        return reward[order], np.full(len(reward), np.nan)
    return reward[order], isotonic_regression(clock[order]).x


def _from_object(positions: np.ndarray) -> np.ndarray:
    return positions - positions[0, 1]
