"""Augmentation with one random draw per clip, shared by its frames, so that it adds no motion."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from vlp_gym.training.recipes.stage_clips import StageBatch

MAX_SHIFT = 4  # pixels
CONTRAST = 0.1
BRIGHTNESS = 0.05
CHANNEL_GAIN = 0.05
NOISE = 0.01
RECOLOURED = 0.25  # share of clips whose black background gets another colour
MIRRORED = 0.5  # share of clips that are flipped left to right
BLACK = 12 / 255  # upper bound of the black background of fast rendering after JPEG


def mirror_clips(batch: StageBatch, generator: torch.Generator) -> StageBatch:
    """Flip a random half of the clips left to right, with their positions."""
    mirrored = torch.rand(batch.frames.shape[:2], generator=generator).to(batch.frames.device) < MIRRORED
    mirrored = mirrored[:, :, None, None, None]
    return replace(
        batch,
        frames=torch.where(mirrored[..., None], batch.frames.flip(-2), batch.frames),
        positions=torch.where(mirrored, batch.positions * batch.positions.new_tensor([-1, 1, 1]), batch.positions),
    )


def augment_clips(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, scale, relight and tint clips, add noise, and recolour the black background of some.

    Args:
        frames: uint8 ``[B, T, H, W, 3]``.
        generator: source of all random draws, on the CPU.

    Returns:
        Float pixels ``[B * T, 3, H, W]`` in [0, 1].
    """
    batch, time, height, width = frames.shape[:4]
    device = frames.device
    pixels = frames.permute(0, 1, 4, 2, 3).flatten(1, 2).float().div_(255)  # [B, T*3, H, W]

    def draw(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=generator) * 2 - 1).to(device)

    colour = 0.5 * (draw(batch, 1, 3, 1, 1) + 1)
    recoloured = (draw(batch) > 1 - 2 * RECOLOURED).nonzero()[:, 0]
    some = pixels[recoloured].unflatten(1, (time, 3))
    black = some.amax(2, keepdim=True) < BLACK
    pixels[recoloured] = torch.where(black, colour[recoloured], some).flatten(1, 2)
    scale = 1 + 0.03 * draw(batch, 1)
    shift = draw(batch, 2) * (2 * MAX_SHIFT / torch.tensor([width, height], device=device))
    theta = torch.zeros(batch, 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale[:, 0]
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, [batch, 3 * time, height, width], align_corners=False)
    pixels = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    pixels = pixels.reshape(batch, time, 3, height, width)
    gain = (1 + CONTRAST * draw(batch, 1, 1, 1, 1)) * (1 + CHANNEL_GAIN * draw(batch, 1, 3, 1, 1))
    offset = 0.4 * (1 - gain) + BRIGHTNESS * draw(batch, 1, 1, 1, 1)
    noise = torch.randn(pixels.shape, generator=generator).to(device)
    return noise.mul_(NOISE).add_(offset).addcmul_(pixels, gain).clamp_(0, 1).flatten(0, 1)  # in place: memory is slow
