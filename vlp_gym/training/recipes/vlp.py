"""Training of VLP on clips (eq. 4): over a frozen CLIP, or jointly with the small encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.models.vlp import VLPModel
from vlp_gym.objectives.preference import vlp_loss
from vlp_gym.training.augment import augment_clips
from vlp_gym.training.recipe import expect_model
from vlp_gym.training.recipes.clips import ClipBatch, ClipOptions, ClipRecipe, ClipSampler

NEGATIVES = 4  # videos of other tasks (VLP, table 8)


@dataclass(frozen=True, kw_only=True)
class VLPOptions(ClipOptions):
    """VLP: a preference score by cross-attention over a frozen CLIP.

    The optimizer's defaults are the paper's (table 8), except for the warm-up, which it does not mention.

    Attributes:
        backbone: open_clip:NAME/PRETRAINED, open_clip:NAME for random weights, or small, the small encoders.
    """

    steps: int = 15_000
    learning_rate: float = 3e-5
    weight_decay: float = 0.1
    backbone: str = "open_clip:ViT-B-16/openai"

    def build(self, trajectories: Sequence[Trajectory]) -> tuple[VLPModel, VLPRecipe]:
        model = VLPModel(self.backbone)
        return model, self.recipe(model, trajectories)

    def recipe(self, model: nn.Module, trajectories: Sequence[Trajectory]) -> VLPRecipe:
        return VLPRecipe(self.sampler(trajectories, expect_model(model, VLPModel).window))

    def packages(self) -> dict[str, str]:
        return super().packages() | ({"open_clip": "clip"} if self.backbone.startswith("open_clip:") else {})


@dataclass(frozen=True, kw_only=True)
class JointOptions(ClipOptions):
    """VLP's model over the small encoders, trained together from scratch."""

    def build(self, trajectories: Sequence[Trajectory]) -> tuple[VLPModel, VLPRecipe]:
        model = VLPModel("small")
        return model, VLPRecipe(self.sampler(trajectories, model.window))


class VLPRecipe(ClipRecipe):
    """Pairs of clips of one task; the next tasks in the batch give the wrong sentence and the negative videos."""

    def __init__(self, sampler: ClipSampler) -> None:
        super().__init__(sampler)
        self.settings["recipe"] = "vlp"

    def loss(self, model: nn.Module, batch: ClipBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """VLP eq. 4 on two random clips of each task; the other clips are not encoded.

        The preferred clip has the better tier or, if a tier is unknown, the larger reward. Pairs of unknown order are
        left out of the intra-task term.
        """
        live = expect_model(model, VLPModel)
        groups, clips, time = batch.frames.shape[:3]
        device = batch.frames.device
        chosen = torch.argsort(torch.rand(groups, clips, generator=generator), 1)[:, :2].to(device)
        rows = torch.arange(groups, device=device)[:, None]
        pixels = augment_clips(batch.frames[rows, chosen].flatten(0, 1), generator)
        frames = (pixels.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
        a, b = live.encode_frames(frames).unflatten(0, (groups, 2, time)).unbind(1)
        text = live.encode_text(batch.instructions)
        mask = torch.ones(groups, time, dtype=torch.bool, device=device)
        tier, paid = (values[rows, chosen] for values in (batch.tier, batch.segment_return))
        better = torch.where(tier.isnan().any(1), paid[:, 0] - paid[:, 1], tier[:, 0] - tier[:, 1])  # NaN: unknown

        def score(video: Tensor, sentence: Tensor) -> Tensor:
            return live.score(video, sentence, mask).preference

        score_a, score_b = score(a, text), score(b, text)
        foreign = text.roll(1, 0)
        negatives = torch.stack([score(a.roll(shift, 0), text) for shift in range(1, min(NEGATIVES + 1, groups))], 1)
        loss = vlp_loss(
            (score_a, score_b, (better.nan_to_num().sign() + 1) / 2),
            (score(a, foreign), score(b, foreign)),
            ((score_a, negatives), (score_b, negatives)),
            known=~better.isnan(),
        )
        return {"loss": loss.total, "itp": loss.itp, "ilp": loss.ilp, "ivp": loss.ivp}
