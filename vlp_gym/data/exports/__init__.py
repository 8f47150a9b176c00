"""Data sets in the formats of other libraries, from trajectories: `export` writes one of `KINDS`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlp_gym.data.check import name_of
from vlp_gym.data.trajectory import Trajectory
from vlp_gym.errors import DatasetError
from vlp_gym.storage import staged_folder

KINDS = ("lerobot", "minari")


@dataclass
class Survey:
    """What the episodes have in common, counted one by one.

    Attributes:
        episodes: their number.
        frames: of all of them.
        shape: height and width of each frame.
        cameras: their names.
        tasks: their names.
        states: numbers in an observation, 0 where there is none.
        actions: numbers in an action, 0 where there is none.
        rewarded: whether any reward is not 0; 0 everywhere is a recording without rewards.
        between: environment steps between frames, at most.
    """

    episodes: int = 0
    frames: int = 0
    shape: tuple[int, int] = (0, 0)
    cameras: dict[str, None] = field(default_factory=dict)
    tasks: dict[str, None] = field(default_factory=dict)
    states: set[int] = field(default_factory=set)
    actions: set[int] = field(default_factory=set)
    rewarded: bool = False
    between: int = 1

    def add(self, trajectory: Trajectory) -> None:
        """Count one more.

        Raises:
            DatasetError: its frames have another size.
        """
        height, width = trajectory.frames.shape[1:3]
        if self.episodes and (height, width) != self.shape:
            raise DatasetError(
                f"{name_of(vars(trajectory))}: expected frames of {self.shape[1]} x {self.shape[0]} pixels as before, "
                f"got {width} x {height}; export them apart, see --tasks"
            )
        self.shape = height, width
        self.episodes += 1
        self.frames += len(trajectory.frames)
        self.cameras[trajectory.camera] = self.tasks[trajectory.task] = None
        for rows, widths in ((trajectory.observation, self.states), (trajectory.action, self.actions)):
            widths.add(0 if rows is None else rows.shape[1])
        self.rewarded |= bool(trajectory.episode_reward.any())
        if len(trajectory.step) > 1:
            self.between = max(self.between, int(np.diff(trajectory.step).max()))

    def width(self, widths: set[int]) -> int:
        """The one width of all episodes; 0 if they differ or have none."""
        return max(widths) if len(widths) == 1 else 0

    def beside(self) -> str:
        """What the format cannot hold, and where it is instead."""
        from vlp_gym.data.fields import FIELDS

        parts = ["tiers", "further sentences", "positions", "seeds"]
        for name, widths in (("observations", self.states), ("actions", self.actions)):
            if len(widths) > 1:
                parts.append(f"{name}, which differ in width or are missing in some")
            elif self.between > 1 and self.width(widths):
                parts.append(f"{name} between two frames")
        if len(self.cameras) > 1:
            parts.append(f"names of the cameras {', '.join(self.cameras)}")
        return f"in {FIELDS}, which only vlp_gym reads: {'; '.join(parts)}"


def export(trajectories: Iterable[Trajectory], kind: str, out: Path, rate: float) -> Survey:
    """Write a data set, all of it or nothing.

    Args:
        trajectories: read one by one.
        kind: one of `KINDS`.
        out: a folder that is new or empty.
        rate: frames per second.

    Raises:
        DatasetError: the folder has files, there is no trajectory, or one does not fit the format.
        MissingExtraError: a package is missing.
    """
    with staged_folder(out) as folder:
        survey: Survey = import_module(f"vlp_gym.data.exports.{kind}").write(
            folder, trajectories, rate, out.resolve().name
        )
        if not survey.episodes:
            raise DatasetError("expected at least one recording that can be read, found none")
    return survey


def summed(reward: NDArray[np.float32], step: NDArray[np.int64]) -> NDArray[np.float32]:
    """The rewards from each frame to the next, and from the last one to the end, float32 ``[F]``.

    >>> summed(np.float32([1, 2, 3, 4]), np.int64([0, 2, 3])).tolist()
    [3.0, 3.0, 4.0]

    Args:
        reward: of each step from 1 on, float32 ``[S]``.
        step: that each frame shows, rising, int64 ``[F]``.
    """
    sums: NDArray[np.float32] = np.add.reduceat(np.append(reward, np.float32(0)), step)
    return sums
