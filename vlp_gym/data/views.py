"""Rollouts that several cameras recorded: which trajectories show the same one."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vlp_gym.data.dataset import Trajectory
from vlp_gym.errors import DatasetError

Rollout = dict[str, Trajectory]  # camera -> what it saw, in the order of the cameras' names


def group_views(trajectories: Iterable[Trajectory]) -> list[Rollout]:
    """Put together the trajectories of one rollout: those of one task, tier and seed.

    Args:
        trajectories: in any order, as `load_trajectories` gives them for the folders of several cameras.

    Returns:
        One dictionary a rollout, ordered by task, tier and seed; all have the same cameras.

    Raises:
        DatasetError: if a view is there twice or missing, or two cameras did not record the same rollout.
    """
    grouped: dict[tuple[str, str, int], Rollout] = {}
    for trajectory in trajectories:
        views = grouped.setdefault((trajectory.task, trajectory.tier, trajectory.seed), {})
        if trajectory.camera in views:
            raise DatasetError(f"{_name(trajectory)}: the camera {trajectory.camera} is there twice")
        views[trajectory.camera] = trajectory
    cameras = sorted({camera for views in grouped.values() for camera in views})
    for views in grouped.values():
        first = next(iter(views.values()))
        if missing := [camera for camera in cameras if camera not in views]:
            raise DatasetError(f"{_name(first)}: expected a view of every camera, found none of {', '.join(missing)}")
        for view in views.values():
            same = np.array_equal(view.step, first.step) and np.allclose(view.reward, first.reward, atol=1e-3)
            if not same:
                raise DatasetError(
                    f"{_name(first)}: {first.camera} and {view.camera} recorded different rollouts; collect both with "
                    "the same options, --camera apart"
                )
    return [{camera: grouped[key][camera] for camera in cameras} for key in sorted(grouped)]


def _name(trajectory: Trajectory) -> str:
    return f"task {trajectory.task}, {trajectory.tier}, seed {trajectory.seed}"
