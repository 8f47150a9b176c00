"""Training of VLP (eq. 4), as published or on clips: over a frozen CLIP, or jointly with the small encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.models.vlp import VLPModel
from vlp_gym.objectives.preference import vlp_loss
from vlp_gym.training.augment import augment_clips
from vlp_gym.training.options import check_at_least
from vlp_gym.training.recipe import Recipe, expect_model
from vlp_gym.training.recipes.clips import ClipBatch, ClipOptions, ClipRecipe, ClipSampler
from vlp_gym.training.recipes.vlp_published import PublishedRecipe
from vlp_gym.training.token_files import TokenFiles

NEGATIVES = 4  # videos of other tasks (VLP, table 8)
ONLY = {"published": ("pairs", "data_share", "token_files"), "mixed": ("tasks_per_batch", "clips_per_task", "focus")}


@dataclass(frozen=True, kw_only=True)
class VLPOptions(ClipOptions):
    """VLP: a preference score by cross-attention over a frozen CLIP.

    The defaults are the paper's (table 8).

    Attributes:
        backbone: open_clip:NAME/PRETRAINED, open_clip:NAME for random weights, or small, the small encoders.
        recipe: published: whole videos of one task a batch, ordered by tier, without augmentation. mixed: augmented
            clips of many tasks, ordered by tier or reward, some of them backwards.
        pairs: published: pairs of videos per batch.
        data_share: published: share of the rollouts of each task and tier to train on, above 0.
        token_files: published: folder for what a frozen backbone makes of the frames (2.4 MB a rollout with ViT-B/16),
            so that it encodes each of them once, for all runs that share the folder.
        negatives: videos of other tasks beside each pair.
        lambda_ilp: weight of the loss of pairs under another task's sentence.
        lambda_ivp: weight of the loss of pairs with a video of another task.
    """

    steps: int = 15_000
    learning_rate: float = 3e-5
    weight_decay: float = 0.1
    warmup: float = 0.0
    backbone: str = "open_clip:ViT-B-16/openai"
    recipe: Literal["published", "mixed"] = "published"
    pairs: int = 16
    data_share: float = 1.0
    token_files: Path | None = None
    negatives: int = NEGATIVES
    lambda_ilp: float = 0.1
    lambda_ivp: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, pairs=self.pairs, negatives=self.negatives)
        check_at_least(0, lambda_ilp=self.lambda_ilp, lambda_ivp=self.lambda_ivp)
        if not 0 < self.data_share <= 1:
            raise ValueError(f"--data-share: expected a share above 0, at most 1, got {self.data_share}")
        if self.token_files is not None and self.backbone == "small":
            raise ValueError("--token-files: expected a frozen backbone, such as open_clip:..., got --backbone small")
        default = {field.name: field.default for field in fields(self)}
        other: Literal["published", "mixed"] = "mixed" if self.recipe == "published" else "published"
        for name in ONLY[other]:
            if (value := getattr(self, name)) != default[name]:
                raise ValueError(f"--{name.replace('_', '-')}: expected with --recipe {other} only, got {value}")

    def build(self, trajectories: Sequence[Trajectory]) -> tuple[VLPModel, Recipe]:
        model = VLPModel(self.backbone)
        return model, self.recipe_of(model, trajectories)

    def recipe_of(self, model: nn.Module, trajectories: Sequence[Trajectory]) -> Recipe:
        window = expect_model(model, VLPModel).window
        if self.recipe == "published":
            return PublishedRecipe(
                trajectories, window=window, pairs=self.pairs, negatives=self.negatives,
                lambda_ilp=self.lambda_ilp, lambda_ivp=self.lambda_ivp, data_share=self.data_share, seed=self.seed,
                tokens=None if self.token_files is None else TokenFiles(self.token_files),
            )  # fmt: skip
        return MixedRecipe(
            self.sampler(trajectories, window),
            negatives=self.negatives, lambda_ilp=self.lambda_ilp, lambda_ivp=self.lambda_ivp,
        )  # fmt: skip

    def packages(self) -> dict[str, str]:
        return super().packages() | ({"open_clip": "clip"} if self.backbone.startswith("open_clip:") else {})


@dataclass(frozen=True, kw_only=True)
class JointOptions(ClipOptions):
    """VLP's model over the small encoders, trained together from scratch."""

    def build(self, trajectories: Sequence[Trajectory]) -> tuple[VLPModel, MixedRecipe]:
        model = VLPModel("small")
        return model, MixedRecipe(self.sampler(trajectories, model.window))


class MixedRecipe(ClipRecipe):
    """Pairs of clips of one task; the next tasks in the batch give the wrong sentence and the negative videos.

    Args:
        sampler: draws the batches.
        negatives: videos of other tasks beside each pair, as far as the batch has them.
        lambda_ilp: weight of the inter-language term.
        lambda_ivp: weight of each inter-video term.
    """

    def __init__(
        self, sampler: ClipSampler, *, negatives: int = NEGATIVES, lambda_ilp: float = 0.1, lambda_ivp: float = 0.5
    ) -> None:
        super().__init__(sampler)
        self.negatives, self.lambda_ilp, self.lambda_ivp = negatives, lambda_ilp, lambda_ivp
        self.settings |= {"recipe": "vlp", "negatives": negatives, "lambda_ilp": lambda_ilp, "lambda_ivp": lambda_ivp}

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
        negatives = torch.stack(
            [score(a.roll(shift, 0), text) for shift in range(1, min(self.negatives + 1, groups))], 1
        )
        loss = vlp_loss(
            (score_a, score_b, (better.nan_to_num().sign() + 1) / 2),
            (score(a, foreign), score(b, foreign)),
            ((score_a, negatives), (score_b, negatives)),
            self.lambda_ilp,
            self.lambda_ivp,
            known=~better.isnan(),
        )
        return {"loss": loss.total, "itp": loss.itp, "ilp": loss.ilp, "ivp": loss.ivp}
