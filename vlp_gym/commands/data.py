"""Loads rollouts for the commands, and names the training and evaluation tasks of a split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vlp_gym.data.trajectory import Trajectory

SplitName = Literal["vlp", "ml45", "all", "data"]


def load(*folders: Path, tasks: Sequence[str] = ()) -> list[Trajectory]:
    """All trajectories of folders; Meta-World tasks without sentences get theirs.

    Args:
        folders: folders with parquet shards.
        tasks: load only these; default: all. The suffix -v3 of a Meta-World task may be omitted.

    Raises:
        DatasetError: see `stream_trajectories`.
    """
    from vlp_gym.data.shards import load_trajectories, shard_tasks
    from vlp_gym.metaworld.sentences import with_sentences
    from vlp_gym.metaworld.splits import full_name

    known = shard_tasks(*folders)
    names = [full_name(task) if full_name(task) in known else task for task in tasks]
    return [with_sentences(trajectory) for trajectory in load_trajectories(*folders, tasks=names or None)]


def training_tasks(split: SplitName, folders: Sequence[Path]) -> tuple[str, ...]:
    """The training tasks of a Meta-World split; for "data" all tasks in the folders."""
    from vlp_gym.data.shards import shard_tasks
    from vlp_gym.metaworld.splits import train_tasks

    return tuple(shard_tasks(*folders)) if split == "data" else train_tasks(split)


def judged_tasks(split: SplitName, folder: Path) -> tuple[str, ...]:
    """The evaluation tasks of a Meta-World split; for "data" all tasks in the folder."""
    from vlp_gym.data.shards import shard_tasks
    from vlp_gym.metaworld import splits

    return tuple(shard_tasks(folder)) if split == "data" else splits.judged_tasks(split)
