"""Rollouts by task and tier, with the sentences of each task: what the samplers of clips share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from vlp_gym.data.trajectory import TIERS, Trajectory, sentences_by_task


class RolloutsByTask:
    """Base class of samplers.

    Args:
        trajectories: rollouts of all training tasks.
        tasks_per_batch: at least 2.
        without: tiers that are left out.

    Attributes:
        by_task: task -> tier -> indices of its trajectories; experts that failed show no progress, and are left out.
        tasks: their names, sorted.
        sentences: task -> its training sentences.

    Raises:
        ValueError: if there are too few tasks, or a task lacks a tier of MTVLP.
        DatasetError: if a trajectory carries no sentences.
    """

    def __init__(
        self, trajectories: Sequence[Trajectory], tasks_per_batch: int, *, without: Sequence[str] = ()
    ) -> None:
        self.trajectories, self.tasks_per_batch = trajectories, tasks_per_batch
        self.by_task: dict[str, dict[str, list[int]]] = {}
        for index, trajectory in enumerate(trajectories):
            failed = trajectory.tier == "expert" and not trajectory.success.any()
            if not failed and trajectory.tier not in without:
                self.by_task.setdefault(trajectory.task, {}).setdefault(trajectory.tier, []).append(index)
        self.tasks = sorted(self.by_task)
        if len(self.tasks) < tasks_per_batch or tasks_per_batch < 2:
            raise ValueError(
                f"tasks_per_batch: expected 2 to {len(self.tasks)} (the tasks there are), got {tasks_per_batch}"
            )
        for task, tiers in self.by_task.items():
            if lacking := set(TIERS) - tiers.keys():
                raise ValueError(f"{task}: expected trajectories of every tier, found none of {sorted(lacking)}")
        self.sentences = sentences_by_task(trajectories)


def stack(groups: Sequence[Sequence[Mapping[str, np.ndarray]]]) -> dict[str, Tensor]:
    """G groups of C clips, each a dictionary of arrays, as tensors ``[G, C, ...]``."""
    return {
        name: torch.from_numpy(np.stack([np.stack([clip[name] for clip in group]) for group in groups]))
        for name in groups[0][0]
    }
