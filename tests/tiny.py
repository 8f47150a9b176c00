"""The smallest reward models that the real constructors make."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vlp_gym.models.compact import CompactRewardModel
from vlp_gym.models.staged import StagedRewardModel

SIZE: dict[str, Any] = {
    "image_size": 32, "channels": 16, "hidden": 32, "embedding": 8, "buckets": 64, "window": 4,
}  # fmt: skip


def tiny_model(**options) -> CompactRewardModel:
    """Random weights; windows of 4 frames of 32 x 32 pixels."""
    return CompactRewardModel(**SIZE, **options)


def tiny_staged(**options) -> StagedRewardModel:
    """The same of the staged model."""
    return StagedRewardModel(**SIZE, **options)


def awake(kind: type, **options):
    """A model of a class, with random weights in the word tables and the direction too, which a fresh one has at 0."""
    torch.manual_seed(0)
    made = kind(**{**SIZE, "buckets": 256, **options}).eval()
    for weight in (made.backbone.words.table.weight, made.verbs.table.weight, made.direction_head.weight):
        torch.nn.init.normal_(weight)
    return made


def two_clips(model) -> torch.Tensor:
    """Frame tokens of two clips of four frames, ``[2, 4, K, D]``."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    with torch.inference_mode():
        return model.encode_frames(torch.from_numpy(pixels)).unflatten(0, (2, 4))
