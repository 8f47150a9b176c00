"""Data sets of other people as trajectories: `open_source` takes a folder of ours or one of `KINDS`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vlp_gym.data.check import check_side
from vlp_gym.data.trajectory import Trajectory
from vlp_gym.errors import DatasetError

KINDS = {
    "videos": "a folder of videos with captions.csv (file, sentence), such as videos:clips",
    "lerobot": "a LeRobot data set, version 3.0 or 2.1: its folder or its name on the hub, such as lerobot:data/aloha",
    "minari": "a Minari data set: its name or its folder, such as minari:D4RL/kitchen/mixed-v2",
    "libero": "an HDF5 file of LIBERO or robomimic, or a folder of them, such as libero:libero_90",
}
OnBroken = Callable[[DatasetError], None]


class SentencesMissingError(DatasetError):
    """The data set has no sentences, and none was given."""


@dataclass(frozen=True)
class SourceOptions:
    """How a data set is read; a source of rollouts of ours needs none of it.

    Attributes:
        instruction: one sentence for all, where the data have none of their own.
        camera: name of the camera; default: the first.
        size: side of the square frames, pixels.
        fps: at most so many frames per second.
    """

    instruction: str | None = None
    camera: str | None = None
    size: int = 112
    fps: float = 5.0

    def __post_init__(self) -> None:
        check_side(self.size)
        if not 0 < self.fps <= 1000:
            raise ValueError(f"--fps: expected more than 0 and at most 1000, got {self.fps}")


class Source(Protocol):
    """A data set whose rollouts are read one by one."""

    def tasks(self) -> list[str]:
        """Names of the tasks, sorted."""

    def stream(self, tasks: Sequence[str] | None = None, on_broken: OnBroken | None = None) -> Iterator[Trajectory]:
        """Yield the trajectories, one in memory at a time.

        Args:
            tasks: only these; None: all.
            on_broken: is told of a rollout that cannot be read, which is then left out; None: it is raised.

        Raises:
            DatasetError: naming the file and the row.
        """


class Numbered(ABC):
    """A source whose episodes have numbers, and rows that a model's scores can be written for.

    Attributes:
        rate: rows of the data set that come in a second.
        options: how it is read.
    """

    rate: float
    options: SourceOptions

    @abstractmethod
    def tasks(self) -> list[str]:
        """See `Source`."""

    @abstractmethod
    def numbered(
        self, tasks: Sequence[str] | None = None, on_broken: OnBroken | None = None
    ) -> Iterator[tuple[int, Trajectory]]:
        """As `Source.stream`, each trajectory with the number of its episode."""

    @abstractmethod
    def lengths(self) -> dict[int, int]:
        """Number -> rows of every episode, in the data set's order."""

    def stream(self, tasks: Sequence[str] | None = None, on_broken: OnBroken | None = None) -> Iterator[Trajectory]:
        """See `Source`."""
        return (trajectory for _, trajectory in self.numbered(tasks, on_broken))

    def shown_rows(self, length: int) -> NDArray[np.int64]:
        """The rows that the frames of an episode's trajectory show, rising; length: its number of rows."""
        from vlp_gym.data.sources.recording import kept_steps

        return kept_steps(length - 1, self.rate, self.options.fps)

    def shown_rate(self) -> float:
        """Frames of a trajectory that come in a second."""
        from vlp_gym.data.sources.recording import kept_rate

        return kept_rate(self.rate, self.options.fps)


def open_source(name: str | Path, options: SourceOptions | None = None) -> Source:
    """Open "KIND:PATH" with a kind of `KINDS`, or a folder from `vlp-gym collect`.

    Raises:
        DatasetError: if there is no such data set, or it is damaged.
    """
    kind, colon, path = str(name).partition(":")
    if colon and kind in KINDS and not Path(name).exists():
        if not path:
            raise DatasetError(f"{name}: expected {KINDS[kind]}")
        source: Source = import_module(f"vlp_gym.data.sources.{kind}").open_source(
            Path(path), options or SourceOptions()
        )
        return source
    return Shards(Path(name))


def give_up(broken: DatasetError, on_broken: OnBroken | None, cause: Exception) -> None:
    """Tell of a rollout that cannot be read, or raise it where nobody is told."""
    if on_broken is None:
        raise broken from cause
    on_broken(broken)


@dataclass(frozen=True)
class Shards:
    """A folder of our own shards."""

    folder: Path

    def tasks(self) -> list[str]:
        """See `Source`."""
        from vlp_gym.data.shards import shard_tasks

        return shard_tasks(self.folder)

    def stream(self, tasks: Sequence[str] | None = None, on_broken: OnBroken | None = None) -> Iterator[Trajectory]:
        """See `Source`; a damaged shard is raised, as the rest of it cannot be read."""
        from vlp_gym.data.shards import stream_trajectories

        return stream_trajectories(self.folder, tasks=tasks)
