"""How VLP learns from a batch of clips (eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from vlp_gym.models.vlp import VLPModel
from vlp_gym.objectives.preference import vlp_loss
from vlp_gym.training.augment import augment_clips
from vlp_gym.training.recipes.clips import ClipBatch


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
