"""What a data set holds: counts, lengths and sentences of each task, and what it lacks for which command."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vlp_gym.data.trajectory import TIERS, Trajectory

SHOWN = 5  # frames of an example


@dataclass
class TaskSummary:
    """One task's trajectories.

    Attributes:
        tiers: tier -> number of trajectories.
        frames: number of frames of each trajectory.
        sentences: its training sentences, the canonical one first.
        successes: number of trajectories with a success.
        positions: number of those in which positions of hand and object were recorded.
        actions: number of those with observations and actions.
        example: a few frames of the first trajectory, uint8 ``[SHOWN, H, W, 3]``.
    """

    tiers: Counter[str] = field(default_factory=Counter)
    frames: list[int] = field(default_factory=list)
    sentences: dict[str, None] = field(default_factory=dict)
    successes: int = 0
    positions: int = 0
    actions: int = 0
    example: NDArray[np.uint8] | None = None

    def add(self, trajectory: Trajectory) -> None:
        """Count one more."""
        self.tiers[trajectory.tier] += 1
        self.frames.append(len(trajectory.frames))
        self.sentences |= dict.fromkeys(trajectory.sentences)
        self.successes += bool(trajectory.success.any())
        self.positions += not np.isnan(trajectory.positions).any()
        self.actions += trajectory.observation is not None and trajectory.action is not None
        if self.example is None:
            self.example = trajectory.frames[np.linspace(0, len(trajectory.frames) - 1, SHOWN).round().astype(int)]


def summarize(trajectories: Iterable[Trajectory]) -> dict[str, TaskSummary]:
    """Summarise trajectories one by one; none stays in memory."""
    found: dict[str, TaskSummary] = {}
    for trajectory in trajectories:
        found.setdefault(trajectory.task, TaskSummary()).add(trajectory)
    return dict(sorted(found.items()))


def table(tasks: Mapping[str, TaskSummary]) -> str:
    """A Markdown table, a row a task."""
    rows = [
        "| task | rollouts | successes | frames | sentences | first sentence |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for name, task in tasks.items():
        tiers = ", ".join(f"{count} {tier}" for tier, count in task.tiers.items())
        lengths, first = f"{min(task.frames)} to {max(task.frames)}", next(iter(task.sentences), "none")
        rows.append(f"| {name} | {tiers} | {task.successes} | {lengths} | {len(task.sentences)} | {first} |")
    return "\n".join(rows)


def lacking(tasks: Mapping[str, TaskSummary]) -> list[str]:
    """What the data lacks, a line for each, with the commands that need it."""
    every = list(tasks.values())
    missing = sorted({tier for task in every for tier in TIERS if not task.tiers[tier]}, key=TIERS.index)
    lines = []
    if len(every) < 2:
        lines.append("other tasks: a model learns what a sentence means from two tasks or more")
    if missing:
        lines.append(
            f"{' and '.join(missing)} rollouts of some tasks: `train staged`, `train vlp` and `eval` compare all "
            "tiers; `train rewind` and `train embedding` need experts alone"
        )
    if not all(task.sentences for task in every):
        lines.append("sentences of some tasks: nothing can be trained or judged without them")
    if not all(task.actions == len(task.frames) for task in every):
        lines.append("observations and actions of some rollouts: no policy can be learned from those")
    if not all(task.positions == len(task.frames) for task in every):
        lines.append("positions of hand and object in some rollouts: `train staged` then tells progress by time")
    if any(task.successes == len(task.frames) for task in every):
        lines.append("failures of some tasks: no figure can say whether a model tells success from failure there")
    return lines
