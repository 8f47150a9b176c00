"""Stored episodes with scores, tokens and frames, changed with both hashes made right again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.mutations.harness import Target
from tests.mutations.pairs import damage
from tests.painted_segments import painted_store
from vlp_gym.errors import CheckpointError
from vlp_gym.preferences.segment_store import SegmentStore


def make(folder: Path) -> None:
    painted_store(episodes=3, steps=7, length=4, size=8, every=2).save(folder)


def mutate(folder: Path, rng: np.random.Generator) -> str:
    return damage(folder, "segments", rng)


def read(folder: Path) -> SegmentStore:
    """Load the episodes, and draw from them."""
    store = SegmentStore.load(folder)
    if store.numbers:
        segments = store.sample(5, np.random.default_rng(0))
        assert segments.states.shape[:2] == (5, store.length)
    return store


def wrong(store: SegmentStore) -> str:
    numbers = store.numbers
    if min(store.length, store.episodes) < 1 or store.frame_size < 0 or not isinstance(store.keep_tokens, bool):
        return f"settings {store.length}, {store.episodes}, {store.frame_size}, {store.keep_tokens}"
    if len(numbers) > store.episodes or not all(0 <= number < store._count for number in numbers):
        return f"numbers {numbers} of {store._count}"
    sizes = set()
    for number, record in store._finished.items():
        steps = len(record.states)
        if number != record.number or not steps or {len(record.actions), len(record.rewards)} != {steps}:
            return f"episode {number}: {steps} states, {len(record.actions)} actions, {len(record.rewards)} rewards"
        sizes.add((*record.states[0].shape, *record.actions[0].shape))
        if not all(np.isfinite(row).all() for row in (*record.states, *record.actions)):
            return f"episode {number}: states or actions that are not finite"
        if not all(np.isfinite(score) for score in record.scores.values()):
            return f"episode {number}: scores {record.scores}"
        for kept in (record.scores, record.tokens, record.frames):
            if not all(isinstance(step, int) and 0 <= step <= steps for step in kept):
                return f"episode {number} of {steps} steps: steps {list(kept)}"
        for frame in record.frames.values():
            if frame.shape != (store.frame_size, store.frame_size, 3) or frame.dtype != np.uint8:
                return f"episode {number}: a frame {frame.dtype} {frame.shape}"
        for tokens in record.tokens.values():
            if tokens.ndim != 3 or not torch.isfinite(tokens).all():
                return f"episode {number}: tokens {tokens.shape}"
    if len(sizes) > 1 or any(len(size) != 2 for size in sizes):
        return f"sizes {sizes}"
    return ""


TARGET = Target(make, mutate, read, wrong, (CheckpointError,))
