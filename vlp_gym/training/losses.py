"""What each kind of model learns from a batch of clips: the total loss and its parts, by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlp_gym.models.compact import ClipFeatures, CompactRewardModel
from vlp_gym.models.vlp import VLPModel
from vlp_gym.objectives.position import position_loss
from vlp_gym.objectives.preference import vlp_loss
from vlp_gym.objectives.progress import pairwise_ranking_loss, progress_loss
from vlp_gym.objectives.relevance import balanced_match_loss, text_to_video_loss, video_to_text_loss
from vlp_gym.training.augment import augment_clips, mirror_clips
from vlp_gym.training.clips import ClipBatch

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


def _vlp_loss(model: VLPModel, batch: ClipBatch, generator: torch.Generator) -> dict[str, Tensor]:
    """VLP eq. 4: pairs of tiers within a task, a foreign sentence, and videos of the next task as negatives."""
    groups, clips, time = batch.frames.shape[:3]
    pixels = augment_clips(batch.frames.flatten(0, 1), generator)
    frames = (pixels.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
    tokens = model.encode_frames(frames).unflatten(0, (groups, clips, time))
    text = model.encode_text(batch.instructions)
    mask = torch.ones(groups, time, dtype=torch.bool, device=tokens.device)
    order = torch.argsort(torch.rand(groups, clips, generator=generator), 1).to(tokens.device)
    rows = torch.arange(groups, device=tokens.device)
    a, b = tokens[rows, order[:, 0]], tokens[rows, order[:, 1]]
    tiers = batch.tier[rows, order[:, 0]] - batch.tier[rows, order[:, 1]]  # NaN unless both are known
    returns = batch.segment_return[rows, order[:, 0]] - batch.segment_return[rows, order[:, 1]]
    label = (torch.where(tiers.isnan(), returns, tiers).nan_to_num(0.0).sign() + 1) / 2

    def score(video: Tensor, sentence: Tensor) -> Tensor:
        return model.score(video, sentence, mask).preference

    score_a, score_b = score(a, text), score(b, text)
    foreign = text.roll(1, 0)
    negatives = torch.stack([score(a.roll(shift, 0), text) for shift in range(1, min(5, groups))], 1)
    loss = vlp_loss(
        (score_a, score_b, label),
        (score(a, foreign), score(b, foreign)),
        ((score_a, negatives), (score_b, negatives)),
    )
    return {"loss": loss.total, "itp": loss.itp, "ilp": loss.ilp, "ivp": loss.ivp}
