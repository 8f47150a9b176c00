"""A backbone trained from scratch: a small frame encoder and the hashed-word text encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlp_gym.frames.resize import resize_frames
from vlp_gym.models.backbones.hashed_words import HashedWords

PATCH = 4  # pixels per side of one input position
TOKEN_PIXELS = 4 * PATCH  # pixels per side of one token: two convolutions halve the grid


class SmallBackbone(nn.Module):
    """Encode frames as a grid of tokens, with a few small convolutions, and sentences as one token.

    Args:
        frame_size: side of the square that frames are resized to, in pixels, divisible by 16.
        channels: width of a frame token; there are (frame_size / 16)^2 tokens per frame.
        buckets: size of the text encoder's hash table.
        truncate: truncate sentences over 64 words instead of raising.
    """

    restorable = False

    def __init__(self, frame_size: int = 112, channels: int = 128, buckets: int = 4096, truncate: bool = False) -> None:
        super().__init__()
        if frame_size % TOKEN_PIXELS:
            raise ValueError(f"frame_size: expected a multiple of {TOKEN_PIXELS} pixels, got {frame_size}")
        self.frame_size = (frame_size, frame_size)
        self.words = HashedWords(buckets, truncate=truncate)
        self.frame_dim, self.text_dim = channels, self.words.dim
        half = channels // 2
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(PATCH),
            nn.Conv2d(3 * PATCH**2, half, 1),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, 2, 1),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            _Residual(half),
            nn.Conv2d(half, channels, 3, 2, 1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            _Residual(channels),
        )

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B sentences as one token each, float ``[B, 1, text_dim]``."""
        return self.words(instructions)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encode uint8 frames ``[N, H, W, 3]`` as float ``[N, K, channels]``, row by row."""
        return self.encode_pixels(resize_frames(frames, self.frame_size).permute(0, 3, 1, 2).float() / 255)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Encode float pixels ``[N, 3, *frame_size]`` in [0, 1] (augmented frames), float ``[N, K, channels]``."""
        grid = self.stem(((pixels - 0.4) / 0.25).contiguous(memory_format=torch.channels_last))
        return grid.flatten(2).transpose(1, 2)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))
