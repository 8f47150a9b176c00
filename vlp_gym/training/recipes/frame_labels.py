"""What a rollout's frames are worth: by the clock where an expert gets its task done, else by rewards and positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlp_gym.data.trajectory import Trajectory

BEFORE_SUCCESS = 0.75  # highest progress short of success: the last step of a task takes an expert least of all time
SUCCESS_VALUE = 1.2  # above the highest rank by more than the ranking loss's margin
BY_ITSELF = 2.0  # weight of a way that the object would have to go without the hand
TOUCHED = 0.01  # metres that the object has moved by when it is taken as touched


@dataclass(frozen=True)
class FrameLabels:
    """Labels of the F frames of one rollout, float ``[F]`` each.

    Attributes:
        progress: `BEFORE_SUCCESS` times the share of an expert's way to success: by the clock in experts that succeed,
            in all other rollouts by the environment's reward (`progress_by_reward`) or by the way done
            (`progress_by_way`), whichever is less; 1 at success.
        value: rank of the environment's reward within the task in [0, 1]; more than that at success, so that nearly
            done is always worth less than done; NaN short of success where the environment pays more than it pays the
            median expert at success.
        moved: metres that an expert has moved the object by; NaN before it touches the object, and in all other
            rollouts.
        nearing: minus the metres between an expert's hand and the object; NaN after it touches the object, and in all
            other rollouts.
    """

    progress: np.ndarray
    value: np.ndarray
    moved: np.ndarray
    nearing: np.ndarray


def label_task(rollouts: Sequence[Trajectory]) -> list[FrameLabels]:
    """Label all rollouts of one task, at least one of which is an expert's that succeeds."""
    experts = [rollout for rollout in rollouts if rollout.tier == "expert" and rollout.success.any()]
    ways, by_reward = expert_ways(experts), progress_by_reward(experts)
    rewards = np.sort(np.concatenate([rollout.reward for rollout in rollouts]))
    paid_at_success = np.median([expert.reward[expert.first_success] for expert in experts])
    labels = []
    for rollout in rollouts:
        first_success, reward = rollout.first_success, rollout.reward
        if first_success is not None and rollout.tier == "expert":
            on_the_way = np.clip(rollout.step / rollout.step[first_success], 0, 1)
            done = np.arange(len(reward)) >= first_success
        else:
            on_the_way = np.fmin(np.interp(reward, *by_reward), progress_by_way(rollout.positions, ways))
            done = rollout.success
        value = np.searchsorted(rewards, reward, side="right") / len(rewards)
        value = np.where(reward > paid_at_success, np.nan, value)
        value = np.where(rollout.success, SUCCESS_VALUE, value)
        labels.append(FrameLabels(np.where(done, 1.0, BEFORE_SUCCESS * on_the_way), value, *_phases(rollout)))
    return labels


@dataclass(frozen=True)
class ExpertWays:
    """The states N that a task's experts come through, and the way that is left to success from each.

    Attributes:
        states: float ``[N, 2, 3]``, hand and object, from where the object was at first, metres.
        left: float ``[N]``, metres that hand and object still go.
        length: of the whole way, metres, the median.
    """

    states: np.ndarray
    left: np.ndarray
    length: float


def expert_ways(experts: Sequence[Trajectory]) -> ExpertWays:
    """Gather the ways of experts that succeed, at least one; those whose positions are not known are passed over."""
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
    """Share of the way done: from each frame straight to the best of the experts' states, and on with that expert.

    The environment's reward alone would mislead: Meta-World pays a gripper beside the button up to five times what it
    pays the expert that has pressed it. The way is rough by some centimetres, for cameras are turned a little; where
    goals vary, the way to another episode's goal stands for this one's.

    Args:
        positions: of a whole rollout, float ``[F, 2, 3]``, see `Trajectory`.
        ways: of its task.

    Returns:
        float ``[F]`` in [0, 1], 0 for all that is no nearer than the start; NaN where a position is not known.
    """
    apart = np.linalg.norm(_from_object(positions)[:, None] - ways.states, axis=-1) @ [1.0, BY_ITSELF]  # [F, N]
    return np.clip(1 - (apart + ways.left).min(1) / ways.length, 0, 1)


def _phases(trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """`FrameLabels.moved` and `FrameLabels.nearing`."""
    unknown = np.full(len(trajectory.frames), np.nan, np.float32)
    if trajectory.tier != "expert":
        return unknown, unknown
    hand, at = trajectory.positions[:, 0], trajectory.positions[:, 1]
    moved = np.linalg.norm(at - at[0], axis=-1)
    touched = moved > TOUCHED
    last_before = int(np.argmax(touched)) - 1 if touched.any() else len(moved) - 1
    frame = np.arange(len(moved))
    return (
        np.where(frame >= last_before, moved, unknown),
        np.where(frame <= last_before, -np.linalg.norm(hand - at, axis=-1), unknown),
    )


def progress_by_reward(experts: Sequence[Trajectory]) -> tuple[np.ndarray, np.ndarray]:
    """How far an expert is, by the clock, when the environment pays it so much: the best curve that never falls.

    Args:
        experts: rollouts of one task that succeed, at least one.

    Returns:
        Rewards, rising, and the progress in [0, 1] at each, for `numpy.interp`.
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
    return reward[order], isotonic_regression(clock[order]).x


def _from_object(positions: np.ndarray) -> np.ndarray:
    return positions - positions[0, 1]
