"""Training of `CompactRewardModel`: first everything on augmented clips, then the relevance alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.frames.resize import resize_frames
from vlp_gym.models.compact import ClipFeatures, CompactRewardModel
from vlp_gym.objectives.position import position_loss
from vlp_gym.objectives.progress import pairwise_ranking_loss, progress_loss
from vlp_gym.objectives.relevance import balanced_match_loss, text_to_video_loss, video_to_text_loss
from vlp_gym.training.augment import augment_clips, mirror_clips
from vlp_gym.training.options import check_at_least
from vlp_gym.training.recipe import Stage, expect_model
from vlp_gym.training.recipes.clips import ClipBatch, ClipOptions, ClipRecipe, ClipSampler

VALUE_MARGIN = 0.1  # least difference in reward rank between two ordered frames
RETURN_MARGIN = 0.02  # least difference between two ordered segments, as a share of `MAX_REWARD`
MAX_REWARD = 10.0  # Meta-World's largest reward
MOVED_MARGIN = 0.02  # metres
WEIGHTS = {  # of the losses; 1 for all others
    "position": 10.0,
    "segment": 0.5,
    "opposite_to_video": 0.3,
    "opposite_match": 0.3,
    "opposite_choice": 0.3,
}
RELEVANCE_WEIGHT = 0.05  # in the first stage; the second trains relevance alone


@dataclass(frozen=True, kw_only=True)
class CompactOptions(ClipOptions):
    """The small factorised model that ships, trained from scratch.

    Attributes:
        steps: optimizer steps that train everything; 0 trains only the relevance of --init.
        relevance_steps: further steps that train the relevance alone, without augmentation; a few hundred teach it more
            than a thousand joint steps.
        quality_weight: weight of the quality in the preference; choose it with `vlp-gym tune`.
        motion_weight: weight of the motion in the relevance; choose it with `vlp-gym tune`.
        relevance_shift: added to the scene relevance; choose it with `vlp-gym tune`.
    """

    relevance_steps: int = 400
    quality_weight: float = 12.0
    motion_weight: float = 0.25
    relevance_shift: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, relevance_steps=self.relevance_steps)

    def build(self, trajectories: Sequence[Trajectory]) -> tuple[CompactRewardModel, CompactRecipe]:
        model = CompactRewardModel(
            quality_weight=self.quality_weight, motion_weight=self.motion_weight, relevance_shift=self.relevance_shift
        )
        return model, CompactRecipe(self.sampler(trajectories, model.window), self.relevance_steps)

    def _check_steps(self) -> None:
        if self.steps < (0 if self.init is not None and self.relevance_steps > 0 else 1):
            raise ValueError(
                f"--steps: expected at least 1, or 0 with a compact --init and --relevance-steps, got {self.steps}"
            )


class CompactRecipe(ClipRecipe):
    """Two stages: all weights, then the relevance alone for `relevance_steps` steps."""

    def __init__(self, sampler: ClipSampler, relevance_steps: int = 400) -> None:
        super().__init__(sampler)
        self.relevance_steps = self.settings["relevance_steps"] = relevance_steps

    def stages(self, model: nn.Module, steps: int) -> list[Stage]:
        """See `Recipe.stages`; the second stage leaves progress and quality unchanged."""
        model = expect_model(model, CompactRewardModel)
        relevance = Stage(
            self.relevance_steps, relevance_loss, model.relevance_parameters(), resting=[model.backbone.stem]
        )
        return [Stage(steps, self.loss), relevance]

    def loss(self, model: nn.Module, batch: ClipBatch, generator: torch.Generator) -> dict[str, Tensor]:
        return compact_loss(model, batch, generator)


def compact_loss(model: nn.Module, batch: ClipBatch, generator: torch.Generator) -> dict[str, Tensor]:
    """Loss of the first stage: progress, quality and a little relevance on augmented clips; see `Recipe.loss`."""
    model = expect_model(model, CompactRewardModel)
    batch = mirror_clips(batch, generator)
    groups, clips, time = batch.frames.shape[:3]
    frames = resize_frames(batch.frames.flatten(0, 2), model.frame_size).unflatten(0, (groups * clips, time))
    tokens = model.backbone.encode_pixels(augment_clips(frames, generator))
    progress, relevance = _parts(model, batch, tokens)
    loss = _weighted_sum(progress) + RELEVANCE_WEIGHT * _weighted_sum(relevance)
    return {"loss": loss, **progress, **relevance}


def relevance_loss(model: nn.Module, batch: ClipBatch, generator: torch.Generator) -> dict[str, Tensor]:
    """Loss of the second stage: the relevance alone on unaugmented clips; see `Recipe.loss`."""
    model = expect_model(model, CompactRewardModel)
    progress, relevance = _parts(model, batch, model.encode_frames(batch.frames.flatten(0, 2)))
    return {"loss": _weighted_sum(relevance), **progress, **relevance}


def _parts(model: CompactRewardModel, batch: ClipBatch, tokens: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Progress losses and relevance losses by name; `tokens` of all frames ``[G * C * T, K, D]``."""
    groups, clips, time = batch.frames.shape[:3]
    tokens = tokens.unflatten(0, (groups * clips, time))
    tokens = torch.cat([tokens, tokens[batch.expert.flatten()].flip(1)])
    every = model.features(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))
    text = model.encode_text(batch.instructions)
    opposites = [sentence for sentence in batch.opposites if sentence is not None]
    opposite_text = model.encode_text(opposites) if opposites else text[:0]
    progress = _progress_parts(model, every.rows(slice(groups * clips)), batch, text, opposite_text)
    return progress, _relevance_parts(model, every, batch, text, opposite_text)


