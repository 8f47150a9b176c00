"""Labels of the three stages of a manipulation: the hand's approach, the object's way, success.

A clock, or Meta-World's own reward, pays a hand beside the object nearly what it pays for the finished task: an expert
spends most of its time on the approach. So the positions of hand and object say how far each stage is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vlp_gym.data.trajectory import Trajectory

Floats = NDArray[np.float64]

TOUCHED = 0.01  # metres of object motion that count as a touch
MOVED = 0.02  # metres from which an object has moved ...
LEAST_SHARE = 0.5  # ... or this share of its whole way, if that is shorter
STILL = 0.5  # share of `MOVED` under which nothing has moved yet
WAY_BEFORE_SUCCESS = 2 / 3  # highest value of the way before success
RIGHT_WAY = 0.1  # share of the way from which on the object has gone in the right direction
BACK = 0.95  # share of the way back that counts as success of the opposite
HAND_ONLY = 0.015  # metres; where experts move the object by less, the task is about the hand itself
LEAST_APPROACH = 0.02  # metres; a shorter approach is no approach


@dataclass(frozen=True)
class StageLabels:
    """Labels of the F frames of one rollout, float ``[F]`` each; NaN where positions are unknown.

    Attributes:
        approach: share of the hand's way to the object, 1 once the object has moved.
        moved: how far the object is from where it was in the first frame, as a share of what counts as moved.
        way: share of the object's way to its place at success, in [0, 1]; 1 at success.
        success: 1 at success, else 0.
    """

    approach: Floats
    moved: Floats
    way: Floats
    success: Floats

    def has_moved(self) -> Floats:
        """1 where the object has moved, 0 where it has not, NaN between."""
        return np.where(self.moved >= 1, 1.0, np.where(self.moved < STILL, 0.0, np.nan))

    def paid_way(self) -> Floats:
        """The way, with a jump at success: the last centimetre is told from the one before."""
        return np.where(self.success > 0, 1.0, WAY_BEFORE_SUCCESS * self.way)

    def wrong_way(self) -> Floats:
        """The way under the opposite sentence: 0 for what goes in this direction, NaN for what goes in none."""
        return np.where((self.way > RIGHT_WAY) | (self.moved < STILL), 0.0, np.nan)


@dataclass(frozen=True)
class TaskStages:
    """What a task's experts do.

    Attributes:
        mover: row of the positions that the task is about: 1 for the object, 0 for the hand.
        displacements: of the mover from start to success, one per expert, float ``[N, 3]``, metres.
        touch: metres between hand and object when the object begins to move.
        moved: metres from which the mover has moved.
    """

    mover: int
    displacements: Floats
    touch: float
    moved: float


def task_stages(experts: Sequence[Trajectory]) -> TaskStages:
    """Measure at least one successful expert of a task; experts with unknown positions are ignored."""
    experts = [expert for expert in experts if not np.isnan(expert.positions).any()] or experts
    ways = {row: np.stack([_displacement(expert, row) for expert in experts]) for row in (0, 1)}
    length = float(np.median(np.linalg.norm(ways[1], axis=-1)))
    mover = 0 if length < HAND_ONLY else 1
    touches = []
    for expert in experts:
        positions = expert.positions
        apart = np.linalg.norm(positions[:, 0] - positions[:, 1], axis=-1)
        touched = np.linalg.norm(positions[:, 1] - positions[0, 1], axis=-1) > TOUCHED
        touches.append(apart[np.argmax(touched)] if touched.any() else apart.min())
    moved = min(MOVED, LEAST_SHARE * float(np.median(np.linalg.norm(ways[mover], axis=-1))))
    return TaskStages(mover, ways[mover], float(np.median(touches)), moved)


def label_stages(positions: Floats, success: NDArray[np.bool_], task: TaskStages) -> StageLabels:
    """Label one rollout.

    Args:
        positions: hand and object, float ``[F, 2, 3]``, see `Trajectory`.
        success: bool ``[F]``.
        task: what the task's experts do.
    """
    shift = positions[:, task.mover] - positions[0, task.mover]
    ends = task.displacements
    if success.any():
        ends = shift[np.argmax(success)][None]
    length = np.linalg.norm(ends, axis=-1).clip(1e-6)
    way = (1 - np.linalg.norm(shift[:, None] - ends, axis=-1) / length).max(1).clip(0, 1)
    way = np.where(success, 1.0, way)
    moved = np.linalg.norm(shift, axis=-1) / task.moved
    moved = np.where(success, np.maximum(moved, 1.0), moved)
    if task.mover == 0:
        approach = way
    else:
        approach = np.where(moved >= 1, 1.0, nearness(positions, task))
    return StageLabels(approach, moved, way, success.astype(np.float64))


def nearness(positions: Floats, task: TaskStages) -> Floats:
    """Share of the hand's way to the object, float ``[F]`` in [0, 1], whatever has moved; arguments as above."""
    apart = np.linalg.norm(positions[:, 0] - positions[:, 1], axis=-1)
    near: Floats = ((apart[0] - apart) / max(apart[0] - task.touch, LEAST_APPROACH)).clip(0, 1)
    return near


def label_backwards(positions: Floats, task: TaskStages) -> StageLabels:
    """Labels of the same frames shown backwards, under the opposite sentence: the object goes back to its first place.

    Args:
        positions: of the rollout as it was, float ``[F, 2, 3]``.
        task: what the task's experts do.
    """
    at = positions[::-1, task.mover]
    whole = max(float(np.linalg.norm(at[-1] - at[0])), 1e-6)
    done = np.linalg.norm(at - at[-1], axis=-1) <= (1 - BACK) * whole
    back = label_stages(positions[::-1], done, replace(task, displacements=(at[-1] - at[0])[None]))
    return StageLabels(*(series[::-1] for series in vars(back).values()))


def label_away(positions: Floats, task: TaskStages) -> StageLabels:
    """Labels under the opposite sentence of a rollout whose object goes away from success: where it gets to is its aim.

    Args:
        positions: hand and object in the rollout, float ``[F, 2, 3]``.
        task: what the task's experts do.
    """
    shift = positions[:, task.mover] - positions[0, task.mover]
    end = shift[np.linalg.norm(shift, axis=-1).argmax()]
    done = np.linalg.norm(shift - end, axis=-1) <= (1 - BACK) * np.linalg.norm(end)
    return label_stages(positions, done, replace(task, displacements=end[None]))


def _displacement(expert: Trajectory, row: int) -> Floats:
    assert expert.first_success is not None
    return expert.positions[expert.first_success, row] - expert.positions[0, row]
