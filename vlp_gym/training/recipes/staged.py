"""Training of `StagedRewardModel`: first everything on augmented clips, then the relevance alone on first frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.frames.resize import resize_frames
from vlp_gym.models.staged import StagedRewardModel
from vlp_gym.objectives.position import position_loss
from vlp_gym.objectives.progress import pairwise_ranking_loss, progress_loss
from vlp_gym.objectives.relevance import balanced_match_loss, text_to_video_loss, video_to_text_loss
from vlp_gym.training.augment import augment_clips, mirror_clips
from vlp_gym.training.options import TrainOptions, check_at_least
from vlp_gym.training.recipe import Recipe, Stage, expect_model
from vlp_gym.training.recipes.stage_clips import FirstFrames, StageBatch, StageSampler

RANK_MARGIN = 0.08  # least difference in progress between two ordered frames
DOUBT = 2.0  # weight of frames in which nothing has moved: what an arm hides is said not to have moved
STILL = 0.1  # weight of frames in which nothing has moved yet, for the way: they tell it nothing
WEIGHTS = {"rank": 0.5, "position": 10.0, "opposite": 0.5, "match": 0.05, "to_text": 0.05}  # 1 for all others
RELEVANCE_WEIGHTS = {"spread": 0.1}
NEARLY = 1e-4  # progress is kept this far from 0 and 1 where a loss takes its logarithm


@dataclass(frozen=True, kw_only=True)
class StagedOptions(TrainOptions):
    """The small factorised model that ships, trained from scratch: progress by approach, "has it moved" and way.

    Attributes:
        steps: optimizer steps that train everything; 0 trains only the relevance of --init.
        relevance_steps: further steps that train the relevance alone, without augmentation.
        tasks_per_batch: tasks per batch, each with one sentence.
        clips_per_task: clips per task, at least 3.
        frames_per_clip: frames per clip, at least 2; the first is its episode's first.
        base: what the relevance alone is worth in the preference; choose it with `vlp-gym tune`.
        sharpness: factor on the preference; choose it with `vlp-gym tune`.
        relevance_shift: added to the relevance; choose it with `vlp-gym tune`.
    """

    steps: int = 1_000
    relevance_steps: int = 300
    tasks_per_batch: int = 14
    clips_per_task: int = 6
    frames_per_clip: int = 6
    base: float = 0.3
    sharpness: float = 10.0
    relevance_shift: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, relevance_steps=self.relevance_steps)
        check_at_least(3, clips_per_task=self.clips_per_task)
        check_at_least(2, tasks_per_batch=self.tasks_per_batch, frames_per_clip=self.frames_per_clip)

    def build(self, trajectories: Sequence[Trajectory]) -> tuple[StagedRewardModel, StagedRecipe]:
        model = StagedRewardModel(base=self.base, sharpness=self.sharpness, relevance_shift=self.relevance_shift)
        sampler = StageSampler(
            trajectories, tasks_per_batch=self.tasks_per_batch, clips_per_task=self.clips_per_task,
            frames_per_clip=self.frames_per_clip, seed=self.seed,
        )  # fmt: skip
        return model, StagedRecipe(sampler, self.relevance_steps)

    def _check_steps(self) -> None:
        if self.steps < (0 if self.init is not None and self.relevance_steps > 0 else 1):
            raise ValueError(
                f"--steps: expected at least 1, or 0 with a staged --init and --relevance-steps, got {self.steps}"
            )


class StagedRecipe(Recipe):
    """Two stages: all weights on clips, then the relevance alone on first frames for `relevance_steps` steps."""

    def __init__(self, sampler: StageSampler, relevance_steps: int = 300) -> None:
        self.sampler, self.relevance_steps = sampler, relevance_steps
        self.settings: dict[str, Any] = {**sampler.settings, "relevance_steps": relevance_steps}

    def stages(self, model: nn.Module, steps: int) -> list[Stage]:
        """See `Recipe.stages`; the second stage leaves the progress unchanged."""
        model = expect_model(model, StagedRewardModel)
        relevance = Stage(
            self.relevance_steps, relevance_loss, model.relevance_parameters(),
            resting=[model.backbone.stem], batch=self.sampler.first_frames,
        )  # fmt: skip
        return [Stage(steps, self.loss), relevance]

    def batch(self, number: int) -> StageBatch:
        return self.sampler.batch(number)

    def loss(self, model: nn.Module, batch: StageBatch, generator: torch.Generator) -> dict[str, Tensor]:
        return staged_loss(model, batch, generator)


def staged_loss(model: nn.Module, batch: StageBatch, generator: torch.Generator) -> dict[str, Tensor]:
    """Loss of the first stage: the stages of the progress and a little relevance on augmented clips."""
    model = expect_model(model, StagedRewardModel)
    batch = mirror_clips(batch, generator)
    groups, clips, time = batch.frames.shape[:3]
    frames = resize_frames(batch.frames.flatten(0, 2), model.frame_size).unflatten(0, (groups * clips, time))
    tokens = model.backbone.encode_pixels(augment_clips(frames, generator)).unflatten(0, (groups * clips, time))
    state = model.state(tokens)
    text = model.encode_text(batch.instructions)
    parts = _progress_parts(model, state, text, batch, batch.way)
    parts["position"] = position_loss(model.position_head(state).unflatten(2, (2, 3)), batch.positions.flatten(0, 1))
    parts["opposite"] = _opposite_part(model, state, batch)
    owner = torch.arange(groups, device=text.device).repeat_interleave(clips)
    relevance = model.relevance(tokens[:, 0], text)
    positive = owner[:, None] == torch.arange(groups, device=text.device)
    parts["match"] = balanced_match_loss(relevance, positive)
    parts["to_text"] = video_to_text_loss(relevance, owner)
    return {"loss": _weighted_sum(parts, WEIGHTS), **parts}


def relevance_loss(model: nn.Module, batch: FirstFrames, generator: torch.Generator) -> dict[str, Tensor]:
    """Loss of the second stage: the relevance alone, of first frames against sentences and their opposites.

    It decides between tasks, so it should be the same for all first frames of a task: their spread is a loss.
    """
    model = expect_model(model, StagedRewardModel)
    text = model.encode_text(batch.sentences)
    relevance = model.relevance(model.encode_frames(batch.frames), text)
    positive = batch.fits
    own = relevance[:, : batch.tasks].unflatten(0, (batch.tasks, -1))  # [tasks, frames of a task, tasks]
    parts = {
        "to_text": text_to_video_loss(relevance.T, positive.T),
        "to_video": text_to_video_loss(relevance, positive),
        "match": balanced_match_loss(relevance, positive),
        "spread": own.diagonal(dim1=0, dim2=2).var(0).mean(),
    }
    return {"loss": _weighted_sum(parts, RELEVANCE_WEIGHTS), **parts}


def _progress_parts(
    model: StagedRewardModel, state: Tensor, text: Tensor, batch: StageBatch, way: Tensor
) -> dict[str, Tensor]:
    """Losses of the three stages and of the progress that they make, of G * C clips under G sentences."""
    groups, clips = way.shape[:2]
    logits = model.stages(state, text.repeat_interleave(clips, 0)).unflatten(0, (groups, clips))
    approach, moved, along = logits.unbind(-1)  # [G, C, T]
    share = model.approach_share
    target = share * batch.approach + (1 - share) * torch.where(batch.moved == 0, 0.0, batch.moved * way)
    target = torch.where(batch.timed.isnan(), target, batch.timed)
    progress = model.progress(logits.float()).clamp(NEARLY, 1 - NEARLY).logit()
    return {
        "approach": progress_loss(approach, batch.approach),
        "moved": progress_loss(moved, batch.moved, weight=torch.where(batch.moved == 0, DOUBT, 1.0)),
        "way": progress_loss(along, way, weight=torch.where(batch.moved == 1, 1.0, STILL)),
        "progress": progress_loss(progress, target),
        "rank": pairwise_ranking_loss(progress.flatten(1), target.flatten(1), margin=RANK_MARGIN),
    }


def _opposite_part(model: StagedRewardModel, state: Tensor, batch: StageBatch) -> Tensor:
    """The same under the opposite sentences, where there are any: what moves the other way goes no way."""
    opposed = [group for group, sentence in enumerate(batch.opposites) if sentence is not None]
    if not opposed:
        return state.new_zeros(())
    some = batch.groups(opposed)
    rows = state.unflatten(0, batch.way.shape[:2])[opposed].flatten(0, 1)
    text = model.encode_text([sentence for sentence in batch.opposites if sentence is not None])
    parts = _progress_parts(model, rows, text, some, some.opposite_way)
    del parts["approach"]  # the same under any sentence
    return _weighted_sum(parts, WEIGHTS)


def _weighted_sum(parts: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    return torch.stack([weights.get(name, 1.0) * part for name, part in parts.items()]).sum()
