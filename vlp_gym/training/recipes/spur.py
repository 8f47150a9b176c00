"""Training of SPUR: pairs of videos built from rollouts by four strategies (SPUR, sections 3.2 and 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlp_gym.data.trajectory import APART, EITHER_WAY, Trajectory, sentences_by_task
from vlp_gym.engine.windows import window_indices
from vlp_gym.models.spur import BASE, SPURModel
from vlp_gym.objectives.spur import spur_loss
from vlp_gym.training.options import TrainOptions, check_at_least
from vlp_gym.training.recipe import Batch, Recipe, TrainConfig, expect_model

Part = Literal["preference", "progress", "failures"]
STRATEGIES = ("expertise", "task", "rewind", "subsequence")
RATIOS = (0.3, 0.3, 0.4, 0.0)
"""Sampling weight of each strategy (SPUR, table 5)."""


@dataclass(frozen=True, kw_only=True)
class SPUROptions(TrainOptions):
    """SPUR: progress and preference by Qwen2.5-VL with two heads.

    The defaults are the paper's (table 5); it does not mention weight decay.

    Attributes:
        learning_rate: peak learning rate, after the warm-up; default: 2e-5, or 2e-4 with --lora-rank.
        batch_size: pairs per batch.
        backbone: a Qwen2.5-VL, as a hub id or a folder.
        lora_rank: train low-rank adapters of this rank instead of the whole language model, in far less memory.
        without: parts left out, as in table 1: preference or progress (its loss), failures (failed rollouts).
    """

    steps: int = 5_000
    learning_rate: float | None = None  # type: ignore[assignment]
    weight_decay: float = 0.0
    warmup: float = 0.1
    batch_size: int = 16
    backbone: str = BASE
    lora_rank: int | None = None
    without: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, batch_size=self.batch_size)
        if self.lora_rank is not None:
            check_at_least(1, lora_rank=self.lora_rank)
        if {"preference", "progress"} <= set(self.without):
            raise ValueError("--without: expected one loss at most, got both: nothing would be learned")

    def config(self) -> TrainConfig:
        rate = 2e-5 if self.lora_rank is None else 2e-4
        return replace(super().config(), learning_rate=rate if self.learning_rate is None else self.learning_rate)

    def build(self, trajectories: Sequence[Trajectory]) -> tuple[SPURModel, SPURRecipe]:
        compares = "preference" not in self.without
        model = SPURModel(self.backbone, lora_rank=self.lora_rank, compares=compares)
        model.gradient_checkpointing_enable()  # the paper's batch is 32 videos of up to 512 tokens
        return model, self.recipe_of(model, trajectories)

    def recipe_of(self, model: nn.Module, trajectories: Sequence[Trajectory]) -> SPURRecipe:
        frames = expect_model(model, SPURModel).window
        return SPURRecipe(trajectories, batch_size=self.batch_size, frames=frames, seed=self.seed, without=self.without)

    def packages(self) -> dict[str, str]:
        return super().packages() | {"transformers": "vlm", "peft": "vlm"}


@dataclass(frozen=True)
class PairBatch(Batch):
    """B pairs of videos of T frames each.

    Attributes:
        frames: uint8 ``[B, 2, T, H, W, 3]``; a short video is padded in front with its first frame.
        mask: bool ``[B, 2, T]``, False where a video is padded.
        progress: float ``[B, 2, T]`` in [0, 1]; NaN in failed rollouts and where the mask is False.
        label: float ``[B]``, 1 if the first video is better, 0 if the second is.
        strategy: int64 ``[B]``, index into `STRATEGIES`.
        instructions: B sentences.
    """

    frames: Tensor
    mask: Tensor
    progress: Tensor
    label: Tensor
    strategy: Tensor
    instructions: list[str]


@dataclass(frozen=True)
class Clip:
    """A video cut from a rollout, with its progress.

    Attributes:
        rollout: index of the rollout.
        frames: int64 ``[n]``, indices into its frames.
        progress: float64 ``[n]`` in [0, 1]; NaN in failed rollouts.
    """

    rollout: int
    frames: NDArray[np.int64]
    progress: NDArray[np.float64]


def clock(end: int, rewind: int = 0) -> NDArray[np.int64]:
    """Times 1 to `end` of a video, then `rewind` frames backwards from there (SPUR, strategy 3).

    >>> clock(4, 2).tolist()
    [1, 2, 3, 4, 3, 2]
    """
    return np.concatenate([np.arange(1, end + 1), np.arange(end - 1, end - 1 - rewind, -1)])


def cut(rollout: int, first: int, done: int | None, times: NDArray[np.int64]) -> Clip:
    """The frames of a rollout at the given times, with progress ``t / T`` (SPUR, eq. 2).

    Time 1 is the video's first frame and T the first success. As in the authors' code, progress counts from the start
    of the video and stays 1 after success.

    Args:
        rollout: index of the rollout.
        first: index of the video's first frame.
        done: index of the first frame with success; None in a failed rollout, whose progress is NaN.
        times: int64 ``[n]``, see `clock`.
    """
    progress = np.full(len(times), np.nan) if done is None else np.minimum(times / (done - first + 1), 1.0)
    return Clip(rollout, first + times - 1, progress)


class SPURRecipe(Recipe):
    """Batches of video pairs and their loss; a batch depends on its number and the seed alone.

    The four strategies and their preference:

    - expertise: a successful rollout > a failed one of the same task;
    - task: any rollout of the task > any rollout of another task, whose progress is 0 throughout;
    - rewind: a successful rollout > its beginning, up to success at most, followed by some frames backwards;
    - subsequence: a longer beginning of a successful rollout > a shorter one.

    A video starts at a random frame in the first half of the way to success (of the whole rollout if it fails); two
    videos of one rollout start together. Failed rollouts have no progress target, under any sentence. Videos of more
    than `frames` frames are subsampled like the wrapper's windows.

    Args:
        trajectories: rollouts of all training tasks, with frames of one size.
        batch_size: B, pairs per batch; 16 in the paper.
        frames: T, at most the model's window; 16 in the paper.
        ratios: sampling weight of each of `STRATEGIES`.
        seed: seeds all random draws.
        without: parts left out. "preference", "progress": that loss, which is still reported; "failures": failed
            rollouts, and with them the strategy "expertise".

    Raises:
        ValueError: if no rollout suits a strategy of positive weight, or an argument is out of range.
        DatasetError: if a trajectory carries no sentences.
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectory],
        *,
        batch_size: int = 16,
        frames: int = 16,
        ratios: Sequence[float] = RATIOS,
        seed: int = 0,
        without: Sequence[Part] = (),
    ) -> None:
        if batch_size < 1 or frames < 1:
            raise ValueError(f"batch_size and frames: expected at least 1, got {batch_size} and {frames}")
        if len(ratios) != len(STRATEGIES) or min(ratios) < 0 or sum(ratios) <= 0:
            raise ValueError(f"ratios: expected {len(STRATEGIES)} numbers >= 0, not all 0, got {tuple(ratios)}")
        trajectories = [trajectory for trajectory in trajectories if trajectory.tier not in (APART, EITHER_WAY)]
        if "failures" in without:
            trajectories = [trajectory for trajectory in trajectories if trajectory.first_success is not None]
            ratios = [0.0 if name == "expertise" else ratio for name, ratio in zip(STRATEGIES, ratios, strict=True)]
        if len(sizes := {trajectory.frames.shape[1:] for trajectory in trajectories}) > 1:
            raise ValueError(f"expected frames of one size, got {sorted(sizes)}")
        self.trajectories, self.sentences = trajectories, sentences_by_task(trajectories)
        self.batch_size, self.frames, self.seed = batch_size, frames, seed
        self.without = tuple(without)
        self.ratios = np.asarray(ratios, np.float64) / sum(ratios)
        self.tasks = sorted({trajectory.task for trajectory in trajectories})
        done = [trajectory.first_success for trajectory in trajectories]

        def by_task(fits: Callable[[int | None], bool]) -> dict[str, list[int]]:
            some = [index for index, success in enumerate(done) if fits(success)]
            return {task: [index for index in some if trajectories[index].task == task] for task in self.tasks}

        self.rollouts = by_task(lambda success: True)
        self.successes = by_task(lambda success: success is not None)
        self.failures = by_task(lambda success: success is None)
        self.ways = by_task(lambda success: success is not None and success >= 2)  # some frames before success remain
        self.suited = {
            "expertise": [task for task in self.tasks if self.successes[task] and self.failures[task]],
            "task": self.tasks if len(self.tasks) > 1 else [],
            **{name: [task for task in self.tasks if self.ways[task]] for name in ("rewind", "subsequence")},
        }
        for name, ratio in zip(STRATEGIES, self.ratios, strict=True):
            if ratio and not self.suited[name]:
                raise ValueError(f"ratios: no rollouts for the strategy {name!r}; give it the ratio 0 or other data")
        self.settings: dict[str, Any] = {
            "tasks": self.tasks, "batch_size": batch_size, "frames": frames, "ratios": self.ratios.tolist(),
            "recipe_seed": seed, **({"without": sorted(without)} if without else {}),
        }  # fmt: skip

    def batch(self, number: int) -> PairBatch:
        rng = np.random.default_rng([self.seed, number])
        strategies = rng.choice(len(STRATEGIES), self.batch_size, p=self.ratios)
        frames, masks, targets, labels, sentences = [], [], [], [], []
        for strategy in strategies:
            task, better, worse = self.pair(STRATEGIES[strategy], rng)
            first = bool(rng.random() < 0.5)  # else the order would give the answer away
            for clip in (better, worse) if first else (worse, better):
                chosen, mask = window_indices(len(clip.frames), self.frames, "prefix")
                frames.append(self.trajectories[clip.rollout].frames[clip.frames[chosen]])
                targets.append(np.where(mask, clip.progress[chosen], np.nan))
                masks.append(mask)
            labels.append(float(first))
            sentences.append(str(rng.choice(self.sentences[task])))

        def pairs(rows: list[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.stack(rows)).unflatten(0, (self.batch_size, 2))

        return PairBatch(
            pairs(frames), pairs(masks), pairs(targets).float(), torch.tensor(labels), torch.from_numpy(strategies),
            sentences,
        )  # fmt: skip

    def pair(self, strategy: str, rng: np.random.Generator) -> tuple[str, Clip, Clip]:
        """A task, its preferred video and the other one, by one of `STRATEGIES`."""
        task = str(rng.choice(self.suited[strategy]))
        if strategy == "expertise":
            return task, self._whole(self.successes[task], rng), self._whole(self.failures[task], rng)
        if strategy == "task":
            other = str(rng.choice([name for name in self.tasks if name != task]))
            foreign = self._whole(self.rollouts[other], rng)
            nothing = Clip(foreign.rollout, foreign.frames, foreign.progress * 0.0)  # NaN stays NaN
            return task, self._whole(self.rollouts[task], rng), nothing
        rollout = int(rng.choice(self.ways[task]))
        first, done = self._first_frame(rollout, rng), self.trajectories[rollout].first_success
        assert done is not None
        end = int(rng.integers(2, done - first + 2))  # 2 to T
        if strategy == "rewind":
            turned = cut(rollout, first, done, clock(end, int(rng.integers(1, end))))
            return task, cut(rollout, first, done, clock(len(self.trajectories[rollout].frames) - first)), turned
        shorter = int(rng.integers(1, end))
        return task, cut(rollout, first, done, clock(end)), cut(rollout, first, done, clock(shorter))

    def loss(self, model: nn.Module, batch: PairBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of preference and progress; one pass over the pairs, one over the second videos."""
        model = cast(SPURModel, model)
        tokens = model.encode_frames(batch.frames.flatten(0, 2)).unflatten(0, batch.mask.shape)
        text = model.encode_text(batch.instructions)
        mask_a, mask_b = batch.mask.unbind(1)
        progress_a, logit = model.pair_logits(tokens[:, 0], tokens[:, 1], text, mask_a, mask_b)
        progress_b = model.progress_logits(tokens[:, 1], text, mask_b)
        progress = torch.stack([progress_a, progress_b], dim=1).sigmoid()
        loss = spur_loss(logit, batch.label, progress, batch.progress)
        parts = {"preference": loss.preference, "progress": loss.progress}
        total = torch.stack([part for name, part in parts.items() if name not in self.without]).sum()
        return {"loss": total, **parts}

    def _whole(self, rollouts: list[int], rng: np.random.Generator) -> Clip:
        """A random rollout, from a random first frame to its end."""
        rollout = int(rng.choice(rollouts))
        first, trajectory = self._first_frame(rollout, rng), self.trajectories[rollout]
        return cut(rollout, first, trajectory.first_success, clock(len(trajectory.frames) - first))

    def _first_frame(self, rollout: int, rng: np.random.Generator) -> int:
        trajectory = self.trajectories[rollout]
        done = trajectory.first_success
        length = len(trajectory.frames) if done is None else done + 1
        return int(rng.integers(0, max(1, length // 2)))
