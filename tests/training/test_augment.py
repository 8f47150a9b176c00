"""Augmentation: one draw a clip, so that nothing moves that did not move."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rollouts import painted_tasks

from vlp_gym.training import augment
from vlp_gym.training.augment import augment_clips, mirror_clips
from vlp_gym.training.recipes.stage_clips import StageSampler

SETTINGS = {"tasks_per_batch": 2, "clips_per_task": 4, "frames_per_clip": 8, "seed": 0}


def clips(batch=3, time=4, size=24):
    """Smooth clips that stand still."""
    y, x = np.mgrid[:size, :size] / size
    picture = np.stack([np.sin(3 * x + k) + np.cos(2 * y - k) for k in range(3)], -1)
    picture = (picture - picture.min()) / np.ptp(picture) * 200 + 20
    return torch.from_numpy(np.broadcast_to(picture, (batch, time, size, size, 3)).astype(np.uint8).copy())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_shape_range_and_input():
    given = clips()
    before = given.clone()
    pixels = augment_clips(given, seeded())
    assert pixels.shape == (12, 3, 24, 24)
    assert pixels.dtype == torch.float32
    assert 0 <= pixels.min() <= pixels.max() <= 1
    assert torch.equal(given, before)


def test_the_generator_decides_and_the_global_one_is_left_alone():
    state = torch.get_rng_state()
    first, second, other = (augment_clips(clips(), seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_stands_still_goes_on_standing_still(monkeypatch):
    monkeypatch.setattr(augment, "NOISE", 0.0)
    pixels = augment_clips(clips(), seeded()).unflatten(0, (3, 4))
    assert torch.equal(pixels[:, :1].expand_as(pixels), pixels)
    assert (pixels[0, 0] - pixels[1, 0]).abs().max() > 0.02  # each clip has a draw of its own


def test_noise_is_as_strong_as_it_says():
    pixels = augment_clips(clips(), seeded()).unflatten(0, (3, 4))
    inside = (pixels > 0.1).all(1) & (pixels < 0.9).all(1)
    spread = (pixels[:, 0] - pixels[:, 1])[inside].std() / 2**0.5
    assert spread.item() == pytest.approx(augment.NOISE, rel=0.1)


def still(monkeypatch, **kept):
    """Everything off that has a strength, but for what is kept."""
    for name in ("MAX_SHIFT", "CONTRAST", "BRIGHTNESS", "CHANNEL_GAIN", "NOISE"):
        monkeypatch.setattr(augment, name, kept.get(name, 0))


def test_no_strength_is_the_identity(monkeypatch):
    still(monkeypatch)
    monkeypatch.setattr(torch, "rand", lambda shape, generator: torch.full(shape, 0.5))  # no scaling either
    given = clips()
    expected = given.flatten(0, 1).permute(0, 3, 1, 2) / 255
    assert torch.allclose(augment_clips(given, seeded()), expected, atol=1e-5)


def test_half_of_the_clips_are_mirrored_whole_and_their_positions_with_them():
    given = StageSampler(painted_tasks(("push-v3", "sweep-v3"), size=8), **SETTINGS).batch(0)
    given = replace(given, frames=torch.randint(0, 256, given.frames.shape, dtype=torch.uint8))
    given.positions[0, 0, 0, 0, 0] = torch.nan
    turned = torch.zeros(given.frames.shape[:2])
    for seed in range(100):
        mirrored = mirror_clips(given, seeded(seed))
        whole = (mirrored.frames == given.frames.flip(-2)).flatten(2).all(2)
        kept = (mirrored.frames == given.frames).flatten(2).all(2)
        assert (whole ^ kept).all()
        side = torch.where(whole, -1, 1)[:, :, None, None]
        assert torch.equal(mirrored.positions[..., 0].nan_to_num(), given.positions[..., 0].nan_to_num() * side)
        assert torch.equal(mirrored.positions[..., 1:], given.positions[..., 1:])
        turned += whole
    assert ((turned > 30) & (turned < 70)).all()


def test_shift_stays_within_its_bound(monkeypatch):
    """A bright column may move by MAX_SHIFT pixels, and by 3 % of half the width through the scale."""
    still(monkeypatch, MAX_SHIFT=augment.MAX_SHIFT)
    size = 64
    given = torch.zeros(50, 1, size, size, 3, dtype=torch.uint8)
    given[:, :, :, size // 2] = 255
    columns = augment_clips(given, seeded())[:, 0].mean(1).argmax(-1)
    moved = (columns - size // 2).abs()
    assert 3 < moved.max() <= augment.MAX_SHIFT + 1
    assert len(columns.unique()) > 5
