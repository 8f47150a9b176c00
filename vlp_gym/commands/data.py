"""The rollouts that commands read, and which of their tasks a split trains on and is judged on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vlp_gym.data.trajectory import Trajectory

SplitName = Literal["vlp", "ml45", "all", "data"]


def load(*folders: Path, tasks: Sequence[str] = ()) -> list[Trajectory]:
    """All trajectories of folders, with the sentences of Meta-World's tasks where they carry none.

    Args:
        folders: with parquet shards.
        tasks: only these, all by default; the version of a Meta-World task may be left out.

    Raises:
        DatasetError: see `stream_trajectories`.
    """
    from vlp_gym.data.shards import load_trajectories, shard_tasks
    from vlp_gym.metaworld.sentences import with_sentences
    from vlp_gym.metaworld.splits import full_name

    there = shard_tasks(*folders)
    names = [full_name(task) if full_name(task) in there else task for task in tasks]
    return [with_sentences(trajectory) for trajectory in load_trajectories(*folders, tasks=names or None)]


def training_tasks(split: SplitName, folders: Sequence[Path]) -> tuple[str, ...]:
    """The tasks that a split of Meta-World trains on; of "data" all that the folders have."""
    from vlp_gym.data.shards import shard_tasks
    from vlp_gym.metaworld.splits import train_tasks

    return tuple(shard_tasks(*folders)) if split == "data" else train_tasks(split)


def judged_tasks(split: SplitName, folder: Path) -> tuple[str, ...]:
    """The tasks that a split of Meta-World is judged on; of "data" all that the folder has."""
    from vlp_gym.data.shards import shard_tasks
    from vlp_gym.metaworld import splits

    return tuple(shard_tasks(folder)) if split == "data" else splits.judged_tasks(split)
