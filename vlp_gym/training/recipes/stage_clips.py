"""Training batches for progress in stages: clips of several tasks, each beside the first frame of its episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlp_gym.data.trajectory import APART, EITHER_WAY, RETREAT, Trajectory
from vlp_gym.training.recipe import Batch
from vlp_gym.training.recipes import clips
from vlp_gym.training.recipes.by_task import RolloutsByTask, stack
from vlp_gym.training.recipes.frame_labels import label_task
from vlp_gym.training.recipes.stage_labels import (
    RIGHT_WAY,
    StageLabels,
    TaskStages,
    label_away,
    label_backwards,
    label_stages,
    nearness,
    task_stages,
)

# Share of the clips of a tier that are shown backwards. An expert's hand is at the object then from the first frame on,
# and without such clips whatever changes is paid. Where the hand has gone back, the opposite task is seen.
BACKWARDS = {"expert": 0.35, RETREAT: 0.6}
SIBLING = 0.5  # share of a task's last clips that come from the opposite task, done in nearly the same scene
SLOTS = (*clips.SLOTS, (RETREAT,), (APART, EITHER_WAY))  # tiers of a task's first clips
TIER_SHARE = {**clips.TIER_SHARE, RETREAT: 4.0, APART: 4.0, EITHER_WAY: 4.0}  # sampling weights of tiers (others: 1)
FRAMES_PER_TASK = 4  # first frames of each task in a batch for the relevance


@dataclass(frozen=True)
class StageBatch(Batch):
    """G tasks with C clips of T frames each; frame 0 is the first of its episode.

    Attributes:
        frames: uint8 ``[G, C, T, H, W, 3]``.
        positions: float ``[G, C, T, 2, 3]``, hand and object in the camera's frame, metres; NaN where unknown.
        approach: float ``[G, C, T]``, see `StageLabels`; NaN where unknown.
        moved: float ``[G, C, T]``, see `StageLabels.has_moved`.
        way: float ``[G, C, T]``, see `StageLabels.paid_way`, under the task's sentence; NaN where unknown.
        opposite_way: float ``[G, C, T]``, the same under the opposite sentence.
        timed: float ``[G, C, T]``, progress by `label_task`, time and reward, where positions are unknown; else NaN.
        instructions: G sentences.
        opposites: G sentences that ask for the opposite; None where none is known.
    """

    frames: Tensor
    positions: Tensor
    approach: Tensor
    moved: Tensor
    way: Tensor
    opposite_way: Tensor
    timed: Tensor
    instructions: list[str]
    opposites: list[str | None]

    def groups(self, chosen: Sequence[int]) -> StageBatch:
        """Only these tasks."""
        rows = list(chosen)
        some: dict[str, Any] = {
            name: value[rows] if isinstance(value, Tensor) else [value[row] for row in rows]
            for name, value in vars(self).items()
        }
        return StageBatch(**some)


@dataclass(frozen=True)
class FirstFrames(Batch):
    """First frames of all tasks, for the relevance.

    Attributes:
        frames: uint8 ``[N, H, W, 3]``, task by task, the same number of each.
        fits: bool ``[N, M]``, whether a sentence is about what a frame shows; an opposite sentence is, too.
        sentences: M sentences: one of each task, then opposites.
        tasks: number of tasks.
    """

    frames: Tensor
    fits: Tensor
    sentences: list[str]
    tasks: int


class StageSampler(RolloutsByTask):
    """Draws batches; each depends on its number and the seed alone, so that resumed runs match bit for bit.

    Args:
        trajectories: rollouts of all training tasks.
        tasks_per_batch: G, at least 2.
        clips_per_task: C, at least 3: the first is from an expert, the second from a medium rollout, the third from
            those that wander, the fourth from an expert that takes its hand back, the fifth shows arm and object apart,
            the rest from any tier.
        frames_per_clip: T, at least 2.
        seed: seeds all random draws.

    Attributes:
        opposite_of: task -> the task that does the opposite, which need not be there.

    Raises:
        ValueError: if there are too few tasks, or a task lacks a tier.
        DatasetError: if a trajectory carries no sentences.
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectory],
        *,
        tasks_per_batch: int,
        clips_per_task: int,
        frames_per_clip: int,
        seed: int,
    ) -> None:
        super().__init__(trajectories, tasks_per_batch)
        self.opposite_of = {t.task: t.opposite for t in trajectories if t.opposite is not None}
        self._taken = set(chain(*self.sentences.values()))
        self._made = {
            sentence: opposites
            for trajectory in trajectories
            for sentence, opposites in zip(trajectory.sentences, trajectory.opposite_sentences, strict=False)
        }
        self.labels: dict[int, StageLabels] = {}
        self.stages: dict[str, TaskStages] = {}
        self.timed: dict[int, np.ndarray] = {}
        for task, tiers in self.by_task.items():
            self.stages[task] = task_stages([trajectories[index] for index in tiers["expert"]])
            own = self._all_of(task)
            for index in own:
                shown = trajectories[index]
                self.labels[index] = label_stages(shown.positions, shown.success, self.stages[task])
            if any(np.isnan(trajectories[index].positions).any() for index in own):
                timed = label_task([trajectories[index] for index in own])
                self.timed |= dict(zip(own, timed, strict=True))
        self.clips_per_task, self.frames_per_clip, self.seed = clips_per_task, frames_per_clip, seed
        self.settings: dict[str, Any] = {
            "tasks": self.tasks, "tasks_per_batch": tasks_per_batch, "clips_per_task": clips_per_task,
            "frames_per_clip": frames_per_clip, "recipe_seed": seed,
        }  # fmt: skip

    def batch(self, number: int) -> StageBatch:
        """Clips: batch `number` of the endless sequence of this seed."""
        rng = np.random.default_rng([self.seed, number])
        tasks = [str(task) for task in rng.permutation(self.tasks)[: self.tasks_per_batch]]
        sentences, opposites = self._sentences(tasks, rng)
        groups = [[self._clip(task, slot, rng) for slot in range(self.clips_per_task)] for task in tasks]
        return StageBatch(**stack(groups), instructions=sentences, opposites=opposites)

    def first_frames(self, number: int) -> FirstFrames:
        """First frames of all tasks: batch `number` of the endless sequence of this seed."""
        rng = np.random.default_rng([self.seed, number])
        chosen = [rng.choice(self._all_of(task), FRAMES_PER_TASK) for task in self.tasks]
        sentences, opposites = self._sentences(self.tasks, rng)
        about = list(self.tasks)  # the task whose scene each sentence is about
        for task, opposite in zip(self.tasks, opposites, strict=True):
            if opposite is not None:
                sentences.append(opposite)
                about.append(task)
        # The opposite task has nearly the same scene.
        fits = np.array([[owner in (task, self.opposite_of.get(task)) for owner in about] for task in self.tasks])
        frames = np.stack([self.trajectories[index].frames[0] for index in np.concatenate(chosen)])
        rows = torch.from_numpy(fits).repeat_interleave(FRAMES_PER_TASK, 0)
        return FirstFrames(torch.from_numpy(frames), rows, sentences, len(self.tasks))

    def _sentences(self, tasks: Sequence[str], rng: np.random.Generator) -> tuple[list[str], list[str | None]]:
        sentences = [str(rng.choice(self.sentences[task])) for task in tasks]
        return sentences, [self._opposite(task, sentence, rng) for task, sentence in zip(tasks, sentences, strict=True)]

    def _opposite(self, task: str, sentence: str, rng: np.random.Generator) -> str | None:
        """A sentence of the opposite task, or one that rules have made from this one."""
        if (opposite := self.opposite_of.get(task)) in self.by_task:
            return str(rng.choice(self.sentences[opposite]))
        options = self._made.get(sentence, ())
        drawn = options[int(rng.integers(len(options)))] if options else None
        return None if drawn in self._taken else drawn  # some are sentences of an unrelated task

    def _all_of(self, task: str) -> list[int]:
        """Indices of all trajectories of a task."""
        return list(chain(*self.by_task[task].values()))

    def _clip(self, task: str, slot: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One clip: the tensor fields of `StageBatch` without the dimensions G and C."""
        opposite = self.opposite_of.get(task)
        last = slot == self.clips_per_task - 1
        sibling = last and opposite in self.by_task and rng.random() < SIBLING
        tiers = self.by_task[opposite if sibling and opposite is not None else task]
        wanted = SLOTS[slot] if slot < len(SLOTS) else tuple(tiers)
        if sibling:
            wanted = ("expert", RETREAT)
        names = [name for name in wanted if name in tiers] or ["expert"]  # where no hand was taken back
        share = np.array([TIER_SHARE.get(name, 1.0) for name in names])
        tier = str(rng.choice(names, p=share / share.sum()))
        number = int(rng.choice(tiers[tier]))
        shown, labels = self.trajectories[number], self.labels[number]
        stages = self.stages[shown.task]
        index = self._frames(len(shown.frames), rng)
        share_backwards = BACKWARDS.get(tier, 0.0) if stages.mover == 1 and labels.way[-1] > 0.5 else 0.0
        if share_backwards and rng.random() < share_backwards:
            index = len(shown.frames) - 1 - index
            labels = label_backwards(shown.positions, stages)
            if tier == "expert":  # its hand is at the object in the first frame already, and leaves
                labels = replace(labels, approach=nearness(shown.positions, stages))
            sibling = not sibling
        elif tier == EITHER_WAY and labels.way.max() <= RIGHT_WAY and labels.moved.max() >= 1:
            labels, sibling = label_away(shown.positions, stages), not sibling
        way, other = labels.paid_way(), labels.wrong_way()
        if sibling:
            way, other = other, way
        unknown = np.full(len(shown.frames), np.nan)
        timed = unknown if sibling else self.timed.get(number, unknown)
        numbers = {
            "approach": labels.approach, "moved": labels.has_moved(), "way": way, "opposite_way": other, "timed": timed,
        }  # fmt: skip
        return {
            "frames": shown.frames[index],
            "positions": shown.positions[index].astype(np.float32),
            **{name: np.asarray(series[index], np.float32) for name, series in numbers.items()},
        }

    def _frames(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Places in a rollout of `count` frames, rising from 0: even over a prefix, or random."""
        stop = count if rng.random() < 0.5 else int(rng.integers(min(4, count), count + 1))
        if rng.random() < 0.5:
            return np.linspace(0, stop - 1, self.frames_per_clip).round().astype(np.int64)
        index = np.sort(rng.choice(stop, self.frames_per_clip, replace=stop < self.frames_per_clip))
        index[0] = 0
        return index
