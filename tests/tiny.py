"""The smallest reward model that the real constructor makes."""

from __future__ import annotations

from typing import Any

from vlp_gym.models.staged import StagedRewardModel

SIZE: dict[str, Any] = {
    "image_size": 32, "channels": 16, "hidden": 32, "embedding": 8, "buckets": 64, "window": 4,
}  # fmt: skip


def tiny_model(**options) -> StagedRewardModel:
    """Random weights; windows of 4 frames of 32 x 32 pixels."""
    return StagedRewardModel(**SIZE, **options)
