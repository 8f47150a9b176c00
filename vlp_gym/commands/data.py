"""Loads rollouts for the commands, and names the training and evaluation tasks of a split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vlp_gym.errors import DatasetError, did_you_mean

if TYPE_CHECKING:
    from vlp_gym.data.instruction_file import InstructionFile
    from vlp_gym.data.sources import Source
    from vlp_gym.data.trajectory import Trajectory

SplitName = Literal["vlp", "ml45", "rewind", "all", "maniskill", "data"]


TABLE_12 = "vlp-table-12"


def load(*folders: Path, tasks: Sequence[str] = (), instructions: InstructionFile | None = None) -> list[Trajectory]:
    """All trajectories of data sets; Meta-World tasks without sentences get theirs.

    Args:
        folders: folders with parquet shards, or other data sets, see `open_source`.
        tasks: load only these; default: all. The suffix -v3 of a Meta-World task may be omitted.
        instructions: sentences in the place of those in the data, see `with_instructions`.

    Raises:
        DatasetError: see `Source`, or none has one of the tasks, or `instructions` has sentences for none of them.
    """
    from tqdm import tqdm

    from vlp_gym.data.sources import open_source

    where = " ".join(map(str, folders))
    streamed = stream_numbered([open_source(folder) for folder in folders], where, tasks)
    bar = tqdm(streamed, desc=f"reading {where}", unit=" trajectories", leave=False)
    found = [trajectory for _, trajectory in bar]
    if instructions is None:
        return found
    from vlp_gym.data.instruction_file import with_instructions

    if not any(trajectory.task in instructions.tasks for trajectory in found):
        raise DatasetError(
            f"--instructions: expected sentences for tasks of {where}, got some for "
            f"{', '.join(sorted(instructions.tasks))}"
        )
    return [with_instructions(trajectory, instructions.tasks) for trajectory in found]


def opened_instructions(name: str | None) -> InstructionFile | None:
    """The sentences that the option --instructions names: a file, or `TABLE_12`; None without.

    Raises:
        DatasetError: see `read_instructions`.
    """
    if name is None:
        return None
    from vlp_gym.data.instruction_file import InstructionFile, TaskInstructions, read_instructions

    if name != TABLE_12:
        return read_instructions(name)
    from vlp_gym.metaworld.published import VLP_TABLE_12

    own = {task: TaskInstructions(sentences=[said], baseline=base) for task, (said, base) in VLP_TABLE_12.items()}
    return InstructionFile(source="VLP, table 12", tasks=own)


def stream_numbered(
    sources: Sequence[Source], where: str, tasks: Sequence[str] = ()
) -> Iterator[tuple[int, Trajectory]]:
    """As `load`, one in memory at a time, each trajectory with the number of its episode.

    The tasks are checked at once, and nothing is read before the first is asked for; `where` is the sources' name in
    messages.
    """
    from vlp_gym.metaworld.splits import full_name

    known = [set(source.tasks()) for source in sources]
    names = [full_name(task) if any(full_name(task) in own for own in known) else task for task in tasks]
    if missing := [name for name in names if not any(name in own for own in known)]:
        raise DatasetError(f"{where}: no trajectories of {', '.join(missing)}; run vlp-gym collect with --tasks")
    wanted = [(source, [name for name in names if name in own]) for source, own in zip(sources, known, strict=True)]
    return _streamed([(source, some or None) for source, some in wanted if some or not names])


def _streamed(chosen: Sequence[tuple[Source, list[str] | None]]) -> Iterator[tuple[int, Trajectory]]:
    from vlp_gym.data.sources import Numbered
    from vlp_gym.metaworld.sentences import with_sentences

    for source, tasks in chosen:
        stream = source.numbered(tasks) if isinstance(source, Numbered) else enumerate(source.stream(tasks))
        for number, trajectory in stream:
            yield number, with_sentences(trajectory)


def all_tasks(*folders: Path) -> tuple[str, ...]:
    """The tasks of data sets, sorted."""
    from vlp_gym.data.sources import open_source

    return tuple(sorted({task for folder in folders for task in open_source(folder).tasks()}))


def training_tasks(split: SplitName, folders: Sequence[Path]) -> tuple[str, ...]:
    """The training tasks of a split; for "data" all tasks in the data sets."""
    from vlp_gym.maniskill.tasks import TRAIN
    from vlp_gym.metaworld.splits import train_tasks

    if split == "maniskill":
        return tuple(TRAIN)
    return all_tasks(*folders) if split == "data" else train_tasks(split)


def judged_tasks(split: SplitName, folder: Path) -> tuple[str, ...]:
    """The evaluation tasks of a split; for "data" all tasks in the data set."""
    from vlp_gym.maniskill.tasks import TEST
    from vlp_gym.metaworld import splits

    if split == "maniskill":
        return tuple(TEST)
    return all_tasks(folder) if split == "data" else splits.judged_tasks(split)


def chosen_tasks(split: SplitName, folder: Path, tasks: Sequence[str]) -> tuple[str, ...]:
    """The evaluation tasks of a split, or those of them that are named.

    Raises:
        ValueError: if another task is named.
    """
    from vlp_gym.metaworld.splits import full_name

    every = judged_tasks(split, folder)
    names = tuple(dict.fromkeys(full_name(task) if full_name(task) in every else task for task in tasks))
    if unknown := sorted(set(names) - set(every)):
        hint = did_you_mean(unknown[0], every)
        raise ValueError(f"--tasks: expected tasks that split {split} judges, got {', '.join(unknown)}{hint}")
    return names or every
