"""What `vlp-gym train` can train: of each system the model, what it learns from, and how fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.training.recipe import Recipe


class System(NamedTuple):
    """Defaults of one system.

    Attributes:
        backbone: what its model is built on; "" where there is no choice.
        learning_rate: the highest.
        steps: optimizer steps.
        batch_size: samples in a batch; 0 where `TrainConfig` says it in tasks and clips.
    """

    backbone: str
    learning_rate: float
    steps: int
    batch_size: int = 0


SYSTEMS = {
    "compact": System("", 1e-3, 700),
    "vlp": System("open_clip:ViT-B-16/openai", 3e-5, 15_000),
    "joint": System("", 1e-3, 700),
    "rewind": System("dinov2+minilm", 1e-4, 5_000, 32),
    "embedding": System("", 1e-3, 2_000, 32),
    "siglip2-lora": System("google/siglip2-base-patch16-224", 1e-4, 7_810, 32),
    "spur": System("Qwen/Qwen2.5-VL-3B-Instruct", 2e-5, 5_000, 16),
}

SMALL_REWIND: dict[str, Any] = {"hidden": 256, "feed_forward": 1024, "from_first": True}
"""With encoders this small the paper's width overfits, and progress is hard to see without the change so far."""


def learning_rate(system: str, objective: str) -> float:
    """The highest learning rate; LIV's loss makes SigLIP2 unstable beyond 1e-5 (learning objectives, appendix A.1)."""
    return 1e-5 if (system, objective) == ("siglip2-lora", "liv") else SYSTEMS[system].learning_rate


def build(
    system: str,
    trajectories: Sequence[Trajectory],
    *,
    backbone: str,
    freeze_encoders: bool,
    uneven: float,
    objective: str,
    batch_size: int,
    seed: int,
    quality_weight: float,
    motion_weight: float,
    relevance_shift: float,
) -> tuple[nn.Module, Recipe | Sequence[Trajectory]]:
    """A fresh model, drawn from torch's global generator, and what `vlp_gym.training.loop.train` is to teach it.

    Args:
        system: a key of `SYSTEMS`.
        trajectories: of the training tasks.
        backbone: of vlp, rewind, siglip2-lora and spur.
        freeze_encoders, uneven: of rewind.
        objective: of embedding and siglip2-lora.
        batch_size: of all but compact, vlp and joint.
        seed: of the recipe.
        quality_weight, motion_weight, relevance_shift: of compact.

    Raises:
        ValueError, CheckpointError, MissingExtraError: what the model or the recipe raises.
    """
    if system == "compact":
        from vlp_gym.models.compact import CompactRewardModel

        compact = CompactRewardModel(
            quality_weight=quality_weight, motion_weight=motion_weight, relevance_shift=relevance_shift
        )
        return compact, trajectories
    if system in ("vlp", "joint"):
        from vlp_gym.models.vlp import VLPModel

        return VLPModel(backbone if system == "vlp" else "small"), trajectories
    if system == "rewind":
        from vlp_gym.models.rewind import ReWiNDModel
        from vlp_gym.training.recipes.rewind import RewindRecipe

        options = SMALL_REWIND if backbone == "small" else {}
        model = ReWiNDModel(backbone, freeze_encoders=freeze_encoders, **options)
        rewind = RewindRecipe(trajectories, window=model.window, clips=batch_size, p_uneven=uneven, seed=seed)
        return model, rewind
    if system == "spur":
        from vlp_gym.models.spur import SPURModel
        from vlp_gym.training.recipes.spur import SPURRecipe

        spur = SPURModel(backbone)
        spur.gradient_checkpointing_enable()  # the paper's batch is 32 videos of up to 512 tokens
        return spur, SPURRecipe(trajectories, batch_size=batch_size, frames=spur.window, seed=seed)
    from vlp_gym.training.recipes.embedding import EmbeddingRecipe

    recipe = EmbeddingRecipe(trajectories, objective, batch_size=batch_size, seed=seed)
    if system == "embedding":
        from vlp_gym.models.embedding import EmbeddingModel

        return EmbeddingModel(), recipe
    from vlp_gym.models.siglip2 import SigLIP2Model

    return SigLIP2Model(base=backbone), recipe
