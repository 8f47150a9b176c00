"""A trajectory: one rollout in memory, and which trajectories show the same one from several cameras."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vlp_gym.errors import DatasetError

TIERS = ("expert", "medium", "random")  # MTVLP's, best first
NEAR_MISS = "near_miss"  # the scripted policy aiming beside the object: moves with purpose, achieves nothing
EXPLORE = "explore"  # a hand that wanders between points of the workspace and of the task, as learning agents do
AGENT = "agent"  # a policy that learns from an earlier reward model: it goes where that model is wrong
ALL_TIERS = (*TIERS, NEAR_MISS, EXPLORE, AGENT)


@dataclass(frozen=True)
class Trajectory:
    """One rollout.

    Attributes:
        task: Meta-World name, such as "button-press-v3".
        tier: "expert", "medium", "random", "near_miss", "explore" or "agent".
        seed: of the placement and the noise.
        camera: name of the camera.
        stride: environment steps between two frames.
        varied: whether camera, light and colours were changed at random.
        frames: uint8 ``[F, H, W, 3]``.
        step: int64 ``[F]``, the environment step that each frame shows; 0 is the reset.
        reward: float32 ``[F]``, the environment's reward at that step (0 for the reset).
        success: bool ``[F]``, the environment's success at that step.
        episode_reward: float32 ``[S]``, the environment's reward of every step from 1 to S.
        positions: float32 ``[F, 2, 3]``, where the hand and the object are, as the camera sees them: metres to its
            right, above and behind it (so that what it sees is negative). NaN in data that does not say.
    """

    task: str
    tier: str
    seed: int
    camera: str
    stride: int
    varied: bool
    frames: np.ndarray
    step: np.ndarray
    reward: np.ndarray
    success: np.ndarray
    episode_reward: np.ndarray
    positions: np.ndarray

    @property
    def first_success(self) -> int | None:
        """Index of the first frame with success, or None."""
        return int(np.argmax(self.success)) if self.success.any() else None


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
