"""A trajectory: one rollout in memory; and grouping of the trajectories that show one rollout from several cameras."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from vlp_gym.errors import DatasetError

TIERS = ("expert", "medium", "random")  # MTVLP's, best first
NEAR_MISS = "near_miss"  # the scripted policy aiming beside the object: purposeful, unsuccessful
EXPLORE = "explore"  # a hand that wanders between points of the workspace and of the task, as learning agents do
AGENT = "agent"  # a policy that learns from an earlier reward model and finds where that model is wrong
RETREAT = "retreat"  # an expert that then takes its hand back: played backwards, it does the opposite
APART = "apart"  # no rollout: arm and object of different moments, so that the one does not tell the other
EITHER_WAY = "either_way"  # as "apart", but the object begins anywhere on its way, and goes to success or away from it
ALL_TIERS = (*TIERS, NEAR_MISS, EXPLORE, AGENT, RETREAT, APART, EITHER_WAY)
VARIANT_KINDS = ("phrase", "description", "right_colour", "wrong_colour")
"""Kinds of sentences for the language-shift test of VLP's section 5.4."""


@dataclass(frozen=True)
class Trajectory:
    """One rollout of S environment steps, F of whose states are stored as frames.

    It carries the sentences of its task, so training and evaluation need no other source of them. Fields with a default
    are optional.

    Attributes:
        task: any name, such as Meta-World's "button-press-v3".
        tier: "expert", "medium", "random", "near_miss", "explore", "agent", "retreat", "apart" or "either_way".
        seed: seeds the object placement and the noise.
        camera: name of the camera.
        stride: environment steps between two frames.
        varied: whether camera, light and colours were changed at random.
        frames: uint8 ``[F, H, W, 3]``.
        step: int64 ``[F]``, the environment step that each frame shows; 0 is the reset.
        reward: float32 ``[F]``, the environment's reward at that step (0 for the reset).
        success: bool ``[F]``, the environment's success at that step.
        episode_reward: float32 ``[S]``, the environment's reward of every step from 1 to S.
        positions: float32 ``[F, 2, 3]``, hand and object in the camera's frame: metres to its right, above and behind
            it, so that z is negative for everything visible. NaN when positions were not recorded.
        sentences: descriptions of the task for training; the first is the canonical one.
        held_out: descriptions of the task that training never uses.
        opposite_sentences: one tuple per entry of `sentences`: all sentences that ask for the opposite; or empty.
        opposite: name of the task that does the opposite with the same object.
        sibling: name of the task that does the opposite with the same object, or a variation of this one.
        variants: kind (see `VARIANT_KINDS`) -> sentences; kinds without sentences are left out.
        observation: float32 ``[S + 1, O]``, before every environment step and after the last one.
        action: float32 ``[S, A]``, as executed: after noise and clipping.
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
    sentences: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    opposite_sentences: tuple[tuple[str, ...], ...] = ()
    opposite: str | None = None
    sibling: str | None = None
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    observation: np.ndarray | None = None
    action: np.ndarray | None = None

    @property
    def name(self) -> str:
        """Name for messages, such as "task push-v3, expert, seed 3"."""
        return f"task {self.task}, {self.tier}, seed {self.seed}"

    @property
    def canonical(self) -> str:
        """The first of `sentences`.

        Raises:
            DatasetError: if there are none.
        """
        if not self.sentences:
            raise DatasetError(
                f"{self.name}: expected sentences that say what the task is, found none; "
                "set `Trajectory.sentences`, the canonical one first"
            )
        return self.sentences[0]

    @property
    def first_success(self) -> int | None:
        """Index of the first frame with success, or None."""
        return int(np.argmax(self.success)) if self.success.any() else None


def sentences_by_task(trajectories: Iterable[Trajectory]) -> dict[str, tuple[str, ...]]:
    """Task -> the distinct training sentences of all its trajectories, in order of appearance.

    Raises:
        DatasetError: if a trajectory has no sentences.
    """
    found: dict[str, dict[str, None]] = {}
    for trajectory in trajectories:
        for sentence in (trajectory.canonical, *trajectory.sentences):
            found.setdefault(trajectory.task, {})[sentence] = None
    return {task: tuple(sentences) for task, sentences in found.items()}


Rollout = dict[str, Trajectory]  # camera -> its trajectory, sorted by camera name


def group_views(trajectories: Iterable[Trajectory]) -> list[Rollout]:
    """Group trajectories by rollout, that is by task, tier and seed.

    Args:
        trajectories: in any order, such as `load_trajectories` of one folder per camera.

    Returns:
        One dictionary per rollout, ordered by task, tier and seed; all have the same cameras.

    Raises:
        DatasetError: if a view is missing or there twice, or two cameras recorded different rollouts.
    """
    grouped: dict[tuple[str, str, int], Rollout] = {}
    for trajectory in trajectories:
        views = grouped.setdefault((trajectory.task, trajectory.tier, trajectory.seed), {})
        if trajectory.camera in views:
            raise DatasetError(f"{trajectory.name}: the camera {trajectory.camera} is there twice")
        views[trajectory.camera] = trajectory
    cameras = sorted({camera for views in grouped.values() for camera in views})
    for views in grouped.values():
        first = next(iter(views.values()))
        if missing := [camera for camera in cameras if camera not in views]:
            raise DatasetError(f"{first.name}: expected a view of every camera, found none of {', '.join(missing)}")
        for view in views.values():
            if not (np.array_equal(view.step, first.step) and np.allclose(view.reward, first.reward, atol=1e-3)):
                raise DatasetError(
                    f"{first.name}: {first.camera} and {view.camera} recorded different rollouts; collect both with "
                    "the same options, --camera apart"
                )
    return [{camera: grouped[key][camera] for camera in cameras} for key in sorted(grouped)]
