"""Goal images for models without language: the last frame of an expert."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.models.protocol import GoalModel, RewardModel


def expert_goals(trajectories: Iterable[Trajectory]) -> dict[str, NDArray[np.uint8]]:
    """Each sentence of a task -> the last frame, uint8 ``[H, W, 3]``, of its first successful expert."""
    goals: dict[str, NDArray[np.uint8]] = {}
    for trajectory in trajectories:
        if trajectory.tier == "expert" and trajectory.success.any():
            others = [sentence for group in trajectory.variants.values() for sentence in group]
            for sentence in (*trajectory.sentences, *trajectory.held_out, *others):
                goals.setdefault(sentence, trajectory.frames[-1])
    return goals


def goals_for(model: RewardModel, trajectories: Iterable[Trajectory]) -> dict[str, NDArray[np.uint8]]:
    """As `expert_goals` for a model that takes pictures of goals only; none for others, and nothing is read."""
    return expert_goals(trajectories) if isinstance(model, GoalModel) and model.needs_goal else {}
