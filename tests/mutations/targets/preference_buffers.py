"""Labelled pairs, changed with both hashes made right again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.mutations.harness import Target
from tests.mutations.pairs import damage
from tests.painted_segments import painted_store
from vlp_gym.errors import CheckpointError
from vlp_gym.preferences.buffer import PreferenceBuffer
from vlp_gym.preferences.reward import RewardEnsemble


def make(folder: Path) -> None:
    store, rng = painted_store(keep_frames=False), np.random.default_rng(0)
    buffer = PreferenceBuffer(20)
    buffer.add(store.sample(7, rng), store.sample(7, rng), [1, 0, 0.5, 0.25, 1, 0, 1], soft=True)
    buffer.save(folder)


def mutate(folder: Path, rng: np.random.Generator) -> str:
    return damage(folder, "preferences", rng)


def read(folder: Path) -> PreferenceBuffer:
    """Load the pairs, and learn from them."""
    buffer = PreferenceBuffer.load(folder)
    if len(buffer):
        RewardEnsemble(buffer.inputs.shape[3] - 1, 1, hidden=(2,)).fit(buffer, 1)
    return buffer


def wrong(buffer: PreferenceBuffer) -> str:
    pairs, sides, length, width = buffer.inputs.shape
    labels, mask = buffer.labels, buffer.mask
    if (buffer.inputs.dtype, mask.dtype, labels.dtype) != (np.float32, np.bool_, np.float32):
        return f"dtypes {buffer.inputs.dtype}, {mask.dtype}, {labels.dtype}"
    if labels.shape != (pairs,) or mask.shape != (pairs, sides, length) or (pairs and sides != 2):
        return f"shapes {buffer.inputs.shape}, {mask.shape}, {labels.shape}"
    if not buffer.capacity >= 1 or pairs > buffer.capacity or (pairs and width < 2):
        return f"{pairs} pairs of {buffer.capacity}, {width} numbers"
    if not all(0 <= label <= 1 for label in labels.tolist()):
        return f"labels {labels}"
    if not np.isfinite(buffer.inputs).all():
        return "inputs that are not finite"
    if not set(mask.view(np.uint8).ravel().tolist()) <= {0, 1} or not mask.any(2).all():
        return "a mask of other bytes, or without a step"
    return ""


TARGET = Target(make, mutate, read, wrong, (CheckpointError,))
