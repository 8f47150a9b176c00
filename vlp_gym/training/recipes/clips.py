"""Training batches of clips: several tasks, several clips per task, one sentence per task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vlp_gym.data.trajectory import AGENT, APART, EITHER_WAY, EXPLORE, NEAR_MISS, Trajectory
from vlp_gym.training.options import TrainOptions, check_at_least
from vlp_gym.training.recipe import Batch, Recipe
from vlp_gym.training.recipes.by_task import RolloutsByTask, stack

SEGMENT_STEPS = 50  # environment steps in a preference segment (VLP)
TIER_RANK = {"expert": 2.0, "medium": 1.0, "random": 0.0}
TIER_SHARE = {EXPLORE: 2.0, AGENT: 4.0}  # sampling weights of tiers (others: 1); the states of these vary most
SLOTS = (("expert",), ("medium",), ("random", NEAR_MISS, EXPLORE, AGENT))  # tiers of a task's first clips
# Probability of each way to cut a clip. Without reversed clips a model would reward any change.
MODES = {"whole": 0.3, "prefix": 0.2, "segment": 0.25, "rewind": 0.08, "reverse": 0.17}


@dataclass(frozen=True)
class ClipBatch(Batch):
    """G tasks with C clips of T frames each.

    Attributes:
        frames: uint8 ``[G, C, T, H, W, 3]``.
        tier: float ``[G, C]``, 2 expert, 1 medium, 0 random in whole rollouts, 0 in reversed ones; NaN elsewhere.
        segment_return: float ``[G, C]``, mean environment reward over the clip; NaN in reversed ones.
        instructions: G sentences.
    """

    frames: Tensor
    tier: Tensor
    segment_return: Tensor
    instructions: list[str]


class ClipSampler(RolloutsByTask):
    """Draws batches; each depends on its number and the seed alone, so that resumed runs match bit for bit.

    Args:
        trajectories: rollouts of all training tasks.
        tasks_per_batch: G, at least 2.
        clips_per_task: C, at least 3: the first is from an expert, the second from a medium rollout, the third from any
            other tier, the rest from any tier.
        window: T is a quarter, a half, three quarters or all of it, and at least 2.
        seed: seeds all random draws.
        focus: tasks in every batch, at most half of it; the others are drawn.

    Raises:
        ValueError: if there are too few tasks or clips, a task lacks a tier, or `focus` has too many or unknown tasks.
        DatasetError: if a trajectory carries no sentences.
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectory],
        *,
        tasks_per_batch: int,
        clips_per_task: int,
        window: int,
        seed: int,
        focus: Sequence[str] = (),
    ) -> None:
        super().__init__(trajectories, tasks_per_batch, without=(APART, EITHER_WAY))  # nothing happens there
        if clips_per_task < 3:
            raise ValueError(f"clips_per_task: expected at least 3, got {clips_per_task}")
        self.focus = list(dict.fromkeys(focus))
        if unknown := set(focus) - set(self.tasks):
            raise ValueError(f"focus: expected tasks that are trained on, got {', '.join(sorted(unknown))}")
        if len(self.focus) > tasks_per_batch // 2:
            raise ValueError(
                f"focus: expected at most half of a batch's {tasks_per_batch} tasks, got {len(self.focus)}"
            )
        self.clips_per_task, self.window, self.seed = clips_per_task, window, seed

    def batch(self, number: int) -> ClipBatch:
        """Batch `number` of the endless sequence of this seed."""
        rng = np.random.default_rng([self.seed, number])
        tasks = self._draw_tasks(rng)
        lengths = [max(2, share * self.window // 4) for share in (1, 2, 3, 4)]
        length = int(rng.choice(lengths, p=[0.25, 0.35, 0.2, 0.2]))
        groups = [[self._clip(task, slot, length, rng) for slot in range(self.clips_per_task)] for task in tasks]
        return ClipBatch(**stack(groups), instructions=[str(rng.choice(self.sentences[task])) for task in tasks])

    def _draw_tasks(self, rng: np.random.Generator) -> list[str]:
        """Random tasks, half of them followed by one of the same scene, which the sentence must tell apart."""
        waiting = self.focus + [str(task) for task in rng.permutation(self.tasks) if task not in self.focus]
        drawn: list[str] = []
        while len(drawn) < self.tasks_per_batch:
            drawn.append(waiting.pop(0))
            same = [task for task in waiting if task.split("-")[0] == drawn[-1].split("-")[0]]
            if same and len(drawn) < self.tasks_per_batch and rng.random() < 0.5:
                drawn.append(same[0])
                waiting.remove(same[0])
        return drawn

    def _clip(self, task: str, slot: int, length: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One clip: the tensor fields of `ClipBatch` without the dimensions G and C."""
        tiers = self.by_task[task]
        names = [name for name in (SLOTS[slot] if slot < len(SLOTS) else tiers) if name in tiers]
        share = np.array([TIER_SHARE.get(name, 1.0) for name in names])
        tier = str(rng.choice(names, p=share / share.sum()))
        trajectory = self.trajectories[int(rng.choice(tiers[tier]))]
        frames = len(trajectory.frames)
        mode = str(rng.choice(list(MODES), p=list(MODES.values())))
        start, stop = 0, frames
        if mode == "prefix":
            stop = int(rng.integers(min(3, frames), frames + 1))
        elif mode == "segment":
            count = min(SEGMENT_STEPS // trajectory.stride + 1, frames)
            start = int(rng.integers(0, frames - count + 1))
            stop = start + count
        elif mode == "reverse":
            start = int(rng.integers(0, max(frames - 3, 1)))
        if rng.random() < 0.5 or mode == "segment":
            index = np.linspace(start, stop - 1, length).round().astype(np.int64)
        else:
            index = np.sort(rng.choice(np.arange(start, stop), length, replace=stop - start < length))
            index[0], index[-1] = start, stop - 1
        if mode == "reverse":
            index = index[::-1].copy()
        if mode == "rewind" and length > 2:
            turn = int(rng.integers(1, length - 1))
            index = np.concatenate([index[: turn + 1], index[:turn][::-1], np.repeat(index[0], length)])[:length]
        tier_rank = TIER_RANK.get(tier, np.nan) if mode == "whole" else np.nan
        segment_return = trajectory.reward[index].mean(dtype=np.float64)
        if mode == "reverse":  # it shows no task: whatever was done is undone
            tier_rank, segment_return = TIER_RANK["random"], np.nan
        return {
            "frames": trajectory.frames[index],
            "tier": np.asarray(tier_rank, np.float32),
            "segment_return": np.asarray(segment_return, np.float32),
        }


class ClipRecipe(Recipe):
    """Base class of recipes on the batches of a `ClipSampler`."""

    def __init__(self, sampler: ClipSampler) -> None:
        self.sampler = sampler
        self.settings: dict[str, Any] = {
            "tasks": sampler.tasks,
            "tasks_per_batch": sampler.tasks_per_batch,
            "clips_per_task": sampler.clips_per_task,
            "focus": sampler.focus,
            "recipe_seed": sampler.seed,
        }

    def batch(self, number: int) -> ClipBatch:
        return self.sampler.batch(number)


@dataclass(frozen=True, kw_only=True)
class ClipOptions(TrainOptions):
    """Options of systems that train on clips of several tasks.

    Attributes:
        tasks_per_batch: tasks per batch, each with one sentence.
        clips_per_task: clips per task, at least 3.
        focus: tasks in every batch, at most half of it; for tasks on which agents exploit the model.
    """

    tasks_per_batch: int = 14
    clips_per_task: int = 6
    focus: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(3, clips_per_task=self.clips_per_task)

    def training_tasks(self, every: Sequence[str]) -> list[str]:
        """See `TrainOptions.training_tasks`; also raises ValueError if `focus` names other tasks."""
        kept = super().training_tasks(every)
        if unknown := set(self.focus) - set(kept):
            raise ValueError(f"--focus: expected tasks that are trained on, got {', '.join(sorted(unknown))}")
        return kept

    def sampler(self, trajectories: Sequence[Trajectory], window: int) -> ClipSampler:
        """The sampler for these options and a model with a window of `window` frames."""
        return ClipSampler(
            trajectories,
            tasks_per_batch=self.tasks_per_batch,
            clips_per_task=self.clips_per_task,
            window=window,
            seed=self.seed,
            focus=self.focus,
        )