def _weighted_sum(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack([WEIGHTS.get(name, 1.0) * part for name, part in parts.items()]).sum()


def _progress_parts(
    model: CompactRewardModel, seen: ClipFeatures, batch: ClipBatch, text: Tensor, opposite_text: Tensor
) -> dict[str, Tensor]:
    """Losses of progress and quality on G * C clips.

    Under the opposite sentence an expert makes progress until it touches the object, and loses progress afterwards.
    """
    groups, clips, time = batch.progress.shape
    logits = model.progress_logits(seen, text.repeat_interleave(clips, 0))
    mask = torch.ones_like(logits)
    quality = model.quality(seen, logits, mask).unflatten(0, (groups, clips))
    # A segment's environment reward orders quality but not progress, see `progress_by_way`.
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
    """Losses that match sentences to G * C clips and to the reversed clips of full experts.

    A reversed clip shows the opposite of its sentence in the same scene. It is a positive of the opposite sentence,
    which only the motion heads can learn, and a negative of its own.
    """
    groups, clips = batch.tier.shape
    shown = ~batch.reversed.flatten()  # a reversed clip shows no task
    every = every.rows(torch.cat([shown, shown.new_ones(int(batch.expert.sum()))]))
    own_group = torch.arange(groups, device=text.device).repeat_interleave(clips)
    group = torch.cat([own_group[shown], own_group[batch.expert.flatten()]])
    forward_clips = int(shown.sum())  # they come first
    both = torch.cat([text, opposite_text])  # in one call: the heads normalise over all sentences they get
    every_scene = model.scene_relevance(every, both)
    scene, opposite_scene = every_scene.tensor_split([groups], 1)
    motion, opposite_motion = model.motion_relevance(every, both).tensor_split([groups], 1)
    relevance = scene + motion  # [V, G]
    own = group[:, None] == torch.arange(groups, device=text.device)
    forward = torch.arange(len(group), device=text.device)[:, None] < forward_clips
    positive, candidate = own & forward, own | forward  # a reversed clip is a negative of its own sentence only
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
        "scene_to_text": text_to_video_loss(
            every_scene.T, about.T, anything.T
        ),  # softmax over the sentences of each video
        "scene_match": balanced_match_loss(every_scene, about, anything),
    }


def _opposed(batch: ClipBatch) -> Tensor:
    """Indices of the tasks in a batch whose sentence has an opposite, int64 ``[O]``."""
    return torch.tensor(
        [group for group, sentence in enumerate(batch.opposites) if sentence is not None],
        dtype=torch.int64, device=batch.tier.device,
    )  # fmt: skip
