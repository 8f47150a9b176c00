"""What each kind of model learns from a batch of clips: the total loss and its parts, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.models.compact import ClipFeatures, CompactRewardModel
from vlp_gym.models.vlp import VLPModel
from vlp_gym.objectives.position import position_loss
from vlp_gym.objectives.progress import pairwise_ranking_loss, progress_loss
from vlp_gym.objectives.relevance import balanced_match_loss, text_to_video_loss, video_to_text_loss
from vlp_gym.training.augment import augment_clips, mirror_clips
from vlp_gym.training.recipe import Recipe, TrainConfig
from vlp_gym.training.recipes.clips import ClipBatch, ClipSampler
from vlp_gym.training.recipes.vlp import _vlp_loss

VALUE_MARGIN = 0.1  # difference in reward rank that orders two frames
RETURN_MARGIN = 0.02  # share of the largest reward that orders two segments
MAX_REWARD = 10.0  # of Meta-World
MOVED_MARGIN = 0.02  # metres
WEIGHTS = {  # the others' are 1
    "position": 10.0,
    "segment": 0.5,
    "opposite_to_video": 0.3,
    "opposite_match": 0.3,
    "opposite_choice": 0.3,
}
RELEVANCE_WEIGHT = 0.05  # beside the progress; it has a stage of its own


def batch_loss(
    model: nn.Module, batch: ClipBatch, generator: torch.Generator, *, relevance_only: bool = False
) -> dict[str, Tensor]:
    """The loss of a batch: "loss" to minimise, and its unweighted parts.

    Args:
        model: a `CompactRewardModel` or `VLPModel`.
        batch: the clips.
        generator: of the augmentation.
        relevance_only: the compact model's last stage: the relevance alone, on pictures as they are.

    Raises:
        TypeError: for a model that has no training objective.
    """
    if isinstance(model, CompactRewardModel):
        return _compact_loss(model, batch, None if relevance_only else generator)
    if isinstance(model, VLPModel):
        return _vlp_loss(model, batch, generator)
    raise TypeError(f"expected a model with a training objective (compact, vlp), got {type(model).__name__}")


def _compact_loss(model: CompactRewardModel, batch: ClipBatch, generator: torch.Generator | None) -> dict[str, Tensor]:
    groups, clips, time = batch.frames.shape[:3]
    if generator is None:
        tokens = model.encode_frames(batch.frames.flatten(0, 2))
    else:
        batch = mirror_clips(batch, generator)
        tokens = model.backbone.encode_pixels(augment_clips(batch.frames.flatten(0, 1), generator))
    tokens = tokens.unflatten(0, (groups * clips, time))
    tokens = torch.cat([tokens, tokens[batch.expert.flatten()].flip(1)])
    every = model.features(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))
    text = model.encode_text(batch.instructions)
    opposites = [sentence for sentence in batch.opposites if sentence is not None]
    opposite_text = model.encode_text(opposites) if opposites else text[:0]

    progress = _progress_parts(model, every.rows(slice(groups * clips)), batch, text, opposite_text)
    relevance = _relevance_parts(model, every, batch, text, opposite_text)
    loss = _weighted_sum(relevance)
    if generator is not None:
        loss = _weighted_sum(progress) + RELEVANCE_WEIGHT * loss
    return {"loss": loss, **progress, **relevance}


def _weighted_sum(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack([WEIGHTS.get(name, 1.0) * part for name, part in parts.items()]).sum()


def _progress_parts(
    model: CompactRewardModel, seen: ClipFeatures, batch: ClipBatch, text: Tensor, opposite_text: Tensor
) -> dict[str, Tensor]:
    """How far and how well, of G * C clips.

    Under the opposite sentence an expert goes the right way until it touches the object, and the wrong way after that.
    """
    groups, clips, time = batch.progress.shape
    logits = model.progress_logits(seen, text.repeat_interleave(clips, 0))
    mask = torch.ones_like(logits)
    quality = model.quality(seen, logits, mask).unflatten(0, (groups, clips))
    # What the environment pays for a segment tells its quality, but not how far it is: see `progress_by_way`.
    paid = model.quality(seen, logits.detach(), mask).unflatten(0, (groups, clips))
    opposed = _opposed(batch)
    rows = (opposed[:, None] * clips + torch.arange(clips, device=opposed.device)).flatten()
    under_opposite = model.progress_logits(seen.rows(rows), opposite_text.repeat_interleave(clips, 0))
    under_opposite = under_opposite.reshape(len(opposed), clips * time)
    return {
        "progress": progress_loss(logits, batch.progress.flatten(0, 1)),
        "position": position_loss(seen.positions, batch.positions.flatten(0, 1)),
        "frame_rank": pairwise_ranking_loss(
            logits.reshape(groups, clips * time), batch.value.flatten(1), margin=VALUE_MARGIN
        ),
        "opposite_moved": pairwise_ranking_loss(under_opposite, -batch.moved[opposed].flatten(1), margin=MOVED_MARGIN),
        "opposite_nearing": pairwise_ranking_loss(
            under_opposite, batch.nearing[opposed].flatten(1), margin=MOVED_MARGIN
        ),
        "tier": pairwise_ranking_loss(quality, batch.tier, margin=0.5),
        "segment": pairwise_ranking_loss(paid, batch.segment_return / MAX_REWARD, margin=RETURN_MARGIN),
    }


def _relevance_parts(
    model: CompactRewardModel, every: ClipFeatures, batch: ClipBatch, text: Tensor, opposite_text: Tensor
) -> dict[str, Tensor]:
    """Which sentence, of G * C clips and the full experts' clips turned round, which show anything but their own.

    The opposite sentence is about the same scene: "close" is no sign of a window, only because no door is closed in
    training. The turned clips show what it says, which only the motion's heads can learn.
    """
    groups, clips = batch.tier.shape
    shown = ~batch.reversed.flatten()  # a clip that was cut backwards shows no task
    every = every.rows(torch.cat([shown, shown.new_ones(int(batch.expert.sum()))]))
    own_group = torch.arange(groups, device=text.device).repeat_interleave(clips)
    group = torch.cat([own_group[shown], own_group[batch.expert.flatten()]])
    forward_clips = int(shown.sum())  # they come first
    both = torch.cat([text, opposite_text])  # in one go: the heads normalise over all sentences they get
    every_scene = model.scene_relevance(every, both)
    scene, opposite_scene = every_scene.tensor_split([groups], 1)
    motion, opposite_motion = model.motion_relevance(every, both).tensor_split([groups], 1)
    relevance = scene + motion  # [V, G]
    own = group[:, None] == torch.arange(groups, device=text.device)
    forward = torch.arange(len(group), device=text.device)[:, None] < forward_clips
    positive, candidate = own & forward, own | forward  # a turned clip is a negative of its own sentence only
    opposed = _opposed(batch)
    of_opposed = group[:, None] == opposed  # [V, O]
    about = torch.cat([own, of_opposed], 1)[:forward_clips]
    every_scene = every_scene[:forward_clips]
    anything = torch.ones_like(about)
    turned = of_opposed & ~forward
    opposite = opposite_scene.detach() + opposite_motion
    full = torch.cat([batch.expert.flatten()[shown], shown.new_ones(len(group) - forward_clips)])
    chosen = of_opposed & full[:, None]
    choice = torch.stack([motion[:, opposed], opposite_motion], -1)[chosen]  # the sentence, its opposite
    return {
        "to_text": video_to_text_loss(relevance[:forward_clips], group[:forward_clips]),
        "to_video": text_to_video_loss(relevance, positive, candidate),
        "match": balanced_match_loss(relevance, positive, candidate),
        "opposite_to_video": text_to_video_loss(opposite, turned, turned | forward),
        "opposite_match": balanced_match_loss(opposite, turned, turned | forward),
        "opposite_choice": video_to_text_loss(choice, turned[chosen].long()),
        "scene_to_text": text_to_video_loss(every_scene.T, about.T, anything.T),  # of each video over the sentences
        "scene_match": balanced_match_loss(every_scene, about, anything),
    }


def _opposed(batch: ClipBatch) -> Tensor:
    """Indices of the tasks in a batch whose sentence has an opposite, int64 ``[O]``."""
    return torch.tensor(
        [group for group, sentence in enumerate(batch.opposites) if sentence is not None],
        dtype=torch.int64, device=batch.tier.device,
    )  # fmt: skip


class ClipRecipe(Recipe):
    """How `CompactRewardModel` and `VLPModel` learn; arguments as those of `train`."""

    def __init__(self, trajectories: Sequence[Trajectory], config: TrainConfig, window: int) -> None:
        self.sampler = ClipSampler(
            trajectories,
            tasks_per_batch=config.tasks_per_batch,
            clips_per_task=config.clips_per_task,
            window=window,
            seed=config.seed,
            focus=config.focus,
        )
        self.settings = {"focus": self.sampler.focus, "tasks": self.sampler.tasks}
        self.relevance_only = False

    def batch(self, number: int) -> ClipBatch:
        """See `ClipSampler.batch`."""
        return self.sampler.batch(number)

    def loss(self, model: nn.Module, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """See `batch_loss`."""
        return batch_loss(model, batch, generator, relevance_only=self.relevance_only)
