"""The smallest reward model that the real constructor makes."""

from __future__ import annotations

from typing import Any

import torch

from vlp_gym.models.staged import StagedRewardModel

SIZE: dict[str, Any] = {
    "image_size": 32, "channels": 16, "hidden": 32, "embedding": 8, "buckets": 64, "window": 4,
}  # fmt: skip


def tiny_model(**options) -> StagedRewardModel:
    """Random weights; windows of 4 frames of 32 x 32 pixels."""
    return StagedRewardModel(**{**SIZE, **options})


def awake_model(**options) -> StagedRewardModel:
    """The same with random weights in the word tables and the direction too, which a fresh one has at 0."""
    torch.manual_seed(0)
    made = tiny_model(**{"buckets": 256, **options}).eval()
    for weight in (made.backbone.words.table.weight, made.verbs.table.weight, made.direction_head.weight):
        torch.nn.init.normal_(weight)
    return made
