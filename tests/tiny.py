"""The smallest reward model that the real constructor makes."""

from __future__ import annotations

from vlp_gym.models.compact import CompactRewardModel


def tiny_model(**options) -> CompactRewardModel:
    """Random weights; windows of 4 frames of 32 x 32 pixels."""
    return CompactRewardModel(image_size=32, channels=16, hidden=32, embedding=8, buckets=64, window=4, **options)
